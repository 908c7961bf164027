//! Allocates from the same place in memory with one frame more or less: every word of the longer stack is still where it
//! was, and nothing but a saved frame pointer tells that it is another one.
#include "truth.h"

#define FUNCTION(name) ".globl " name "\n.type " name ", @function\n" name ":\n.cfi_startproc\n"
#define END(name) ".cfi_endproc\n.size " name ", . - " name "\n"

asm(".text\n"
    // Saves the frame pointer of its caller, and has none.
    FUNCTION("allocates")
    "push %rbp\n.cfi_def_cfa_offset 16\n.cfi_offset %rbp, -16\n"
    "xor %ebp, %ebp\n"
    "mov $24, %edi\n"
    "call malloc@plt\n"
    "pop %rbp\n.cfi_def_cfa_offset 8\n.cfi_restore %rbp\n"
    "ret\n"
    END("allocates")
    // Its frame begins where its frame pointer says: below it is room that is not written to.
    FUNCTION("with_room")
    "push %rbp\n.cfi_def_cfa_offset 16\n.cfi_offset %rbp, -16\n"
    "mov %rsp, %rbp\n.cfi_def_cfa_register %rbp\n"
    "sub %rdi, %rsp\n"
    "call allocates\n"
    "leave\n.cfi_def_cfa %rsp, 8\n.cfi_restore %rbp\n"
    "ret\n"
    END("with_room")
    FUNCTION("through_another")
    "sub $8, %rsp\n.cfi_def_cfa_offset 16\n"
    "call with_room\n"
    "add $8, %rsp\n.cfi_def_cfa_offset 8\n"
    "ret\n"
    END("through_another"));

void *with_room(long bytes);
void *through_another(long bytes);

// The frame of through_another: its return address, and what keeps the stack aligned.
enum { FRAME = 16, ROOM = 64, ROUNDS = 100 };

static void *(*const functions[])(long) = {through_another, with_room};
static const long rooms[] = {ROOM, ROOM + FRAME};
static long calls[2];

// Both by the same call instruction, once and several times in a row: what is compared is another thing each time.
static ALLOCATES void from_one_place(void)
{
    for (long round = 0; round < ROUNDS; round++)
        for (long times = 1; times <= 4; times++)
            for (long call = 0; call < 2 * times; call++) {
                long which = call >= times;
                KEEP(which);
                void *pointer = functions[which](rooms[which]);
                KEEP(pointer);
                calls[which]++;
            }
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    from_one_place();
    fact("through_another", calls[0]);
    fact("direct", calls[1]);
    stay();
}
