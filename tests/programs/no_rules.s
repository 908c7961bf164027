# A library of hand-written code without unwind information, which uses the frame pointer for something else. The code of the first
# function proves where its caller is. Of the second one nobody can tell how far it moves the stack pointer.
.text
.globl through
.type through, @function
through: # through(allocate, size, rbp)
    push %rbp
    push %rbx
    sub $8, %rsp
    mov %rdi, %rax
    mov %rsi, %rdi
    mov %rdx, %rbp
    call *%rax
    add $8, %rsp
    pop %rbx
    pop %rbp
    ret
.size through, . - through
.globl beyond
.type beyond, @function
beyond: # beyond(allocate, size, rbp)
    push %rbp
    push %rbx
    mov moved(%rip), %rbx
    sub %rbx, %rsp
    mov %rdi, %rax
    mov %rsi, %rdi
    mov %rdx, %rbp
    call *%rax
    add %rbx, %rsp
    pop %rbx
    pop %rbp
    ret
.size beyond, . - beyond
.data
moved:
    .quad 24
.section .note.GNU-stack, "", @progbits
