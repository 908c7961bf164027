//! A stack that the program makes itself, in assembler that nobody describes, as Boost's fcontext does it: its first function would return to
//! code right behind the maker's end. Above that lies what looks like a return address.
#include "truth.h"

SITE(in_made);

// make(end of the stack, what runs there): its stack pointer. go_to(where to put the own one, that of another stack).
void *make(void *end, void (*what)(void));
void go_to(void **own, void *other);
asm(".text\n.balign 32, 0x90\n"
    ".type make, @function\n"
    "make: lea -64(%rdi), %rax\n"
    "mov %rsi, 48(%rax)\n"
    "lea finish(%rip), %rcx\n"
    "mov %rcx, 56(%rax)\n"
    "ret\n"
    "finish: xor %edi, %edi\ncall _exit@PLT\nhlt\n.size make, . - make\n"
    ".balign 32, 0x90\n"
    ".type go_to, @function\n"
    "go_to: push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n.size go_to, . - go_to\n"
    ".balign 32, 0x90\n");

static char stack[1 << 16] __attribute__((aligned(64)));
static void *own, *made;

static ALLOCATES void innocent(void)
{
    asm volatile("nop; nop; nop; nop; nop; nop; nop; nop");
}

static ALLOCATES void in_made(void)
{
    struct block block;
    void *pointer = malloc(100);
    KEEP(pointer);
    hold(&block, pointer, 100, &in_made_site);
}

static ALLOCATES void on_made(void)
{
    in_made();
    go_to(&made, own);
}

int main(void)
{
    char *end = stack + sizeof stack - 4096;
    for (char **word = (char **)end; word < (char **)(end + 512); word++)
        *word = (char *)innocent + 8;
    say("waiting");
    wait_for("begin");
    made = make(end, on_made);
    go_to(&own, made);
    tell_truth();
    stay();
}
