//! Four threads over the whole malloc family: every function, every way to fail, blocks that other threads free, blocks
//! from before the trace. Each thread calls each allocator function from a function of its own.
#include "truth.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>

enum { THREADS = 4, OPERATIONS = 40000, SLOTS = 384, INBOX = 128 };
// Blocks from before the trace, by what happens to them during it.
enum { FREED = 30, RESIZED = 20, REFUSED = 10, UNTOUCHED = 15 };

// One thread's allocating functions with their counts.
struct family {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void *(*reallocarray)(void *, size_t, size_t);
    void *(*memalign)(size_t, size_t);
    void *(*posix_memalign)(size_t, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    void *(*valloc)(size_t);
    void *(*pvalloc)(size_t);
    struct site *malloc_site, *calloc_site, *realloc_site, *reallocarray_site, *memalign_site, *posix_memalign_site,
        *aligned_alloc_site, *valloc_site, *pvalloc_site;
};

#define FAMILY_FUNCTION(name, parameters, call) \
    SITE(name);                                 \
    static ALLOCATES void *name parameters      \
    {                                           \
        void *block = call;                     \
        KEEP(block);                            \
        return block;                           \
    }

#define FAMILY(t)                                                                                  \
    FAMILY_FUNCTION(t##_malloc, (size_t n), malloc(n))                                             \
    FAMILY_FUNCTION(t##_calloc, (size_t k, size_t n), calloc(k, n))                                \
    FAMILY_FUNCTION(t##_realloc, (void *p, size_t n), realloc(p, n))                               \
    FAMILY_FUNCTION(t##_reallocarray, (void *p, size_t k, size_t n), reallocarray(p, k, n))        \
    FAMILY_FUNCTION(t##_memalign, (size_t a, size_t n), memalign(a, n))                            \
    FAMILY_FUNCTION(t##_aligned_alloc, (size_t a, size_t n), aligned_alloc(a, n))                  \
    FAMILY_FUNCTION(t##_valloc, (size_t n), valloc(n))                                             \
    FAMILY_FUNCTION(t##_pvalloc, (size_t n), pvalloc(n))                                           \
    SITE(t##_posix_memalign);                                                                      \
    static ALLOCATES void *t##_posix_memalign(size_t a, size_t n)                                  \
    {                                                                                              \
        void *block = (void *)-1;                                                                  \
        int error = posix_memalign(&block, a, n);                                                  \
        KEEP(block);                                                                               \
        return error ? NULL : block;                                                               \
    }                                                                                              \
    static struct family t##_family = {                                                            \
        t##_malloc, t##_calloc, t##_realloc, t##_reallocarray, t##_memalign, t##_posix_memalign,   \
        t##_aligned_alloc, t##_valloc, t##_pvalloc, &t##_malloc_site, &t##_calloc_site,            \
        &t##_realloc_site, &t##_reallocarray_site, &t##_memalign_site, &t##_posix_memalign_site,   \
        &t##_aligned_alloc_site, &t##_valloc_site, &t##_pvalloc_site};

FAMILY(reader)
FAMILY(writer)
FAMILY(keeper)
FAMILY(sweeper)

static struct family *const families[THREADS] = {&reader_family, &writer_family, &keeper_family, &sweeper_family};

// Blocks handed to a thread by the others.
static struct inbox {
    pthread_mutex_t lock;
    int count;
    struct block blocks[INBOX];
} inboxes[THREADS];

static struct block held[THREADS][SLOTS];
static struct block from_before[FREED + RESIZED + REFUSED + UNTOUCHED];
static pthread_barrier_t started, begun, done;
static int pvalloc_is_of_the_allocator;

// Sizes that the compiler must not know: it would warn, or do the call itself.
static volatile size_t huge = (size_t)PTRDIFF_MAX - 4096;
static volatile size_t half = (size_t)1 << 63;
static volatile size_t nothing = 0;

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 11;
}

static size_t some_size(uint64_t *state)
{
    uint64_t roll = next(state) % 1000;
    if (roll < 10)
        return 0;
    if (roll < 14)
        return 100000 + next(state) % 300000;
    if (roll < 100)
        return 1 + next(state) % 20000;
    return 1 + next(state) % 600;
}

static void release(struct block *block)
{
    void *pointer = block->pointer;
    let_go(block);
    free(pointer);
}

static int give(int to, struct block *block)
{
    struct inbox *inbox = &inboxes[to];
    pthread_mutex_lock(&inbox->lock);
    int room = inbox->count < INBOX;
    if (room) {
        inbox->blocks[inbox->count++] = *block;
        block->pointer = NULL;
    }
    pthread_mutex_unlock(&inbox->lock);
    return room;
}

static int take(int me, struct block *block)
{
    struct inbox *inbox = &inboxes[me];
    pthread_mutex_lock(&inbox->lock);
    int any = inbox->count > 0;
    if (any)
        *block = inbox->blocks[--inbox->count];
    pthread_mutex_unlock(&inbox->lock);
    return any;
}

// Fills an empty slot by one of the functions that make new blocks.
static void allocate(const struct family *f, struct block *slot, uint64_t *state)
{
    size_t size = some_size(state), align = (size_t)16 << next(state) % 8, count = 1 + next(state) % 9;
    switch (next(state) % (pvalloc_is_of_the_allocator ? 10 : 9)) {
    case 0: case 1: return hold(slot, f->malloc(size), size, f->malloc_site);
    case 2: return hold(slot, f->calloc(count, size / 4), count * (size / 4), f->calloc_site);
    case 3: return hold(slot, f->realloc(NULL, size), size, f->realloc_site);
    case 4: return hold(slot, f->reallocarray(NULL, count, size / 4), count * (size / 4), f->reallocarray_site);
    case 5: return hold(slot, f->memalign(align, size), size, f->memalign_site);
    case 6: return hold(slot, f->posix_memalign(align, size), size, f->posix_memalign_site);
    case 7: return hold(slot, f->aligned_alloc(align, size & -align), size & -align, f->aligned_alloc_site);
    case 8: return hold(slot, f->valloc(size), size, f->valloc_site);
    case 9: return hold(slot, f->pvalloc(size), size, f->pvalloc_site);
    }
}

static void resize(const struct family *f, struct block *slot, uint64_t *state)
{
    size_t size = some_size(state), count = 1 + next(state) % 9;
    switch (next(state) % 8) {
    case 0: return resized(slot, f->reallocarray(slot->pointer, count, size / 4), count * (size / 4), f->reallocarray_site);
    case 1: return resized(slot, f->realloc(slot->pointer, huge), huge, f->realloc_site);
    case 2: return resized(slot, f->reallocarray(slot->pointer, half, 2), SIZE_MAX, f->reallocarray_site);
    case 3: return resized(slot, f->realloc(slot->pointer, slot->size / 2 + 1), slot->size / 2 + 1, f->realloc_site);
    default: return resized(slot, f->realloc(slot->pointer, size), size, f->realloc_site);
    }
}

// Calls that give no block: whoever books one for them is wrong.
static void fail(const struct family *f, uint64_t *state)
{
    struct block refused = {0};
    switch (next(state) % 8) {
    case 0: hold(&refused, f->malloc(huge), huge, f->malloc_site); break;
    case 1: hold(&refused, f->calloc(half, 2), 0, f->calloc_site); break;
    case 2: hold(&refused, f->calloc(huge, 1), huge, f->calloc_site); break;
    case 3: hold(&refused, f->posix_memalign(24, 100), 100, f->posix_memalign_site); break;
    case 4: hold(&refused, f->posix_memalign(64, huge), huge, f->posix_memalign_site); break;
    case 5: hold(&refused, f->reallocarray(NULL, half, 2), 0, f->reallocarray_site); break;
    case 6: hold(&refused, f->memalign(4096, huge), huge, f->memalign_site); break;
    case 7: free(NULL); break;
    }
    if (refused.pointer)
        release(&refused);
}

static void mix(int me)
{
    const struct family *f = families[me];
    uint64_t state = 0x9e3779b97f4a7c15u * (me + 1);
    for (int i = 0; i < OPERATIONS; i++) {
        struct block *slot = &held[me][next(&state) % SLOTS];
        uint64_t roll = next(&state) % 100;
        struct block taken;
        if (!slot->pointer)
            allocate(f, slot, &state);
        else if (roll < 25)
            resize(f, slot, &state);
        else if (roll < 30)
            fail(f, &state);
        else if (roll < 45)
            give((me + 1 + next(&state) % (THREADS - 1)) % THREADS, slot);
        else
            release(slot);
        if (roll % 3 == 0 && take(me, &taken)) {
            if (roll & 1)
                resize(f, &taken, &state);
            release(&taken);
        }
    }
}

// What must come out right once, whatever the dice say; then blocks from before the trace.
static void edges(int me)
{
    const struct family *f = families[me];
    struct block *slot = held[me];
    hold(&slot[0], f->malloc(100), 100, f->malloc_site);
    resized(&slot[0], f->realloc(slot[0].pointer, huge), huge, f->realloc_site);
    hold(&slot[1], f->malloc(1000), 1000, f->malloc_site);
    resized(&slot[1], f->realloc(slot[1].pointer, nothing), 0, f->realloc_site);
    hold(&slot[2], f->malloc(nothing), 0, f->malloc_site);
    hold(&slot[3], f->calloc(nothing, 8), 0, f->calloc_site);
    hold(&slot[4], f->malloc(300000), 300000, f->malloc_site);
    resized(&slot[4], f->realloc(slot[4].pointer, 900000), 900000, f->realloc_site);
    resized(&slot[4], f->realloc(slot[4].pointer, 10), 10, f->realloc_site);

    for (int i = me; i < FREED + RESIZED + REFUSED; i += THREADS) {
        struct block *old = &from_before[i];
        if (i < FREED) {
            release(old);
        } else if (i < FREED + RESIZED) {
            resized(old, f->realloc(old->pointer, 5000), 5000, f->realloc_site);
        } else {
            resized(old, f->realloc(old->pointer, huge), huge, f->realloc_site);
            release(old);
        }
    }
}

static void *run(void *argument)
{
    int me = (int)(intptr_t)argument;
    pthread_barrier_wait(&started);
    pthread_barrier_wait(&begun);
    edges(me);
    mix(me);
    pthread_barrier_wait(&done);
    for (;;)
        pause();
    return NULL;
}

static ALLOCATES void allocate_before(void)
{
    for (int i = 0; i < FREED + RESIZED + REFUSED + UNTOUCHED; i++) {
        void *block = malloc(50 + i);
        KEEP(block);
        from_before[i] = (struct block){block, 50 + i, NULL};
    }
}

// Some allocators lack pvalloc; that of the C library would then make blocks that their free does not know.
static int same_file(const char *one, const char *other)
{
    Dl_info first, second;
    return dladdr(dlsym(RTLD_DEFAULT, one), &first) && dladdr(dlsym(RTLD_DEFAULT, other), &second) &&
           first.dli_fbase == second.dli_fbase;
}

// Where an interposer tells what it holds for itself, if there is one that does. Whoever asks for what is not there has memory
// allocated for the error.
static long *noted(const char *name)
{
    static long none;
    return getenv("NOTED") ? dlsym(RTLD_DEFAULT, name) : &none;
}

int main(void)
{
    pthread_t thread;
    long *noted_bytes = noted("noted_bytes"), *noted_blocks = noted("noted_blocks");
    pvalloc_is_of_the_allocator = same_file("pvalloc", "malloc");
    allocate_before();
    pthread_barrier_init(&started, NULL, THREADS + 1);
    pthread_barrier_init(&begun, NULL, THREADS + 1);
    pthread_barrier_init(&done, NULL, THREADS + 1);
    for (intptr_t i = 0; i < THREADS; i++) {
        pthread_mutex_init(&inboxes[i].lock, NULL);
        pthread_create(&thread, NULL, run, (void *)i);
    }
    pthread_barrier_wait(&started);
    say("waiting");
    wait_for("begin");
    long bytes_before = *noted_bytes, blocks_before = *noted_blocks;
    pthread_barrier_wait(&begun);
    pthread_barrier_wait(&done);
    tell_truth();
    fact("allocated_bytes", allocated_bytes);
    fact("allocated_blocks", allocated_blocks);
    fact("unmatched_frees", FREED + RESIZED + REFUSED);
    fact("noted_bytes", *noted_bytes - bytes_before);
    fact("noted_blocks", *noted_blocks - blocks_before);
    stay();
}
