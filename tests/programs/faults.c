//! Code that is interrupted at the first instruction of a function, which lies right behind another one: the handler holds a block, and
//! has the function go on.
#include "truth.h"

#include <signal.h>
#include <ucontext.h>

SITE(below_fault);

void fault(const char *from);
asm(".text\n"
    ".type before, @function\n"
    "before: .cfi_startproc\nud2\n.cfi_endproc\n.size before, . - before\n"
    ".type fault, @function\n"
    "fault: .cfi_startproc\nmov (%rdi), %eax\nret\n.cfi_endproc\n.size fault, . - fault\n");

static ALLOCATES void below_fault(void)
{
    struct block block;
    void *pointer = malloc(100);
    KEEP(pointer);
    hold(&block, pointer, 100, &below_fault_site);
}

static ALLOCATES void on_fault(int signal, siginfo_t *information, void *context)
{
    (void)signal, (void)information;
    below_fault();
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RDI] = (greg_t)"text";
}

static ALLOCATES void calls_fault(void)
{
    fault(NULL);
    asm volatile("");
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    say("waiting");
    wait_for("begin");
    calls_fault();
    tell_truth();
    stay();
}
