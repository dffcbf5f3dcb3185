/* jemalloc as the program's malloc: automatic arenas and thread caches. */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "adapter_global.h"
#include "adapter_jemalloc_control.h"

static inline const char *alloc_name(void) { return "jemalloc"; }
static inline const char *alloc_symbol(void) { return "malloc"; }
static inline const char *alloc_library(void) { return "libjemalloc"; }

static inline void *alloc_malloc(alloc_heap_t *heap, size_t size)
{
    (void)heap;
    return malloc(size);
}

static inline void alloc_free(alloc_heap_t *heap, void *block)
{
    (void)heap;
    free(block);
}

static inline void *alloc_realloc(alloc_heap_t *heap, void *block, size_t size)
{
    (void)heap;
    return realloc(block, size);
}

/* Only the calling thread's cache can be flushed. */
static inline void alloc_flush(alloc_heap_t *heap)
{
    (void)heap;
    mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
}

static inline void alloc_trim(alloc_heap_t *heap)
{
    (void)heap;
    jemalloc_arena_command(MALLCTL_ARENAS_ALL, "purge");
}

#endif
