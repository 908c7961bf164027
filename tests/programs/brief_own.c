//! A command that is over at once and takes most of what it allocates from an allocator of its own, in its own file, which has the names of
//! jemalloc's with a prefix; and something from the C library's.
#include "truth.h"

static char pool[1 << 20];
static size_t taken;

ALLOCATES void *_rjem_malloc(size_t size)
{
    void *block = pool + taken;
    taken += (size + 15) & ~(size_t)15;
    return block;
}

ALLOCATES void *_rjem_calloc(size_t count, size_t size)
{
    return _rjem_malloc(count * size);
}

ALLOCATES void *_rjem_realloc(void *block, size_t size)
{
    KEEP(block);
    return _rjem_malloc(size);
}

ALLOCATES void _rjem_free(void *block)
{
    KEEP(block);
}

ALLOCATES int _rjem_mallctl(const char *name, void *old, size_t *old_size, void *new, size_t new_size)
{
    (void)name, (void)old, (void)old_size, (void)new, (void)new_size;
    return 0;
}

static ALLOCATES void take_own(void)
{
    void *block = _rjem_malloc(10007);
    KEEP(block);
}

static ALLOCATES void take_from_libc(void)
{
    void *block = malloc(4242);
    KEEP(block);
}

int main(void)
{
    take_own();
    take_from_libc();
    _exit(0);
}
