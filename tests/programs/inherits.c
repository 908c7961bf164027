//! A child frees what it has from its parent, and ends with that: `inherits BLOCKS [thread]`. By a thread of it that ends all, if one is
//! asked for. It has allocated five blocks of its own before, of another size, which it keeps.
#include "truth.h"

#include <pthread.h>
#include <sys/wait.h>

static void *held[10000];
static int blocks;

static void *give_up(void *unused)
{
    for (int nth = 0; nth < blocks; nth++)
        free(held[nth]);
    _exit(0);
    return unused;
}

int main(int count, char **arguments)
{
    blocks = count > 1 ? atoi(arguments[1]) : 0;
    if (blocks < 0 || blocks > 10000)
        return 2;
    for (int nth = 0; nth < blocks; nth++) {
        held[nth] = malloc(40);
        KEEP(held[nth]);
    }
    if (fork() == 0) {
        for (int nth = 0; nth < 5; nth++) {
            void *own = malloc(4000);
            KEEP(own);
        }
        pthread_t thread;
        if (count > 2 && pthread_create(&thread, NULL, give_up, NULL) == 0)
            pthread_join(thread, NULL);
        give_up(NULL);
    }
    wait(NULL);
    _exit(0);
}
