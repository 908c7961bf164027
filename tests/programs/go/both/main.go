// Memory of Go's and of C's in one process: Go that calls C, C that calls Go back, and threads that C has started. Told
// `allocate`, it allocates and keeps a known amount in each of its functions and tells how much; told `profile`, it has the
// runtime keep a profile. After each word it tells runtime.MemProfileRate, which is 0 at first: nothing reads the profile.
package main

/*
#cgo LDFLAGS: -pthread
#include <pthread.h>
#include <stdlib.h>

// Behind a call: keeps it from becoming a jump.
#define KEEP_CALL __asm__ volatile("" : : : "memory")

void inGo(int blocks);
void onThread(int blocks);

struct block { struct block *next; };
static struct block *kept;

__attribute__((noinline)) static void keep(size_t size, int blocks) {
	for (int i = 0; i < blocks; i++) {
		struct block *block = malloc(size);
		block->next = kept;
		kept = block;
	}
}
__attribute__((noinline)) static void c_keeps(int blocks) {
	keep(100, blocks);
	KEEP_CALL;
}

// C that Go has called, which calls Go.
__attribute__((noinline)) static void calls_go(int blocks) {
	keep(200, blocks);
	inGo(blocks);
	keep(200, blocks);
	KEEP_CALL;
}
__attribute__((noinline)) static void c_deep(int blocks) {
	keep(300, blocks);
	KEEP_CALL;
}

// A thread that Go knows nothing of until it calls.
static void *begin(void *blocks) {
	keep(400, *(int *)blocks);
	onThread(*(int *)blocks);
	return 0;
}
__attribute__((noinline)) static void on_thread(int blocks) {
	pthread_t thread;
	if (pthread_create(&thread, 0, begin, &blocks) == 0)
		pthread_join(thread, 0);
}
__attribute__((noinline)) static void c_last(int blocks) {
	keep(500, blocks);
	KEEP_CALL;
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
)

const blocks = 4000

var held [][]byte

//go:noinline
func keeps(size, n int) {
	for i := 0; i < n; i++ {
		held = append(held, make([]byte, size))
	}
}

//go:noinline
func goKeeps() { keeps(1024, blocks) }

//go:noinline
func throughC() { C.c_keeps(blocks) }

//go:noinline
func thereAndBack() { C.calls_go(blocks) }

//go:noinline
func throughThread() { C.on_thread(blocks) }

//export inGo
func inGo(n C.int) {
	keeps(2048, int(n))
	C.c_deep(n)
}

//export onThread
func onThread(n C.int) {
	keeps(512, int(n))
	C.c_last(n)
}

func main() {
	held = make([][]byte, 0, 4*blocks)
	fmt.Println("waiting")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		switch input.Text() {
		case "allocate":
			goKeeps()
			throughC()
			thereAndBack()
			throughThread()
			for _, keeper := range []struct {
				name        string
				size, times int
			}{
				{"main.goKeeps", 1024, 1}, {"main.throughC", 100, 1}, {"calls_go", 200, 2}, {"main.inGo", 2048, 1},
				{"c_deep", 300, 1}, {"begin", 400, 1}, {"main.onThread", 512, 1}, {"c_last", 500, 1},
			} {
				n := keeper.times * blocks
				fmt.Println("truth", keeper.name, keeper.size*n, n)
			}
		case "profile":
			runtime.MemProfileRate = 512
		}
		fmt.Println("fact rate", runtime.MemProfileRate)
		fmt.Println("ready")
	}
}
