//! Allocates below code that nothing says how to unwind: a library without unwind information (the first argument), code that is
//! generated here, and the same in files that begin with the second argument, which are no programs. Some of it keeps frame pointers; some uses that register for what looks like a frame.
#include "truth.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>

typedef void *caller(void *(*allocate)(size_t), size_t size, void *frame_pointer);

// push rbp; mov rbp, rsp; mov rax, rdi; mov rdi, rsi; call rax; pop rbp; ret
static const unsigned char keeps_frame_pointer[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0xff, 0xd0, 0x5d, 0xc3};
// push rbp; mov rax, rdi; mov rdi, rsi; mov rbp, rdx; call rax; pop rbp; ret
static const unsigned char uses_frame_pointer[] = {0x55, 0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd5, 0xff, 0xd0, 0x5d, 0xc3};

static caller *generate(const unsigned char *code, size_t size)
{
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(memory, code, size);
    mprotect(memory, 4096, PROT_READ | PROT_EXEC);
    return memory;
}

// In a file, from its second page on, as it may lie on disk for long.
static caller *in_file(const char *begin, const char *name, const unsigned char *code, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s", begin, name);
    int file = open(path, O_RDWR | O_CREAT, 0600);
    ftruncate(file, 8192);
    pwrite(file, "MZ", 2, 0);
    pwrite(file, code, size, 4096);
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 4096);
    close(file);
    return memory;
}

// Calls nothing and is called by nothing: in no stack.
static ALLOCATES void innocent(void)
{
    asm volatile("nop; nop; nop; nop; nop; nop; nop; nop");
}

static ALLOCATES void below(caller *code, void *frame_pointer, int blocks)
{
    for (int i = 0; i < blocks; i++) {
        void *pointer = code(malloc, 100, frame_pointer);
        KEEP(pointer);
    }
}

int main(int argument_count, char **arguments)
{
    void *opened = dlopen(arguments[1], RTLD_NOW);
    caller *library = dlsym(opened, "through");
    caller *unproved = dlsym(opened, "beyond");
    caller *argued = dlsym(opened, "argued");
    caller *keeps = generate(keeps_frame_pointer, sizeof keeps_frame_pointer);
    caller *uses = generate(uses_frame_pointer, sizeof uses_frame_pointer);
    caller *file_keeps = in_file(arguments[2], "keeps", keeps_frame_pointer, sizeof keeps_frame_pointer);
    caller *file_uses = in_file(arguments[2], "uses", uses_frame_pointer, sizeof uses_frame_pointer);
    void *frame[] = {NULL, (char *)innocent + 8};
    say("waiting");
    char order[64];
    for (;;) {
        hear(order, sizeof order);
        if (!strcmp(order, "library")) {
            below(library, NULL, 100);
            below(library, frame, 100);
        } else if (!strcmp(order, "arguments")) {
            below(argued, NULL, 100);
        } else if (!strcmp(order, "unproved")) {
            below(unproved, NULL, 100);
            below(unproved, frame, 100);
        } else if (!strcmp(order, "generated")) {
            below(uses, NULL, 100);
            below(uses, frame, 100);
        } else if (!strcmp(order, "in a file")) {
            below(file_uses, NULL, 100);
            below(file_uses, frame, 100);
        } else if (!strcmp(order, "kept in a file")) {
            below(file_keeps, NULL, 100);
        } else if (!strcmp(order, "unmapped")) {
            caller *dropped = generate(keeps_frame_pointer, sizeof keeps_frame_pointer);
            below(dropped, NULL, 100);
            munmap((void *)dropped, 4096);
        } else {
            below(keeps, NULL, 100);
        }
        say("ready");
    }
}
