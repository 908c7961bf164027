//! Allocates in functions whose returns other tracers probe: one inside the other, and one that jumps into the allocator.
//! Again whenever it is told to.
#include "truth.h"

LEAK(below_probed);
SITE(calls_jumps);

static ALLOCATES void probed(int depth)
{
    if (depth > 0)
        probed(depth - 1);
    else
        below_probed(2001);
    asm volatile("");
}

static ALLOCATES void calls_probed(void)
{
    probed(3);
    asm volatile("");
}

// The allocator returns to its caller.
static ALLOCATES void *jumps(size_t size)
{
    return malloc(size);
}

static ALLOCATES void calls_jumps(void)
{
    struct block block;
    void *pointer = jumps(3001);
    KEEP(pointer);
    hold(&block, pointer, 3001, &calls_jumps_site);
}

int main(void)
{
    say("waiting");
    for (;;) {
        wait_for("begin");
        for (int i = 0; i < 100; i++) {
            calls_probed();
            calls_jumps();
        }
        tell_truth();
        say("ready");
    }
}
