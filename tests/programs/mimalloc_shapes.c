//! mimalloc by names of its own: heaps, aligned, counted and resized blocks.
#include "truth.h"

typedef struct mi_heap_s mi_heap_t;
mi_heap_t *mi_heap_get_default(void), *mi_heap_new(void);
void *mi_malloc(size_t), *mi_malloc_small(size_t), *mi_zalloc(size_t), *mi_mallocn(size_t, size_t);
void *mi_malloc_aligned(size_t, size_t), *mi_zalloc_aligned(size_t, size_t), *mi_calloc_aligned(size_t, size_t, size_t);
void *mi_reallocf(void *, size_t), *mi_realloc_aligned(void *, size_t, size_t), *mi_rezalloc(void *, size_t);
void *mi_reallocn(void *, size_t, size_t), *mi_recalloc(void *, size_t, size_t);
void *mi_heap_malloc(mi_heap_t *, size_t), *mi_heap_zalloc(mi_heap_t *, size_t);
void *mi_heap_calloc(mi_heap_t *, size_t, size_t), *mi_heap_mallocn(mi_heap_t *, size_t, size_t);
void *mi_heap_malloc_aligned(mi_heap_t *, size_t, size_t), *mi_heap_realloc(mi_heap_t *, void *, size_t);
void *mi_heap_reallocn(mi_heap_t *, void *, size_t, size_t), *mi_heap_recalloc(mi_heap_t *, void *, size_t, size_t);
void *mi_new_n(size_t, size_t), *mi_new_realloc(void *, size_t);
void mi_free(void *), mi_free_size(void *, size_t), mi_free_aligned(void *, size_t);

static mi_heap_t *heap;

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
    F(of_new_realloc, 880, mi_new_realloc(mi_malloc(30), 880))

FUNCTIONS(HOLDS)

int main(void)
{
    heap = mi_heap_get_default();
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 50; i++) {
#define CALL(function, bytes, call) function(NULL), function(mi_free);
        FUNCTIONS(CALL)
    }
    tell_truth();
    stay();
}
