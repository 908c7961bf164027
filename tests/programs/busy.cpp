// Allocates without end through what makes stacks hard: exceptions, comparators of std::sort, std::function, regular
// expressions, streams, frames of changing size, in two threads. Told to begin by a line.
#include <alloca.h>
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static void throws(int depth)
{
    std::string text(40 + depth, 'x');
    if (depth == 0)
        throw std::runtime_error("thrown on purpose, with a message that is too long to be kept inline: " + text);
    throws(depth - 1);
}

static int sorts(int seed)
{
    std::vector<std::string> names;
    for (int i = 0; i < 40; i++)
        names.push_back("a name that is allocated " + std::to_string((seed + i * 7919) % 101));
    std::sort(names.begin(), names.end(), [](const std::string &a, const std::string &b) { return a + b < b + a; });
    return names[0].size();
}

static int recurses(int depth, const std::function<int(int)> &leaf)
{
    if (depth == 0)
        return leaf(depth);
    auto block = std::make_unique<char[]>(depth * 8);
    block[0] = 1;
    return recurses(depth - 1, [&](int n) { return leaf(n) + block[0]; });
}

// Keeps a value in every register that calls preserve, so that it saves its caller's, the frame pointer among them.
__attribute__((noipa)) static long saves_registers()
{
    long a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;
    asm volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    void *block = malloc(24);
    asm volatile("" : "+r"(block), "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    free(block);
    return a + b + c + d + e + f;
}

// Its frame begins where its frame pointer says.
__attribute__((noipa)) static long with_room(long bytes)
{
    volatile char *room = (volatile char *)alloca(bytes);
    room[0] = 1;
    return saves_registers() + room[0];
}

__attribute__((noipa)) static long through_another(long bytes)
{
    long sum = with_room(bytes);
    asm volatile("" : "+r"(sum));
    return sum + 1;
}

// The same place in memory, one frame more or less: nothing but a saved frame pointer tells which.
static void same_place()
{
    for (long bytes = 64; bytes <= 256; bytes += 16)
        for (long more = 0; more <= 64; more += 16)
            for (int time = 0; time < 4; time++) {
                long (*volatile next)(long) = time < 3 ? through_another : with_room;
                next(time < 3 ? bytes : bytes + more);
            }
}

static void works()
{
    for (int round = 0;; round++) {
        try {
            throws(round % 12);
        } catch (const std::exception &error) {
            std::ostringstream stream;
            stream << error.what() << round << 1.5;
        }
        sorts(round);
        same_place();
        recurses(round % 30, [](int n) { return (int)std::to_string(n).append(40, 'y').size(); });
        std::smatch match;
        std::string text = "key" + std::to_string(round) + "=value and more of it";
        std::regex_search(text, match, std::regex("([a-z]+)([0-9]*)=(v[a-z]*)"));
        std::map<std::string, std::shared_ptr<int>> map;
        for (int i = 0; i < 20; i++)
            map["a key that is too long to be inline " + std::to_string(i)] = std::make_shared<int>(i);
    }
}

int main()
{
    std::cout << "waiting" << std::endl;
    std::string line;
    std::getline(std::cin, line);
    std::thread other(works);
    works();
}
