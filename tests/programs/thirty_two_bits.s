# A 32-bit program that does nothing: pause(2), again and again.
.globl _start
_start:
    mov $4, %eax
    mov $1, %ebx
    mov $message, %ecx
    mov $8, %edx
    int $0x80
sleep:
    mov $29, %eax
    int $0x80
    jmp sleep

.section .rodata
message:
    .ascii "waiting\n"
