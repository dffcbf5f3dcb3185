/*
 * The part of an adapter that all allocators without instance heaps share: heaps do not exist,
 * whatever placement is asked for. Names, versions, malloc, free, flush and trim stay with each
 * allocator's own header. The contract is in larson.c.
 */
#ifndef HAK_BENCH_ADAPTER_GLOBAL_H
#define HAK_BENCH_ADAPTER_GLOBAL_H

#include <stdbool.h>
#include <stddef.h>

typedef struct alloc_heap alloc_heap_t;

static inline bool alloc_has_heaps(void) { return false; }
static inline const char *alloc_mode(void) { return "-"; }
static inline alloc_heap_t *alloc_heap_create(const char *level, unsigned index)
{
    (void)level;
    (void)index;
    return NULL;
}
static inline void alloc_heap_destroy(alloc_heap_t *heap) { (void)heap; }
static inline void alloc_thread_end(void) {}

#endif
