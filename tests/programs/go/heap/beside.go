// Memory that is no heap: stacks of goroutines, and what the program maps itself.
package main

import "syscall"

const (
	deepGoroutines = 300
	deepCalls      = 450
	ownBytes       = 16 << 20
)

var (
	deepIsDeep = make(chan bool)
	deepNever  = make(chan bool)
	ownMemory  []byte
)

// A frame of some 1000 bytes for each call: half a MiB of stack.
//
//go:noinline
func deep(calls int) byte {
	var frame [1000]byte
	frame[calls] = 1
	if calls == 0 {
		deepIsDeep <- true
		<-deepNever
		return frame[0]
	}
	return deep(calls-1) + frame[calls]
}

func deepen() {
	for n := 0; n < deepGoroutines; n++ {
		go deep(deepCalls)
	}
	for n := 0; n < deepGoroutines; n++ {
		<-deepIsDeep
	}
}

func mapOwn() (err error) {
	ownMemory, err = syscall.Mmap(-1, 0, ownBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	for at := 0; at < len(ownMemory); at += 4096 {
		ownMemory[at] = 1
	}
	return err
}
