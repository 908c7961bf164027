//! Opens two libraries, one after the other; each allocates at once and again later. Arguments: their paths. With a third
//! argument the first is closed before the second is opened, which then takes its place.
#include <dlfcn.h>

#include "truth.h"

SITE(first_at_once);
SITE(first_later);
SITE(second_at_once);
SITE(second_later);

// Calls the library's function of that name, which returns a new block.
static ALLOCATES void call(void *library, const char *name, size_t size, struct site *site)
{
    struct block block;
    void *(*function)(size_t) = (void *(*)(size_t))dlsym(library, name);
    if (!function) {
        say("no %s: %s", name, dlerror());
        _exit(96);
    }
    hold(&block, function(size), size, site);
}

static ALLOCATES void *use(const char *path, const char *first, struct site *at_once, const char *second, struct site *later)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        say("cannot open %s: %s", path, dlerror());
        _exit(96);
    }
    for (int i = 0; i < 100; i++)
        call(library, first, 1000 + i, at_once);
    // Until the tracer has seen the new mapping.
    wait_for("later");
    for (int i = 0; i < 100; i++)
        call(library, second, 2000 + i, later);
    return library;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 95;
    say("waiting");
    wait_for("begin");
    void *first = use(argv[1], "first_at_once", &first_at_once_site, "first_later", &first_later_site);
    void *before = dlsym(first, "first_later");
    if (argc > 3)
        dlclose(first);
    say("next");
    wait_for("next");
    void *second = use(argv[2], "second_at_once", &second_at_once_site, "second_later", &second_later_site);
    fact("same_address", before == dlsym(second, "second_later"));
    tell_truth();
    stay();
}
