// A library with a Go runtime of its own (-buildmode=c-shared): what it keeps, and goroutines that are stuck, as often as it is
// told.
package main

import "C"

import "runtime"

// Of the size class of 1024 bytes.
type entry struct {
	next *entry
	data [1000]byte
}

var kept *entry

//go:noinline
func keepOne() { kept = &entry{next: kept} }

//export Keep
func Keep(n C.int) {
	for i := 0; i < int(n); i++ {
		keepOne()
	}
	go stuck(make(chan bool))
}

//go:noinline
func stuck(c chan bool) { <-c }

//export Collect
func Collect() {
	runtime.GC()
	runtime.GC()
}

func main() {}
