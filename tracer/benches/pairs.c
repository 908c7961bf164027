// Allocates and frees pairs under a chain of calls, and prints how much of the processor's time a pair takes, round after round.
// Arguments: depth of the chain, pairs in a round. Runs until it is killed. Compiled with -DNEW and linked with the C++ library
// the pairs are of operator new and delete.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

#ifdef NEW
extern void *_Znwm(size_t size);
extern void _ZdlPv(void *block);
#define ALLOCATE _Znwm
#define RELEASE _ZdlPv
#else
#define ALLOCATE malloc
#define RELEASE free
#endif

__attribute__((noinline)) static void pairs(long n) {
    for (long i = 0; i < n; i++) {
        void *block = ALLOCATE(64);
        __asm__ volatile("" : : "r"(block) : "memory");
        RELEASE(block);
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
