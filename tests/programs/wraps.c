//! An allocator in the place of the C library's that calculates with sizes without a look at what overflows: it gives a small block where it is
//! asked for more than there can be.
#include "truth.h"

static char pool[1 << 20];
static size_t used;

__attribute__((noipa)) void *malloc(size_t size)
{
    size_t at = used;
    used += (size + 31) & ~(size_t)15;
    return pool + at;
}
__attribute__((noipa)) void free(void *block) { KEEP(block); }

SITE(plain);
static ALLOCATES void plain(void)
{
    struct block block;
    hold(&block, malloc(1000), 1000, &plain_site);
}

static ALLOCATES void too_much(void)
{
    volatile size_t size = SIZE_MAX - 5;
    void *block = malloc(size);
    KEEP(block);
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 4; i++) plain(), too_much();
    tell_truth();
    stay();
}
