//! A process that drops the pages of the C library's code, and with them whatever was written there.
#include "truth.h"

#include <sys/mman.h>

LEAK(before)
LEAK(after)

static void drop(void)
{
    char line[512];
    unsigned long start, end;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "libc.so") && strstr(line, " r-xp ") && sscanf(line, "%lx-%lx", &start, &end) == 2)
            madvise((void *)start, end - start, MADV_DONTNEED);
    fclose(maps);
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 1000; i++)
        before(100);
    drop();
    say("dropped");
    wait_for("go on");
    for (int i = 0; i < 1000; i++)
        after(100);
    tell_truth();
    stay();
}
