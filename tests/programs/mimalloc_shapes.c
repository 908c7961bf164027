//! mimalloc by names of its own: heaps, aligned, counted and resized blocks.
#include "truth.h"
#include <sys/mman.h>

typedef struct mi_heap_s mi_heap_t;
mi_heap_t *mi_heap_get_default(void), *mi_heap_new(void);
void *mi_malloc(size_t), *mi_malloc_small(size_t), *mi_zalloc(size_t), *mi_mallocn(size_t, size_t);
void *mi_malloc_aligned(size_t, size_t), *mi_zalloc_aligned(size_t, size_t), *mi_calloc_aligned(size_t, size_t, size_t);
void *mi_expand(void *, size_t), *mi_reallocf(void *, size_t), *mi_realloc_aligned(void *, size_t, size_t), *mi_rezalloc(void *, size_t);
void *mi_reallocn(void *, size_t, size_t), *mi_recalloc(void *, size_t, size_t);
void *mi_heap_malloc(mi_heap_t *, size_t), *mi_heap_zalloc(mi_heap_t *, size_t);
void *mi_heap_calloc(mi_heap_t *, size_t, size_t), *mi_heap_mallocn(mi_heap_t *, size_t, size_t);
void *mi_heap_malloc_aligned(mi_heap_t *, size_t, size_t), *mi_heap_realloc(mi_heap_t *, void *, size_t);
void *mi_heap_reallocn(mi_heap_t *, void *, size_t, size_t), *mi_heap_recalloc(mi_heap_t *, void *, size_t, size_t);
void *mi_new_n(size_t, size_t), *mi_new_realloc(void *, size_t);
char *mi_strdup(const char *), *mi_strndup(const char *, size_t), *mi_mbsdup(const char *);
char *mi_heap_strdup(mi_heap_t *, const char *), *mi_heap_strndup(mi_heap_t *, const char *, size_t);

void mi_free(void *), mi_free_size(void *, size_t), mi_free_aligned(void *, size_t);

static mi_heap_t *heap;
// A page of bytes without an end, with nothing behind it, and a string of 20,000.
static char *endless, *longer;
// The page that begins in it was touched by nobody: the first thing that looks at it is the copy.
static const char __attribute__((aligned(4096))) untouched[3][4096] = {"-", "on a page of its own", "-"};

// There is no room behind it.
static inline void *not_expanded(void *block)
{
    if (mi_expand(block, 100000)) abort();
    return block;
}

// Holds a block of this size, however it came about, and another one that is freed.
#define HOLDS(function, bytes, call)                       \
    SITE(function);                                        \
    static ALLOCATES void function(void (*release)(void *)) \
    {                                                      \
        struct block block;                                \
        void *pointer = call;                              \
        KEEP(pointer);                                     \
        hold(&block, pointer, bytes, &function##_site);    \
        if (release) {                                     \
            let_go(&block);                                \
            release(pointer);                              \
        }                                                  \
    }

#define FUNCTIONS(F)                                                            \
    F(of_malloc, 100, mi_malloc(100))                                           \
    F(of_small, 40, mi_malloc_small(40))                                        \
    F(of_zalloc, 70, mi_zalloc(70))                                             \
    F(of_mallocn, 50, mi_mallocn(5, 10))                                        \
    F(of_aligned, 200, mi_malloc_aligned(200, 64))                              \
    F(of_zalloc_aligned, 300, mi_zalloc_aligned(300, 64))                       \
    F(of_calloc_aligned, 6000, mi_calloc_aligned(3, 2000, 64))                  \
    F(of_reallocf, 700, mi_reallocf(mi_malloc(10), 700))                        \
    F(of_expand, 107, mi_expand(mi_malloc(100), 107))                           \
    F(of_expand_too_far, 60, not_expanded(mi_malloc(60)))                       \
    F(of_realloc_aligned, 800, mi_realloc_aligned(mi_malloc_aligned(10, 64), 800, 64)) \
    F(of_rezalloc, 900, mi_rezalloc(mi_zalloc(10), 900))                        \
    F(of_reallocn, 990, mi_reallocn(NULL, 9, 110))                              \
    F(of_recalloc, 88, mi_recalloc(mi_zalloc(8), 8, 11))                        \
    F(of_heap_malloc, 60, mi_heap_malloc(heap, 60))                             \
    F(of_heap_zalloc, 61, mi_heap_zalloc(heap, 61))                             \
    F(of_heap_calloc, 1200, mi_heap_calloc(heap, 3, 400))                       \
    F(of_heap_mallocn, 250000, mi_heap_mallocn(heap, 5, 50000))                 \
    F(of_heap_aligned, 150, mi_heap_malloc_aligned(heap, 150, 128))             \
    F(of_heap_realloc, 330, mi_heap_realloc(heap, mi_heap_malloc(heap, 20), 330)) \
    F(of_heap_reallocn, 440, mi_heap_reallocn(heap, mi_heap_malloc(heap, 20), 4, 110)) \
    F(of_heap_recalloc, 550, mi_heap_recalloc(heap, mi_heap_zalloc(heap, 20), 5, 110)) \
    F(of_new_n, 770, mi_new_n(7, 110))                                          \
    F(of_new_realloc, 880, mi_new_realloc(mi_malloc(30), 880))                  \
    F(of_strdup, 13, mi_strdup("twelve bytes"))                                 \
    F(of_no_string, 1, mi_strdup(""))                                           \
    F(of_mbsdup, 4, mi_mbsdup("abc"))                                           \
    F(of_longer, 20001, mi_strdup(longer))                                      \
    F(of_one_piece, 4096, mi_strdup(longer + 20000 - 4095))                     \
    F(of_more_than_a_piece, 4097, mi_strdup(longer + 20000 - 4096))             \
    F(of_strndup, 6, mi_strndup("twelve bytes", 5))                             \
    F(of_strndup_whole, 13, mi_strndup("twelve bytes", 500))                    \
    F(of_strndup_nothing, 1, mi_strndup("twelve bytes", 0))                     \
    F(of_strndup_end, 13, mi_strndup("twelve bytes", 13))                       \
    F(of_endless, 4097, mi_strndup(endless, 4096))                              \
    F(of_heap_strdup, 13, mi_heap_strdup(heap, "twelve bytes"))                 \
    F(of_heap_strndup, 1001, mi_heap_strndup(heap, endless, 1000))              \
    F(of_untouched, 21, mi_strdup(untouched[1]))

FUNCTIONS(HOLDS)

int main(void)
{
    heap = mi_heap_get_default();
    // The last page is not there.
    endless = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(endless + 4096, 4096);
    memset(endless, 'x', 4096);
    longer = mmap(NULL, 6 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(longer, 'y', 20000);
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 50; i++) {
#define CALL(function, bytes, call) function(NULL), function(mi_free);
        FUNCTIONS(CALL)
    }
    tell_truth();
    stay();
}
