//! Memory that grows by as much as the test says, all of it written to.
#include "truth.h"

int main(void)
{
    char line[64];
    say("waiting");
    for (;;) {
        hear(line, sizeof line);
        size_t size = (size_t)atol(line);
        // A mapping of its own: nothing that was freed before is used again.
        memset(malloc(size), 1, size);
        fact("grew", (long)size);
        say("ready");
    }
}
