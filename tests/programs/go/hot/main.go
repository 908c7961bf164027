// Writes a profile of the processor's time while it does little but allocate, for a build with `-pgo`: the compiler inlines
// what it finds hot, the runtime's own allocation included.
//
// Argument: the file.
package main

import (
	"fmt"
	"os"
	"reflect"
	"runtime/pprof"
	"strings"
	"time"
)

type node struct{ left, right *node }

var (
	bytes    []byte
	pointers []*node
	tiny     *[3]byte
	tree     *node
	shelf    = map[int]*node{}
	text     string
	value    reflect.Value
	kind     = reflect.TypeOf(node{})
)

func allocate(round int) {
	for n := 0; n < 1000; n++ {
		bytes = make([]byte, 24+n%200)
		pointers = make([]*node, 4+n%100)
		tiny = new([3]byte)
		tree = &node{}
		shelf[n] = tree
		var builder strings.Builder
		builder.Grow(20 + n%100)
		builder.WriteString("hot")
		text = builder.String()
		value = reflect.New(kind)
	}
	pointers = make([]*node, 1024)
	pointers[round%1024] = tree
}

func main() {
	file, err := os.Create(os.Args[1])
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	begin := time.Now()
	for round := 0; time.Since(begin) < 4*time.Second; round++ {
		allocate(round)
	}
	pprof.StopCPUProfile()
	if err := file.Close(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
