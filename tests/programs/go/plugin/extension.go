// The plugin (-buildmode=plugin).
//go:build extension

package main

// Of the size class of 1024 bytes.
type entry struct {
	next *entry
	data [1000]byte
}

var kept *entry

//go:noinline
func keepOne() { kept = &entry{next: kept} }

func Keep(n int) {
	for i := 0; i < n; i++ {
		keepOne()
	}
	go stuck(make(chan bool))
}

//go:noinline
func stuck(c chan bool) { <-c }

func main() {}
