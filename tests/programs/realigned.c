//! Functions that align their stack frames at run time, as vectorised code does, and code on a stack of its own (makecontext): by what the
//! caller's frame is found is another register than usual, or memory; and there is no caller.
#include "truth.h"
#include <ucontext.h>

SITE(below_aligned);
SITE(below_sized);
SITE(below_many_arguments);
SITE(in_context);

// Holds one block of so many bytes.
#define HOLDS(function, bytes)                  \
    static ALLOCATES void function(void)        \
    {                                           \
        struct block block;                     \
        void *pointer = malloc(bytes);          \
        KEEP(pointer);                          \
        hold(&block, pointer, bytes, &function##_site); \
    }
HOLDS(below_aligned, 100)
HOLDS(below_sized, 200)
HOLDS(below_many_arguments, 300)
HOLDS(in_context, 400)

#define OWN __attribute__((noipa))
static OWN void use(void *memory) { KEEP(memory); }

static OWN void aligned(void)
{
    char array[256] __attribute__((aligned(64)));
    use(array);
    below_aligned();
    use(array);
}

static OWN void sized(int size)
{
    char array[256] __attribute__((aligned(64)));
    char *room = __builtin_alloca(size);
    use(array), use(room);
    below_sized();
    use(array), use(room);
}

static OWN void many_arguments(int a, int b, int c, int d, int e, int f, int g, int h)
{
    char array[256] __attribute__((aligned(32)));
    use(array), use(&h);
    below_many_arguments();
    use(array), use(&g);
}

static ucontext_t own, other;
static char stack[1 << 16];

static void on_its_own(void)
{
    in_context();
    swapcontext(&other, &own);
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    aligned();
    sized(100);
    many_arguments(1, 2, 3, 4, 5, 6, 7, 8);
    getcontext(&other);
    other.uc_stack.ss_sp = stack;
    other.uc_stack.ss_size = sizeof stack;
    other.uc_link = &own;
    makecontext(&other, on_its_own, 0);
    swapcontext(&own, &other);
    tell_truth();
    stay();
}
