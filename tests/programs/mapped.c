//! Changes of what is mapped, of every kind, each by a function of its own that tells how much is left of it: "truth NAME BYTES RESERVED".
//! The numbers are bytes. It waits until it is told to begin, and at the end; with an argument it does not, and its child ends.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
// Not one with another that does the same, either.
#define OWN __attribute__((noipa))
enum { RW = PROT_READ | PROT_WRITE, ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS };

static void check(int right, const char *what)
{
    if (!right) {
        fprintf(stderr, "%s\n", what);
        _exit(97);
    }
}

/// Where something is that is left, so that no call is the last thing that a function does.
static char *volatile kept;

static char *map(char *at, long pages, int protection, int flags)
{
    char *memory = mmap(at, pages * PAGE, protection, flags, -1, 0);
    check(memory != MAP_FAILED, "mmap");
    return memory;
}
#define MAP(at, pages, flags) map(at, pages, RW, ANONYMOUS | (flags))

static void truth(const char *name, long pages, long reserved)
{
    printf("truth %s %ld %ld\n", name, pages * PAGE, reserved * PAGE);
}

/// Addresses where nothing is, with room around.
static char *free_addresses(long pages)
{
    char *room = map(NULL, pages, PROT_NONE, ANONYMOUS | MAP_NORESERVE);
    munmap(room, pages * PAGE);
    return room;
}

