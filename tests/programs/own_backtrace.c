//! A program in which stacks are walked inside of malloc: by itself, where its allocator is own_allocator.c, which lets it; it
//! tells how many stacks did not lead to the outermost frame, and how many addresses lie outside of all files. By a sanitizer or
//! the profiler of the allocator, where it is built or preloaded with such; they judge what it has leaked when it is told to
//! `end`.
#include "truth.h"

#include <dlfcn.h>
#include <execinfo.h>

LEAK(leak)

extern void (*allocation_hook)(size_t) __attribute__((weak));

// The leak is on purpose, if the sanitizer can see through whom it came.
const char *__lsan_default_suppressions(void)
{
    return "leak:deeper\n";
}

static __thread int walking;
static long cut, strange;

static void look(void)
{
    void *addresses[64];
    Dl_info known;
    int count = backtrace(addresses, 64);
    // The outermost is _start.
    cut += count < 6;
    for (int i = 0; i < count; i++)
        strange += !dladdr(addresses[i], &known);
}

// Called by own_allocator.c inside of malloc.
static void hook(size_t size)
{
    if (walking || size != 4321)
        return;
    walking = 1;
    look();
    walking = 0;
}

static ALLOCATES void deeper(void)
{
    leak(4321);
    asm volatile("");
}

int main(void)
{
    char line[64];
    // Once before: it loads what it needs.
    look();
    cut = strange = 0;
    if (&allocation_hook)
        allocation_hook = hook;
    say("waiting");
    wait_for("run");
    for (int i = 0; i < 200; i++)
        deeper();
    tell_truth();
    fact("cut", cut);
    fact("strange", strange);
    say("ready");
    hear(line, sizeof line);
    exit(0);
}
