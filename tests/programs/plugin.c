//! A library for plugins.c. Compiled with the names of its two functions.
#include <stdlib.h>

#define KEEP(pointer) asm volatile("" : "+r"(pointer) : : "memory")

void *AT_ONCE(size_t size)
{
    void *pointer = malloc(size);
    KEEP(pointer);
    return pointer;
}

void *LATER(size_t size)
{
    void *pointer = malloc(size);
    KEEP(pointer);
    return pointer;
}
