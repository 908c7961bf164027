//! Opens a library that has an allocator of its own, allocates by that at once, and ends. Argument: its path.
#include <dlfcn.h>

#include "truth.h"

SITE(first_at_once);

int main(int argc, char **argv)
{
    if (argc < 2)
        return 95;
    void *library = dlopen(argv[1], RTLD_NOW);
    void *(*function)(size_t) = library ? (void *(*)(size_t))dlsym(library, "first_at_once") : NULL;
    if (!function) {
        say("cannot use %s: %s", argv[1], dlerror());
        _exit(96);
    }
    for (int i = 0; i < 100; i++) {
        struct block block;
        hold(&block, function(1000), 1000, &first_at_once_site);
    }
    tell_truth();
    _exit(0);
}
