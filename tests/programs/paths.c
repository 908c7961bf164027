//! Blocks in as many stacks as there are paths of so many steps to the left or to the right, then threads that allocate and free as fast as
//! they can.
#include "truth.h"

#include <pthread.h>

enum { STEPS = 15, THREADS = 2, PAIRS = 400000, SIZE = 24 };

LEAK(at_the_end_of_a_path)

static void left(unsigned path, int steps);
static void right(unsigned path, int steps);

// Nothing is left to do behind a call but this: it would be a jump.
#define STEP                                                                                                           \
    if (steps == 0)                                                                                                    \
        at_the_end_of_a_path(SIZE);                                                                                    \
    else if (path & 1)                                                                                                 \
        right(path >> 1, steps - 1);                                                                                   \
    else                                                                                                               \
        left(path >> 1, steps - 1);                                                                                    \
    __asm__ volatile("");

__attribute__((noinline)) static void left(unsigned path, int steps)
{
    STEP
}

__attribute__((noinline)) static void right(unsigned path, int steps)
{
    STEP __asm__ volatile("nop");
}

__attribute__((noinline)) static void *back_and_forth(void *unused)
{
    for (int i = 0; i < PAIRS; i++) {
        void *volatile block = malloc(SIZE);
        free(block);
    }
    return NULL;
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (unsigned path = 0; path < 1u << STEPS; path++)
        left(path, STEPS);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, back_and_forth, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    fact("pairs", (long)THREADS * PAIRS);
    tell_truth();
    stay();
}
