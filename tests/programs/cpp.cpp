//! C++ in all its ways to allocate: every operator new and delete, containers, shared pointers, exceptions in between. The
//! truth is by the function that holds the objects, which is somewhere on the stack of each allocation.
#include "truth.h"

#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

// Books on a site what a container allocates and frees.
template <typename T> struct Counted {
    using value_type = T;
    struct site *site;
    explicit Counted(struct site &site) : site(&site) {}
    template <typename U> Counted(const Counted<U> &other) : site(other.site) {}
    T *allocate(size_t count)
    {
        site_add(site, (long)(count * sizeof(T)), 1);
        if constexpr (alignof(T) > __STDCPP_DEFAULT_NEW_ALIGNMENT__)
            return static_cast<T *>(::operator new(count * sizeof(T), std::align_val_t(alignof(T))));
        else
            return static_cast<T *>(::operator new(count * sizeof(T)));
    }
    void deallocate(T *block, size_t count)
    {
        site_add(site, -(long)(count * sizeof(T)), -1);
        if constexpr (alignof(T) > __STDCPP_DEFAULT_NEW_ALIGNMENT__)
            ::operator delete(block, count * sizeof(T), std::align_val_t(alignof(T)));
        else
            ::operator delete(block, count * sizeof(T));
    }
    template <typename U> bool operator==(const Counted<U> &other) const { return site == other.site; }
};

using Text = std::basic_string<char, std::char_traits<char>, Counted<char>>;

struct Small {
    char data[24];
};
struct alignas(256) Wide {
    char data[512];
};
struct Destroyed {
    char data[40];
    ~Destroyed() { data[0] = 1; }
};

static void keep(void *pointer, size_t size, struct site &site)
{
    KEEP(pointer);
    site_add(&site, (long)size, 1);
}

SITE(hold_objects);
static ALLOCATES void hold_objects()
{
    for (int i = 0; i < 50; i++) {
        keep(new Small, sizeof(Small), hold_objects_site);
        keep(new Wide, sizeof(Wide), hold_objects_site);
        keep(new (std::nothrow) Small, sizeof(Small), hold_objects_site);
        keep(new (std::nothrow) Wide, sizeof(Wide), hold_objects_site);
        keep(new char[100 + i], 100 + i, hold_objects_site);
        keep(new (std::nothrow) char[10], 10, hold_objects_site);
        keep(new Wide[2], 2 * sizeof(Wide), hold_objects_site);
        // The array remembers its length in front.
        keep(new Destroyed[3], 3 * sizeof(Destroyed) + sizeof(size_t), hold_objects_site);
    }
}

SITE(pass_objects);
static ALLOCATES void pass_objects()
{
    for (int i = 0; i < 200; i++) {
        Small *small = new Small;
        Wide *wide = new Wide;
        Small *unsure = new (std::nothrow) Small;
        char *array = new char[1000];
        Destroyed *array_of_objects = new Destroyed[5];
        Wide *wide_array = new Wide[2];
        KEEP(small);
        KEEP(wide);
        KEEP(unsure);
        KEEP(array);
        KEEP(array_of_objects);
        KEEP(wide_array);
        delete small;
        delete wide;
        ::operator delete(unsure, std::nothrow);
        delete[] array;
        delete[] array_of_objects;
        delete[] wide_array;
        void *sized = ::operator new(64);
        KEEP(sized);
        ::operator delete(sized, (size_t)64);
    }
}

SITE(hold_vector);
static ALLOCATES auto *hold_vector()
{
    static std::vector<int, Counted<int>> vector{Counted<int>(hold_vector_site)};
    for (int i = 0; i < 5000; i++)
        vector.push_back(i);
    return &vector;
}

SITE(hold_strings);
static ALLOCATES auto *hold_strings()
{
    using List = std::vector<Text, Counted<Text>>;
    static List list{Counted<Text>(hold_strings_site)};
    for (int i = 0; i < 300; i++) {
        Text text("short", Counted<char>(hold_strings_site));
        for (int j = 0; j < i; j++)
            text += "ten bytes.";
        list.push_back(std::move(text));
    }
    list.erase(list.begin(), list.begin() + 100);
    return &list;
}

SITE(hold_map);
static ALLOCATES auto *hold_map()
{
    using Pair = std::pair<const int, long>;
    static std::map<int, long, std::less<int>, Counted<Pair>> map{Counted<Pair>(hold_map_site)};
    for (int i = 0; i < 2000; i++)
        map[i * 7919 % 3001] = i;
    for (int i = 0; i < 3001; i += 2)
        map.erase(i);
    return &map;
}

SITE(hold_hash_map);
static ALLOCATES auto *hold_hash_map()
{
    using Pair = std::pair<const int, Wide>;
    using Map = std::unordered_map<int, Wide, std::hash<int>, std::equal_to<int>, Counted<Pair>>;
    static Map map{8, std::hash<int>(), std::equal_to<int>(), Counted<Pair>(hold_hash_map_site)};
    for (int i = 0; i < 400; i++)
        map[i] = Wide();
    for (int i = 0; i < 100; i++)
        map.erase(i);
    return &map;
}

SITE(hold_shared);
static ALLOCATES auto *hold_shared()
{
    static std::shared_ptr<Wide> kept[20];
    for (auto &pointer : kept) {
        pointer = std::allocate_shared<Wide>(Counted<Wide>(hold_shared_site));
        auto dropped = std::allocate_shared<Small>(Counted<Small>(hold_shared_site));
        auto also_dropped = dropped;
    }
    return &kept;
}

SITE(hold_after_exceptions);
static ALLOCATES void build_and_throw(int depth)
{
    Text text(100, 'x', Counted<char>(hold_after_exceptions_site));
    if (depth == 0)
        throw std::runtime_error("thrown on purpose, with a message that is too long to be kept inline");
    build_and_throw(depth - 1);
    KEEP(depth);
}

static ALLOCATES void hold_after_exceptions()
{
    for (int i = 0; i < 50; i++) {
        try {
            build_and_throw(i % 10);
        } catch (const std::exception &) {
            keep(new Small, sizeof(Small), hold_after_exceptions_site);
        }
    }
}

int main()
{
    say("waiting");
    wait_for("begin");
    hold_objects();
    pass_objects();
    void *volatile all[] = {hold_vector(), hold_strings(), hold_map(), hold_hash_map(), hold_shared()};
    hold_after_exceptions();
    tell_truth();
    stay();
}
