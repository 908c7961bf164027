//! A program with three allocators: that of the C library, one of its own under the names that jemalloc has with a prefix, and that of
//! TBB. Threads take from all of them in turn.
#include "truth.h"

#include <pthread.h>

void *je_malloc(size_t), *je_calloc(size_t, size_t), *je_realloc(void *, size_t);
void je_free(void *);
void *scalable_malloc(size_t), *scalable_realloc(void *, size_t), *scalable_aligned_malloc(size_t, size_t);
void scalable_free(void *), scalable_aligned_free(void *);

enum { THREADS = 3, OPERATIONS = 4000, SLOTS = 64 };

#define OF(name, call)                       \
    SITE(name);                              \
    static ALLOCATES void *name(size_t size) \
    {                                        \
        void *block = call;                  \
        KEEP(block);                         \
        return block;                        \
    }

OF(from_libc, malloc(size))
OF(from_own, je_malloc(size))
OF(from_own_zeroed, je_calloc(2, size / 2))
OF(from_tbb, scalable_malloc(size))
OF(from_tbb_aligned, scalable_aligned_malloc(size, 64))

static const struct way {
    void *(*allocate)(size_t);
    void *(*resize)(void *, size_t);
    void (*release)(void *);
    struct site *site;
} ways[] = {
    {from_libc, realloc, free, &from_libc_site},
    {from_own, je_realloc, je_free, &from_own_site},
    {from_own_zeroed, NULL, je_free, &from_own_zeroed_site},
    {from_tbb, scalable_realloc, scalable_free, &from_tbb_site},
    {from_tbb_aligned, NULL, scalable_aligned_free, &from_tbb_aligned_site},
};

SITE(grow);
static ALLOCATES void *grow(const struct way *way, void *block, size_t size)
{
    block = way->resize(block, size);
    KEEP(block);
    return block;
}

static void *work(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    struct block slots[SLOTS] = {0};
    const struct way *of[SLOTS] = {0};
    for (int i = 0; i < OPERATIONS; i++) {
        int at = rand_r(&state) % SLOTS;
        size_t size = (rand_r(&state) % 2000 + 1) * 2;
        struct block *slot = &slots[at];
        if (!slot->pointer) {
            of[at] = &ways[rand_r(&state) % (sizeof ways / sizeof *ways)];
            hold(slot, of[at]->allocate(size), size, of[at]->site);
        } else if (of[at]->resize && rand_r(&state) % 2) {
            resized(slot, grow(of[at], slot->pointer, size), size, &grow_site);
        } else {
            void *pointer = slot->pointer;
            let_go(slot);
            of[at]->release(pointer);
        }
    }
    return NULL;
}

// With an argument it begins at once, and ends when it is done.
int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    if (count == 1) {
        say("waiting");
        wait_for("begin");
    }
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    tell_truth();
    fact("allocated_bytes", allocated_bytes);
    fact("allocated_blocks", allocated_blocks);
    if (count == 1)
        stay();
}
