//! A library that is preloaded, and that passes calls on to the next allocator and keeps books in blocks of its own: in front of each call
//! and behind it, smaller and larger than what was asked for, by itself and through the C library. They are never freed.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

// What it holds.
long noted_bytes, noted_blocks;

static __thread _Bool busy __attribute__((tls_model("initial-exec")));
static __thread unsigned calls __attribute__((tls_model("initial-exec")));

typedef void *sized(size_t), *resize(void *, size_t);

static void note(void *block, size_t size)
{
    __asm__ volatile("" : "+r"(block) : : "memory");
    if (!block)
        return;
    __atomic_add_fetch(&noted_bytes, (long)size, __ATOMIC_RELAXED);
    __atomic_add_fetch(&noted_blocks, 1, __ATOMIC_RELAXED);
}

// Opens a log and closes it now and then, and keeps a name.
static void log_call(const char *name)
{
    if (calls++ % 16 == 0) {
        FILE *log = fopen("/dev/null", "a");
        if (log) {
            fprintf(log, "%s\n", name);
            fclose(log);
        }
    }
    note(strdup(name), strlen(name) + 1);
}

static sized *next_malloc;
static resize *next_realloc;

__attribute__((constructor)) static void find_next(void)
{
    next_malloc = (sized *)dlsym(RTLD_NEXT, "malloc");
    next_realloc = (resize *)dlsym(RTLD_NEXT, "realloc");
}

extern void *__libc_malloc(size_t), *__libc_realloc(void *, size_t);

void *malloc(size_t size)
{
    sized *next = next_malloc ? next_malloc : __libc_malloc;
    // Seldom, so that there is an end to it.
    if (busy || calls++ % 8 != 0) {
        void *block = next(size);
        __asm__ volatile("" : "+r"(block) : : "memory");
        return block;
    }
    busy = 1;
    log_call("malloc");
    note(next(24), 24);
    void *block = next(size);
    note(next(size + 40), size + 40);
    log_call("a block of memory, with a name that is longer than many a block is large, though not than all of them");
    busy = 0;
    return block;
}

void *realloc(void *old, size_t size)
{
    resize *next = next_realloc ? next_realloc : __libc_realloc;
    if (busy || calls++ % 8 != 0) {
        void *block = next(old, size);
        __asm__ volatile("" : "+r"(block) : : "memory");
        return block;
    }
    busy = 1;
    log_call("realloc");
    void *block = next(old, size);
    note(next(NULL, 24), 24);
    busy = 0;
    return block;
}
