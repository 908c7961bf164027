//! Calls into the allocator that never return: threads that end inside one, jumps out of one, and what follows them.
//! Needs own_allocator.c as a preloaded library: its hook is where all of that happens.
#include "truth.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>

enum action { NOTHING, END, WAIT_FOR_CANCEL, JUMP, LOG };

static __thread enum action action;
static __thread jmp_buf way_out;
static struct block kept[256];
static int count;

static struct block *slot(void)
{
    return &kept[__atomic_fetch_add(&count, 1, __ATOMIC_RELAXED)];
}

SITE(log_line);
static ALLOCATES void log_line(void)
{
    void *line = malloc(64);
    KEEP(line);
    hold(slot(), line, 64, &log_line_site);
}

static void hook(size_t size)
{
    enum action now = action;
    action = NOTHING;
    switch (now) {
    case NOTHING:
        break;
    case END:
        pthread_exit(NULL);
    case WAIT_FOR_CANCEL:
        for (;;)
            usleep(1000);
    case JUMP:
        longjmp(way_out, 1);
    case LOG:
        log_line();
        break;
    }
}

#define MAKER(name)                              \
    SITE(name);                                  \
    static ALLOCATES void *name(size_t size)     \
    {                                            \
        void *block = malloc(size);              \
        KEEP(block);                             \
        hold(slot(), block, size, &name##_site); \
        return block;                            \
    }

MAKER(in_ended_thread)
MAKER(in_cancelled_thread)
MAKER(after_the_death)
MAKER(same_depth)
MAKER(deeper)
MAKER(shallower)
MAKER(on_another_thread)
MAKER(with_a_log_line)
MAKER(resized_later)

SITE(abandoned);
static ALLOCATES void *abandoned(void *old, size_t size)
{
    void *block = realloc(old, size);
    KEEP(block);
    return block;
}

SITE(freed_in_the_end);
static ALLOCATES void *freed_in_the_end(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

// Enters `f` some frames further down.
static ALLOCATES void dive(int frames, void *(*f)(size_t), size_t size)
{
    char room[200];
    char *start = room;
    KEEP(start);
    if (frames > 0)
        dive(frames - 1, f, size);
    else
        f(size);
    KEEP(start);
}

static ALLOCATES void jump_out_of(void *(*f)(size_t), int frames)
{
    if (setjmp(way_out) == 0) {
        action = JUMP;
        dive(frames, f, 4000);
        _exit(96);
    }
}

static void *end_inside(void *unused)
{
    action = END;
    in_ended_thread(777);
    return NULL;
}

static void *wait_inside(void *unused)
{
    action = WAIT_FOR_CANCEL;
    in_cancelled_thread(888);
    return NULL;
}

static void *allocate_elsewhere(void *unused)
{
    on_another_thread(300);
    return NULL;
}

static void threads_die(void)
{
    pthread_t thread;
    for (int i = 0; i < 10; i++) {
        pthread_create(&thread, NULL, end_inside, NULL);
        pthread_join(thread, NULL);
        pthread_create(&thread, NULL, wait_inside, NULL);
        usleep(2000);
        pthread_cancel(thread);
        pthread_join(thread, NULL);
        after_the_death(10 + i);
    }
}

static void jumps(void)
{
    pthread_t thread;
    for (int i = 0; i < 5; i++) {
        // The same frame, so the same stack pointer, again.
        jump_out_of(same_depth, 3);
        dive(3, same_depth, 100 + i);
        // A stale call above: this one looks as if it were inside it.
        jump_out_of(deeper, 1);
        dive(9, deeper, 200 + i);
        jump_out_of(shallower, 9);
        dive(0, shallower, 30 + i);
        jump_out_of(on_another_thread, 2);
        pthread_create(&thread, NULL, allocate_elsewhere, NULL);
        pthread_join(thread, NULL);
    }
}

// Ever deeper: each call that was left seems to hold the next.
static void many_jumps(void)
{
    for (int frames = 1; frames < 12; frames++)
        jump_out_of(deeper, frames);
    dive(20, deeper, 5000);
}

// A realloc that is left before it did anything: the old block lives on.
static void abandon(void)
{
    struct block *first = slot(), *second = slot();
    hold(first, freed_in_the_end(600), 600, &freed_in_the_end_site);
    hold(second, freed_in_the_end(700), 700, &freed_in_the_end_site);
    for (int i = 0; i < 2; i++) {
        void *old = i ? second->pointer : first->pointer;
        if (setjmp(way_out) == 0) {
            action = JUMP;
            abandoned(old, 9000);
        }
    }
    void *gone = second->pointer;
    let_go(second);
    free(gone);
    void *grown = resized_later(50);
    struct block *held = &kept[count - 1];
    resized(held, abandoned(grown, 5000), 5000, &abandoned_site);
}

// The hook allocates inside malloc: both blocks count.
static void log_inside(void)
{
    for (int i = 0; i < 7; i++) {
        action = LOG;
        with_a_log_line(1000);
    }
}

static void *warm_up(void *unused)
{
    pthread_exit(NULL);
}

int main(void)
{
    pthread_t thread;
    // The first ended thread loads a library.
    pthread_create(&thread, NULL, warm_up, NULL);
    pthread_join(thread, NULL);
    void (**allocation_hook)(size_t) = dlsym(RTLD_DEFAULT, "allocation_hook");
    say("waiting");
    *allocation_hook = hook;
    for (;;) {
        char order[64];
        hear(order, sizeof order);
        if (strcmp(order, "die") == 0)
            threads_die();
        else if (strcmp(order, "jump") == 0)
            jumps();
        else if (strcmp(order, "jump often") == 0)
            many_jumps();
        else if (strcmp(order, "log") == 0)
            log_inside();
        else if (strcmp(order, "abandon") == 0)
            abandon();
        tell_truth();
        say("ready");
    }
}
