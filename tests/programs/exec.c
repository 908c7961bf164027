//! A process that becomes another program: its old blocks are gone with it. Argument: `again` in its second life.
#include "truth.h"

LEAK(in_the_first_life)
LEAK(in_the_second_life)

SITE(aligned_in_the_second_life);

// Small alignments are those of malloc, which the C library calls for them.
static ALLOCATES void aligned_in_the_second_life(size_t size)
{
    struct block block;
    void *pointer = NULL;
    posix_memalign(&pointer, 16, size);
    KEEP(pointer);
    hold(&block, pointer, size, &aligned_in_the_second_life_site);
}

int main(int argument_count, char **arguments)
{
    if (argument_count == 1) {
        say("waiting");
        wait_for("begin");
        for (int i = 0; i < 1000; i++)
            in_the_first_life(100 + i);
        execl("/proc/self/exe", arguments[0], "again", NULL);
        _exit(96);
    }
    for (int i = 0; i < 500; i++) {
        aligned_in_the_second_life(10 + i);
        in_the_second_life(10 + i);
    }
    tell_truth();
    stay();
}
