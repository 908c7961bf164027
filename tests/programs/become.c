//! A process that becomes the program of its argument when it is told to.
#include "truth.h"

LEAK(before)

int main(int argument_count, char **arguments)
{
    say("waiting");
    wait_for("begin");
    before(100);
    execl(arguments[1], arguments[1], NULL);
    _exit(96);
}
