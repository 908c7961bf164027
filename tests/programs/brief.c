//! A command that is over at once.
#include "truth.h"

static ALLOCATES void forget_quickly(void)
{
    void *pointer = malloc(4242);
    KEEP(pointer);
}

int main(void)
{
    forget_quickly();
    _exit(0);
}
