// Starts the program that its arguments name and leaves it stopped (SIGSTOP) before the first instruction of its loader; says so, and
// ends as it does.
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    pid_t child = fork();
    int status;
    if (count < 2 || child < 0) return 1;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        execv(arguments[1], arguments + 1);
        _exit(1);
    }
    waitpid(child, &status, 0);
    ptrace(PTRACE_DETACH, child, NULL, SIGSTOP);
    puts("waiting");
    fflush(stdout);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
