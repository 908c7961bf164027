// Allocates without end through what makes stacks hard: exceptions, comparators of std::sort, std::function, regular
// expressions, streams, in two threads. Told to begin by a line.
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
