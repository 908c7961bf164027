// Loads libraries and calls them, as lines on the standard input say: `load PATH`, `keep INDEX N`, `collect`. It says `ready`
// when that is done. With `fork`, a child of it does from then on.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void *libraries[16];
static int count;

int main(void) {
    char line[5000], path[4100];
    int index, number;
    puts("waiting");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "load %4099s", path) == 1) {
            libraries[count] = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (!libraries[count++]) {
                fprintf(stderr, "%s\n", dlerror());
                return 1;
            }
        } else if (sscanf(line, "keep %d %d", &index, &number) == 2) {
            ((void (*)(int))dlsym(libraries[index], "Keep"))(number);
        } else if (!strcmp(line, "fork\n")) {
            if (fork()) {
                wait(NULL);
                return 0;
            }
            printf("fact child %d\n", getpid());
        } else {
            for (int i = 0; i < count; i++)
                ((void (*)(void))dlsym(libraries[i], "Collect"))();
        }
        puts("ready");
        fflush(stdout);
    }
    return 0;
}
