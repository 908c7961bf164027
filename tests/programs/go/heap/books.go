// What allocation sites hold, as the runtime accounts for it.
//
// A small object takes the size of its class, a large one whole pages. From Go 1.22 on, an object with pointers that is
// larger than 512 bytes has a header of 8 bytes, which counts when the class is chosen. Several tiny objects (less than 16
// bytes, no pointers) share a block of 16 bytes, which lives as long as any of them: what was asked for is the least, and
// the blocks are the most that such a site can be said to hold.
package main

import (
	"fmt"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
)

const (
	page        = 8192
	largest     = 32768
	headerLimit = 512
	tinyBlock   = 16
)

// Bytes in and below which a size class of the runtime takes objects.
var classes []uintptr

// Whether objects with pointers have headers.
var headers bool

type sum struct {
	blocks, requested, bytes atomic.Int64
}

func (s *sum) add(blocks, requested, bytes int64) {
	s.blocks.Add(blocks)
	s.requested.Add(requested)
	s.bytes.Add(bytes)
}

// What one function holds and has allocated.
type book struct {
	site            string
	tiny            bool
	size            atomic.Int64 // that of all its objects; negative when they differ
	held, allocated sum
}

var books []*book

func newBook(site string) *book {
	b := &book{site: site}
	books = append(books, b)
	return b
}

func newTinyBook(site string) *book {
	b := newBook(site)
	b.tiny = true
	return b
}

// One of objects whose sizes differ, or below which the runtime allocates for itself.
func newMixedBook(site string) *book {
	b := newBook(site)
	b.size.Store(-1)
	return b
}

func prepareBooks() {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	for _, class := range stats.BySize {
		classes = append(classes, uintptr(class.Size))
	}
	// The rest of them, which the statistics leave out.
	for size := classes[len(classes)-1] + 1; size <= largest; size = classes[len(classes)-1] + 1 {
		classes = append(classes, uintptr(cap(append([]byte(nil), make([]byte, size)...))))
	}
	minor := strings.TrimPrefix(runtime.Version(), "go1.")
	end := strings.IndexFunc(minor, func(c rune) bool { return c < '0' || c > '9' })
	if end > 0 {
		minor = minor[:end]
	}
	number, err := strconv.Atoi(minor)
	headers = err != nil || number >= 22
}

// Bytes that an object takes.
func rounded(size uintptr, pointers bool) int64 {
	if pointers && headers && size > headerLimit && size+8 <= largest {
		size += 8
	}
	if size > largest {
		return int64((size + page - 1) / page * page)
	}
	return int64(classes[sort.Search(len(classes), func(n int) bool { return classes[n] >= size })])
}

// Objects that have been allocated and are held.
func (b *book) keep(count int64, size uintptr, pointers bool) {
	b.pass(count, size, pointers)
	b.held.add(count, count*int64(size), b.bytes(count, size, pointers))
}

// Objects that have been allocated and are not held.
func (b *book) pass(count int64, size uintptr, pointers bool) {
	if one := rounded(size, pointers); !b.size.CompareAndSwap(0, one) && b.size.Load() != one {
		b.size.Store(-1)
	}
	b.allocated.add(count, count*int64(size), b.bytes(count, size, pointers))
}

// Objects that were held and are not any more.
func (b *book) drop(count int64, size uintptr, pointers bool) {
	b.held.add(-count, -count*int64(size), -b.bytes(count, size, pointers))
}

func (b *book) bytes(count int64, size uintptr, pointers bool) int64 {
	if !b.tiny {
		return count * rounded(size, pointers)
	}
	aligned := size
	for _, alignment := range []uintptr{2, 4, 8} {
		if size%alignment == 0 {
			aligned = (size + alignment - 1) / alignment * alignment
		}
	}
	together := int64(tinyBlock / aligned)
	return (count + together - 1) / together * tinyBlock
}

// One line of JSON for each site that has allocated.
func tell() {
	for _, b := range books {
		if b.allocated.blocks.Load() == 0 {
			continue
		}
		fmt.Printf(`{"site":%q,"tiny":%v,"even":%v,"held":%s,"allocated":%s}`+"\n",
			b.site, b.tiny, b.size.Load() > 0, b.held.json(), b.allocated.json())
	}
}

func (s *sum) json() string {
	return fmt.Sprintf(`{"blocks":%d,"requested":%d,"bytes":%d}`, s.blocks.Load(), s.requested.Load(), s.bytes.Load())
}
