//! An arena of jemalloc: with blocks that end at once, or not, in the way that the argument names.
#include "truth.h"
#include <sys/types.h>

void *mallocx(size_t, int);
int mallctl(const char *, void *, size_t *, void *, size_t), mallctlnametomib(const char *, size_t *, size_t *);
int mallctlbymib(const size_t *, size_t, void *, size_t *, void *, size_t);

static unsigned arena;

SITE(fill_arena);
static ALLOCATES void fill_arena(void)
{
    for (int i = 0; i < 10; i++) {
        // MALLOCX_ARENA and MALLOCX_TCACHE_NONE.
        void *block = mallocx(1000, (int)(arena + 1) << 20 | 1 << 8);
        KEEP(block);
    }
}

SITE(fill_later);
static ALLOCATES void fill_later(void)
{
    struct block block;
    void *pointer = malloc(300);
    KEEP(pointer);
    hold(&block, pointer, 300, &fill_later_site);
}

static void does(const char *what)
{
    char name[64];
    size_t numbers[3], count = 3, size = sizeof count;
    int by_numbers = !strcmp(what, "numbers");
    snprintf(name, sizeof name, "arena.%u.%s", arena, by_numbers ? "reset" : what);
    if (!strcmp(what, "look")) {
        if (mallctl("stats.allocated", &count, &size, NULL, 0)) abort();
    } else if (by_numbers) {
        if (mallctlnametomib(name, numbers, &count) || mallctlbymib(numbers, count, NULL, NULL, NULL, 0)) abort();
    } else if (mallctl(name, NULL, NULL, NULL, 0)) {
        abort();
    }
    if (mallctl("thread.tcache.flush", NULL, NULL, NULL, 0)) abort();
}

int main(int argc, char **argv)
{
    size_t size = sizeof arena;
    if (mallctl("arenas.create", &arena, &size, NULL, 0)) abort();
    say("waiting");
    wait_for("begin");
    fill_arena();
    // Blocks know their age to the tick of the clock.
    usleep(50000);
    does(argv[1]);
    usleep(50000);
    fill_later();
    tell_truth();
    stay();
}
