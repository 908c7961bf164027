//! Has functions of its own by names that allocators have, which do something else.
#include "truth.h"

SITE(mallocx);
SITE(mi_new);

// jemalloc's takes the bytes first.
ALLOCATES void *mallocx(const char *what, size_t bytes)
{
    struct block block;
    void *pointer = malloc(bytes);
    KEEP(what);
    hold(&block, pointer, bytes, &mallocx_site);
    return pointer;
}

// Of so many columns of eight bytes.
ALLOCATES void *mi_new(int columns)
{
    struct block block;
    void *pointer = malloc(columns * sizeof(long));
    hold(&block, pointer, columns * sizeof(long), &mi_new_site);
    return pointer;
}

// They let go of what was taken, and free nothing.
ALLOCATES void je_free(void *entry)
{
    KEEP(entry);
}

ALLOCATES void mi_free(void *widget)
{
    KEEP(widget);
}

// What namesakes.c has for itself is called malloc and free.
long interpret(long operations);

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 1; i <= 100; i++) {
        je_free(mallocx("entry", i));
        mi_free(mi_new(i));
    }
    fact("interpreted", interpret(1000));
    tell_truth();
    stay();
}
