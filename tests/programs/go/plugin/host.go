// Loads a plugin, and lets it keep memory: a line on the standard input, `keep N`. It says `ready` when that is done.
//go:build !extension

package main

import (
	"bufio"
	"fmt"
	"os"
	"plugin"
	"runtime"
)

func init() { runtime.MemProfileRate = 4096 }

func main() {
	code, err := plugin.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	keep, err := code.Lookup("Keep")
	if err != nil {
		panic(err)
	}
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var count int
		fmt.Sscanf(input.Text(), "keep %d", &count)
		keep.(func(int))(count)
		runtime.GC()
		runtime.GC()
		fmt.Println("ready")
	}
}
