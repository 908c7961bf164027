//! Code that allocates for itself while the allocator works, in the very file that the allocator is in: a new-handler, an operator new
//! that keeps books, logs, and puts a header before blocks. Linked statically, with operators of its own or without.
#include "truth.h"

#include <new>

enum { MOST = 4096 };
static struct block kept[MOST];
static int count;

static struct block *next_block()
{
    return &kept[count++];
}

// What a handler, a wrapper or an operator allocates for itself, and nobody frees.
SITE(log_line);
static ALLOCATES void log_line(size_t size)
{
    void *line = malloc(size);
    KEEP(line);
    hold(next_block(), line, size, &log_line_site);
}

// The same, but freed at once.
SITE(passing_line);
static ALLOCATES void passing_line(size_t size)
{
    void *line = malloc(size);
    KEEP(line);
    free(line);
}

#ifdef OPERATORS
// Books in the function itself: a node for each block, before and behind, larger and smaller than the block; on an odd size the block
// lies behind a header.
static long noted_bytes, noted_blocks;

static void note(size_t size)
{
    noted_bytes += (long)size;
    noted_blocks++;
}

void *operator new(size_t size)
{
    void *node = malloc(24);
    KEEP(node);
    note(24);
    passing_line(size + 100);
    char *block = (char *)malloc(size + size % 2 * 64);
    KEEP(block);
    log_line(size + 1000);
    passing_line(size + 100);
    node = malloc(size + 2000);
    KEEP(node);
    note(size + 2000);
    return block ? block + size % 2 * 64 : NULL;
}
#endif

SITE(from_new);
static ALLOCATES void from_new(size_t size)
{
    void *block = ::operator new(size);
    KEEP(block);
    hold(next_block(), block, size, &from_new_site);
}

SITE(from_malloc);
static ALLOCATES void from_malloc(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    hold(next_block(), block, size, &from_malloc_site);
}

static volatile size_t huge = (size_t)1 << 60;
static int refusals;

// The first time it lets operator new try again.
static void makes_room()
{
    log_line(300 + refusals);
    passing_line(200);
    if (++refusals % 2 == 0)
        throw std::bad_alloc();
}

static ALLOCATES void refuse()
{
    try {
        void *block = ::operator new(huge);
        KEEP(block);
    } catch (const std::bad_alloc &) {
    }
}

int main()
{
    // The first exception allocates for itself.
    try {
        throw 1;
    } catch (int) {
    }
    say("waiting");
    wait_for("begin");
#ifndef OPERATORS
    std::set_new_handler(makes_room);
#endif
    for (int i = 0; i < 50; i++) {
        from_new(40 + i);
        from_malloc(70 + i);
#ifndef OPERATORS
        refuse();
#endif
    }
    tell_truth();
#ifdef OPERATORS
    fact("noted_bytes", noted_bytes);
    fact("noted_blocks", noted_blocks);
#endif
    stay();
}
