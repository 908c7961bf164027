//! A process whose children use their processors for a tenth of a second each and are over before anybody looks. Prints the
//! microseconds that all of them used.
#include "truth.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

enum { CHILDREN = 8 };

static ALLOCATES void spend(void)
{
    void *pointer = malloc(4242);
    KEEP(pointer);
    while (clock() < CLOCKS_PER_SEC / 10)
        ;
}

static long microseconds(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

int main(void)
{
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = fork();
        if (child == 0) {
            spend();
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    printf("spent %ld\n", microseconds(RUSAGE_CHILDREN) + microseconds(RUSAGE_SELF));
}
