// Goroutines that wait in all the ways there are, and say so themselves.
//
// Argument: how many goroutines wait in bulk. Lines on the standard input: `dump FILE` writes the runtime's own goroutine
// profiles to FILE.1 and FILE.2 (as debug=1 and debug=2), `collect` runs the garbage collector, `spin`, `bounce` and `rest` start and end goroutines
// that run all the time. It says `ready` when it has done so.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	never  = make(chan int)
	full   = make(chan int)
	lock   sync.Mutex
	shared sync.RWMutex
	group  sync.WaitGroup
	cond   = sync.NewCond(new(sync.Mutex))
	sink   int64
	stop   int32
	writer *os.File
)

// number is inlined into whoever waits in it.
func number(c chan int) int { return twice(<-c) }

func twice(n int) int { return 2 * n }

//go:noinline
func receivesInlined() { atomic.AddInt64(&sink, int64(number(never))) }

//go:noinline
func receivesNil() {
	var c chan int
	<-c
}

//go:noinline
func sendsNil() {
	var c chan int
	c <- 1
}

//go:noinline
func sends() { full <- 1 }

//go:noinline
func selects() {
	other := make(chan string)
	select {
	case n := <-never:
		atomic.AddInt64(&sink, int64(n))
	case text := <-other:
		atomic.AddInt64(&sink, int64(len(text)))
	}
}

//go:noinline
func selectsNothing() { select {} }

//go:noinline
func locks() {
	lock.Lock()
	lock.Unlock()
}

//go:noinline
func locksToRead() {
	shared.RLock()
	shared.RUnlock()
}

//go:noinline
func locksToWrite() {
	shared.Lock()
	shared.Unlock()
}

//go:noinline
func waitsForGroup() { group.Wait() }

//go:noinline
func waitsForCondition() {
	cond.L.Lock()
	defer cond.L.Unlock()
	cond.Wait()
}

//go:noinline
func sleeps() { time.Sleep(time.Hour) }

//go:noinline
func readsPipe() {
	var ends [2]int
	if syscall.Pipe(ends[:]) == nil {
		var b [1]byte
		syscall.Read(ends[0], b[:])
	}
}

//go:noinline
func readsFile() {
	reader, end, err := os.Pipe()
	if err == nil {
		writer = end // or the garbage collector closes it
		var b [1]byte
		reader.Read(b[:])
	}
}

// Deep recursion with large frames: the stack has been copied while it grew.
//
//go:noinline
func recurses(depth int) int {
	var block [512]byte
	block[depth%512] = byte(depth)
	if depth == 0 {
		return number(never)
	}
	return recurses(depth-1) + int(block[(depth+1)%512])
}

type waiter interface{ wait(times int) int }

type byValue struct{ c chan int }

// Called through an interface: by a wrapper for the pointer.
//
//go:noinline
func (w byValue) wait(times int) int { return times * <-w.c }

//go:noinline
func waitsThroughInterface(w waiter) { atomic.AddInt64(&sink, int64(w.wait(3))) }

type pair[K comparable, V any] struct {
	key   K
	value chan V
}

//go:noinline
func (p *pair[K, V]) take() V { return <-p.value }

//go:noinline
func takes[K comparable, V any](p *pair[K, V]) { _ = p.take() }

//go:noinline
func closure(c chan int) func() {
	return func() { atomic.AddInt64(&sink, int64(<-c)) }
}

//go:noinline
func panicsAndWaits() {
	defer func() {
		recover()
	}()
	defer func() { <-never }()
	var p *int
	*p = 1
}

//go:noinline
func inBulk(c chan int) { atomic.AddInt64(&sink, int64(<-c)) }

//go:noinline
func spins() {
	for n := 0; atomic.LoadInt32(&stop) == 0; n++ {
		if n%1000000 == 999999 {
			atomic.AddInt64(&sink, 1)
		}
	}
}

// Waits now under few frames, now under many, and seldom for long.
//
//go:noinline
func bounces(in, out chan int) {
	for n := 0; atomic.LoadInt32(&stop) == 0; n++ {
		deeper(n%50, in, out)
	}
	close(out)
}

//go:noinline
func deeper(depth int, in, out chan int) int {
	if depth == 0 {
		return exchange(in, out)
	}
	return deeper(depth-1, in, out) + 1
}

//go:noinline
func exchange(in, out chan int) int {
	select {
	case out <- 1:
		return 0
	case n := <-in:
		return n
	}
}

func start(bulk int) {
	for n := 0; n < 3; n++ {
		go receivesInlined()
		go selects()
		go sleeps()
	}
	for _, f := range []func(){
		receivesNil, sendsNil, sends, selectsNothing, locks, locksToRead, locksToWrite, waitsForGroup, waitsForCondition,
		readsPipe, readsFile, panicsAndWaits, closure(never),
	} {
		go f()
	}
	go recurses(20)
	go waitsThroughInterface(&byValue{never})
	go takes(&pair[string, int]{"key", never})
	go takes(&pair[int, []byte]{1, make(chan []byte)})
	go func() {
		// Two places that create the same.
		go inBulk(never)
		go inBulk(never)
		<-never
	}()
	for n := 0; n < bulk; n++ {
		go inBulk(never)
	}
}

func dump(name string) error {
	for debug := 1; debug <= 2; debug++ {
		file, err := os.Create(fmt.Sprintf("%s.%d", name, debug))
		if err != nil {
			return err
		}
		if err := pprof.Lookup("goroutine").WriteTo(file, debug); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	bulk := 0
	if len(os.Args) > 1 {
		bulk, _ = strconv.Atoi(os.Args[1])
	}
	signal.Ignore(syscall.SIGUSR1)
	lock.Lock()
	shared.Lock()
	group.Add(1)
	start(bulk)
	time.Sleep(200 * time.Millisecond)
	fmt.Println("fact goroutines", runtime.NumGoroutine())
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		switch words[0] {
		case "dump":
			if err := dump(words[1]); err != nil {
				fmt.Println(err)
				return
			}
		case "collect":
			runtime.GC()
		case "spin":
			for n := 0; n < 2; n++ {
				go spins()
			}
		case "bounce":
			for n := 0; n < 20; n++ {
				there, back := make(chan int), make(chan int)
				go bounces(there, back)
				go bounces(back, there)
			}
		case "rest":
			atomic.StoreInt32(&stop, 1)
		}
		time.Sleep(100 * time.Millisecond)
		fmt.Println("fact goroutines", runtime.NumGoroutine())
		fmt.Println("ready")
	}
}
