// Memory that grows and memory that does not, in ways whose parameters are drawn from a seed, beside garbage that lets the
// collector run many times a second.
//
// Arguments: the seed, and for how many seconds it will be traced. Once it is told `start`, it says `fact FUNCTION RATE` for
// each function: bytes per second that it grows by, 0 if it does not.
package main

import (
	"bufio"
	"fmt"
	"math"
	"math/rand"
	"os"
	"strconv"
	"time"
)

type object struct {
	_    [496]byte
	next *object
}

// What an object takes, and how often each kind does something.
const (
	size = 512
	tick = 5 * time.Millisecond
)

//go:noinline
func leak() *object { return new(object) }

//go:noinline
func leakInBursts() *object { return new(object) }

//go:noinline
func hold() *object { return new(object) }

//go:noinline
func fill() *object { return new(object) }

//go:noinline
func cacheInOrder() *object { return new(object) }

//go:noinline
func cacheAtRandom() *object { return new(object) }

//go:noinline
func cycle() *object { return new(object) }

//go:noinline
func garbage() []byte { return make([]byte, 16<<10) }

// What is held for ever.
var leaked, burst, held, filled *object

var dropped []byte

func keep(list **object, one *object) {
	one.next, *list = *list, one
}

// A kind at work: what it does at the n-th tick, and how fast it grows.
type kind struct {
	name string
	rate float64
	step func(n int)
}

// kinds draws their parameters.
func kinds(random *rand.Rand, seconds float64) []kind {
	between := func(least, most float64) float64 { return least + (most-least)*random.Float64() }
	magnitude := func(least, most float64) float64 { return least * math.Pow(most/least, random.Float64()) }
	ticks := seconds / tick.Seconds()
	each := int(magnitude(2, 40))
	burstEvery, burstOf := int(ticks/between(40, 100)), int(magnitude(50, 500))
	fillEach, fillTicks := int(magnitude(2, 20)), int(ticks*between(0.05, 0.7))
	holdObjects := int(magnitude(100, 10000))
	ring := make([]*object, int(magnitude(500, 10000)))
	ringEach := 1 + int(float64(len(ring))/ticks/between(0.05, 0.6))
	table := make([]*object, int(magnitude(500, 5000)))
	tableEach := 1 + int(float64(len(table))/ticks/magnitude(0.02, 0.2))
	period, cycleEach := int(ticks*magnitude(0.02, 0.5)), int(magnitude(2, 20))
	phase := random.Intn(period)
	var cycled *object
	at := 0
	many := func(list **object, of func() *object, number int) {
		for i := 0; i < number; i++ {
			keep(list, of())
		}
	}
	return []kind{
		{"main.leak", float64(each*size) / tick.Seconds(), func(int) { many(&leaked, leak, each) }},
		{"main.leakInBursts", float64(burstOf*size) / tick.Seconds() / float64(burstEvery), func(n int) {
			if n%burstEvery == 0 {
				many(&burst, leakInBursts, burstOf)
			}
		}},
		{"main.hold", 0, func(n int) {
			if n == 0 {
				many(&held, hold, holdObjects)
			}
		}},
		{"main.fill", 0, func(n int) {
			if n < fillTicks {
				many(&filled, fill, fillEach)
			}
		}},
		{"main.cacheInOrder", 0, func(int) {
			for i := 0; i < ringEach; i++ {
				ring[at%len(ring)] = cacheInOrder()
				at++
			}
		}},
		{"main.cacheAtRandom", 0, func(int) {
			for i := 0; i < tableEach; i++ {
				table[random.Intn(len(table))] = cacheAtRandom()
			}
		}},
		{"main.cycle", 0, func(n int) {
			if (n+phase)%period == 0 {
				cycled = nil
			}
			many(&cycled, cycle, cycleEach)
		}},
	}
}

func work(kinds []kind, began time.Time) {
	for n := 0; ; n++ {
		// Work that came late catches up.
		time.Sleep(time.Until(began.Add(time.Duration(n) * tick)))
		for _, kind := range kinds {
			kind.step(n)
		}
		for i := 0; i < 40; i++ {
			dropped = garbage()
		}
	}
}

func main() {
	seed, _ := strconv.ParseInt(os.Args[1], 10, 64)
	seconds, _ := strconv.ParseFloat(os.Args[2], 64)
	lines := bufio.NewScanner(os.Stdin)
	fmt.Println("waiting")
	lines.Scan()
	all := kinds(rand.New(rand.NewSource(seed)), seconds)
	for _, kind := range all {
		fmt.Printf("fact %s %.0f\n", kind.name, kind.rate)
	}
	go work(all, time.Now())
	fmt.Println("ready")
	for lines.Scan() {
	}
}
