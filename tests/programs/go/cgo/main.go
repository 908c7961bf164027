// Goroutines in C, and in Go that C has called. Talks like the program goroutines.
package main

/*
#include <unistd.h>

void waits(void);

static void sleeps(void) { for (;;) sleep(1000); }
static void calls(void) { waits(); }
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"
)

var never = make(chan int)

//export waits
func waits() { <-never }

//go:noinline
func inC() { C.sleeps() }

//go:noinline
func throughC() { C.calls() }

func main() {
	go inC()
	go throughC()
	time.Sleep(200 * time.Millisecond)
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		for debug := 1; debug <= 2; debug++ {
			file, err := os.Create(fmt.Sprintf("%s.%d", words[1], debug))
			if err != nil || pprof.Lookup("goroutine").WriteTo(file, debug) != nil || file.Close() != nil {
				fmt.Println(err)
				return
			}
		}
		fmt.Println("fact goroutines", runtime.NumGoroutine())
		fmt.Println("ready")
	}
}
