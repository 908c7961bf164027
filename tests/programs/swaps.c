//! Opens and closes two libraries in turn, as fast as it can: each lies where the other one was. Arguments: their paths. Then, told
//! so, it has both open and allocates again, and later once more.
#include <dlfcn.h>

#include "truth.h"

SITE(first_at_once);
SITE(first_later);
SITE(second_at_once);
SITE(second_later);

enum { ROUNDS = 400, CALLS = 20 };

static void *opened(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        say("cannot open %s: %s", path, dlerror());
        _exit(96);
    }
    return library;
}

// Calls the library's function of that name a few times: each gives a block that stays. Where it is.
static ALLOCATES void *call(void *library, const char *name, struct site *site)
{
    void *(*function)(size_t) = (void *(*)(size_t))dlsym(library, name);
    if (!function)
        _exit(96);
    for (int i = 0; i < CALLS; i++) {
        struct block block;
        hold(&block, function(100 + i), 100 + i, site);
    }
    return (void *)function;
}

int main(int argc, char **argv)
{
    void *places[2] = {NULL, NULL};
    long same = 0;
    if (argc < 3)
        return 95;
    say("waiting");
    wait_for("begin");
    for (int round = 0; round < ROUNDS; round++) {
        int second = round % 2;
        void *library = opened(argv[1 + second]);
        places[second] = second ? call(library, "second_at_once", &second_at_once_site)
                                : call(library, "first_at_once", &first_at_once_site);
        same += places[0] == places[1];
        dlclose(library);
    }
    say("next");
    wait_for("next");
    void *first = opened(argv[1]), *second = opened(argv[2]);
    call(first, "first_at_once", &first_at_once_site);
    call(second, "second_at_once", &second_at_once_site);
    // Until the tracer has seen them.
    say("opened");
    wait_for("later");
    call(first, "first_later", &first_later_site);
    call(second, "second_later", &second_later_site);
    fact("same_address", same);
    tell_truth();
    stay();
}
