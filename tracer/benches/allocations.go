// What the bench of the Go heap measures on. The first argument says what it does: `loop` allocates and drops, and prints how
// long an allocation takes, round after round; `keep` keeps as many objects as the second argument says, and prints their
// addresses; `profile` has the runtime keep a profile, and allocates by as many stacks as there are numbers of so many bits.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

type object [64]byte

var (
	sink *object
	kept []*[512]byte
	all  []*object
)

//go:noinline
func allocate() { sink = new(object) }

// Processor time of the thread, ns: what else the machine does must not count.
func now() int64 {
	var time syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 3, uintptr(unsafe.Pointer(&time)), 0)
	return time.Nano()
}

func loop() {
	const n = 20000
	runtime.LockOSThread()
	for {
		begin := now()
		for i := 0; i < n; i++ {
			allocate()
		}
		fmt.Printf("%.1f\n", float64(now()-begin)/n)
	}
}

func keep(n int) {
	for i := 0; i < n; i++ {
		kept = append(kept, new([512]byte))
	}
	runtime.GC()
	out := bufio.NewWriter(os.Stdout)
	for _, object := range kept {
		binary.Write(out, binary.LittleEndian, uint64(uintptr(unsafe.Pointer(object))))
	}
	out.Flush()
	select {}
}

// A stack for each path.
//
//go:noinline
func branch(path, depth int) {
	if depth == 0 {
		all = append(all, new(object))
	} else if path&1 == 0 {
		branch(path>>1, depth-1)
	} else {
		branch(path>>1, depth-1)
	}
}

func profile(bits int) {
	runtime.MemProfileRate = 1
	for path := 0; path < 1<<bits; path++ {
		branch(path, bits)
	}
	n, _ := runtime.MemProfile(nil, true)
	fmt.Println(n)
	select {}
}

func main() {
	go func() { time.Sleep(time.Hour) }()
	number := 0
	if len(os.Args) > 2 {
		number, _ = strconv.Atoi(os.Args[2])
	}
	switch os.Args[1] {
	case "loop":
		loop()
	case "keep":
		keep(number)
	case "profile":
		profile(number)
	}
}
