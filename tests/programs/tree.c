// Processes that start others, in the way that the first argument names; with a second one when it is told to. Each prints `held PID BYTES BLOCKS`: what hold() has
// given it that it has not freed, in memory of its own.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static volatile long bytes, blocks;

__attribute__((noipa)) static void *hold(size_t size) {
    char *block = malloc(size);
    if (block == NULL) abort();
    memset(block, 1, size);
    bytes += size;
    blocks++;
    return block;
}

static void drop(void *block, size_t size) {
    free(block);
    bytes -= size;
    blocks--;
}

// Standard I/O would allocate.
static void tell(void) {
    char line[80];
    if (write(1, line, snprintf(line, sizeof line, "held %d %ld %ld\n", getpid(), bytes, blocks)) < 0) abort();
}

// A child has nothing of its own; what it frees of its parent's is its parent's all the same.
static void child(void) { bytes = blocks = 0; }

static void end(int code) {
    tell();
    _exit(code);
}

static void leaf(int count) {
    for (int i = 0; i < count; i++) hold(100 + i);
    end(0);
}

static void wait_for_all(void) {
    while (wait(NULL) > 0) continue;
}

static void by_fork(void) {
    void *inherited = hold(777);
    for (int i = 1; i <= 3; i++) {
        if (fork() == 0) {
            child();
            free(inherited);
            for (int n = 0; n < i; n++) hold(5000);
            // A child of the child.
            if (i == 3 && fork() == 0) {
                child();
                leaf(9);
            }
            wait_for_all();
            end(0);
        }
    }
    wait_for_all();
    drop(inherited, 777);
}

static void as_daemon(void) {
    if (fork() == 0) {
        child();
        setsid();
        if (fork() == 0) {
            child();
            // Its parents are long gone.
            usleep(400000);
            hold(3000);
            end(0);
        }
        hold(20);
        end(0);
    }
}

static void *shared;

static int on_shared_memory(void *unused) {
    (void)unused;
    drop(shared, 100000);
    hold(4000);
    _exit(0);
}

// The child frees what its parent has allocated, and allocates in its memory.
static void by_vfork(void) {
    for (int i = 0; i < 3; i++) {
        shared = hold(100000);
        if (vfork() == 0) on_shared_memory(NULL);
        wait(NULL);
    }
}

// The same, and the child becomes a program, which frees nothing.
static void by_vfork_and_exec(const char *self) {
    for (int i = 0; i < 3; i++) {
        shared = hold(100000);
        if (vfork() == 0) {
            drop(shared, 100000);
            execl(self, self, "leaf", "0", NULL);
            _exit(1);
        }
        wait(NULL);
    }
}

// The child ends and has done nothing.
static void by_vfork_and_end(void) {
    for (int i = 0; i < 3; i++) {
        if (vfork() == 0) _exit(0);
        wait(NULL);
    }
}

static void by_clone(void) {
    char *stack = malloc(1 << 16);
    for (int i = 0; i < 3; i++) {
        shared = hold(100000);
        clone(on_shared_memory, stack + (1 << 16), CLONE_VM | SIGCHLD, NULL);
        wait(NULL);
    }
    free(stack);
}

static int after_its_parent(void *parent) {
    while (getppid() == (pid_t)(long)parent) usleep(1000);
    hold(4000);
    _exit(0);
}

// The child goes on in the memory of a parent that is no more.
static void outlive(void) {
    char *stack = malloc(1 << 16);
    clone(after_its_parent, stack + (1 << 16), CLONE_VM | SIGCHLD, (void *)(long)getpid());
}

static void by_spawn(const char *self) {
    for (int i = 1; i <= 3; i++) {
        char count[12];
        snprintf(count, sizeof count, "%d", 10 * i);
        char *const arguments[] = {(char *)self, "leaf", count, NULL};
        pid_t pid;
        if (posix_spawn(&pid, self, NULL, NULL, arguments, environ) != 0) abort();
    }
    wait_for_all();
}

