//! An allocator in the place of the C library's, whose copies of strings take their blocks in the same way as its malloc, not by it.
#include "truth.h"

static char pool[1 << 20];
static size_t used;

static inline __attribute__((always_inline)) void *take(size_t size)
{
    size_t at = __atomic_fetch_add(&used, (size + 15) & ~(size_t)15, __ATOMIC_RELAXED);
    return at + size <= sizeof pool ? pool + at : NULL;
}

__attribute__((noipa)) void *malloc(size_t size) { return take(size); }
__attribute__((noipa)) void free(void *block) { KEEP(block); }
__attribute__((noipa)) void *calloc(size_t count, size_t size) { return take(count * size); }
__attribute__((noipa)) void *realloc(void *block, size_t size)
{
    void *new = take(size);
    return block && new ? memmove(new, block, size) : new;
}
__attribute__((noipa)) char *strdup(const char *string)
{
    size_t size = strlen(string) + 1;
    char *copy = take(size);
    return copy ? memcpy(copy, string, size) : NULL;
}
__attribute__((noipa)) char *strndup(const char *string, size_t most)
{
    size_t size = strnlen(string, most);
    char *copy = take(size + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, string, size);
    copy[size] = 0;
    return copy;
}

HOLDS_BY(of_malloc, 100, malloc(100))
HOLDS_BY(of_strdup, 13, strdup("twelve bytes"))
HOLDS_BY(of_strndup, 6, strndup("twelve bytes", 5))
HOLDS_BY(of_strndup_whole, 13, strndup("twelve bytes", 50))

int main(void)
{
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 20; i++) of_malloc(), of_strdup(), of_strndup(), of_strndup_whole();
    tell_truth();
    stay();
}
