//! operator new without memory: new-handlers that throw, jump out and allocate, on allocators that bring their own new.
//! Ordinary allocations after each are what counts.
#include "truth.h"

#include <csetjmp>
#include <new>

static jmp_buf way_out;
static struct block kept[512];
static int count;
static volatile size_t huge = (size_t)1 << 60;

#define MAKER(name)                                    \
    SITE(name);                                        \
    static ALLOCATES void *name(size_t size)           \
    {                                                  \
        void *block = ::operator new(size);            \
        KEEP(block);                                   \
        hold(&kept[count++], block, size, &name##_site); \
        return block;                                  \
    }

MAKER(log_line)
MAKER(refused)
MAKER(after_throw)
MAKER(after_jump)
MAKER(deep_after_jump)
MAKER(after_log)
MAKER(after_bad_alloc)

static ALLOCATES void dive(int frames, void *(*f)(size_t), size_t size)
{
    char room[160];
    char *start = room;
    KEEP(start);
    if (frames > 0)
        dive(frames - 1, f, size);
    else
        f(size);
    KEEP(start);
}

static void throws()
{
    throw std::bad_alloc();
}

static void jumps()
{
    longjmp(way_out, 1);
}

static void logs_and_throws()
{
    log_line(80);
    throw std::bad_alloc();
}

static void refuse_by_throwing(std::new_handler handler)
{
    std::set_new_handler(handler);
    try {
        dive(3, refused, huge);
        _exit(96);
    } catch (const std::bad_alloc &) {
    }
    std::set_new_handler(nullptr);
}

static ALLOCATES void refuse_by_jumping(int frames)
{
    std::set_new_handler(jumps);
    if (setjmp(way_out) == 0) {
        dive(frames, refused, huge);
        _exit(96);
    }
    std::set_new_handler(nullptr);
}

int main(int count_of_arguments, char **arguments)
{
    // The first exception allocates for itself; a handler that throws is not for every allocator.
    try {
        throw 1;
    } catch (int) {
    }
    say("waiting");
    for (;;) {
        char line[64];
        hear(line, sizeof line);
        if (strcmp(line, "jump") == 0) {
            for (int i = 0; i < 10; i++) {
                refuse_by_jumping(3);
                dive(3, after_jump, 100 + i);
                refuse_by_jumping(1);
                dive(9, deep_after_jump, 200 + i);
            }
        } else if (strcmp(line, "throw") == 0) {
            for (int i = 0; i < 10; i++) {
                refuse_by_throwing(throws);
                dive(3, after_throw, 300 + i);
            }
        } else if (strcmp(line, "log") == 0) {
            for (int i = 0; i < 10; i++) {
                refuse_by_throwing(logs_and_throws);
                dive(3, after_log, 400 + i);
            }
        } else if (strcmp(line, "none") == 0) {
            for (int i = 0; i < 10; i++) {
                refuse_by_throwing(nullptr);
                dive(3, after_bad_alloc, 500 + i);
            }
        }
        tell_truth();
        say("ready");
    }
}
