//! A heap of mimalloc that ends with all blocks in it, and a copy of a string.
#include "truth.h"

void *mi_heap_new(void);
void *mi_heap_malloc(void *heap, size_t size);
void mi_heap_destroy(void *heap);

SITE(fill_heap);
static ALLOCATES void fill_heap(void)
{
    void *heap = mi_heap_new();
    for (int i = 0; i < 10; i++) {
        void *block = mi_heap_malloc(heap, 1000);
        KEEP(block);
    }
    mi_heap_destroy(heap);
}

int main(void)
{
    say("waiting");
    wait_for("begin");
    fill_heap();
    tell_truth();
    stay();
}
