//! A command that is over at once; with an argument, a moment later.
#include "truth.h"

static ALLOCATES void forget_quickly(void)
{
    void *pointer = malloc(4242);
    KEEP(pointer);
}

int main(int count, char **arguments)
{
    (void)arguments;
    forget_quickly();
    if (count > 1)
        usleep(300000);
    _exit(0);
}
