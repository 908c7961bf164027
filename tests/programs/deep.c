//! Allocates from thousands of deep stacks, no two of them alike. Most of the blocks are freed at once; the larger of the rest come last.
#include "truth.h"

SITE(held);

static ALLOCATES void *left(int depth, unsigned bits);

static ALLOCATES void *right(int depth, unsigned bits)
{
    void *pointer = depth == 0 ? malloc(bits) : bits >> (depth % 13) & 1 ? left(depth - 1, bits) : right(depth - 1, bits);
    KEEP(pointer);
    return pointer;
}

static ALLOCATES void *left(int depth, unsigned bits)
{
    void *pointer = depth == 0 ? malloc(bits) : bits >> (depth % 13) & 1 ? left(depth - 1, bits) : right(depth - 1, bits);
    KEEP(pointer);
    return pointer;
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (unsigned i = 1; i < 8192; i++) {
        struct block block;
        void *pointer = right(200, i);
        if (i % 16 == 15)
            hold(&block, pointer, i, &held_site);
        else
            free(pointer);
    }
    tell_truth();
    stay();
}
