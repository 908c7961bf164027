//! Allocates from code that it has generated itself, for which tracer looks for a perf map.
#include "truth.h"

#include <sys/mman.h>

SITE(generated);

int main(void)
{
    // push rbp; mov rbp, rsp; mov rax, rdi; mov edi, 32; call rax; pop rbp; ret
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf8, 0xbf, 32, 0, 0, 0, 0xff, 0xd0, 0x5d, 0xc3};
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 95;
    memcpy(page, code, sizeof code);
    say("waiting");
    wait_for("begin");
    for (int i = 0; i < 100; i++) {
        struct block block;
        hold(&block, ((void *(*)(void *))page)((void *)malloc), 32, &generated_site);
    }
    tell_truth();
    stay();
}
