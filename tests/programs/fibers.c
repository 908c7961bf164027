//! Threads that leave their stack inside of the allocator and come back later: fibers that wait there for each other, and
//! signal handlers on stacks of their own that allocate. The allocator is this program's, so that it may.
//!
//! `swap N`: N fibers on one thread by swapcontext, each of which allocates and yields inside malloc now and then.
//! `jump N`: the same by code of its own that no library has, as runtimes with coroutines do.
//! `handler above` and `handler below`: a timer's signal interrupts malloc again and again; its handler, on a stack above or
//! below the thread's, allocates too.
#include "truth.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>

enum { MOST = 512, STACK = 64 << 10, BLOCKS = 200 };

// Called inside of malloc (pausing_malloc.c), before the block is taken.
extern void (*volatile pause_inside)(void);

LEAK(in_fiber)
LEAK(in_handler)
LEAK(in_thread)

// Where a stack was left: its stack pointer, with what a call keeps on top of it.
static void *left[MOST];
static ucontext_t contexts[MOST], home_context;
static void *home;
static char *stacks;
static int current = -1, alive, by_hand;
static unsigned state = 12345;

__attribute__((naked, noipa)) static void switch_stacks(void **from, void *to)
{
    asm("push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi); mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret");
}

static void yield(void)
{
    int me = current;
    if (by_hand)
        switch_stacks(&left[me], home);
    else
        swapcontext(&contexts[me], &home_context);
}

static void sometimes(void)
{
    if (current < 0)
        return;
    state = state * 1664525 + 1013904223;
    if (state >> 30 == 0)
        yield();
}

static void fiber(void)
{
    for (int i = 0; i < BLOCKS; i++)
        in_fiber(64);
    alive--;
    for (;;)
        yield();
}

static void fibers(int count)
{
    stacks = mmap(NULL, (size_t)count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < count; i++) {
        char *stack = stacks + (size_t)i * STACK;
        if (by_hand) {
            // Six registers, the address to return to, and one above it as after a call.
            void **words = (void **)(stack + STACK) - 9;
            memset(words, 0, 9 * sizeof *words);
            words[6] = fiber;
            left[i] = words;
        } else {
            getcontext(&contexts[i]);
            contexts[i].uc_stack.ss_sp = stack;
            contexts[i].uc_stack.ss_size = STACK;
            makecontext(&contexts[i], fiber, 0);
        }
    }
    alive = count;
    pause_inside = sometimes;
    while (alive > 0) {
        for (int i = 0; i < count; i++) {
            current = i;
            if (by_hand)
                switch_stacks(&home, left[i]);
            else
                swapcontext(&home_context, &contexts[i]);
            current = -1;
        }
    }
    pause_inside = NULL;
}

static volatile int inside;
static volatile long nested;

static void linger(void)
{
    inside = 1;
    for (volatile int i = 0; i < 1000; i++)
        ;
    inside = 0;
}

static void handle(int signal)
{
    nested += inside;
    pause_inside = NULL;
    in_handler(64);
    pause_inside = linger;
}

static void *interrupted(void *alternate)
{
    stack_t stack = {.ss_sp = alternate, .ss_size = STACK};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {{0, 500}, {0, 500}}, never = {};
    pause_inside = linger;
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 100000 && nested < 300; i++)
        in_thread(100);
    setitimer(ITIMER_REAL, &never, NULL);
    pause_inside = NULL;
    return NULL;
}

static void handlers(int above)
{
    enum { HALF = 8 << 20 };
    char *both = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, above ? both : both + HALF, HALF);
    pthread_create(&thread, &attributes, interrupted, above ? both + HALF : both);
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, NULL);
    pthread_join(thread, NULL);
}

int main(void)
{
    char line[64];
    say("waiting");
    hear(line, sizeof line);
    int count = atoi(line + 5);
    by_hand = !strncmp(line, "jump", 4);
    if (by_hand || !strncmp(line, "swap", 4))
        fibers(count);
    else
        handlers(!strcmp(line, "handler above"));
    tell_truth();
    fact("nested", nested);
    stay();
}
