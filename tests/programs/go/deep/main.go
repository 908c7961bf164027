// Goroutines that wait below more calls than a stack is followed through: ten below left, ten below right.
//
// It says `ready` to each line on the standard input.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
)

//go:noinline
func wait(depth int, never chan int) {
	if depth == 0 {
		<-never
		return
	}
	wait(depth-1, never)
	runtime.KeepAlive(depth)
}

//go:noinline
func left() {
	wait(400, make(chan int))
	fmt.Println("left")
}

//go:noinline
func right() {
	wait(400, make(chan int))
	fmt.Println("right")
}

func main() {
	for i := 0; i < 10; i++ {
		go left()
		go right()
	}
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		fmt.Println("ready")
	}
}
