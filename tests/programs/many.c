//! Holds more small blocks than there are samples that the kernel remembers within the least `--max-memory`.
#include "truth.h"

enum { BLOCKS = 150000, SIZE = 64 };

LEAK(keeps)

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < BLOCKS; i++)
        keeps(SIZE);
    tell_truth();
    stay();
}