static void by_exec(const char *self) {
    for (int i = 1; i <= 3; i++) {
        if (fork() == 0) {
            // Gone with the program.
            hold(12345);
            char count[12];
            snprintf(count, sizeof count, "%d", 10 * i);
            execl(self, self, "leaf", count, NULL);
            abort();
        }
    }
    wait_for_all();
}

// A server with four workers, each of which is replaced when it ends.
static void by_workers(void) {
    for (int started = 0, running = 0; started < 16 || running > 0;) {
        if (started < 16 && running < 4) {
            started++, running++;
            if (fork() == 0) {
                child();
                void *request = hold(64);
                for (int i = 0; i < started; i++) hold(1000);
                drop(request, 64);
                end(0);
            }
        } else {
            wait(NULL);
            running--;
        }
    }
}

static void *forker(void *unused) {
    (void)unused;
    if (fork() == 0) {
        child();
        leaf(5);
    }
    return NULL;
}

static void by_threads(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, forker, NULL);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    wait_for_all();
}

// A second, and more on a machine that is slow.
static void rest(void) {
    const char *slowness = getenv("TRACER_TEST_SLOWNESS");
    sleep(slowness != NULL ? atoi(slowness) : 1);
}

// One that was forked and one that is another program, which wait for a second before they allocate.
static void late(const char *self) {
    if (fork() == 0) {
        child();
        rest();
        leaf(7);
    }
    if (fork() == 0) {
        execl(self, self, "late leaf", "8", NULL);
        abort();
    }
    wait_for_all();
}

// Programs that allocate nothing and are over at once, but for the first one.
static void many_leaves(const char *self) {
    for (int i = 0; i < 100; i++) {
        if (fork() == 0) {
            execl(self, self, i == 0 ? "late leaf" : "leaf", "0", NULL);
            abort();
        }
        wait(NULL);
    }
}

// Many that do nothing but hold one block each.
static void by_hundreds(void) {
    for (int i = 0; i < 300; i++) {
        if (fork() == 0) {
            child();
            leaf(1);
        }
        if (i % 8 == 7) wait_for_all();
    }
    wait_for_all();
}

static void wait_for_byte(void) {
    char byte;
    if (read(0, &byte, 1) < 0) abort();
}

// Two children that begin when nobody has read any record for a while, and hold something when somebody has.
static void unheard(const char *self) {
    for (int i = 0; i < 2000; i++) drop(hold(10), 10);
    if (fork() == 0) {
        child();
        wait_for_byte();
        leaf(10);
    }
    if (fork() == 0) {
        execl(self, self, "leaf", "20", "wait", NULL);
        abort();
    }
    usleep(200000);
    if (write(1, "begun\n", 6) < 0) abort();
    wait_for_all();
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "";
    if (strcmp(way, "late leaf") == 0) rest();
    if (strstr(way, "leaf") != NULL) {
        if (argc > 3) wait_for_byte();
        leaf(atoi(argv[2]));
    }
    if (argc > 2) wait_for_byte();
    hold(1000);
    if (strcmp(way, "fork") == 0) by_fork();
    if (strcmp(way, "daemon") == 0) as_daemon();
    if (strcmp(way, "vfork") == 0) by_vfork();
    if (strcmp(way, "vfork and exec") == 0) by_vfork_and_exec("/proc/self/exe");
    if (strcmp(way, "vfork and end") == 0) by_vfork_and_end();
    if (strcmp(way, "clone") == 0) by_clone();
    if (strcmp(way, "outlive") == 0) outlive();
    if (strcmp(way, "spawn") == 0) by_spawn("/proc/self/exe");
    if (strcmp(way, "exec") == 0) by_exec("/proc/self/exe");
    if (strcmp(way, "workers") == 0) by_workers();
    if (strcmp(way, "threads") == 0) by_threads();
    if (strcmp(way, "late") == 0) late("/proc/self/exe");
    if (strcmp(way, "many leaves") == 0) many_leaves("/proc/self/exe");
    if (strcmp(way, "hundreds") == 0) by_hundreds();
    if (strcmp(way, "unheard") == 0) unheard("/proc/self/exe");
    end(5);
}
