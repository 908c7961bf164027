//! Memory that comes from elsewhere than malloc, and such as comes from it. Commands: `map` fills 48 MiB that the program maps
//! itself, `leak` fills 48 MiB of blocks, `churn` has threads fill and free 4 MiB each, one after the other, and stay. With an
//! argument it fills 48 MiB that it maps itself and ends a while later.
#include "truth.h"

#include <pthread.h>
#include <sys/mman.h>

enum { SIZE = 48 << 20, BLOCK = 4096, BLOCKS_OF_THREAD = 1024, THREADS = 12 };

LEAK(leaks)
MAKER(churns)

static void fill(char *memory, size_t size)
{
    for (size_t at = 0; at < size; at += 1024)
        memory[at] = 1;
    KEEP(memory);
}

static void map(void)
{
    char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        _exit(97);
    fill(memory, SIZE);
}

static void *churn(void *done)
{
    static __thread void *blocks[BLOCKS_OF_THREAD];
    for (int i = 0; i < BLOCKS_OF_THREAD; i++) {
        blocks[i] = churns(BLOCK);
        fill(blocks[i], BLOCK);
        // Slow enough for a debug build of the tracer.
        if (i % 128 == 0)
            usleep(1000);
    }
    // The last one keeps the rest from going back to the kernel.
    for (int i = 0; i < BLOCKS_OF_THREAD - 1; i++)
        free(blocks[i]);
    hold(&(struct block){0}, blocks[BLOCKS_OF_THREAD - 1], BLOCK, &churns_site);
    pthread_barrier_wait(done);
    pause();
    return NULL;
}

int main(int argc, char **argv)
{
    (void)argv;
    static pthread_barrier_t done;
    pthread_barrier_init(&done, NULL, 2);
    if (argc > 1) {
        map();
        usleep(1500000);
        return 0;
    }
    say("waiting");
    for (;;) {
        char line[64];
        hear(line, sizeof line);
        if (!strcmp(line, "map"))
            map();
        if (!strcmp(line, "leak"))
            for (int i = 0; i < SIZE / BLOCK; i++)
                leaks(BLOCK);
        for (int i = 0; !strcmp(line, "churn") && i < THREADS; i++) {
            pthread_t thread;
            pthread_create(&thread, NULL, churn, &done);
            pthread_barrier_wait(&done);
        }
        tell_truth();
        say("ready");
    }
}
