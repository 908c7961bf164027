//! Allocation under full load: threads that allocate and free as fast as they can while the main thread does what it is
//! told. Argument: how many threads.
//!
//! `keep` makes known blocks in two functions, `start` starts the storm, `leak` makes known blocks in a third function,
//! `drop` frees all blocks of one function, `rest` halts the storm, `truth` tells.
#include "truth.h"

#include <pthread.h>

enum { KEPT = 2000 };

static struct block kept_all_along[KEPT], dropped_in_the_storm[KEPT];
static volatile int stormy;
static long operations;
static pthread_barrier_t calm;

MAKER(keep_all_along)
MAKER(drop_in_the_storm)
MAKER(leak_now_and_then)
MAKER(churn)

static void *storm(void *unused)
{
    for (;;) {
        pthread_barrier_wait(&calm);
        long done = 0;
        while (stormy) {
            void *pointers[8];
            for (int i = 0; i < 8; i++)
                pointers[i] = churn(16 + 40 * i);
            for (int i = 0; i < 8; i++)
                free(pointers[i]);
            done += 8;
        }
        __atomic_fetch_add(&operations, done, __ATOMIC_RELAXED);
        pthread_barrier_wait(&calm);
    }
    return NULL;
}

static void keep(void)
{
    for (int i = 0; i < KEPT; i++) {
        // Slow enough for the smallest buffer.
        if (i % 100 == 0)
            usleep(20000);
        size_t size = 100 + i % 50;
        hold(&kept_all_along[i], keep_all_along(size), size, &keep_all_along_site);
        hold(&dropped_in_the_storm[i], drop_in_the_storm(size), size, &drop_in_the_storm_site);
    }
}

static void drop(void)
{
    for (int i = 0; i < KEPT; i++) {
        void *pointer = dropped_in_the_storm[i].pointer;
        let_go(&dropped_in_the_storm[i]);
        free(pointer);
    }
}

static void leak(void)
{
    for (int i = 0; i < 100; i++) {
        struct block leaked;
        hold(&leaked, leak_now_and_then(1000 + i), 1000 + i, &leak_now_and_then_site);
    }
}

int main(int argument_count, char **arguments)
{
    int threads = argument_count > 1 ? atoi(arguments[1]) : 2;
    pthread_t thread;
    pthread_barrier_init(&calm, NULL, threads + 1);
    for (int i = 0; i < threads; i++)
        pthread_create(&thread, NULL, storm, NULL);
    usleep(10000);
    say("waiting");
    for (;;) {
        char line[64];
        hear(line, sizeof line);
        if (strcmp(line, "keep") == 0)
            keep();
        else if (strcmp(line, "drop") == 0)
            drop();
        else if (strcmp(line, "leak") == 0)
            leak();
        else if (strcmp(line, "start") == 0) {
            stormy = 1;
            pthread_barrier_wait(&calm);
        } else if (strcmp(line, "rest") == 0) {
            stormy = 0;
            pthread_barrier_wait(&calm);
        }
        tell_truth();
        fact("operations", operations);
        say("ready");
    }
}
