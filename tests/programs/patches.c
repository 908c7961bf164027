//! Replaces the code of its own malloc and free, as hooks and hot patches do. Argument: when, `before` it says that it waits, or `during`
//! the trace, or `never`.
#include <string.h>
#include <sys/mman.h>

#include "truth.h"

LEAK(first_held);
LEAK(then_held);

static char arena[16 << 20];
static size_t used;
static long calls_of_others;

__attribute__((noipa, used)) static void *take(size_t size)
{
    char *block = arena + __atomic_fetch_add(&used, (size + 47) & ~(size_t)15, __ATOMIC_RELAXED);
    *(size_t *)block = size;
    return block + 16;
}

__attribute__((noipa, used)) static void give_back(void *block)
{
    (void)block;
}

// A function whose instructions are known, so that all of them can be replaced: does nothing but to call another one.
#define CALLS(name, other)               \
    asm(".text\n"                        \
        ".globl " name "\n"              \
        ".type " name ", @function\n"    \
        name ":\n"                       \
        "    .cfi_startproc\n"           \
        "    push %rbp\n"                \
        "    .cfi_adjust_cfa_offset 8\n" \
        "    push %rbx\n"                \
        "    .cfi_adjust_cfa_offset 8\n" \
        "    sub $8, %rsp\n"             \
        "    .cfi_adjust_cfa_offset 8\n" \
        "    call " other "\n"           \
        "    add $8, %rsp\n"             \
        "    .cfi_adjust_cfa_offset -8\n" \
        "    pop %rbx\n"                 \
        "    .cfi_adjust_cfa_offset -8\n" \
        "    pop %rbp\n"                 \
        "    .cfi_adjust_cfa_offset -8\n" \
        "    ret\n"                      \
        "    .cfi_endproc\n"             \
        ".size " name ", . - " name "\n")

CALLS("malloc", "take");
CALLS("free", "give_back");

void *calloc(size_t count, size_t size)
{
    return memset(malloc(count * size), 0, count * size);
}

void *realloc(void *block, size_t size)
{
    char *moved = malloc(size);
    size_t old = block ? ((size_t *)block)[-2] : 0;
    return memcpy(moved, block ? block : moved, old < size ? old : size);
}

static ALLOCATES void *other_malloc(size_t size)
{
    calls_of_others++;
    return take(size);
}

static ALLOCATES void other_free(void *block)
{
    calls_of_others++;
    give_back(block);
}

// Puts a jump to `other` in the place of what is at `code`.
static void replace(void *code, void *other)
{
    char jump[5] = {(char)0xe9};
    int32_t distance = (int32_t)((char *)other - ((char *)code + sizeof jump));
    memcpy(jump + 1, &distance, sizeof distance);
    char *page = (char *)((uintptr_t)code & ~(uintptr_t)4095);
    if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC))
        _exit(95);
    memcpy(code, jump, sizeof jump);
    if (mprotect(page, 8192, PROT_READ | PROT_EXEC))
        _exit(94);
}

static void replace_both(void)
{
    replace((void *)malloc, (void *)other_malloc);
    replace((void *)free, (void *)other_free);
}

int main(int argc, char **argv)
{
    const char *when = argc > 1 ? argv[1] : "never";
    if (strcmp(when, "before") == 0)
        replace_both();
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 100; i++)
        first_held(1000);
    if (strcmp(when, "during") == 0)
        replace_both();
    for (int i = 0; i < 100; i++) {
        then_held(500);
        void *block = malloc(10);
        KEEP(block);
        free(block);
    }
    tell_truth();
    fact("calls_of_others", calls_of_others);
    stay();
}
