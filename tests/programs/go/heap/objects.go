// Sites by the kind of their objects: tiny, small, with a header, large; with finalizers.
package main

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"
)

// Objects of one type. Each second one is dropped, so that the dead and the living share spans.
type kept[T any] struct {
	book     *book
	pointers bool
	objects  []*T
	spare    *T
}

func (k *kept[T]) prepare(count int) { k.objects = make([]*T, count) }

// Allocates by a function that is a site of its own.
func (k *kept[T]) fill(allocate func() *T) {
	var t T
	for n := range k.objects {
		k.objects[n] = allocate()
		k.spare = allocate()
		if n%(1<<19/int(unsafe.Sizeof(t))+1) == 0 {
			// Once in a MiB: collections follow each other slowly enough to be seen.
			time.Sleep(5 * time.Millisecond)
		}
	}
	k.spare = nil
	k.book.keep(int64(len(k.objects)), unsafe.Sizeof(t), k.pointers)
	k.book.pass(int64(len(k.objects)), unsafe.Sizeof(t), k.pointers)
}

// Larger than 32 KiB: whole pages.

type (
	plain40000    [40000]byte
	pointers100K  [12800]*byte
	plain1536K    [1536*1024 + 1]byte
	passing300000 [300000]byte
)

var (
	large40000  = kept[plain40000]{book: newBook("main.newLarge40000")}
	large100K   = kept[pointers100K]{book: newBook("main.newLarge100K"), pointers: true}
	large1536K  = kept[plain1536K]{book: newBook("main.newLarge1536K")}
	passing     *passing300000
	passingBook = newBook("main.passLarge")
)

//go:noinline
func newLarge40000() *plain40000 { return new(plain40000) }

//go:noinline
func newLarge100K() *pointers100K { return new(pointers100K) }

//go:noinline
func newLarge1536K() *plain1536K { return new(plain1536K) }

//go:noinline
func passLarge() {
	passing = new(passing300000)
	passingBook.pass(1, unsafe.Sizeof(*passing), false)
}

func keepLarge() {
	large40000.prepare(400)
	large100K.prepare(120)
	large1536K.prepare(10)
	large40000.fill(newLarge40000)
	large100K.fill(newLarge100K)
	large1536K.fill(newLarge1536K)
	for n := 0; n < 200; n++ {
		passLarge()
	}
	passing = nil
}

// Less than 16 bytes and without pointers: several in a block.

var (
	strings5     []string
	objects12    []*[12]byte
	strings5Book = newTinyBook("main.newString5")
	tiny12Book   = newTinyBook("main.newTiny12")
)

//go:noinline
func newString5(n uint64) string {
	text := [5]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 0}
	return string(text[:])
}

//go:noinline
func newTiny12() *[12]byte { return new([12]byte) }

var empty12 [12]byte

func prepareTiny() {
	strings5 = make([]string, 1500000)
	objects12 = make([]*[12]byte, 600000)
	// They are there before the objects are: memory that comes later would be of before, and is not explained.
	for n := range strings5 {
		strings5[n] = "."
	}
	for n := range objects12 {
		objects12[n] = &empty12
	}
}

func keepTiny() {
	for n := range strings5 {
		strings5[n] = newString5(uint64(n))
	}
	for n := range objects12 {
		objects12[n] = newTiny12()
	}
	strings5Book.keep(int64(len(strings5)), 5, false)
	tiny12Book.keep(int64(len(objects12)), 12, false)
}

// Small ones, with pointers and without.

type (
	pair16 struct {
		next *pair16
		n    uint64
	}
	pointers48  [6]*byte
	pointers512 [64]*byte
	plain100    [100]byte
	plain1025   [1025]byte
	plain3000   [3000]byte
	plain10000  [10000]byte
	plain30000  [30000]byte
)

