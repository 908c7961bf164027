//! Allocates below functions of many shapes, to be compiled without unwind information: what tells how to unwind them is their
//! code alone.
#include "truth.h"

#include <alloca.h>

LEAK(below_registers)
LEAK(below_alloca)
LEAK(below_array)
LEAK(below_switch)
LEAK(below_arguments)
LEAK(below_abort)
LEAK(below_sort)
LEAK(below_recursion)

// Much is kept across calls.
static ALLOCATES long with_registers(long a, long b, long c, long d)
{
    long e = a * b, f = c ^ d;
    below_registers(100);
    long g = a + e, h = b - f;
    below_registers(200);
    return a + b + c + d + e + f + g + h;
}

static ALLOCATES void with_alloca(long size)
{
    char *memory = alloca(size);
    KEEP(memory);
    below_alloca(300);
    memset(memory, 1, size);
    KEEP(memory);
}

static ALLOCATES void with_array(void)
{
    volatile char memory[20000];
    memory[0] = 1;
    below_array(400);
    memory[19999] = 2;
}

// A table of jumps.
static ALLOCATES long with_switch(long what, long value)
{
    switch (what) {
    case 0: value += 3; break;
    case 1: below_switch(value); value *= 5; break;
    case 2: value ^= 7; below_switch(value + 1); break;
    case 3: below_switch(value); below_switch(value + 2); break;
    case 4: return value - 9;
    case 5: value = value * value + 1; break;
    case 6: below_switch(value + 3); return value / 3;
    default: value = -value;
    }
    KEEP(value);
    return value;
}

// More than there are registers for.
static ALLOCATES long many(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j)
{
    below_arguments(a + g);
    return a + b + c + d + e + f + g + h + i + j;
}

static ALLOCATES long with_arguments(long n)
{
    long sum = many(n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9);
    return many(sum, 1, n, 3, n, 5, n, 7, n, 9) + sum;
}

// What it calls on the one way does not return: another function begins behind that.
static ALLOCATES void with_abort(long n)
{
    if (n < 0)
        abort();
    below_abort(500 + n);
    if (n > 1000)
        abort();
}

static int compare_and_allocate(const void *a, const void *b)
{
    below_sort(24);
    return *(const int *)a - *(const int *)b;
}

static ALLOCATES void with_sort(void)
{
    int numbers[] = {5, 2, 9, 1, 7, 3};
    qsort(numbers, 6, sizeof numbers[0], compare_and_allocate);
    KEEP(numbers[0]);
}

static ALLOCATES long recurse(long depth)
{
    if (depth == 0) {
        below_recursion(600);
        return 1;
    }
    long result = recurse(depth - 1) + depth;
    KEEP(result);
    return result;
}

static ALLOCATES long all_shapes(long n)
{
    long sum = with_registers(n, 2, 3, 4);
    with_alloca(100 + 16 * n);
    with_array();
    for (long what = 0; what < 8; what++)
        sum += with_switch(what, 40);
    sum += with_arguments(n);
    with_abort(n);
    with_sort();
    return sum + recurse(20);
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (long n = 0; n < 20; n++) {
        long sum = all_shapes(n);
        KEEP(sum);
    }
    tell_truth();
    stay();
}
