//! Code on stacks of its own, each above the one before it, that it was called on in assembler as Rust's psm does it: by the frame pointer
//! the caller is found, whose frame lies below.
#include "truth.h"

SITE(on_second);

// on_stack(what, end of the stack): calls what() there.
void on_stack(void (*what)(void), void *end);
asm(".text\n"
    ".type on_stack, @function\n"
    "on_stack: .cfi_startproc\n"
    "push %rbp\n.cfi_def_cfa %rsp, 16\n.cfi_offset %rbp, -16\n"
    "mov %rsp, %rbp\n.cfi_def_cfa_register %rbp\n"
    "mov %rsi, %rsp\n"
    "call *%rdi\n"
    "mov %rbp, %rsp\npop %rbp\n.cfi_def_cfa %rsp, 8\n"
    "ret\n.cfi_endproc\n.size on_stack, . - on_stack\n");

static char stacks[2][1 << 16] __attribute__((aligned(64)));

static ALLOCATES void on_second(void)
{
    struct block block;
    void *pointer = malloc(100);
    KEEP(pointer);
    hold(&block, pointer, 100, &on_second_site);
}

static ALLOCATES void on_first(void)
{
    on_stack(on_second, stacks[1] + sizeof stacks[1]);
    asm volatile("");
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    on_stack(on_first, stacks[0] + sizeof stacks[0]);
    tell_truth();
    stay();
}
