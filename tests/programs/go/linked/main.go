// Calls the C library through the cgo of a package of Go's own: such a program is put together by the Go linker, which keeps no unwind
// information of the C in it.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/user"
)

func main() {
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	input.Scan()
	for range make([]int, 20) {
		if _, err := user.LookupId("0"); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	for input.Scan() {
	}
}
