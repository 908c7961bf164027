//! A process that is out to confuse: its name, the names of its functions and its mappings hold what terminals, browsers
//! and parsers of ELF files trip over. Argument: a file to fill with garbage and to map as code.
#include "truth.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

// The assembler takes any name in quotes.
#define HOSTILE(function, symbol)                          \
    ALLOCATES void function(size_t size) __asm__(symbol);  \
    SITE(function);                                        \
    ALLOCATES void function(size_t size)                   \
    {                                                      \
        struct block block;                                \
        void *pointer = malloc(size);                      \
        KEEP(pointer);                                     \
        hold(&block, pointer, size, &function##_site);     \
    }

HOSTILE(script, "\"<script>alert(1)</script>\"")
HOSTILE(separators, "\"a;b 77;c 88\"")
HOSTILE(escapes, "\"\x1b[2Jcleared\x07\"")
HOSTILE(markup, "\"&amp;]]>'<!--\"")
HOSTILE(mangled, "\"_ZN999999999999999999999zE\"")

static void map_garbage(const char *path, const char *start, size_t length)
{
    static char garbage[65536];
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < sizeof garbage; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        garbage[i] = (char)state;
    }
    memcpy(garbage, start, length);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0755);
    if (file < 0 || write(file, garbage, sizeof garbage) != sizeof garbage)
        _exit(96);
    if (mmap(NULL, sizeof garbage, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED)
        _exit(95);
    close(file);
}

int main(int argument_count, char **arguments)
{
    char path[512];
    // A head that makes sense, of ever more: a reader believes it and stumbles later.
    static const char head[] = "\x7f" "ELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0";
    for (int i = 0; i < 4; i++) {
        static const size_t lengths[] = {0, 4, 16, 24};
        snprintf(path, sizeof path, "%s\n<b>;%d.so", arguments[1], i);
        map_garbage(path, head, lengths[i]);
    }
    prctl(PR_SET_NAME, "<b>;\n\x1b[2J 5 &\"");
    say("waiting");
    wait_for("begin");
    script(1000);
    separators(2000);
    escapes(3000);
    markup(4000);
    mangled(5000);
    tell_truth();
    stay();
}
