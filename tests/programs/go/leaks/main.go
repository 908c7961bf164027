// Goroutines that leak, next to others that do not. It begins when it is told `leak`, goes on until it is told `stop`, and
// then says how many wait in each function that leaks. `profile` lets the runtime look for leaks itself, if it can.
package main

// The C library's allocator is there to be traced.

/*
#include <stdlib.h>

static void keep(void) { void *volatile kept = malloc(64); (void)kept; }
*/
import "C"

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"
)

var (
	full  = make(chan int)
	lock  sync.Mutex
	cond  = sync.NewCond(new(sync.Mutex))
	sink  int64
	stop  int32
	work  = make(chan int)
	stuck [5]int64
)

// Nobody closes its channel, which is its own.
//
//go:noinline
func receives(c chan int) { atomic.AddInt64(&sink, int64(<-c)) }

// All send to one channel.
//
//go:noinline
func sends() { full <- 1 }

// Nobody unlocks it.
//
//go:noinline
func locks() {
	lock.Lock()
	lock.Unlock()
}

// Two channels, each its own.
//
//go:noinline
func selects(a, b chan int) {
	select {
	case n := <-a:
		atomic.AddInt64(&sink, int64(n))
	case b <- 1:
	}
}

//go:noinline
func waits() {
	cond.L.Lock()
	defer cond.L.Unlock()
	cond.Wait()
}

// A pool: as many as at the beginning.
//
//go:noinline
func works() {
	for n := range work {
		atomic.AddInt64(&sink, int64(n))
	}
}

// Comes and goes.
//
//go:noinline
func answers(done chan int) {
	time.Sleep(30 * time.Millisecond)
	done <- 1
}

// As many as there are answers.
//
//go:noinline
func asks(n int) {
	done := make(chan int)
	for i := 0; i < n; i++ {
		go answers(done)
	}
	for i := 0; i < n; i++ {
		<-done
	}
}

// Becomes more and more, but sleeps.
//
//go:noinline
func sleeps() { time.Sleep(time.Hour) }

func leak() {
	for n := 0; atomic.LoadInt32(&stop) == 0; n++ {
		C.keep()
		for i := 0; i < 3; i++ {
			go receives(make(chan int))
		}
		stuck[0] += 3
		go sends()
		stuck[1]++
		if n%2 == 0 {
			go locks()
			stuck[2]++
			go waits()
			stuck[4]++
		}
		go selects(make(chan int), make(chan int))
		stuck[3]++
		go sleeps()
		work <- n
		asks(20 + n%7)
	}
	work <- 0
	atomic.StoreInt32(&stop, 2)
}

func main() {
	lock.Lock()
	for n := 0; n < 50; n++ {
		go works()
	}
	time.Sleep(100 * time.Millisecond)
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		switch input.Text() {
		case "leak":
			go leak()
		case "stop":
			atomic.StoreInt32(&stop, 1)
			for atomic.LoadInt32(&stop) != 2 {
				time.Sleep(time.Millisecond)
			}
			// Those that were begun last come to where they wait.
			time.Sleep(100 * time.Millisecond)
			for n, name := range []string{"main.receives", "main.sends", "main.locks", "main.selects", "main.waits"} {
				fmt.Println("fact", name, stuck[n])
			}
			fmt.Println("fact goroutines", runtime.NumGoroutine())
		case "profile":
			if leaks := pprof.Lookup("goroutineleak"); leaks != nil {
				if err := leaks.WriteTo(io.Discard, 0); err != nil {
					fmt.Println(err)
					return
				}
				fmt.Println("fact leaked", leaks.Count())
			}
		}
		fmt.Println("ready")
	}
}
