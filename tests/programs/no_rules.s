# A library of hand-written code without unwind information, which uses the frame pointer for something else. The code of the first
# function proves where its caller is. Of the second one nobody can tell how far it moves the stack pointer. The third one puts arguments on
# the stack, which the fourth takes off: how many, it is told.
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
.globl argued
.type argued, @function
argued: # argued(allocate, size)
    push %rbp
    mov %rsp, %rbp
    push %rsi
    push %rdi
    mov $2, %esi
    call taking
    leave
    ret
.size argued, . - argued
.type taking, @function
taking: # (number of arguments on the stack)
    push %rbp
    mov %rsp, %rbp
    push %rsi
    mov 16(%rbp), %rax
    mov 24(%rbp), %rdi
    and $-16, %rsp
    call *%rax
    mov -8(%rbp), %rdx
    leave
    pop %rcx
    lea (%rsp, %rdx, 8), %rsp
    push %rcx
    ret
.size taking, . - taking
.data
moved:
    .quad 24
.section .note.GNU-stack, "", @progbits
