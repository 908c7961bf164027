//! A process whose first thread ends while others go on allocating.
#include "truth.h"

#include <pthread.h>
#include <sys/wait.h>

static pthread_t first;

LEAK(before_the_end)
LEAK(after_the_end)

static void *go_on(void *unused)
{
    pthread_join(first, NULL);
    say("ended");
    for (;;) {
        char line[64];
        hear(line, sizeof line);
        if (!strcmp(line, "fork")) {
            // What is put into the child goes with it.
            pid_t child = fork();
            if (!child) {
                sleep(1);
                _exit(0);
            }
            waitpid(child, NULL, 0);
            say("ready");
            continue;
        }
        for (int i = 0; i < 1000; i++) {
            after_the_end(10 + i);
            free(malloc(100));
        }
        tell_truth();
        say("ready");
    }
}

static void *warm_up(void *unused)
{
    pthread_exit(NULL);
}

int main(void)
{
    pthread_t thread;
    // The first ended thread loads a library.
    pthread_create(&thread, NULL, warm_up, NULL);
    pthread_join(thread, NULL);
    first = pthread_self();
    pthread_create(&thread, NULL, go_on, NULL);
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 1000; i++)
        before_the_end(10 + i);
    pthread_exit(NULL);
}
