//! A library that is preloaded and passes calls on to the next allocator, as counters and limiters do: all of the family, or with
//! -DPART only some of it. Two of them may be in a row.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

static volatile long calls;

// Before main there is one thread. What is asked for while the next one is looked up is given from here, and stays.
static char early[1 << 16];
static size_t taken;
static _Bool looking;

static void *from_here(size_t size)
{
    void *block = early + taken;
    taken += (size + 15) & ~(size_t)15;
    return taken <= sizeof early ? block : NULL;
}

static _Bool is_from_here(void *block)
{
    return (char *)block >= early && (char *)block < early + sizeof early;
}

#define NEXT(type, name)                       \
    static type *next;                         \
    if (!next) {                               \
        looking = 1;                           \
        next = (type *)dlsym(RTLD_NEXT, #name); \
        looking = 0;                           \
    }                                          \
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED)

typedef void *sized(size_t), *pair(size_t, size_t), *resize(void *, size_t), *resize_array(void *, size_t, size_t);
typedef int store(void **, size_t, size_t);
typedef void release(void *);

// What comes after a call keeps it from becoming a jump.
#define PASS(type, name, arguments)          \
    NEXT(type, name);                        \
    void *block = next arguments;            \
    __atomic_sub_fetch(&calls, 1, __ATOMIC_RELAXED); \
    return block

void *malloc(size_t size)
{
    if (looking) return from_here(size);
    PASS(sized, malloc, (size));
}

void free(void *block)
{
    if (is_from_here(block)) return;
    NEXT(release, free);
    // A jump.
    next(block);
}

#ifndef PART
void *calloc(size_t count, size_t size)
{
    if (looking) return from_here(count * size);
    PASS(pair, calloc, (count, size));
}

void *realloc(void *block, size_t size)
{
    NEXT(resize, realloc);
    return next(block, size);
}

void *reallocarray(void *block, size_t count, size_t size)
{
    NEXT(resize_array, reallocarray);
    return next(block, count, size);
}

int posix_memalign(void **result, size_t alignment, size_t size)
{
    NEXT(store, posix_memalign);
    int error = next(result, alignment, size);
    __atomic_sub_fetch(&calls, 1, __ATOMIC_RELAXED);
    return error;
}

void *memalign(size_t alignment, size_t size) { PASS(pair, memalign, (alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { PASS(pair, aligned_alloc, (alignment, size)); }
void *valloc(size_t size) { PASS(sized, valloc, (size)); }
#endif
