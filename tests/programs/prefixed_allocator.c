//! The allocator of `own_allocator.c` under the names that jemalloc has when it is given the prefix `je_`.
#define malloc je_malloc
#define calloc je_calloc
#define realloc je_realloc
#define reallocarray je_reallocarray
#define free je_free
#define cfree je_cfree
#define memalign je_memalign
#define posix_memalign je_posix_memalign
#define aligned_alloc je_aligned_alloc
#define valloc je_valloc
#define pvalloc je_pvalloc
#include "own_allocator.c"
