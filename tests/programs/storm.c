// Processes that come and go. Arguments: how many, how many at a time, `fork` or `exec`, and `wait` to begin only when told to. Each
// allocates and frees a little, and holds one block at its end. Prints how long they took together, ns, and then waits to be told to
// end, if it waited to begin.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void work(void) {
    for (int i = 0; i < 20; i++) {
        void *block = malloc(100 + i);
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    }
    void *held = malloc(1000);
    __asm__ volatile("" : : "r"(held) : "memory");
    _exit(0);
}

static void wait_for_byte(void) {
    char byte;
    if (read(0, &byte, 1) < 0) abort();
}

int main(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "leaf") == 0) work();
    int count = atoi(argv[1]), most = atoi(argv[2]), executes = strcmp(argv[3], "exec") == 0;
    if (argc > 4) wait_for_byte();
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int started = 0, running = 0; started < count || running > 0;) {
        if (started < count && running < most) {
            started++, running++;
            pid_t child = fork();
            if (child < 0) abort();
            if (child == 0) {
                if (executes) execl("/proc/self/exe", "storm", "leaf", NULL);
                work();
            }
        } else {
            wait(NULL);
            running--;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.0f\n", (end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec));
    fflush(stdout);
    if (argc > 4) wait_for_byte();
    return 0;
}
