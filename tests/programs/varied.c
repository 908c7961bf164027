//! Memory that grows and memory that does not, in many ways, whose parameters are drawn from a seed.
//!
//! Arguments: the seed, for how many seconds it will be traced, and the names of what it shall do, each a function that
//! allocates, in a thread of its own. It says `fact FUNCTION RATE` for each: bytes per second that it grows by in the long
//! run, 0 if it does not. Compiled without optimization, so that each call in the text is one in the program: one stack.
#include <math.h>
#include <pthread.h>
#include <time.h>

#include "truth.h"

#define MOST 20000

MAKER(leak_by_clock)
MAKER(leak_at_random)
MAKER(leak_of_all_sizes)
MAKER(leak_in_bursts)
MAKER(leak_after_one_large)
MAKER(leak_beside_churn)
MAKER(leak_beside_cycle)
MAKER(hold_one)
MAKER(hold_many)
MAKER(fill_and_stay)
MAKER(cycle_fast)
MAKER(cycle_slow)
MAKER(cycle_once)
MAKER(on_and_off)
MAKER(burst_and_drain)
MAKER(cache_in_order)
MAKER(cache_at_random)
MAKER(churn)
MAKER(queue)
MAKER(replace_before)

SITE(vector);

static ALLOCATES void *vector(void *old, size_t size)
{
    void *pointer = realloc(old, size);
    KEEP(pointer);
    return pointer;
}

// One kind at work: its random numbers, its clock, and what it holds.
struct work {
    uint64_t random;
    // Seconds of the trace, and since the beginning of the work.
    double seconds, now;
    struct timespec began;
    void *held[MOST];
};

// How many have said how fast they grow.
static int said;

static double uniform(struct work *work)
{
    uint64_t z = work->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return ((z ^ z >> 31) >> 11) * 0x1p-53 + 0x1p-54;
}

static double between(struct work *work, double least, double most)
{
    return least + (most - least) * uniform(work);
}

// As likely to be near the one as near the other in proportion.
static double of_magnitude(struct work *work, double least, double most)
{
    return least * pow(most / least, uniform(work));
}

static double exponential(struct work *work, double mean)
{
    return -mean * log(uniform(work));
}

