//! Fibers that leave one thread inside of the allocator and go on in another, as with runtimes whose threads steal work from each
//! other. Stacks are changed by code of the program's own, which no library has and no name tells. The allocator is
//! pausing_malloc.c.
#include "truth.h"

#include <pthread.h>
#include <sys/mman.h>

enum { FIBERS = 40, THREADS = 2, STACK = 64 << 10, BLOCKS = 500 };

// The allocator's own where that is preloaded.
void (*volatile pause_inside)(void);

LEAK(in_fiber)

// Where a fiber was left: its stack pointer, with what a call keeps on top of it.
static void *left[FIBERS];
static volatile char over[FIBERS];
static int alive = FIBERS;
static volatile int begun;

// Of a thread: where it was left, and the fiber that it runs.
static __thread void *home;
static __thread int current = -1;

static int queue[FIBERS + 1], first, last;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((naked, noipa)) static void switch_stacks(void **from, void *to)
{
    asm("push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi); mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret");
}

// Asked for anew each time: the thread may be another one than a moment ago.
__attribute__((noipa)) static int *fiber_of_thread(void)
{
    return &current;
}

__attribute__((noipa)) static void *home_of_thread(void)
{
    return home;
}

static void yield(void)
{
    switch_stacks(&left[*fiber_of_thread()], home_of_thread());
}

static void sometimes(void)
{
    static unsigned calls;
    if (*fiber_of_thread() >= 0 && __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED) % 3 == 0)
        yield();
}

static void fiber(void)
{
    for (int i = 0; i < BLOCKS; i++)
        in_fiber(64);
    over[*fiber_of_thread()] = 1;
    for (;;)
        yield();
}

static void put(int fiber)
{
    pthread_mutex_lock(&lock);
    queue[last] = fiber;
    last = (last + 1) % (FIBERS + 1);
    pthread_mutex_unlock(&lock);
}

static int take(void)
{
    int fiber = -1;
    pthread_mutex_lock(&lock);
    if (first != last) {
        fiber = queue[first];
        first = (first + 1) % (FIBERS + 1);
    }
    pthread_mutex_unlock(&lock);
    return fiber;
}

static void *work(void *unused)
{
    while (!begun)
        usleep(1000);
    while (__atomic_load_n(&alive, __ATOMIC_ACQUIRE) > 0) {
        int fiber = take();
        if (fiber < 0) {
            usleep(50);
            continue;
        }
        current = fiber;
        switch_stacks(&home, left[fiber]);
        current = -1;
        if (over[fiber])
            __atomic_fetch_sub(&alive, 1, __ATOMIC_RELEASE);
        else
            put(fiber);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    char *stacks = mmap(NULL, FIBERS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < FIBERS; i++) {
        // Six registers, the address to return to, and one above it as after a call.
        void **words = (void **)(stacks + (i + 1) * STACK) - 9;
        words[6] = fiber;
        left[i] = words;
        put(i);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    say("waiting");
    wait_for("begin");
    pause_inside = sometimes;
    begun = 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pause_inside = NULL;
    tell_truth();
    stay();
}
