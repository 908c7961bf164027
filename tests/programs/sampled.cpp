//! Blocks of many sizes from many functions of the allocator, some of which are parts of others; tells what each holds.
#include "truth.h"

#include <malloc.h>
#include <new>

SITE(grown);
SITE(small);
SITE(by_new);
SITE(by_aligned_new);
SITE(zeroed);
SITE(large);
SITE(aligned);
SITE(resized_often);
SITE(wrapped);
SITE(largest);

static const int MOST = 1000000;
static struct block blocks[MOST];
static int used;

static void keep(void *pointer, size_t size, struct site *site)
{
    hold(&blocks[used++], pointer, size, site);
}

struct alignas(64) Line {
    char bytes[128];
};

// From one place, and by one function of the allocator, whatever that one calls.
static ALLOCATES void grown()
{
    void *pointer = nullptr;
    for (size_t size = 500; size <= 2000; size += 500) {
        pointer = realloc(pointer, size);
        KEEP(pointer);
    }
    keep(pointer, 2000, &grown_site);
}

static ALLOCATES void small()
{
    void *pointer = malloc(40);
    KEEP(pointer);
    keep(pointer, 40, &small_site);
}

static ALLOCATES void by_new()
{
    char *pointer = new char[200];
    KEEP(pointer);
    keep(pointer, 200, &by_new_site);
}

static ALLOCATES void by_aligned_new()
{
    Line *pointer = new Line;
    KEEP(pointer);
    keep(pointer, sizeof *pointer, &by_aligned_new_site);
}

static ALLOCATES void zeroed()
{
    void *pointer = calloc(3, 500);
    KEEP(pointer);
    keep(pointer, 1500, &zeroed_site);
}

static ALLOCATES void large()
{
    void *pointer = malloc(250000);
    KEEP(pointer);
    keep(pointer, 250000, &large_site);
}

static ALLOCATES void aligned()
{
    void *pointer = nullptr;
    if (posix_memalign(&pointer, 64, 700) != 0)
        _exit(96);
    keep(pointer, 700, &aligned_site);
}

static ALLOCATES void resized_often()
{
    void *pointer = malloc(10);
    for (size_t size = 100; size <= 3100; size += 500) {
        pointer = realloc(pointer, size);
        KEEP(pointer);
    }
    keep(pointer, 3100, &resized_often_site);
}

// By an allocator's function that asks another for memory, or by one of the library where that is its own.
static ALLOCATES void wrapped()
{
    void *pointer = reallocarray(nullptr, 10, 60);
    KEEP(pointer);
    keep(pointer, 600, &wrapped_site);
}

// From one place: two functions in turn, and a small block before a large one.
static ALLOCATES void largest()
{
    static void *(*const functions[])(size_t, size_t) = {calloc, aligned_alloc, calloc, memalign};
    static const size_t sizes[][2] = {{1, 16}, {16, 3000000}, {1, 5000000}, {64, 7000000}};
    for (int nth = 0; nth < 4; nth++) {
        void *pointer = functions[nth](sizes[nth][0], sizes[nth][1]);
        KEEP(pointer);
        if (nth == 0)
            free(pointer);
        else
            keep(pointer, sizes[nth][1], &largest_site);
    }
}

static ALLOCATES void passing()
{
    void *pointer = malloc(3000);
    KEEP(pointer);
    free(pointer);
}

static void hold_all()
{
    // Before all others: what is noticed of these calls is not forgotten over those.
    for (int nth = 0; nth < 5000; nth++)
        grown();
    largest();
    for (int round = 0; round < 10; round++) {
        for (int nth = 0; nth < 5000; nth++) {
            small();
            passing();
        }
        for (int nth = 0; nth < 2000; nth++) {
            by_new();
            aligned();
            wrapped();
        }
        for (int nth = 0; nth < 2000; nth++)
            by_aligned_new();
        for (int nth = 0; nth < 500; nth++) {
            zeroed();
            resized_often();
        }
        for (int nth = 0; nth < 10; nth++)
            large();
    }
}

static void free_all()
{
    while (used > 0) {
        struct block *block = &blocks[--used];
        void *pointer = block->pointer;
        struct site *site = block->site;
        let_go(block);
        if (site == &by_new_site)
            delete[] static_cast<char *>(pointer);
        else if (site == &by_aligned_new_site)
            delete static_cast<Line *>(pointer);
        else
            free(pointer);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "hold") == 0) {
        hold_all();
        tell_truth();
        return 0;
    }
    say("waiting");
    for (;;) {
        char order[64];
        hear(order, sizeof order);
        if (strcmp(order, "hold") == 0)
            hold_all();
        else if (strcmp(order, "free") == 0)
            free_all();
        else
            _exit(97);
        tell_truth();
        say("ready");
    }
}
