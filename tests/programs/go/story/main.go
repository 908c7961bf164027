// A service that leaks, twice: sessions in a map that nobody clears, and goroutines that answer on channels that nobody reads
// any more. What it does besides is what services do: it parses, keeps a cache with a bound, and answers.
//
// Lines on the standard input: `begin` starts the work, `rest` ends it, collects garbage and tells what has leaked. It says
// `ready` when it has done so.
package main

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A request as it comes in.
type request struct {
	number uint64
	user   string
	fields map[string]string
}

// What is remembered of a user: for ever.
type session struct {
	user    string
	history []string
	avatar  [3800]byte
}

type service struct {
	sessions sync.Map
	recent   [64]*request
	lookups  atomic.Int64
	opened   atomic.Int64
	answered atomic.Int64
}

//go:noinline
func openSession(user string) *session {
	s := &session{user: user, history: make([]string, 0, 4)}
	copy(s.avatar[:], user)
	return s
}

// The session of a user, a new one for whom it does not know.
//
//go:noinline
func (s *service) sessionOf(user string) *session {
	if known, ok := s.sessions.Load(user); ok {
		return known.(*session)
	}
	opened := openSession(user)
	s.sessions.Store(user, opened)
	s.opened.Add(1)
	return opened
}

// Asks another service, which is slow now and then. Whoever asked has gone by then: the answer waits for ever.
//
//go:noinline
func (s *service) lookUp(number uint64) (string, bool) {
	answer := make(chan string)
	slow := number%40 == 0
	s.lookups.Add(1)
	go answerLookup(number, slow, answer)
	if slow {
		return "", false
	}
	return <-answer, true
}

//go:noinline
func answerLookup(number uint64, slow bool, answer chan<- string) {
	text := fmt.Sprint("answer ", number)
	if slow {
		runtime.Gosched()
	}
	answer <- text
}

func parse(number uint64) *request {
	line := fmt.Sprintf("user=user%d;path=/item/%d;size=%d", number/3, number%100, number%977)
	r := &request{number: number, fields: map[string]string{}}
	for _, field := range strings.Split(line, ";") {
		if name, value, ok := strings.Cut(field, "="); ok {
			r.fields[name] = value
		}
	}
	r.user = r.fields["user"]
	return r
}

func (s *service) answer(r *request) uint64 {
	body := s.sessionOf(r.user)
	found, ok := s.lookUp(r.number)
	if !ok {
		found = "unknown"
	}
	names := make([]string, 0, len(r.fields))
	for name := range r.fields {
		names = append(names, name)
	}
	sort.Strings(names)
	hash := fnv.New64a()
	fmt.Fprintf(hash, "%s %s %v", body.user, found, names)
	s.recent[r.number%uint64(len(s.recent))] = r
	s.answered.Add(1)
	return hash.Sum64()
}

// One of the workers: a few hundred requests a second.
func (s *service) serve(first uint64, stop <-chan bool, done chan<- uint64) {
	var sum uint64
	ticks := time.NewTicker(10 * time.Millisecond)
	defer ticks.Stop()
	for number := first; ; {
		select {
		case <-stop:
			done <- sum
			return
		case <-ticks.C:
			for n := 0; n < 10; n++ {
				sum += s.answer(parse(number))
				number++
			}
		}
	}
}

func main() {
	s := &service{}
	stop, done := make(chan bool), make(chan uint64)
	const workers = 2
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		switch input.Text() {
		case "begin":
			for n := uint64(0); n < workers; n++ {
				go s.serve(n<<40, stop, done)
			}
		case "rest":
			close(stop)
			for n := 0; n < workers; n++ {
				<-done
			}
			runtime.GC()
			runtime.GC()
			fmt.Println("fact answered", s.answered.Load())
			fmt.Println("fact sessions", s.opened.Load())
			fmt.Println("fact stuck", runtime.NumGoroutine()-1)
		}
		fmt.Println("ready")
	}
}
