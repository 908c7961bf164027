//! Memory from before that changes its place and its mappings, and that of children. It maps 48 MiB, and fills the first 24 MiB of them.
//! Commands: `protect` has the full half be read only, `guard` has a page behind it be unusable, `move` moves it elsewhere, `next` unmaps
//! it and fills the other one; `fork` starts a child that fills 48 MiB at once that it maps itself. `close` fills 48 MiB that it maps, and
//! has them be unusable; `read` maps 48 MiB and only reads them. Of 40 MiB each second 4 MiB are reserved only, the others in use: `open` has
//! all be usable by one call.
#include "truth.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>

enum { SIZE = 48 << 20, HALF = SIZE / 2 };

__attribute__((always_inline)) static inline char *map(void)
{
    char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        _exit(97);
    return memory;
}

static void fill(char *memory, size_t size)
{
    for (size_t at = 0; at < size; at += 1024)
        memory[at] = 1;
    KEEP(memory);
}

static void start_child(void)
{
    int ready[2];
    char byte = 0;
    if (pipe(ready))
        _exit(96);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        fill(map(), SIZE);
        if (write(ready[1], &byte, 1) != 1)
            _exit(95);
        pause();
    }
    if (read(ready[0], &byte, 1) != 1)
        _exit(94);
}

enum { MIXED = 40 << 20, PART = 4 << 20 };

static char *mix(void)
{
    char *memory = mmap(NULL, MIXED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        _exit(93);
    for (size_t at = PART; at < MIXED; at += 2 * PART)
        mprotect(memory + at, PART, PROT_NONE);
    return memory;
}

static char *volatile kept;

ALLOCATES static void opens(char *memory)
{
    mprotect(memory, MIXED, PROT_READ | PROT_WRITE);
    kept = memory;
}

ALLOCATES static void closes(void)
{
    kept = map();
    fill(kept, SIZE);
    mprotect(kept, SIZE, PROT_NONE);
    kept = NULL;
}

ALLOCATES static void reads(void)
{
    kept = map();
    for (size_t at = 0; at < SIZE; at += 1024)
        (void)*(volatile char *)(kept + at);
    kept = NULL;
}

int main(void)
{
    char *mixed = mix();
    char *memory = map();
    fill(memory, HALF);
    say("waiting");
    for (;;) {
        char line[64];
        hear(line, sizeof line);
        void *volatile block = malloc(100);
        free(block);
        if (!strcmp(line, "protect"))
            mprotect(memory, HALF, PROT_READ);
        if (!strcmp(line, "guard"))
            mprotect(memory + HALF, 4096, PROT_NONE);
        if (!strcmp(line, "move")) {
            // Somewhere that is free.
            char *to = map();
            mremap(memory, HALF, HALF, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        }
        if (!strcmp(line, "next")) {
            munmap(memory, HALF);
            fill(memory + HALF, HALF);
        }
        if (!strcmp(line, "open"))
            opens(mixed);
        if (!strcmp(line, "close"))
            closes();
        if (!strcmp(line, "read"))
            reads();
        if (!strcmp(line, "fork"))
            start_child();
        say("ready");
    }
}
