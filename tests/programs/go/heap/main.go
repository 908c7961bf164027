// Allocation sites of all kinds that know what they hold.
//
// Arguments: names of cases, or `all`. Lines on the standard input: `begin` runs the cases, collects garbage and tells the
// truth; `collect` collects garbage; `profile FILE` writes the runtime's own heap profile (built with the tag `profiled`);
// `litter` allocates 64 MiB of garbage, and `litter FILE` writes that profile then, without a collection; `deepen` has 300
// goroutines take some 150 MiB of stack and stay; `map` maps 16 MiB of its own, and `shaped` writes as much to what it maps in the
// shape of the runtime's arenas.
// With the case `checked`, `begin` only starts it, and `rest` ends it and tells what it found. It says `ready` when it has
// done so.
//
// Built without the tag, nothing refers to the runtime's profile: the linker turns it off.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// A case prepares what is not to be seen, then allocates.
type testCase struct {
	name    string
	prepare func()
	run     func()
}

var cases = []testCase{
	{"syncmap", nothing, fillRegistry},
	{"stuck", nothing, getStuck},
	{"slice", nothing, growSlices},
	{"ring", prepareRing, turnRing},
	{"churn", prepareBase, churnAll},
	{"large", nothing, keepLarge},
	{"tiny", prepareTiny, keepTiny},
	{"small", prepareSmall, keepSmall},
	{"header", prepareHeader, keepHeader},
	{"finalizers", prepareFinalizers, keepFinalizers},
	{"maps", nothing, fillMaps},
	{"crowd", prepareCrowd, crowd},
	{"firsts", prepareFirsts, keepFirsts},
}

func nothing() {}

// The work is not below main.main, where this program talks: its profile leaves that out.
func work(chosen []testCase, done chan<- bool) {
	for _, c := range chosen {
		c.run()
	}
	done <- true
}

// Twice: what the first one finds dead is swept, and counted, by the second.
func collect() {
	runtime.GC()
	runtime.GC()
}

var dropped []byte

//go:noinline
func litter() {
	for i := 0; i < 1024; i++ {
		dropped = make([]byte, 64<<10)
		// Memory that is fresh from the kernel takes none before that.
		for at := 0; at < len(dropped); at += 4096 {
			dropped[at] = 1
		}
	}
	dropped = nil
}

func heapBytes() uint64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func main() {
	var chosen []testCase
	isChecked := false
	for _, name := range os.Args[1:] {
		isChecked = isChecked || name == "checked"
		for _, c := range cases {
			if name == c.name || name == "all" {
				chosen = append(chosen, c)
			}
		}
	}
	prepareBooks()
	for _, c := range chosen {
		c.prepare()
	}
	collect()
	before := heapBytes()
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		switch words[0] {
		case "begin":
			if isChecked {
				startChecked()
				break
			}
			done := make(chan bool)
			go work(chosen, done)
			<-done
			collect()
			fmt.Println("fact heap_growth", int64(heapBytes()-before))
			tell()
		case "collect":
			collect()
			collect()
		case "profile":
			collect()
			collect()
			if err := profile(words[1]); err != nil {
				fmt.Println(err)
				return
			}
		case "litter":
			litter()
			if len(words) > 1 {
				if err := profile(words[1]); err != nil {
					fmt.Println(err)
					return
				}
			}
		case "deepen":
			deepen()
		case "map":
			if err := mapOwn(); err != nil {
				fmt.Println(err)
				return
			}
		case "shaped":
			if err := mapShaped(); err != nil {
				fmt.Println(err)
				return
			}
		case "rest":
			endChecked()
		}
		fmt.Println("ready")
	}
}