// Waits until so much later, by the clock: work that came late catches up.
static void pause_for(struct work *work, double seconds)
{
    struct timespec until = work->began;
    work->now += seconds;
    double whole = floor(work->now);
    until.tv_sec += (time_t)whole;
    until.tv_nsec += (long)((work->now - whole) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void forever(void)
{
    for (;;)
        pause();
}

static void let_go_of(struct work *work, int slot)
{
    free(work->held[slot]);
    work->held[slot] = NULL;
}

// Replaces what is in a slot.
static void put(struct work *work, int slot, void *block)
{
    free(work->held[slot]);
    work->held[slot] = block;
}

// Says how fast this one grows, and goes to work.
static void grows(const char *name, double rate)
{
    say("fact %s %ld", name, lround(rate));
    __atomic_fetch_add(&said, 1, __ATOMIC_RELEASE);
}

#define KIND(name) static void work_##name(struct work *work, const char *says)

KIND(leak_by_clock)
{
    double pause = of_magnitude(work, 0.001, work->seconds / 40);
    size_t size = of_magnitude(work, 10, fmin(1 << 20, 20e6 * pause));
    grows(says, size / pause);
    for (pause_for(work, pause * uniform(work));; pause_for(work, pause))
        leak_by_clock(size);
}

KIND(leak_at_random)
{
    double pause = of_magnitude(work, 0.0005, work->seconds / 40);
    size_t size = of_magnitude(work, 10, fmin(1 << 20, 20e6 * pause));
    grows(says, size / pause);
    for (;; leak_at_random(size))
        pause_for(work, exponential(work, pause));
}

KIND(leak_of_all_sizes)
{
    double pause = of_magnitude(work, 0.0005, work->seconds / 60), size = of_magnitude(work, 50, 1000);
    // A size of 0 stays one of 0; rounding down takes half a byte on average.
    grows(says, size / pause);
    for (;; leak_of_all_sizes(exponential(work, size) + 0.5))
        pause_for(work, exponential(work, pause));
}

KIND(leak_in_bursts)
{
    double pause = of_magnitude(work, 0.01, work->seconds / 40);
    int blocks = of_magnitude(work, 2, 200);
    grows(says, blocks * 100 / pause);
    for (;;) {
        pause_for(work, exponential(work, pause));
        for (int i = 0; i < blocks; i++)
            leak_in_bursts(100);
    }
}

KIND(leak_after_one_large)
{
    double pause = of_magnitude(work, 0.0005, 0.005);
    size_t size = work->seconds / pause * 100 * of_magnitude(work, 0.1, 10);
    grows(says, 100 / pause);
    for (;; pause_for(work, exponential(work, pause)), size = 100)
        leak_after_one_large(size);
}

// Seven of eight live for a while.
KIND(leak_beside_churn)
{
    double pause = of_magnitude(work, 0.0005, 0.005);
    int slots = fmin(MOST, of_magnitude(work, 0.005, work->seconds / 10) / pause);
    grows(says, 100 / pause / 8);
    for (long step = 0;; step++) {
        pause_for(work, exponential(work, pause));
        void *block = leak_beside_churn(100);
        if (uniform(work) > 0.125)
            put(work, slots ? step % slots : 0, block);
    }
}

KIND(leak_beside_cycle)
{
    double pause = of_magnitude(work, 0.001, 0.005);
    int slots = fmin(MOST, of_magnitude(work, 0.02, work->seconds / 6) / pause) + 1;
    size_t size = fmax(1, 100 * work->seconds / pause / slots * between(work, 0.01, 0.1));
    grows(says, 100 / pause);
    for (long step = 0;; step++) {
        pause_for(work, pause / 2);
        int leaks = step % 2, slot = step / 2 % slots;
        if (slot == 0 && !leaks)
            for (int i = 0; i < slots; i++)
                let_go_of(work, i);
        void *block = leak_beside_cycle(leaks ? 100 : size);
        if (!leaks)
            work->held[slot] = block;
    }
}

KIND(hold_one)
{
    grows(says, 0);
    pause_for(work, between(work, 0, work->seconds * 0.9));
    hold_one(of_magnitude(work, 10, 1 << 24));
    forever();
}

KIND(hold_many)
{
    double within = between(work, 0, work->seconds * 0.3);
    int blocks = of_magnitude(work, 10, 1000);
    grows(says, 0);
    for (int i = 0; i < blocks; i++, pause_for(work, within / blocks))
        hold_many(of_magnitude(work, 10, 1000));
    forever();
}

KIND(fill_and_stay)
{
    int blocks = of_magnitude(work, 20, 2000);
    double within = between(work, 0.05, 0.8) * work->seconds;
    grows(says, 0);
    for (int i = 0; i < blocks; i++, pause_for(work, within / blocks))
        fill_and_stay(100);
    forever();
}

static void cycle(struct work *work, double period, void *(*make)(size_t))
{
    int steps = fmax(5, fmin(1000, period / 0.001));
    // Anywhere in its course.
    for (long step = steps * uniform(work);; step++) {
        if (step % steps == 0)
            for (int i = 0; i < steps; i++)
                let_go_of(work, i);
        work->held[step % steps] = make(500);
        pause_for(work, period / steps);
    }
}

KIND(cycle_fast)
{
    grows(says, 0);
    cycle(work, of_magnitude(work, 0.005, work->seconds / 6), cycle_fast);
}

KIND(cycle_slow)
{
    grows(says, 0);
    cycle(work, between(work, work->seconds / 6, work->seconds / 2), cycle_slow);
}

KIND(cycle_once)
{
    grows(says, 0);
    cycle(work, between(work, work->seconds / 2, work->seconds), cycle_once);
}

KIND(on_and_off)
{
    double period = of_magnitude(work, 0.01, work->seconds / 2), on = period * between(work, 0.1, 0.9);
    grows(says, 0);
    for (pause_for(work, period * uniform(work));; pause_for(work, period - on)) {
        put(work, 0, on_and_off(1 << 20));
        pause_for(work, on);
        let_go_of(work, 0);
    }
}

KIND(burst_and_drain)
{
    double period = of_magnitude(work, 0.02, work->seconds / 2);
    grows(says, 0);
    for (pause_for(work, period * uniform(work));;) {
        for (int i = 0; i < 100; i++)
            work->held[i] = burst_and_drain(100);
        for (int i = 0; i < 100; i++) {
            pause_for(work, period / 100);
            let_go_of(work, i);
        }
    }
}

KIND(cache_in_order)
{
    int slots = of_magnitude(work, 20, 2000);
    double full = between(work, 0.05, 0.7) * work->seconds;
    grows(says, 0);
    for (long step = 0;; step++) {
        put(work, step % slots, cache_in_order(100));
        pause_for(work, full / slots * between(work, 0.5, 1.5));
    }
}

KIND(cache_at_random)
{
    int slots = of_magnitude(work, 20, 2000);
    double lives = of_magnitude(work, 0.01, 0.2) * work->seconds;
    grows(says, 0);
    for (;; pause_for(work, exponential(work, lives / slots)))
        put(work, slots * uniform(work), cache_at_random(100));
}

// As many as come live for a time that has no memory.
KIND(churn)
{
    int blocks = of_magnitude(work, 10, 1000), live = 0;
    double lives = of_magnitude(work, 0.005, work->seconds / 6);
    grows(says, 0);
    for (;;) {
        pause_for(work, exponential(work, lives / (blocks + live)));
        if (uniform(work) * (blocks + live) < blocks && live < MOST) {
            work->held[live++] = churn(100);
        } else if (live > 0) {
            int ends = live * uniform(work);
            void *block = work->held[ends];
            work->held[ends] = work->held[--live];
            work->held[live] = NULL;
            free(block);
        }
    }
}

// Served a little faster than it is filled.
KIND(queue)
{
    double load = between(work, 0.7, 0.95), step = of_magnitude(work, 0.0005, 0.002);
    int length = 0;
    grows(says, 0);
    for (;; pause_for(work, exponential(work, step))) {
        if (uniform(work) < load / (1 + load))
            work->held[length < MOST ? length++ : MOST - 1] = queue(200);
        else if (length > 0)
            let_go_of(work, --length);
    }
}

KIND(replace_before)
{
    int slots = of_magnitude(work, 100, MOST);
    double turn = work->seconds * of_magnitude(work, 0.5, 20);
    for (int i = 0; i < slots; i++)
        work->held[i] = replace_before(300);
    grows(says, 0);
    for (long step = 0;; step++) {
        pause_for(work, turn / slots);
        put(work, step % slots, replace_before(300));
    }
}

KIND(vector)
{
    int steps = of_magnitude(work, 100, 4000), room = 4;
    double within = between(work, 0.05, 0.8) * work->seconds;
    grows(says, 0);
    void *all = vector(NULL, 16 * room);
    for (int i = 0; i < steps; i++, pause_for(work, within / steps))
        if (i == room)
            all = vector(all, 16 * (room *= 2));
    KEEP(all);
    forever();
}

#define ENTRY(name) { #name, work_##name }
static const struct kind {
    const char *name;
    void (*work)(struct work *, const char *);
} kinds[] = {
    ENTRY(leak_by_clock), ENTRY(leak_at_random), ENTRY(leak_of_all_sizes), ENTRY(leak_in_bursts),
    ENTRY(leak_after_one_large), ENTRY(leak_beside_churn), ENTRY(leak_beside_cycle), ENTRY(hold_one), ENTRY(hold_many),
    ENTRY(fill_and_stay), ENTRY(cycle_fast), ENTRY(cycle_slow), ENTRY(cycle_once), ENTRY(on_and_off),
    ENTRY(burst_and_drain), ENTRY(cache_in_order), ENTRY(cache_at_random), ENTRY(churn), ENTRY(queue),
    ENTRY(replace_before), ENTRY(vector),
};
#define KINDS (sizeof kinds / sizeof *kinds)

static struct work works[KINDS];

static void *begin(void *which)
{
    const struct kind *kind = which;
    kind->work(&works[kind - kinds], kind->name);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        _exit(97);
    say("waiting");
    wait_for("start");
    for (int i = 3; i < argc; i++)
        for (size_t kind = 0; kind < KINDS; kind++) {
            pthread_t thread;
            if (strcmp(argv[i], kinds[kind].name) != 0)
                continue;
            struct work *work = &works[kind];
            work->random = strtoull(argv[1], NULL, 10) * KINDS + kind;
            work->seconds = strtod(argv[2], NULL);
            clock_gettime(CLOCK_MONOTONIC, &work->began);
            if (pthread_create(&thread, NULL, begin, (void *)&kinds[kind]))
                _exit(98);
        }
    while (__atomic_load_n(&said, __ATOMIC_ACQUIRE) < argc - 3)
        usleep(1000);
    stay();
}
