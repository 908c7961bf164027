// Says which signals it gets, each time, and from whom; ends with status 9 at SIGTERM.
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static void got(int signal, siginfo_t *info, void *context) {
    char line[64];
    (void)context;
    write(1, line, snprintf(line, sizeof line, "got %02d\nsent by %d, code %d\n", signal, info->si_pid, info->si_code));
    if (signal == SIGTERM) _exit(9);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = got, .sa_flags = SA_SIGINFO};
    int all[] = {SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM, SIGWINCH};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) sigaction(all[i], &action, 0);
    write(1, "ready\n", 6);
    for (;;) pause();
}