OWN static void maps(void) { kept = MAP(NULL, 16, 0); memset(kept, 1, 3 * PAGE); }
OWN static void maps_at_hint(void) { kept = MAP(free_addresses(64) + 8 * PAGE + 5, 5, 0); }
OWN static void maps_large(void) { kept = MAP(NULL, 2048 + 7, 0); }
OWN static void maps_without_replacing(void) { kept = MAP(free_addresses(64) + 8 * PAGE, 6, MAP_FIXED_NOREPLACE); }
OWN static char *is_covered(void) { return kept = MAP(NULL, 16, 0); }
OWN static void covers(char *at) { kept = MAP(at + 5 * PAGE, 4, MAP_FIXED); }
OWN static void is_cut(void)
{
    char *memory = kept = MAP(NULL, 16, 0);
    munmap(memory, PAGE);
    munmap(memory + 7 * PAGE, 2 * PAGE);
    // Beyond its end is nothing, or another's: a length that is no multiple of a page.
    munmap(memory + 13 * PAGE, 3 * PAGE - 5);
}
OWN static char *is_first(char *at) { return kept = MAP(at, 10, MAP_FIXED); }
OWN static char *is_second(char *at) { return kept = MAP(at, 10, MAP_FIXED); }
OWN static char *is_grown(char *at) { return kept = MAP(at, 4, MAP_FIXED); }
OWN static void grows_in_place(char *at)
{
    kept = mremap(at, 4 * PAGE, 9 * PAGE, 0);
    check(kept == at, "it has moved");
}
OWN static char *is_moved(char *at) { return kept = MAP(at, 4, MAP_FIXED); }
OWN static void is_in_the_way(char *at) { kept = map(at, 2, PROT_READ, ANONYMOUS | MAP_FIXED); }
OWN static void moves(char *at)
{
    kept = mremap(at, 4 * PAGE, 11 * PAGE, MREMAP_MAYMOVE);
    check(kept != at && kept != MAP_FAILED, "it has not moved");
}
// As long as huge pages are, and so placed as those.
OWN static char *is_moved_to_huge(char *at) { return kept = MAP(at, 256, MAP_FIXED); }
OWN static void moves_to_huge(char *at)
{
    for (int pages = 256; pages < 1536; pages += 256) {
        char *next = at + pages * PAGE;
        char *in_the_way = mmap(next, PAGE, PROT_NONE, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        char *moved = kept = mremap(at, pages * PAGE, (pages + 256) * PAGE, MREMAP_MAYMOVE);
        check(moved != at && moved != MAP_FAILED, "it has not moved");
        if (in_the_way == next)
            munmap(next, PAGE);
        at = moved;
    }
}
// In one call, which Linux can from 6.17 on.
OWN static char *is_several(void)
{
    char *memory = kept = MAP(NULL, 9, 0);
    check(mprotect(memory + 3 * PAGE, 3 * PAGE, PROT_READ) == 0, "mprotect");
    return memory;
}
OWN static void moves_several(char *from, char *to)
{
    char *moved = mremap(from, 9 * PAGE, 9 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    munmap(moved == MAP_FAILED ? from : moved, 4 * PAGE);
}
OWN static char *is_mapped_twice(void)
{
    return kept = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}
OWN static void maps_twice(char *at, char *to)
{
    kept = mremap(at, 0, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    check(kept == to, "it is not there");
}
OWN static void maps_device_of_zeroes(void)
{
    int zeroes = open("/dev/zero", O_RDWR);
    kept = mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zeroes, 0);
    check(zeroes >= 0 && kept != MAP_FAILED, "/dev/zero");
    close(zeroes);
}
OWN static void maps_at_low_hint(void)
{
    kept = mmap((char *)PAGE, 3 * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1, 0);
    check(kept != MAP_FAILED, "mmap");
}
OWN static void shrinks(void) { kept = mremap(MAP(NULL, 16, 0), 16 * PAGE, 9 * PAGE, 0); }
OWN static char *is_replaced(void) { return kept = MAP(NULL, 8, 0); }
OWN static char *replaces(void) { return kept = MAP(NULL, 3, 0); }
OWN static void moves_over(char *from, char *to)
{
    kept = mremap(from, 3 * PAGE, 5 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    check(kept == to, "it is not there");
}
OWN static char *is_left(void) { return kept = MAP(NULL, 7, 0); }
OWN static void leaves(char *at)
{
    kept = mremap(at, 7 * PAGE, 7 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    check(kept != MAP_FAILED && kept != at, "it has not moved");
}
OWN static char *reserves(void) { return kept = map(NULL, 4096, PROT_NONE, ANONYMOUS | MAP_NORESERVE); }
OWN static void opens(char *at) { check(!mprotect(at + 100 * PAGE, 50 * PAGE, RW), "mprotect"); kept = at; }
OWN static void maps_into_reserved(char *at) { kept = MAP(at + 1000 * PAGE, 30, MAP_FIXED); }
OWN static void closes(void) { check(!mprotect(MAP(NULL, 12, 0), 5 * PAGE, PROT_NONE), "mprotect"); kept = NULL; }
OWN static char *is_opened_first(void)
{
    kept = map(NULL, 11, PROT_NONE, ANONYMOUS);
    check(!mprotect(kept, 4 * PAGE, RW), "mprotect");
    return kept;
}
// The first mapping is open already.
OWN static void opens_rest(char *at) { check(!mprotect(at, 11 * PAGE, RW), "mprotect"); kept = at; }
OWN static void closes_rest(void)
{
    char *memory = kept = MAP(NULL, 8, 0);
    check(!mprotect(memory, 3 * PAGE, PROT_NONE), "mprotect");
    check(!mprotect(memory, 7 * PAGE, PROT_NONE), "mprotect");
}
OWN static void opens_to_hole(void)
{
    char *memory = kept = map(NULL, 10, PROT_NONE, ANONYMOUS);
    munmap(memory + 4 * PAGE, 2 * PAGE);
    check(mprotect(memory, 10 * PAGE, RW) == -1, "there is nothing");
}
OWN static void only_changes(void)
{
    check(!mprotect(MAP(NULL, 6, 0), 5 * PAGE, PROT_READ | PROT_EXEC), "mprotect");
    kept = NULL;
}
OWN static void shares(void) { kept = map(NULL, 13, RW, MAP_SHARED | MAP_ANONYMOUS); }
OWN static void maps_memfd(void)
{
    int memory = memfd_create("mapped", 0);
    check(!ftruncate(memory, 9 * PAGE), "ftruncate");
    kept = mmap(NULL, 9 * PAGE, RW, MAP_SHARED, memory, 0);
    close(memory);
}
// On a file system that is in memory, where shm_open(3) has its files.
OWN static void maps_shared_file(void)
{
    int memory = open("/dev/shm", O_TMPFILE | O_RDWR, 0600);
    check(memory >= 0 && !ftruncate(memory, 11 * PAGE), "/dev/shm");
    kept = mmap(NULL, 11 * PAGE, RW, MAP_SHARED, memory, 0);
    close(memory);
}
// What was reserved before anybody looked.
OWN static char *reserves_earlier(void) { return kept = map(NULL, 64, PROT_NONE, ANONYMOUS | MAP_NORESERVE); }
OWN static void opens_earlier(char *at) { check(!mprotect(kept = at, 10 * PAGE, RW), "mprotect"); }
OWN static char *is_under_a_file(void) { return kept = MAP(NULL, 8, 0); }
OWN static void maps_file(const char *name, char *at)
{
    int file = open(name, O_RDONLY);
    kept = mmap(at + 2 * PAGE, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0);
    check(kept != MAP_FAILED, "no file");
    close(file);
}
OWN static void grows_file(const char *name)
{
    int file = open(name, O_RDONLY);
    char *memory = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
    kept = mremap(memory, 2 * PAGE, 5 * PAGE, MREMAP_MAYMOVE);
    check(memory != MAP_FAILED && kept != MAP_FAILED, "mremap");
    close(file);
}
OWN static void grows_memfd(void)
{
    int memory = memfd_create("grown", 0);
    check(!ftruncate(memory, 9 * PAGE), "ftruncate");
    kept = mmap(NULL, 3 * PAGE, RW, MAP_SHARED, memory, 0);
    kept = mremap(kept, 3 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    check(kept != MAP_FAILED, "mremap");
    close(memory);
}
OWN static void breaks(void)
{
    // Not by sbrk(3), which the allocator shares: by the kernel's own.
    char *at = (char *)syscall(SYS_brk, NULL);
    char *end = (char *)(((uintptr_t)at + PAGE - 1) & ~(PAGE - 1));
    kept = (char *)syscall(SYS_brk, end + 11 * PAGE);
    check(kept == end + 11 * PAGE, "brk");
    kept = (char *)syscall(SYS_brk, end + 8 * PAGE);
}
OWN static void attaches(void)
{
    int segment = shmget(IPC_PRIVATE, 10 * PAGE, 0600);
    kept = shmat(segment, NULL, 0);
    char *other = shmat(segment, NULL, SHM_RDONLY);
    shmctl(segment, IPC_RMID, NULL);
    check(kept != (char *)-1 && other != (char *)-1, "shmat");
    check(!shmdt(other), "shmdt");
}
static long stack_pages, guard_pages;
static pthread_barrier_t started;
static void *thread(void *done)
{
    (void)done;
    pthread_attr_t attributes;
    void *at;
    size_t size, guard;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &at, &size);
    pthread_attr_getguardsize(&attributes, &guard);
    (stack_pages = (long)size / PAGE, guard_pages = (long)guard / PAGE);
    pthread_barrier_wait(&started);
    pause();
    return NULL;
}
OWN static void starts_thread(void)
{
    pthread_t id;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * PAGE);
    pthread_barrier_init(&started, NULL, 2);
    check(!pthread_create(&id, &attributes, thread, NULL), "pthread_create");
    pthread_barrier_wait(&started);
}
OWN static void fails(void)
{
    char *memory = kept = MAP(NULL, 3, 0);
    check(mmap(NULL, 1UL << 60, RW, ANONYMOUS, -1, 0) == MAP_FAILED, "too much");
    check(mmap(memory, PAGE, RW, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED, "it was replaced");
    check(mmap(memory + 1, PAGE, RW, ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED, "not at a page");
    check(mmap(memory, PAGE, RW, MAP_SHARED, 1000, 0) == MAP_FAILED, "no such file");
    check(munmap(memory + 1, PAGE) == -1, "not at a page");
    check(mremap(memory, 3 * PAGE, 1UL << 60, MREMAP_MAYMOVE) == MAP_FAILED, "too much");
    check(mremap(memory, 2 * PAGE, 3 * PAGE, 0) == MAP_FAILED, "there is something");
    check(mremap(memory, 3 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + PAGE) == MAP_FAILED, "overlap");
}
OWN static char *is_not_replaced(void) { return kept = MAP(NULL, 3, 0); }
OWN static void fails_to_replace(char *at, const char *name)
{
    check(mmap(at, PAGE, RW, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED, "it was replaced");
    int file = open(name, O_RDONLY);
    check(mmap(at, PAGE, RW, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED, "only to be read");
    close(file);
    int segment = shmget(IPC_PRIVATE, PAGE, 0600);
    check(shmat(segment, at, 0) == (char *)-1, "there is something");
    shmctl(segment, IPC_RMID, NULL);
    // Nothing is at the first of the addresses, and what follows is more than there are.
    char *nothing = free_addresses(1);
    check(munmap(nothing, 1UL << 47) == -1, "too long");
    check(munmap(nothing, -(size_t)PAGE) == -1, "too long");
    kept = at;
}
OWN static char *is_many(void)
{
    // Every other page is another mapping, whatever may be done with it.
    char *memory = kept = MAP(NULL, 60, 0);
    for (int i = 0; i < 60; i += 2)
        map(memory + i * PAGE, 1, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED);
    return memory;
}
// More than are looked at one by one: nothing changes but what may be done.
OWN static void changes_many(char *memory) { check(!mprotect(memory, 60 * PAGE, PROT_READ), "mprotect"); kept = memory; }
OWN static void opens_many(void)
{
    char *memory = kept = map(NULL, 60, PROT_NONE, ANONYMOUS);
    for (int i = 10; i < 60; i += 2)
        map(memory + i * PAGE, 1, i < 40 ? RW : PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED);
    check(!mprotect(memory, 60 * PAGE, RW), "mprotect");
}
OWN static char *is_not_covered(void) { return kept = MAP(NULL, 8, 0); }
// The same is there before and after: the process may not have so many addresses.
OWN static void fails_to_cover(char *at)
{
    struct rlimit all, none = {0};
    check(!getrlimit(RLIMIT_AS, &all), "getrlimit");
    none.rlim_max = all.rlim_max;
    check(!setrlimit(RLIMIT_AS, &none), "setrlimit");
    char *failed = mmap(at + PAGE, 5 * PAGE, RW, ANONYMOUS | MAP_FIXED, -1, 0);
    check(!setrlimit(RLIMIT_AS, &all), "setrlimit");
    check(failed == MAP_FAILED, "it was replaced");
    kept = at;
}
OWN static void allocates(void) { memset(kept = malloc(1 << 20), 1, 1 << 20); }
static void *races(void *unused)
{
    for (int i = 0; i < 2000; i++) {
        char *memory = MAP(NULL, 1 + i % 7, 0);
        munmap(memory, (1 + i % 7) * PAGE);
    }
    kept = MAP(NULL, 3, 0);
    return unused;
}
OWN static void maps_in_child(void) { kept = MAP(NULL, 21, 0); }
OWN static void maps_in_ended_child(void) { kept = MAP(NULL, 13, 0); }

int main(int argc, char **argv)
{
    setvbuf(stdout, malloc(1 << 16), _IOFBF, 1 << 16);
    char *earlier = reserves_earlier();
    printf("waiting\n");
    fflush(stdout);
    char line[64];
    check(argc > 1 || fgets(line, sizeof line, stdin) != NULL, "no input");
    maps();
    maps_at_hint();
    maps_large();
    maps_without_replacing();
    covers(is_covered());
    is_cut();
    char *room = free_addresses(256);
    is_second(is_first(room + 8 * PAGE) + 10 * PAGE);
    munmap(room + 14 * PAGE, 7 * PAGE);
    grows_in_place(is_grown(room + 40 * PAGE));
    char *moved = is_moved(room + 80 * PAGE);
    is_in_the_way(moved + 4 * PAGE);
    moves(moved);
    moves_to_huge(is_moved_to_huge(free_addresses(4096)));
    moves_several(is_several(), free_addresses(64));
    maps_twice(is_mapped_twice(), free_addresses(64));
    maps_device_of_zeroes();
    maps_at_low_hint();
    shrinks();
    moves_over(replaces(), is_replaced());
    leaves(is_left());
    char *reserved = reserves();
    opens(reserved);
    maps_into_reserved(reserved);
    closes();
    opens_rest(is_opened_first());
    closes_rest();
    opens_to_hole();
    only_changes();
    shares();
    maps_memfd();
    maps_shared_file();
    opens_earlier(earlier + 4 * PAGE);
    maps_file(argv[0], is_under_a_file());
    grows_file(argv[0]);
    grows_memfd();
    breaks();
    attaches();
    starts_thread();
    fails();
    fails_to_replace(is_not_replaced(), argv[0]);
    changes_many(is_many());
    opens_many();
    fails_to_cover(is_not_covered());
    allocates();
    pthread_t racers[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&racers[i], NULL, races, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(racers[i], NULL);
    if (fork() == 0) {
        maps_in_ended_child();
        _exit(0);
    }
    check(wait(NULL) > 0, "wait");
    int told[2];
    check(!pipe(told), "pipe");
    if (fork() == 0) {
        // What it has from its parent, it may unmap; it is nobody's growth.
        munmap(room + 8 * PAGE, 6 * PAGE);
        maps_in_child();
        check(write(told[1], "x", 1) == 1, "write");
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (argc == 1)
            pause();
        _exit(0);
    }
    check(read(told[0], line, 1) == 1, "read");
    if (argc > 1)
        wait(NULL);

    truth("is_many", 60, 0);
    truth("changes_many", 0, 0);
    truth("opens_many", 60, 0);
    truth("is_not_covered", 8, 0);
    truth("fails_to_cover", 0, 0);
    truth("maps", 16, 0);
    truth("maps_at_hint", 5, 0);
    truth("maps_large", 2048 + 7, 0);
    truth("maps_without_replacing", 6, 0);
    truth("is_covered", 12, 0);
    truth("covers", 4, 0);
    truth("is_cut", 10, 0);
    truth("is_first", 6, 0);
    truth("is_second", 7, 0);
    truth("is_grown", 4, 0);
    truth("grows_in_place", 5, 0);
    truth("is_moved", 4, 0);
    truth("is_in_the_way", 2, 0);
    truth("moves", 7, 0);
    truth("is_moved_to_huge", 256, 0);
    truth("moves_to_huge", 5 * 256, 0);
    truth("is_several", 5, 0);
    truth("moves_several", 0, 0);
    truth("is_mapped_twice", 4, 0);
    truth("maps_twice", 4, 0);
    truth("maps_device_of_zeroes", 5, 0);
    truth("maps_at_low_hint", 3, 0);
    truth("shrinks", 9, 0);
    truth("is_replaced", 3, 0);
    truth("replaces", 3, 0);
    truth("moves_over", 2, 0);
    truth("is_left", 14, 0);
    truth("leaves", 0, 0);
    truth("reserves", 0, 4096 - 50 - 30);
    truth("opens", 50, 0);
    truth("maps_into_reserved", 30, 0);
    truth("closes", 7, 5);
    truth("is_opened_first", 4, 0);
    truth("opens_rest", 7, 0);
    truth("closes_rest", 1, 7);
    truth("opens_to_hole", 4, 4);
    truth("only_changes", 6, 0);
    truth("shares", 13, 0);
    truth("maps_memfd", 9, 0);
    truth("maps_shared_file", 11, 0);
    truth("reserves_earlier", 0, argc > 1 ? 54 : 0);
    truth("opens_earlier", 10, 0);
    truth("is_under_a_file", 6, 0);
    truth("maps_file", 0, 0);
    truth("grows_file", 0, 0);
    truth("grows_memfd", 8, 0);
    truth("breaks", 8, 0);
    truth("attaches", 10, 0);
    truth("starts_thread", stack_pages, guard_pages);
    truth("fails", 3, 0);
    truth("is_not_replaced", 3, 0);
    truth("fails_to_replace", 0, 0);
    truth("races", 12, 0);
    truth("allocates", 0, 0);
    truth("maps_in_child", 21, 0);
    // What has ended holds nothing, unless nobody is left.
    truth("maps_in_ended_child", argc > 1 ? 13 : 0, 0);
    printf("ready\n");
    fflush(stdout);
    if (argc == 1)
        pause();
}
