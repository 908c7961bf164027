//! A process that becomes another program by a thread other than its first one. Argument: `at once`, or in its second life `later`
//! or `now`: whether it is told when to allocate.
#include "truth.h"

#include <pthread.h>

LEAK(in_the_second_life)

static char *name, *life;

static void *become_another(void *unused)
{
    execl("/proc/self/exe", name, life, NULL);
    _exit(96);
}

static void live(char *in)
{
    pthread_t thread;
    life = in;
    pthread_create(&thread, NULL, become_another, NULL);
    for (;;)
        pause();
}

int main(int argument_count, char **arguments)
{
    name = arguments[0];
    if (argument_count == 1) {
        say("waiting");
        wait_for("begin");
        live("later");
    }
    if (!strcmp(arguments[1], "at once"))
        live("now");
    if (!strcmp(arguments[1], "later")) {
        say("waiting");
        wait_for("go on");
    }
    for (int i = 0; i < 1000; i++)
        in_the_second_life(10 + i);
    tell_truth();
    if (!strcmp(arguments[1], "now"))
        return 0;
    stay();
}
