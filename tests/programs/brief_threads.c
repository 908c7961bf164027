//! Threads that end one after the other. What they have freed lies in their cache of the C library until then.
#include "truth.h"

#include <pthread.h>

LEAK(in_a_thread)

static void *live(void *unused)
{
    void *pointers[20];
    for (int i = 0; i < 20; i++) {
        pointers[i] = malloc(50 + i);
        KEEP(pointers[i]);
    }
    for (int i = 0; i < 20; i++)
        free(pointers[i]);
    in_a_thread(77);
    return NULL;
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 200; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, live, NULL);
        pthread_join(thread, NULL);
    }
    tell_truth();
    stay();
}
