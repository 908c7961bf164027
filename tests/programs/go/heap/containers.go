// Sites behind the containers that services fill: maps, slices, rings, channels.
package main

import (
	"runtime"
	"sync"
	"time"
	"unsafe"
)

// A map that is never cleared.

type session struct {
	key  string
	next *session
	data [168]byte
}

var (
	registry    sync.Map
	newest      *session
	sessionBook = newBook("main.newSession")
	keyBook     = newBook("main.newKey")
)

//go:noinline
func newSession(key string) *session {
	s := &session{key: key}
	sessionBook.keep(1, unsafe.Sizeof(*s), true)
	return s
}

//go:noinline
func newKey(n uint64) string {
	var text [24]byte
	for at := range text {
		text[at] = byte('a' + n%16)
		n /= 16
	}
	keyBook.keep(1, 24, false)
	return string(text[:])
}

//go:noinline
func remember(n uint64) {
	key := newKey(n)
	s := newSession(key)
	s.next, newest = newest, s
	registry.Store(key, s)
}

func fillRegistry() {
	for n := uint64(0); n < 150000; n++ {
		remember(n)
		if n%3 == 0 {
			registry.Load("nobody")
		}
	}
}

// Goroutines that wait for what never comes, with all that they hold.

const stuckGoroutines = 3000

// That many goroutines wait for the garbage collector, too, for which the runtime allocates.
var (
	bufferBook  = newMixedBook("main.stuckBuffer")
	channelBook = newMixedBook("main.stuckChannel")
)

//go:noinline
func stuckBuffer() []byte {
	bufferBook.keep(1, 8192, false)
	return make([]byte, 8192)
}

// The channel and its buffer are one object. What the runtime needs for itself is about 100 bytes, in every version of it.
//
//go:noinline
func stuckChannel() chan [256]byte {
	channelBook.keep(1, 8*256+100, false)
	return make(chan [256]byte, 8)
}

//go:noinline
func getsStuck(ready *sync.WaitGroup) {
	buffer, channel := stuckBuffer(), stuckChannel()
	ready.Done()
	value := <-channel
	buffer[0] = value[0]
	runtime.KeepAlive(buffer)
}

func getStuck() {
	var ready sync.WaitGroup
	ready.Add(stuckGoroutines)
	for n := 0; n < stuckGoroutines; n++ {
		go getsStuck(&ready)
	}
	ready.Wait()
}

// Slices that grow behind an interface.

type adder interface{ add(n uint64) }

type list struct{ values []uint64 }

type nodes struct{ values []*node }

type node struct {
	next  *node
	value uint64
}

var (
	growing   = []adder{&list{}, &nodes{}}
	listBook  = newBook("main.(*list).add")
	nodesBook = newBook("main.(*nodes).add")
	nodeBook  = newBook("main.newNode")
)

//go:noinline
func (l *list) add(n uint64) {
	before := cap(l.values)
	l.values = append(l.values, n)
	grown(listBook, before, cap(l.values), false)
}

//go:noinline
func (l *nodes) add(n uint64) {
	before := cap(l.values)
	l.values = append(l.values, newNode(n))
	grown(nodesBook, before, cap(l.values), true)
}

func grown(b *book, before, after int, pointers bool) {
	if after == before {
		return
	}
	if before > 0 {
		b.drop(1, uintptr(before)*8, pointers)
	}
	b.keep(1, uintptr(after)*8, pointers)
}

//go:noinline
func newNode(n uint64) *node {
	nodeBook.keep(1, unsafe.Sizeof(node{}), true)
	return &node{value: n}
}

func growSlices() {
	for n := uint64(0); n < 3000000; n++ {
		growing[0].add(n)
		if n%4 == 0 {
			growing[1].add(n)
		}
	}
}

// A cache with a bound: what comes overwrites what is oldest.

type ring struct {
	entries [][]byte
	next    int
}

var (
	cache    ring
	ringBook = newBook("main.(*ring).put")
)

func prepareRing() { cache.entries = make([][]byte, 4096) }

//go:noinline
func (r *ring) put(n int) {
	entry := make([]byte, n)
	ringBook.keep(1, uintptr(n), false)
	if r.entries[r.next] != nil {
		ringBook.drop(1, uintptr(n), false)
	}
	r.entries[r.next] = entry
	r.next = (r.next + 1) % len(r.entries)
}

func turnRing() {
	for n := 0; n < 20000; n++ {
		cache.put(5000 + n%2)
		if n%100 == 0 {
			// As fast as a busy service, not as fast as it can: collections follow each other slowly enough to be seen.
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// Maps of which half is deleted.

type entry struct {
	next  *entry
	value [112]byte
}

var (
	entries   = map[uint64]*entry{}
	entryBook = newBook("main.newEntry")
)

//go:noinline
func newEntry() *entry {
	e := &entry{}
	entryBook.keep(1, unsafe.Sizeof(*e), true)
	return e
}

//go:noinline
func fillMap(n uint64) { entries[n] = newEntry() }

func fillMaps() {
	for n := uint64(0); n < 200000; n++ {
		fillMap(n)
		if n%2 == 1 {
			delete(entries, n)
			entryBook.drop(1, unsafe.Sizeof(entry{}), true)
		}
	}
}
