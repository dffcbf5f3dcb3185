/* mimalloc as a global allocator. Its heaps (version 2) belong to one thread each, so they cannot
 * run this workload. */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "adapter_global.h"
#include "adapter_mimalloc_version.h"

static inline const char *alloc_name(void) { return "mimalloc"; }
static inline const char *alloc_symbol(void) { return "mi_malloc"; }
static inline const char *alloc_library(void) { return "libmimalloc"; }

static inline void *alloc_malloc(alloc_heap_t *heap, size_t size)
{
    (void)heap;
    return mi_malloc(size);
}

static inline void alloc_free(alloc_heap_t *heap, void *block)
{
    (void)heap;
    mi_free(block);
}

static inline void *alloc_realloc(alloc_heap_t *heap, void *block, size_t size)
{
    (void)heap;
    return mi_realloc(block, size);
}

/* Collecting with force is mimalloc's flush and trim in one. */
static inline void alloc_flush(alloc_heap_t *heap) { (void)heap; }
static inline void alloc_trim(alloc_heap_t *heap)
{
    (void)heap;
    mi_collect(true);
}

#endif
