//! Allocates by a thousand stacks before anybody could have looked at its file, then waits for a moment: a process that is gone tells
//! nobody what it had mapped. The size of each block says which way led to it: from its highest bit on, 1 for `right`.
#include "truth.h"

#define FIRST 1024
#define FIRST_LARGE (FIRST * 2)

static ALLOCATES void *left(unsigned way, int bits);

static ALLOCATES void *right(unsigned way, int bits);

static ALLOCATES void *further(unsigned way, int bits)
{
    void *pointer = bits == 0 ? malloc(way) : way >> (bits - 1) & 1 ? right(way, bits - 1) : left(way, bits - 1);
    KEEP(pointer);
    return pointer;
}

static ALLOCATES void *left(unsigned way, int bits)
{
    // As much memory as frames of real programs have.
    volatile char room[40];
    room[0] = (char)way;
    void *pointer = further(way, bits);
    KEEP(pointer);
    return pointer;
}

static ALLOCATES void *right(unsigned way, int bits)
{
    volatile char room[200];
    room[0] = (char)way;
    void *pointer = further(way, bits);
    KEEP(pointer);
    return pointer;
}

int main(void)
{
    for (unsigned way = FIRST; way < FIRST_LARGE; way++)
        further(way, 10);
    usleep(500 * 1000);
    return 0;
}
