//! Has hundreds of mappings that code could run in, below those of its libraries, before it allocates through the C library.
#include <fcntl.h>
#include <sys/mman.h>

#include "truth.h"

SITE(below_sort);

enum { MAPPINGS = 600, BLOCKS = 50 };

static int compare(const void *one, const void *other)
{
    return *(const int *)one - *(const int *)other;
}

static ALLOCATES int below_sort(const void *one, const void *other)
{
    struct block block;
    void *pointer = malloc(333);
    KEEP(pointer);
    hold(&block, pointer, 333, &below_sort_site);
    return compare(one, other);
}

// Every other page of its own file, so that the kernel makes one of no two of them.
static void map_pages(void)
{
    int file = open("/proc/self/exe", O_RDONLY);
    for (int i = 0; i < MAPPINGS; i++) {
        if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED)
            _exit(96);
        if (mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
            _exit(96);
    }
    close(file);
}

int main(void)
{
    int numbers[BLOCKS];
    map_pages();
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < BLOCKS; i++)
        numbers[i] = i;
    qsort(numbers, BLOCKS, sizeof numbers[0], below_sort);
    tell_truth();
    stay();
}
