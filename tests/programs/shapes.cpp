//! Stacks of every shape that compilers and programs make: the test knows each chain of functions.
#include "truth.h"

#include <alloca.h>
#include <algorithm>
#include <csignal>
#include <functional>
#include <pthread.h>
#include <stdexcept>
#include <ucontext.h>

LEAK(below_alloca)
LEAK(below_array)
LEAK(below_registers)
LEAK(below_sort)
LEAK(below_function)
LEAK(below_catch)
LEAK(below_recursion)
LEAK(below_signal)
LEAK(below_thread)
LEAK(below_coroutine)
LEAK(below_other_stack)
LEAK(below_unaligned)
LEAK(below_destructor)

// Keeps a call from becoming a jump.
#define STAY() asm volatile("" : : : "memory")

static ALLOCATES void with_alloca(size_t size)
{
    char *room = static_cast<char *>(alloca(size));
    KEEP(room);
    below_alloca(1001);
    KEEP(room);
}

static ALLOCATES void with_array(size_t size)
{
    char room[size];
    char *start = room;
    KEEP(start);
    below_array(1002);
    KEEP(start);
}

// Needs every register that a call preserves, the frame pointer's too.
static ALLOCATES long with_registers(volatile long *numbers)
{
    long a = numbers[0], b = numbers[1], c = numbers[2], d = numbers[3], e = numbers[4], f = numbers[5];
    below_registers(1003);
    long sum = a * b + c * d + e * f;
    below_registers(1003);
    return sum + a + b + c + d + e + f;
}

static ALLOCATES bool compare_and_allocate(int a, int b)
{
    static bool done;
    if (!done) {
        done = true;
        below_sort(1004);
    }
    STAY();
    return a < b;
}

static ALLOCATES void with_sort()
{
    int numbers[100];
    for (int i = 0; i < 100; i++)
        numbers[i] = (i * 37) % 100;
    std::sort(numbers, numbers + 100, compare_and_allocate);
    STAY();
}

static ALLOCATES void with_function(const std::function<void()> &function)
{
    function();
    STAY();
}

static ALLOCATES void throws(int n)
{
    if (n == 0)
        throw std::runtime_error("deep below");
    throws(n - 1);
    STAY();
}

static ALLOCATES void with_catch()
{
    try {
        throws(10);
    } catch (const std::exception &) {
        below_catch(1006);
    }
    STAY();
}

struct Guard {
    ALLOCATES ~Guard()
    {
        below_destructor(1013);
        STAY();
    }
};

static ALLOCATES void guarded()
{
    Guard guard;
    throws(3);
}

static ALLOCATES void with_destructor()
{
    try {
        guarded();
    } catch (const std::exception &) {
    }
    STAY();
}

static ALLOCATES void recurse(int depth)
{
    if (depth == 0)
        below_recursion(1007);
    else
        recurse(depth - 1);
    STAY();
}

static ALLOCATES void on_signal(int)
{
    below_signal(1008);
    STAY();
}

static ALLOCATES void on_signal_elsewhere(int)
{
    below_other_stack(1011);
    STAY();
}

static ALLOCATES void with_signal()
{
    struct sigaction action = {};
    action.sa_handler = on_signal;
    sigaction(SIGUSR1, &action, nullptr);
    raise(SIGUSR1);
    STAY();
}

static char other_stack[65536];

static ALLOCATES void with_other_stack()
{
    stack_t stack = {};
    stack.ss_sp = other_stack;
    stack.ss_size = sizeof other_stack;
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_handler = on_signal_elsewhere;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR2, &action, nullptr);
    raise(SIGUSR2);
    STAY();
}

static ALLOCATES void *in_thread(void *)
{
    below_thread(1009);
    STAY();
    return nullptr;
}

static ucontext_t here, there;
static char coroutine_stack[65536] __attribute__((aligned(16)));

static ALLOCATES void in_coroutine()
{
    below_coroutine(1010);
    STAY();
}

static ALLOCATES void with_coroutine()
{
    getcontext(&there);
    there.uc_stack.ss_sp = coroutine_stack;
    there.uc_stack.ss_size = sizeof coroutine_stack;
    there.uc_link = &here;
    makecontext(&there, in_coroutine, 0);
    swapcontext(&here, &there);
    STAY();
}

// A frame that is aligned anew: its size is not known to the unwinder but through the frame pointer.
static ALLOCATES void with_alignment()
{
    alignas(64) char room[128];
    char *start = room;
    KEEP(start);
    below_unaligned(1012);
    KEEP(start);
}

static ALLOCATES void all_shapes()
{
    volatile long numbers[6] = {1, 2, 3, 4, 5, 6};
    with_alloca(100 + numbers[0]);
    with_array(200 + numbers[1]);
    with_registers(numbers);
    with_sort();
    with_function([] {
        below_function(1005);
        STAY();
    });
    with_catch();
    with_destructor();
    recurse(60);
    with_signal();
    with_other_stack();
    pthread_t thread;
    pthread_create(&thread, nullptr, in_thread, nullptr);
    pthread_join(thread, nullptr);
    with_coroutine();
    with_alignment();
    STAY();
}

int main()
{
    say("waiting");
    char order[64];
    hear(order, sizeof order);
    all_shapes();
    tell_truth();
    say("ready");
    stay();
}
