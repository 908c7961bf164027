//! For alike.c: an interpreter's operations, which have the names of the C library's functions in this file alone.
#define KEPT __attribute__((noipa))

static KEPT long malloc(long *machine, long operation)
{
    return machine[0] += operation * 0x10000000000;
}

static KEPT void free(long *machine)
{
    machine[0] = 0;
}

long interpret(long operations)
{
    long machine[2] = {1, 2}, result = 0;
    for (long i = 0; i < operations; i++) {
        result ^= malloc(machine, i);
        free(machine);
    }
    return result;
}
