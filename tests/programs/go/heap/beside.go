// Memory that is no heap: stacks of goroutines, and what the program maps itself.
package main

import (
	"syscall"
	"unsafe"
)

const (
	deepGoroutines = 300
	deepCalls      = 450
	ownBytes       = 16 << 20
	// Where the runtime would put an arena, and as large as two.
	shapedAddress = 0x2000_0000_0000
	shapedBytes   = 128 << 20
	// MAP_FIXED_NOREPLACE, which package syscall does not have.
	onlyThere = 0x10_0000
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
	touchOwn()
	return err
}

func mapShaped() error {
	flags := uintptr(syscall.MAP_ANON | syscall.MAP_PRIVATE | onlyThere)
	prot := uintptr(syscall.PROT_READ | syscall.PROT_WRITE)
	address, _, errno := syscall.Syscall6(syscall.SYS_MMAP, shapedAddress, shapedBytes, prot, flags, ^uintptr(0), 0)
	if errno != 0 {
		return errno
	}
	ownMemory = unsafe.Slice(*(**byte)(unsafe.Pointer(&address)), ownBytes)
	touchOwn()
	return nil
}

func touchOwn() {
	for at := 0; at < len(ownMemory); at += 4096 {
		ownMemory[at] = 1
	}
}
