//! A command for `tracer -- CMD`: allocates in constructors before main, tells the truth and ends as its argument says:
//! with a number as its status, or with `kill` by a signal.
#include "truth.h"

#include <csignal>
#include <vector>

LEAK(before_main)
LEAK(within_main)

__attribute__((constructor)) static void construct()
{
    before_main(123);
}

int main(int argument_count, char **arguments)
{
    // Pulls in the C++ library, which allocates its reserve for exceptions before anything else runs.
    {
        std::vector<int> numbers(10);
        asm volatile("" : : "r"(numbers.data()) : "memory");
    }
    within_main(456);
    tell_truth();
    const char *end = argument_count > 1 ? arguments[1] : "0";
    if (strcmp(end, "kill") == 0)
        raise(SIGTERM);
    if (strcmp(end, "wait") == 0)
        stay();
    _exit(atoi(end));
}
