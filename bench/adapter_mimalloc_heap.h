/*
 * mimalloc's heaps, of version 2: only the thread that has created a heap may allocate from it, so this is for workloads of
 * one thread. A heap is destroyed with its blocks, without a visit to each.
 */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include <mimalloc.h>
#include <stdbool.h>
#include <stdio.h>

#define ALLOC_ONE_THREAD 1 /* no other thread than a heap's creator may use it */

typedef mi_heap_t alloc_heap_t;

static inline const char *alloc_name(void) { return "mimalloc-heaps"; }
static inline const char *alloc_symbol(void) { return "mi_heap_malloc"; }
static inline const char *alloc_library(void) { return "libmimalloc"; }
static inline bool alloc_has_heaps(void) { return true; }
static inline const char *alloc_mode(void) { return "-"; }

/* mi_version() is major * 100 + minor * 10 + patch. */
static inline void alloc_version(char *text, size_t size)
{
    int version = mi_version();
    snprintf(text, size, "%d.%d.%d", version / 100, version / 10 % 10, version % 10);
}

static inline alloc_heap_t *alloc_heap_create(const char *level, unsigned index)
{
    (void)level;
    (void)index;
    return mi_heap_new();
}

static inline void alloc_heap_destroy(alloc_heap_t *heap) { mi_heap_destroy(heap); }
static inline void alloc_thread_end(void) {}
static inline void *alloc_malloc(alloc_heap_t *heap, size_t size) { return mi_heap_malloc(heap, size); }
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
