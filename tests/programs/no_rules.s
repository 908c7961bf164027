# A library of hand-written code without unwind information, which uses the frame pointer for something else.
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
.section .note.GNU-stack, "", @progbits
