//! Children of all kinds: they inherit blocks, free them and allocate their own. None of that is the parent's.
#include "truth.h"

#include <spawn.h>
#include <sys/wait.h>

enum { BLOCKS = 500 };

static struct block blocks[BLOCKS];
extern char **environ;

MAKER(of_the_parent)
MAKER(after_the_children)
MAKER(of_a_child)

static void make(int from, int to)
{
    for (int i = from; i < to; i++)
        hold(&blocks[i], of_the_parent(100 + i), 100 + i, &of_the_parent_site);
}

static void be_a_child(void)
{
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i].pointer);
    for (int i = 0; i < 1000; i++)
        of_a_child(5000);
    _exit(0);
}

static void spawn(void)
{
    char *arguments[] = {"true", NULL};
    pid_t child;
    if (posix_spawnp(&child, "true", NULL, NULL, arguments, environ) != 0)
        _exit(96);
    waitpid(child, NULL, 0);
    child = vfork();
    if (child == 0) {
        execlp("true", "true", NULL);
        _exit(95);
    }
    waitpid(child, NULL, 0);
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    make(0, BLOCKS / 2);
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0)
            be_a_child();
        waitpid(child, NULL, 0);
        spawn();
    }
    make(BLOCKS / 2, BLOCKS);
    for (int i = 0; i < BLOCKS; i += 3) {
        void *pointer = blocks[i].pointer;
        let_go(&blocks[i]);
        free(pointer);
    }
    struct block last;
    hold(&last, after_the_children(77), 77, &after_the_children_site);
    tell_truth();
    stay();
}
