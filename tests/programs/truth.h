//! What the ground-truth programs share: how they talk to the test, and how they keep count of what each function holds.
//!
//! A program prints `waiting`, is told what to do in lines on its standard input, and answers with `truth FUNCTION BYTES
//! BLOCKS` for every function that allocates, `fact NAME NUMBER`, and `ready`. At the end of its input it exits. Nothing in
//! here allocates: everything that a tracer sees comes from the program's own functions.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A function that allocates: never inlined, cloned or analysed from outside.
#define ALLOCATES __attribute__((noipa))
// Keeps a result and, after a call, keeps that call from becoming a jump: the caller stays the direct caller.
#define KEEP(pointer) asm volatile("" : "+r"(pointer) : : "memory")

// What one function holds.
struct site {
    const char *name;
    long bytes;
    long blocks;
};

// Declares the count of a function. The linker gathers pointers to all of them into one array.
#define SITE(function)                              \
    static struct site function##_site = {#function, 0, 0}; \
    static struct site *function##_listed __attribute__((section("sites"), used)) = &function##_site

extern struct site *__start_sites[] __attribute__((weak));
extern struct site *__stop_sites[] __attribute__((weak));

// A live block and the function that holds it.
struct block {
    void *pointer;
    size_t size;
    struct site *site;
};

static inline void site_add(struct site *site, long bytes, long blocks)
{
    __atomic_fetch_add(&site->bytes, bytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->blocks, blocks, __ATOMIC_RELAXED);
}

// All that was ever booked, freed or not.
static long allocated_bytes, allocated_blocks;

// Books what an allocating call returned; NULL is no block.
static inline void hold(struct block *block, void *pointer, size_t size, struct site *site)
{
    block->pointer = pointer;
    block->size = size;
    block->site = site;
    if (pointer) {
        site_add(site, (long)size, 1);
        __atomic_fetch_add(&allocated_bytes, (long)size, __ATOMIC_RELAXED);
        __atomic_fetch_add(&allocated_blocks, 1, __ATOMIC_RELAXED);
    }
}

// A function that allocates a block for its caller to book.
#define MAKER(function)                          \
    SITE(function);                              \
    static ALLOCATES void *function(size_t size) \
    {                                            \
        void *pointer = malloc(size);            \
        KEEP(pointer);                           \
        return pointer;                          \
    }

// A function that allocates a block that nobody will ever free.
#define LEAK(function)                                 \
    SITE(function);                                    \
    static ALLOCATES void function(size_t size)        \
    {                                                  \
        struct block block;                            \
        void *pointer = malloc(size);                  \
        KEEP(pointer);                                 \
        hold(&block, pointer, size, &function##_site); \
    }

// A function that holds the block that an expression gives: so many bytes.
#define HOLDS_BY(function, bytes, call)                 \
    SITE(function);                                     \
    static ALLOCATES void function(void)                \
    {                                                   \
        struct block block;                             \
        void *pointer = call;                           \
        KEEP(pointer);                                  \
        hold(&block, pointer, bytes, &function##_site); \
    }

// Books the end of a block.
static inline void let_go(struct block *block)
{
    if (block->pointer && block->site)
        site_add(block->site, -(long)block->size, -1);
    block->pointer = NULL;
}

// Books the outcome of a realloc: success moves the block, failure leaves it, NULL for a size of 0 is its end.
static inline void resized(struct block *block, void *result, size_t size, struct site *site)
{
    if (result) {
        let_go(block);
        hold(block, result, size, site);
    } else if (size == 0) {
        let_go(block);
    }
}

// Prints a line, without a stdio buffer: that would be allocated.
static inline void say(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    line[length++] = '\n';
    if (write(1, line, length) != length)
        _exit(98);
}

// Reads a line; at the end of input the program is no longer wanted.
static inline void hear(char *line, size_t room)
{
    size_t length = 0;
    char byte;
    while (read(0, &byte, 1) == 1) {
        if (byte == '\n') {
            line[length] = 0;
            return;
        }
        if (length + 1 < room)
            line[length++] = byte;
    }
    _exit(0);
}

// Waits for the one line that makes sense now.
static inline void wait_for(const char *word)
{
    char line[64];
    hear(line, sizeof line);
    if (strcmp(line, word) != 0) {
        say("expected %s, not %s", word, line);
        _exit(97);
    }
}

static inline void fact(const char *name, long number)
{
    say("fact %s %ld", name, number);
}

static inline void tell_truth(void)
{
    for (struct site **site = __start_sites; site != __stop_sites; site++)
        say("truth %s %ld %ld", (*site)->name, (*site)->bytes, (*site)->blocks);
}

// Says `ready` and waits for the end of input.
static inline void stay(void)
{
    char line[64];
    say("ready");
    for (;;)
        hear(line, sizeof line);
}
