// Allocates and frees pairs under a chain of calls, and prints how long a pair takes, round after round.
// Arguments: depth of the chain, pairs in a round. Runs until it is killed.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

__attribute__((noinline)) static void pairs(long n) {
    for (long i = 0; i < n; i++) {
        void *block = malloc(64);
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    }
}

__attribute__((noinline)) static void chain(int depth, long n) {
    if (depth > 1)
        chain(depth - 1, n);
    else
        pairs(n);
    __asm__ volatile("" : : : "memory"); // keeps the call from becoming a jump
}

int main(int argc, char **argv) {
    int depth = argc > 1 ? atoi(argv[1]) : 20;
    long n = argc > 2 ? atol(argv[2]) : 20000;
    for (;;) {
        double start = now();
        chain(depth, n);
        printf("%.1f\n", (now() - start) / n);
        fflush(stdout);
    }
}
