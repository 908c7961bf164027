//! Calls every function of the allocator that there is, in every way that its code may take on one thread: small and huge
//! sizes, failures, aligned blocks, blocks that grow, shrink, move and stay. For a checker that steps through it.
//!
//! It needs nothing but functions that the oldest C library has, and is started without its start files, so that it runs
//! with the C library of any distribution: with -DBEFORE_2_32 where that is an older glibc. Arguments are the functions to
//! call; `shared`: as if there were other threads.
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define MAYBE extern __attribute__((weak))

typedef void *sized(size_t);
typedef void *pair(size_t, size_t);

MAYBE sized malloc, valloc, pvalloc, tc_malloc, tc_valloc, tc_pvalloc, mi_malloc, mi_zalloc, mi_new_nothrow;
MAYBE sized _Znwm, _Znam, mi_new, tc_new, tc_newarray;
MAYBE pair calloc, memalign, aligned_alloc, tc_calloc, tc_memalign, mi_calloc, mi_new_aligned, mi_new_aligned_nothrow;
MAYBE pair _ZnwmSt11align_val_t, _ZnamSt11align_val_t;
MAYBE void *realloc(void *, size_t), *tc_realloc(void *, size_t), *mi_realloc(void *, size_t);
MAYBE void *reallocarray(void *, size_t, size_t);
MAYBE int posix_memalign(void **, size_t, size_t), tc_posix_memalign(void **, size_t, size_t);
MAYBE void *_ZnwmRKSt9nothrow_t(size_t, const void *), *_ZnamRKSt9nothrow_t(size_t, const void *);
MAYBE void *tc_new_nothrow(size_t, const void *), *tc_newarray_nothrow(size_t, const void *);
MAYBE void *_ZnwmSt11align_val_tRKSt9nothrow_t(size_t, size_t, const void *);
MAYBE void *_ZnamSt11align_val_tRKSt9nothrow_t(size_t, size_t, const void *);
MAYBE void *mallocx(size_t, int), *rallocx(void *, size_t, int);
MAYBE void free(void *);
#ifndef BEFORE_2_32
MAYBE char __libc_single_threaded;
#endif

static const size_t sizes[] = {0, 1, 16, 24, 25, 100, 1000, 1032, 1033, 2000, 9000, 33000, 140000, 3 << 20, 70 << 20};
static const size_t failures[] = {(size_t)1 << 62, (size_t)-1, (size_t)-4096, (size_t)-100, (size_t)1 << 47};
enum { SIZES = sizeof sizes / sizeof *sizes, FAILURES = sizeof failures / sizeof *failures, HELD = 24 };

static void *held[HELD];

static void *malloc_x(size_t size) { return mallocx(size ? size : 1, 0); }
static void *new_nothrow(size_t size) { return _ZnwmRKSt9nothrow_t(size, ""); }
static void *new_array_nothrow(size_t size) { return _ZnamRKSt9nothrow_t(size, ""); }
static void *tc_nothrow(size_t size) { return tc_new_nothrow(size, ""); }
static void *tc_array_nothrow(size_t size) { return tc_newarray_nothrow(size, ""); }

static void of_sizes(sized *allocate, int may_fail) {
    if (!allocate) return;
    for (int i = 0; i < SIZES; i++) {
        for (int j = 0; j < 3; j++) held[j] = allocate(sizes[i]);
        for (int j = 0; j < 3; j++) free(held[j]);
        free(allocate(sizes[i]));
    }
    // More than is kept for a thread.
    for (int j = 0; j < HELD; j++) held[j] = allocate(200);
    for (int j = 0; j < HELD; j++) free(held[j]);
    for (int j = 0; j < HELD; j++) held[j] = allocate(200);
    for (int j = HELD; j--;) free(held[j]);
    if (may_fail)
        for (int i = 0; i < FAILURES; i++) free(allocate(failures[i]));
}

static void of_counts(pair *allocate) {
    if (!allocate) return;
    for (int i = 0; i < SIZES; i++) {
        // Not fresh, so that something is left to be cleared.
        void *used = malloc(sizes[i]);
        if (sizes[i] <= 9000) memset(used, 1, sizes[i]);
        free(used);
        free(allocate(1, sizes[i]));
        free(allocate(3, sizes[i] / 3));
    }
    for (int i = 0; i < FAILURES; i++) free(allocate(1, failures[i]));
    free(allocate((size_t)1 << 40, (size_t)1 << 40));
}

static void of_alignments(pair *allocate, int size_first, int may_fail) {
    if (!allocate) return;
    for (size_t alignment = 8; alignment <= 1 << 21; alignment *= alignment < 128 ? 2 : 16)
        for (int i = 0; i < SIZES; i += 2)
            free(size_first ? allocate(sizes[i], alignment) : allocate(alignment, sizes[i]));
    for (int i = 0; may_fail && i < FAILURES; i++)
        free(size_first ? allocate(failures[i], 64) : allocate(64, failures[i]));
}

static void *aligned_nothrow(size_t size, size_t alignment) {
    return _ZnwmSt11align_val_tRKSt9nothrow_t(size, alignment, "");
}
static void *aligned_array_nothrow(size_t size, size_t alignment) {
    return _ZnamSt11align_val_tRKSt9nothrow_t(size, alignment, "");
}

