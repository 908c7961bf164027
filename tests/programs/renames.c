//! A program that changes its name to what the test says.
#include "truth.h"

#include <sys/prctl.h>

int main(void)
{
    char line[64];
    say("waiting");
    for (;;) {
        hear(line, sizeof line);
        prctl(PR_SET_NAME, line);
        say("ready");
    }
}
