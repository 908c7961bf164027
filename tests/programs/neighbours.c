//! Small blocks that are aligned far are freed; right above each lies another one, which stays. With -DALONE there are the former only, every
//! second one freed: a static program has no malloc then.
#include "truth.h"

enum { BLOCKS = 2000 };

static struct block blocks[BLOCKS];

SITE(aligned);
static ALLOCATES void aligned(int i) { hold(&blocks[i], aligned_alloc(64, 8), 8, &aligned_site); }

#ifndef ALONE
SITE(neighbour);
static ALLOCATES void neighbour(void)
{
    struct block block;
    hold(&block, malloc(57), 57, &neighbour_site);
    KEEP(block.pointer);
}
#endif

static void give_back(struct block *block)
{
    void *pointer = block->pointer;
    let_go(block);
    free(pointer);
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < BLOCKS; i++) {
        aligned(i);
#ifndef ALONE
        neighbour();
#endif
    }
#ifdef ALONE
    for (int i = 0; i < BLOCKS; i += 2) give_back(&blocks[i]);
#else
    for (int i = 0; i < BLOCKS; i++) give_back(&blocks[i]);
#endif
    tell_truth();
    stay();
}
