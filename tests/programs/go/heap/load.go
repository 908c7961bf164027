// Load: what is allocated and dropped at once, by one goroutine and by many, while their stacks grow and garbage is
// collected all the time; and a program that checks itself meanwhile.
package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Pure churn beside something that is held.

type (
	churned64 struct {
		next *churned64
		n    [7]uint64
	}
	churned2000  [2000]byte
	churned50000 [50000]byte
)

var (
	base           = kept[[1024]byte]{book: newBook("main.newBase")}
	sink8          *uint64
	sink64         *churned64
	sink2000       *churned2000
	sink50000      *churned50000
	churn8Book     = newTinyBook("main.churn8")
	churn64Book    = newBook("main.churn64")
	churn2000Book  = newBook("main.churn2000")
	churn50000Book = newBook("main.churn50000")
)

//go:noinline
func newBase() *[1024]byte { return new([1024]byte) }

//go:noinline
func churn8() { sink8 = new(uint64) }

//go:noinline
func churn64() { sink64 = new(churned64) }

//go:noinline
func churn2000() { sink2000 = new(churned2000) }

//go:noinline
func churn50000() { sink50000 = new(churned50000) }

func prepareBase() { base.prepare(24000) }

func churnAll() {
	base.fill(newBase)
	for n := 0; n < 1000; n++ {
		for m := 0; m < 1000; m++ {
			churn8()
			churn64()
		}
		for m := 0; m < 30; m++ {
			churn2000()
		}
		churn50000()
	}
	sink8, sink64, sink2000, sink50000 = nil, nil, nil, nil
	churn8Book.pass(1000000, 8, false)
	churn64Book.pass(1000000, unsafe.Sizeof(churned64{}), true)
	churn2000Book.pass(30000, 2000, false)
	churn50000Book.pass(1000, 50000, false)
}

// Many goroutines.

const (
	inCrowd   = 16
	perMember = 4000
)

type crowded struct {
	next *crowded
	data [200]byte
}

var (
	crowdHeld   [inCrowd][]*crowded
	crowdBook   = newBook("main.newCrowded")
	passedBook  = newBook("main.passCrowded")
	crowdPassed [inCrowd]*[12]uint64
)

func prepareCrowd() {
	for n := range crowdHeld {
		crowdHeld[n] = make([]*crowded, perMember)
	}
}

//go:noinline
func newCrowded() *crowded { return new(crowded) }

//go:noinline
func passCrowded(member int) { crowdPassed[member] = new([12]uint64) }

// Allocates at the end of a recursion with large frames: the stack of a new goroutine is copied as it grows.
//
//go:noinline
func atDepth(depth, member, n int) byte {
	var block [2048]byte
	block[n%2048] = byte(n)
	if depth == 0 {
		crowdHeld[member][n] = newCrowded()
		for m := 0; m < 10; m++ {
			passCrowded(member)
		}
	} else {
		block[(n+1)%2048] = atDepth(depth-1, member, n)
	}
	return block[n%2048]
}

// Goroutines come one after the other, so that each grows its own stack.
func inTurn(member int) {
	const each = 20
	for n := 0; n < perMember; n += each {
		done := make(chan bool)
		go func() {
			for m := n; m < n+each; m++ {
				atDepth(m%20, member, m)
			}
			done <- true
		}()
		<-done
	}
	crowdPassed[member] = nil
}

func crowd() {
	var members, collector sync.WaitGroup
	var over atomic.Bool
	collector.Add(1)
	go func() {
		defer collector.Done()
		for !over.Load() {
			runtime.GC()
		}
	}()
	members.Add(inCrowd)
	for n := 0; n < inCrowd; n++ {
		go func(member int) {
			defer members.Done()
			inTurn(member)
		}(n)
	}
	members.Wait()
	over.Store(true)
	collector.Wait()
	crowdBook.keep(inCrowd*perMember, unsafe.Sizeof(crowded{}), true)
	passedBook.pass(inCrowd*perMember*10, 96, false)
}

// Trees with checksums, made, read and dropped by goroutines on all processors until they are told to rest.

type tree struct {
	left, right *tree
	data        []byte
	text        string
	sum         uint64
}

var (
	resting                atomic.Bool
	workers                sync.WaitGroup
	treesChecked, failures atomic.Int64
)

func mix(sum uint64, b byte) uint64 { return (sum ^ uint64(b)) * 1099511628211 }

func (t *tree) ownSum() uint64 {
	sum := uint64(14695981039346656037)
	for _, b := range t.data {
		sum = mix(sum, b)
	}
	for n := 0; n < len(t.text); n++ {
		sum = mix(sum, t.text[n])
	}
	return sum
}

func grow(depth int, random *uint64) *tree {
	*random ^= *random << 13
	*random ^= *random >> 7
	*random ^= *random << 17
	t := &tree{data: make([]byte, 1+*random%700), text: fmt.Sprint("tree ", *random)}
	if *random%512 == 0 {
		t.data = make([]byte, 40000)
	}
	for n := range t.data {
		t.data[n] = byte(uint64(n) * *random >> 16)
	}
	t.sum = t.ownSum()
	if depth > 0 {
		t.left, t.right = grow(depth-1, random), grow(depth-1, random)
	}
	return t
}

// Below it the stack of its goroutine is copied.
//
//go:noinline
func (t *tree) isRight(depth int) bool {
	var block [1024]byte
	block[depth] = 1
	if t == nil {
		return true
	}
	right := t.left.isRight(depth+1) && t.sum == t.ownSum() && t.right.isRight(depth+1)
	return right && block[depth] == 1
}

func gardener(seed uint64) {
	defer workers.Done()
	random := seed
	var garden [8]*tree
	for n := 0; !resting.Load(); n++ {
		garden[n%len(garden)] = grow(7, &random)
		result := make(chan bool)
		go func(t *tree) { result <- t.isRight(0) }(garden[random%uint64(n%len(garden)+1)])
		if !<-result {
			failures.Add(1)
		}
		treesChecked.Add(1)
	}
}

func startChecked() {
	for n := 0; n < 2*runtime.GOMAXPROCS(0); n++ {
		workers.Add(1)
		go gardener(uint64(n)*0x9e3779b97f4a7c15 + 1)
	}
	workers.Add(1)
	go func() {
		defer workers.Done()
		for !resting.Load() {
			runtime.GC()
		}
	}()
}

func endChecked() {
	resting.Store(true)
	workers.Wait()
	fmt.Println("fact trees", treesChecked.Load())
	fmt.Println("fact failures", failures.Load())
}
