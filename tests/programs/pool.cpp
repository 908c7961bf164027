//! Operators that give out blocks of their own, from memory that they map: small ones, and large ones by malloc; or small ones only, and who
//! asks for more has an exception thrown at, whose functions allocate by malloc in the same file.
#include "truth.h"

#include <new>
#include <sys/mman.h>

enum { ROOM = 1 << 20, SMALL = 256, MOST = 1024 };
static char *pool, *top;
static struct block kept[MOST];
static int count;

static ALLOCATES void *from_pool(size_t size)
{
    if (!pool)
        top = pool = (char *)mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *block = top;
    top += (size + 15) & ~(size_t)15;
    return block;
}

ALLOCATES void *operator new(size_t size)
{
    if (size <= SMALL)
        return from_pool(size);
#ifdef SMALL_ONLY
    throw std::bad_alloc();
#else
    void *block = malloc(size);
    if (!block)
        throw std::bad_alloc();
    return block;
#endif
}

ALLOCATES void operator delete(void *block) noexcept
{
    if ((char *)block < pool || (char *)block >= pool + ROOM)
        free(block);
}

ALLOCATES void operator delete(void *block, size_t) noexcept
{
    operator delete(block);
}

SITE(small);
static ALLOCATES void small(size_t size)
{
    void *block = ::operator new(size);
    KEEP(block);
    hold(&kept[count++], block, size, &small_site);
}

SITE(large);
static ALLOCATES void large(size_t size)
{
    try {
        void *block = ::operator new(size);
        KEEP(block);
        hold(&kept[count++], block, size, &large_site);
    } catch (const std::bad_alloc &) {
    }
}

int main()
{
    // The first exception allocates for itself.
    try {
        throw 1;
    } catch (int) {
    }
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 100; i++) {
        small(20 + i);
        large(1000 + i);
        if (i % 3 == 0) {
            for (int last = 0; last < 2 && count > 0; last++) {
                struct block *block = &kept[--count];
                void *pointer = block->pointer;
                let_go(block);
                ::operator delete(pointer);
            }
        }
    }
    tell_truth();
    stay();
}
