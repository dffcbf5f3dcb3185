/*
 * The part that mimalloc's adapters of heaps share: the calls are those of all versions. Names, and
 * which threads may make the calls, stay with each adapter. A heap is destroyed with its blocks,
 * without a visit to each.
 */
#ifndef HAK_BENCH_ADAPTER_MIMALLOC_INSTANCE_H
#define HAK_BENCH_ADAPTER_MIMALLOC_INSTANCE_H

#include "adapter_mimalloc_version.h"

#include <stdbool.h>

typedef mi_heap_t alloc_heap_t;

static inline const char *alloc_symbol(void) { return "mi_heap_malloc"; }
static inline const char *alloc_library(void) { return "libmimalloc"; }
static inline bool alloc_has_heaps(void) { return true; }
static inline const char *alloc_mode(void) { return "-"; }

static inline alloc_heap_t *alloc_heap_create(const char *level, unsigned index)
{
    (void)level;
    (void)index;
    return mi_heap_new();
}

static inline void alloc_heap_destroy(alloc_heap_t *heap) { mi_heap_destroy(heap); }
static inline void alloc_thread_end(void) {}
static inline void *alloc_malloc(alloc_heap_t *heap, size_t size)
{
    return mi_heap_malloc(heap, size);
}
static inline void *alloc_realloc(alloc_heap_t *heap, void *block, size_t size)
{
    return mi_heap_realloc(heap, block, size);
}

static inline void alloc_free(alloc_heap_t *heap, void *block)
{
    (void)heap;
    mi_free(block);
}

/* Collecting is flush and, with force, trim. */
static inline void alloc_flush(alloc_heap_t *heap) { mi_heap_collect(heap, false); }
static inline void alloc_trim(alloc_heap_t *heap) { mi_heap_collect(heap, true); }

#endif
