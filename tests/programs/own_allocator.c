//! An allocator of the program's own, for an executable that exports one or as a library that is preloaded. Its functions
//! call each other in every way that a tracer may count twice: calls, chains of calls and jumps at the end.
//!
//! Power-of-two classes in one arena, a spin lock, a header before each block. `allocation_hook`, when set, is called
//! inside malloc: the place where a program may log, throw, jump out or end its thread.
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default"), noipa))

enum { CLASSES = 32, SMALLEST = 5 };
static const size_t ARENA = (size_t)1 << 32, LARGEST = (size_t)1 << 30;

// Lies right before the block. An aligned block lies inside a larger one, its base.
struct header {
    void *base;
    uint32_t class;
    uint32_t size_low;
};

static char *arena, *arena_end;
static void *free_lists[CLASSES];
static char lock;

EXPORT void (*allocation_hook)(size_t);

EXPORT void *malloc(size_t size);
EXPORT void free(void *block);
EXPORT void *realloc(void *block, size_t size);
EXPORT void *memalign(size_t alignment, size_t size);

static void acquire(void)
{
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE))
        __builtin_ia32_pause();
}

static void release(void)
{
    __atomic_clear(&lock, __ATOMIC_RELEASE);
}

static struct header *header(void *block)
{
    return (struct header *)block - 1;
}

static void *take(uint32_t class)
{
    size_t room = (size_t)1 << class;
    char *base = free_lists[class];
    if (base) {
        free_lists[class] = *(void **)base;
        return base;
    }
    if (!arena) {
        arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        arena_end = arena + ARENA;
    }
    if ((size_t)(arena_end - arena) < room)
        return NULL;
    base = arena;
    arena += room;
    return base;
}

EXPORT void *malloc(size_t size)
{
    if (allocation_hook)
        allocation_hook(size);
    if (size > LARGEST) {
        errno = ENOMEM;
        return NULL;
    }
    uint32_t class = SMALLEST;
    while (((size_t)1 << class) < size + sizeof(struct header))
        class ++;
    acquire();
    char *base = take(class);
    release();
    if (!base)
        return NULL;
    struct header *made = (struct header *)base;
    *made = (struct header){base, class, (uint32_t)size};
    return made + 1;
}

EXPORT void free(void *block)
{
    if (!block)
        return;
    void *base = header(block)->base;
    uint32_t class = header(block)->class;
    acquire();
    *(void **)base = free_lists[class];
    free_lists[class] = base;
    release();
}

// A jump, not a call.
EXPORT void cfree(void *block)
{
    free(block);
}

EXPORT void *calloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    void *block = malloc(bytes);
    return block ? memset(block, 0, bytes) : NULL;
}

EXPORT void *realloc(void *block, size_t size)
{
    if (block && size == 0) {
        free(block);
        return NULL;
    }
    void *moved = malloc(size);
    if (!moved || !block)
        return moved;
    size_t old = header(block)->size_low;
    memcpy(moved, block, old < size ? old : size);
    free(block);
    return moved;
}

// A jump, not a call.
EXPORT void *reallocarray(void *block, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(block, bytes);
}

EXPORT void *memalign(size_t alignment, size_t size)
{
    if (alignment <= sizeof(struct header))
        return malloc(size);
    if (size > LARGEST) {
        errno = ENOMEM;
        return NULL;
    }
    char *room = malloc(size + alignment + sizeof(struct header));
    if (!room)
        return NULL;
    struct header *whole = header(room);
    uintptr_t address = ((uintptr_t)room + sizeof(struct header) + alignment - 1) & -alignment;
    *header((void *)address) = (struct header){whole->base, whole->class, (uint32_t)size};
    return (void *)address;
}

EXPORT int posix_memalign(void **result, size_t alignment, size_t size)
{
    if (alignment < sizeof(void *) || alignment & (alignment - 1))
        return EINVAL;
    void *block = memalign(alignment, size);
    if (!block)
        return ENOMEM;
    *result = block;
    return 0;
}

// A jump, not a call.
EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}

EXPORT void *valloc(size_t size)
{
    return memalign(4096, size);
}

EXPORT void *pvalloc(size_t size)
{
    return memalign(4096, (size + 4095) & -4096);
}