static void stored(int (*allocate)(void **, size_t, size_t)) {
    if (!allocate) return;
    for (size_t alignment = 1; alignment <= 1 << 21; alignment *= alignment < 128 ? 2 : 16) {
        for (int i = 0; i < SIZES; i += 2) {
            void *block = (void *)1;
            if (!allocate(&block, alignment, sizes[i])) free(block);
        }
    }
    void *block;
    for (int i = 0; i < FAILURES; i++)
        if (!allocate(&block, 64, failures[i])) free(block);
    allocate(&block, 0, 10);
    allocate(&block, 24, 10);
}

static void *array(void *block, size_t size) { return reallocarray(block, size, 1); }
static void *realloc_x(void *block, size_t size) { return rallocx(block, size ? size : 1, 0); }

static void resized(void *(*resize)(void *, size_t), int takes_null) {
    if (!resize) return;
    static const size_t ways[][4] = {
        {10, 20, 30, 10}, {100, 2000, 9000, 10}, {9000, 100, 50000, 49000}, {200000, 300000, 100000, 64},
        {3 << 20, 5 << 20, 2 << 20, 64}, {64, 140000, 140001, 139000}, {24, 24, 0, 100},
    };
    for (int i = 0; i < sizeof ways / sizeof *ways; i++) {
        void *block = takes_null ? resize(NULL, ways[i][0]) : malloc(ways[i][0]);
        // What is behind it is taken, at every other one.
        void *next = i % 2 ? malloc(ways[i][0]) : NULL;
        for (int j = 1; j < 4; j++) {
            void *moved = resize(block, ways[i][j]);
            block = moved ? moved : ways[i][j] ? block : NULL;
        }
        for (int j = 0; j < FAILURES; j++)
            if (block && resize(block, failures[j])) _exit(1);
        free(block);
        free(next);
    }
    if (takes_null) {
        free(resize(NULL, 0));
        free(resize(NULL, failures[0]));
    }
}

static char **arguments;

static int wanted(const char *name) {
    for (char **argument = arguments; *argument; argument++)
        if (!strcmp(*argument, name)) return 1;
    return 0;
}

#define WANTED(name) (name && wanted(#name))
#define OF_SIZES(name, may_fail) \
    if (WANTED(name)) of_sizes(name, may_fail)
#define OF_COUNTS(name) \
    if (WANTED(name)) of_counts(name)
#define OF_ALIGNMENTS(name, size_first, may_fail) \
    if (WANTED(name)) of_alignments(name, size_first, may_fail)

static void all(void) {
    // When these fail, Debian's mimalloc aborts, and its jemalloc needs a program in C++.
    int nothrow_may_fail = !mi_malloc && !mallocx;
    OF_SIZES(malloc, 1);
    OF_SIZES(valloc, 1);
    OF_SIZES(pvalloc, 1);
    OF_SIZES(tc_malloc, 1);
    OF_SIZES(tc_valloc, 1);
    OF_SIZES(tc_pvalloc, 1);
    OF_SIZES(mi_malloc, 1);
    OF_SIZES(mi_zalloc, 1);
    OF_SIZES(mi_new_nothrow, 0);
    OF_SIZES(_Znwm, 0);
    OF_SIZES(_Znam, 0);
    OF_SIZES(mi_new, 0);
    OF_SIZES(tc_new, 0);
    OF_SIZES(tc_newarray, 0);
    if (WANTED(mallocx)) of_sizes(malloc_x, 1);
    if (WANTED(_ZnwmRKSt9nothrow_t)) of_sizes(new_nothrow, nothrow_may_fail);
    if (WANTED(_ZnamRKSt9nothrow_t)) of_sizes(new_array_nothrow, nothrow_may_fail);
    if (WANTED(tc_new_nothrow)) of_sizes(tc_nothrow, 1);
    if (WANTED(tc_newarray_nothrow)) of_sizes(tc_array_nothrow, 1);
    OF_COUNTS(calloc);
    OF_COUNTS(tc_calloc);
    OF_COUNTS(mi_calloc);
    OF_ALIGNMENTS(memalign, 0, 1);
    OF_ALIGNMENTS(aligned_alloc, 0, 1);
    OF_ALIGNMENTS(tc_memalign, 0, 1);
    OF_ALIGNMENTS(_ZnwmSt11align_val_t, 1, 0);
    OF_ALIGNMENTS(_ZnamSt11align_val_t, 1, 0);
    OF_ALIGNMENTS(mi_new_aligned, 1, 0);
    OF_ALIGNMENTS(mi_new_aligned_nothrow, 1, 0);
    if (WANTED(_ZnwmSt11align_val_tRKSt9nothrow_t)) of_alignments(aligned_nothrow, 1, nothrow_may_fail);
    if (WANTED(_ZnamSt11align_val_tRKSt9nothrow_t)) of_alignments(aligned_array_nothrow, 1, nothrow_may_fail);
    if (WANTED(posix_memalign)) stored(posix_memalign);
    if (WANTED(tc_posix_memalign)) stored(tc_posix_memalign);
    if (WANTED(realloc)) resized(realloc, 1);
    if (WANTED(tc_realloc)) resized(tc_realloc, 1);
    if (WANTED(mi_realloc)) resized(mi_realloc, 1);
    if (WANTED(reallocarray)) resized(array, 1);
    if (WANTED(rallocx)) resized(realloc_x, 0);
}

__attribute__((used)) static void run(long *stack) {
    char byte;
    // The checker is there when this returns.
    if (read(0, &byte, 1) != 1) _exit(2);
    arguments = (char **)(stack + 2);
#ifndef BEFORE_2_32
    if (wanted("shared") && &__libc_single_threaded) __libc_single_threaded = 0;
#endif
    __asm__ volatile("int3");
    all();
    _exit(0);
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call run\n hlt\n");