var (
	small16    = kept[pair16]{book: newBook("main.newPair16"), pointers: true}
	small48    = kept[pointers48]{book: newBook("main.newPointers48"), pointers: true}
	small512   = kept[pointers512]{book: newBook("main.newPointers512"), pointers: true}
	small100   = kept[plain100]{book: newBook("main.newPlain100")}
	small1025  = kept[plain1025]{book: newBook("main.newPlain1025")}
	small3000  = kept[plain3000]{book: newBook("main.newPlain3000")}
	small10000 = kept[plain10000]{book: newBook("main.newPlain10000")}
	small30000 = kept[plain30000]{book: newBook("main.newPlain30000")}
)

//go:noinline
func newPair16() *pair16 { return new(pair16) }

//go:noinline
func newPointers48() *pointers48 { return new(pointers48) }

//go:noinline
func newPointers512() *pointers512 { return new(pointers512) }

//go:noinline
func newPlain100() *plain100 { return new(plain100) }

//go:noinline
func newPlain1025() *plain1025 { return new(plain1025) }

//go:noinline
func newPlain3000() *plain3000 { return new(plain3000) }

//go:noinline
func newPlain10000() *plain10000 { return new(plain10000) }

//go:noinline
func newPlain30000() *plain30000 { return new(plain30000) }

func prepareSmall() {
	small16.prepare(500000)
	small48.prepare(150000)
	small512.prepare(16000)
	small100.prepare(80000)
	small1025.prepare(8000)
	small3000.prepare(3000)
	small10000.prepare(1000)
	small30000.prepare(300)
}

func keepSmall() {
	small16.fill(newPair16)
	small48.fill(newPointers48)
	small512.fill(newPointers512)
	small100.fill(newPlain100)
	small1025.fill(newPlain1025)
	small3000.fill(newPlain3000)
	small10000.fill(newPlain10000)
	small30000.fill(newPlain30000)
}

// With pointers and larger than 512 bytes.

type (
	pointers520   [65]*byte
	pointers1024  [128]*byte
	pointers4096  [512]*byte
	pointers20000 [2500]*byte
)

var (
	header520   = kept[pointers520]{book: newBook("main.newPointers520"), pointers: true}
	header1024  = kept[pointers1024]{book: newBook("main.newPointers1024"), pointers: true}
	header4096  = kept[pointers4096]{book: newBook("main.newPointers4096"), pointers: true}
	header20000 = kept[pointers20000]{book: newBook("main.newPointers20000"), pointers: true}
)

//go:noinline
func newPointers520() *pointers520 { return new(pointers520) }

//go:noinline
func newPointers1024() *pointers1024 { return new(pointers1024) }

//go:noinline
func newPointers4096() *pointers4096 { return new(pointers4096) }

//go:noinline
func newPointers20000() *pointers20000 { return new(pointers20000) }

func prepareHeader() {
	header520.prepare(20000)
	header1024.prepare(10000)
	header4096.prepare(2500)
	header20000.prepare(500)
}

func keepHeader() {
	header520.fill(newPointers520)
	header1024.fill(newPointers1024)
	header4096.fill(newPointers4096)
	header20000.fill(newPointers20000)
}

// With finalizers: the dead are freed one collection later.

type finalized struct {
	n    uint64
	data [120]byte
}

var (
	withFinalizer []*finalized
	ended         atomic.Int64
	finalizedBook = newBook("main.newFinalized")
	endedBook     = newBook("main.newEnded")
)

//go:noinline
func newFinalized() *finalized { return new(finalized) }

//go:noinline
func newEnded() *finalized { return new(finalized) }

func prepareFinalizers() { withFinalizer = make([]*finalized, 80000) }

func keepFinalizers() {
	count := int64(len(withFinalizer))
	for n := range withFinalizer {
		withFinalizer[n] = newFinalized()
		runtime.SetFinalizer(withFinalizer[n], func(*finalized) {})
		runtime.SetFinalizer(newEnded(), func(*finalized) { ended.Add(1) })
	}
	finalizedBook.keep(count, unsafe.Sizeof(finalized{}), false)
	endedBook.pass(count, unsafe.Sizeof(finalized{}), false)
	for ended.Load() < count {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
}
