//! Memory that grows, and memory that does not, each in a function of its own, by the clock: a step each millisecond.
#include <pthread.h>
#include <time.h>

#include "truth.h"

// Blocks of the ring; it takes far longer than a test to replace them all.
#define RING 100000
// Steps that the others take to be full, and to be emptied.
#define FULL 700
#define CYCLE 400

MAKER(leak)
MAKER(keep)
MAKER(fill)
MAKER(cycle)
MAKER(replace)

static void *ring[RING];
static int rings;

static void *work(void *unused)
{
    static void *cycled[CYCLE];
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    keep(1 << 20);
    for (long step = 0;; step++) {
        if (rings) {
            free(ring[step % RING]);
            ring[step % RING] = replace(300);
        } else {
            leak(1000);
            if (step < FULL)
                fill(2000);
            if (step % CYCLE == 0)
                for (int i = 0; i < CYCLE; i++) {
                    free(cycled[i]);
                    cycled[i] = NULL;
                }
            cycled[step % CYCLE] = cycle(500);
        }
        time.tv_nsec += 1000000;
        if (time.tv_nsec >= 1000000000) {
            time.tv_nsec -= 1000000000;
            time.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    rings = argc > 1 && strcmp(argv[1], "ring") == 0;
    for (int i = 0; rings && i < RING; i++)
        ring[i] = replace(300);
    say("waiting");
    wait_for("start");
    if (pthread_create(&thread, NULL, work, NULL))
        _exit(98);
    stay();
}
