//! An allocator whose malloc is chosen at run time (IFUNC).
#define malloc chosen_malloc
#include "own_allocator.c"
#undef malloc

static void *(*choose(void))(size_t)
{
    return chosen_malloc;
}

EXPORT void *malloc(size_t size) __attribute__((ifunc("choose")));
