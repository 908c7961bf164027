//! Starts processes that start another program and end at once, as those do that go into the background.
#include "truth.h"

#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { TIMES = 200 };

int main(void)
{
    static char *arguments[] = {"true", NULL}, *environment[] = {NULL};
    // The programs become this one's children when those that started them are gone.
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (int nth = 0; nth < TIMES; nth++) {
        if (fork() == 0) {
            pid_t started;
            _exit(posix_spawn(&started, "/bin/true", NULL, NULL, arguments, environment) != 0);
        }
        while (wait(NULL) > 0) {
        }
    }
    return 0;
}
