// What threads allocate first: each has been there before anybody looks, and allocates one large buffer in its life.
package main

import (
	"runtime"
	"runtime/debug"
)

const (
	firstThreads = 16
	firstBytes   = 8 << 20
)

var (
	firstBook    = newBook("main.newFirst")
	firstBuffers [firstThreads][]byte
	firstStart   = make(chan int)
	firstDone    = make(chan bool)
	firstNever   = make(chan bool)
)

//go:noinline
func newFirst() []byte { return make([]byte, firstBytes) }

// Each goroutine has its thread for itself, and it waits there.
func prepareFirsts() {
	// Each buffer would begin a collection, faster than anybody looks at what they leave.
	debug.SetGCPercent(-1)
	for n := 0; n < firstThreads; n++ {
		go func() {
			runtime.LockOSThread()
			firstDone <- true
			thread := <-firstStart
			firstBuffers[thread] = newFirst()
			firstDone <- true
			<-firstNever
		}()
	}
	for n := 0; n < firstThreads; n++ {
		<-firstDone
	}
}

func keepFirsts() {
	for n := 0; n < firstThreads; n++ {
		firstStart <- n
		<-firstDone
	}
	firstBook.keep(firstThreads, firstBytes, false)
}
