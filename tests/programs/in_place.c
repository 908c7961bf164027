//! Blocks of jemalloc's that change their sizes where they are (xallocx), or do not.
#include "truth.h"

void *mallocx(size_t, int), *rallocx(void *, size_t, int);
size_t xallocx(void *, size_t, size_t, int), sallocx(const void *, int);
void dallocx(void *, int);

// Changes a block as far as it goes: one that does not become as large as it is asked to stays as it was.
#define CHANGES(function, from, to, more)                                   \
    SITE(function);                                                         \
    static ALLOCATES void function(void (*release)(void *, int))            \
    {                                                                       \
        struct block block;                                                 \
        void *pointer = mallocx(from, 0);                                   \
        KEEP(pointer);                                                      \
        size_t got = xallocx(pointer, to, more, 0);                         \
        size_t size = got < (to) ? (from) : (more) ? got : (to);            \
        changed += size != (from);                                          \
        hold(&block, pointer, size, &function##_site);                      \
        if (release) {                                                      \
            let_go(&block);                                                 \
            release(pointer, 0);                                            \
        }                                                                   \
    }

static long changed;

#define FUNCTIONS(F)                          \
    F(within_its_class, 1000, 1010, 0)        \
    F(too_small_for_that, 1000, 9000, 0)      \
    F(shrinks, 200000, 20000, 0)              \
    F(grows, 20000, 24000, 0)                 \
    F(grows_if_there_is_room, 20000, 20100, 500000) \
    F(asks_for_too_much, 100, (size_t)1 << 61, 0)

FUNCTIONS(CHANGES)

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 50; i++) {
#define CALL(function, from, to, more) function(NULL), function(dallocx);
        FUNCTIONS(CALL)
    }
    fact("changed", changed);
    tell_truth();
    stay();
}
