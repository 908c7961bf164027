//! An allocator in the place of the C library's that keeps a header before each block, and is asked for blocks of no bytes.
#include "truth.h"

enum { HEADER = 16 };

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);

static void *take(size_t size)
{
    char *block = __libc_malloc(HEADER + size);
    if (block == NULL) return NULL;
    *(size_t *)block = size;
    return memset(block + HEADER, 0, size);
}

__attribute__((noipa)) void *malloc(size_t size) { return take(size); }
__attribute__((noipa)) void *calloc(size_t count, size_t size) { return take(count * size); }
__attribute__((noipa)) void free(void *block)
{
    if (block) __libc_free((char *)block - HEADER);
}
__attribute__((noipa)) void *realloc(void *block, size_t size)
{
    char *new = take(size);
    if (block == NULL || new == NULL) return new;
    size_t old = *(size_t *)((char *)block - HEADER);
    memcpy(new, block, old < size ? old : size);
    __libc_free((char *)block - HEADER);
    return new;
}

HOLDS_BY(nothing_by_malloc, 0, malloc(0))
HOLDS_BY(nothing_by_calloc, 0, calloc(0, 8))
HOLDS_BY(nothing_by_realloc, 0, realloc(NULL, 0))
HOLDS_BY(something, 100, malloc(100))

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 20; i++) nothing_by_malloc(), nothing_by_calloc(), nothing_by_realloc(), something();
    tell_truth();
    stay();
}
