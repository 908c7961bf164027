//! An allocator in the place of the C library's that calculates with sizes without a look at what overflows: it gives a small block where it is
//! asked for more than there can be, or than there is room for.
#include "truth.h"

static char pool[1 << 20];
static size_t used;

__attribute__((noipa)) void *malloc(size_t size)
{
    size_t at = used;
    size_t taken = (size + 31) & ~(size_t)15;
    used += taken > sizeof pool ? 16 : taken;
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
    // The first overflows, the other leads beyond all addresses from wherever it begins.
    volatile size_t sizes[] = {SIZE_MAX - 5, ((size_t)1 << 47) - 4096};
    for (int i = 0; i < 2; i++) {
        void *block = malloc(sizes[i]);
        KEEP(block);
    }
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 4; i++) plain(), too_much();
    tell_truth();
    stay();
}
