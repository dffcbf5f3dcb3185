/*
 * Pools of the Apache Portable Runtime: a heap is a pool below the root, all with the root's own
 * allocator. A block goes with its pool and not before, so alloc_free does nothing, and this is for
 * workloads of heaps that come and go (see workload.h).
 */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "harness.h"

#include <apr_general.h>
#include <apr_pools.h>
#include <apr_version.h>
#include <stdbool.h>

typedef apr_pool_t alloc_heap_t;

#define ALLOC_KEEPS_BLOCKS 1

static inline const char *alloc_name(void) { return "apr-pools"; }
static inline const char *alloc_symbol(void) { return "apr_palloc"; }
static inline const char *alloc_library(void) { return "libapr-1"; }
static inline bool alloc_has_heaps(void) { return true; }
static inline const char *alloc_mode(void) { return "-"; }

static inline void alloc_version(char *text, size_t size)
{
    snprintf(text, size, "%s", apr_version_string());
}

static inline alloc_heap_t *alloc_heap_create(const char *level, unsigned index)
{
    static bool begun;
    alloc_heap_t *pool;
    (void)level;
    (void)index;
    if (!begun && apr_initialize() != APR_SUCCESS)
        harness_exit(HARNESS_FAILED, "the APR does not start");
    begun = true;
    return apr_pool_create(&pool, NULL) == APR_SUCCESS ? pool : NULL;
}

static inline void alloc_heap_destroy(alloc_heap_t *heap) { apr_pool_destroy(heap); }
static inline void alloc_thread_end(void) {}
static inline void *alloc_malloc(alloc_heap_t *heap, size_t size) { return apr_palloc(heap, size); }

static inline void alloc_free(alloc_heap_t *heap, void *block)
{
    (void)heap;
    (void)block;
}

#endif
