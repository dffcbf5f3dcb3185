/* tcmalloc of gperftools (libtcmalloc_minimal) as the program's malloc. */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "adapter_global.h"

#include <gperftools/malloc_extension_c.h>
#include <gperftools/tcmalloc.h>
#include <stdio.h>
#include <stdlib.h>

static inline const char *alloc_name(void) { return "tcmalloc"; }
static inline const char *alloc_symbol(void) { return "malloc"; }
static inline const char *alloc_library(void) { return "libtcmalloc_minimal"; }

static inline void alloc_version(char *text, size_t size)
{
    int major, minor;
    const char *patch;
    tc_version(&major, &minor, &patch);
    snprintf(text, size, "%d.%d%s", major, minor, patch);
}

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

/* Going idle gives the calling thread's cache back; other threads' caches are out of reach. */
static inline void alloc_flush(alloc_heap_t *heap)
{
    (void)heap;
    MallocExtension_MarkThreadIdle();
    MallocExtension_MarkThreadBusy();
}

static inline void alloc_trim(alloc_heap_t *heap)
{
    (void)heap;
    MallocExtension_ReleaseFreeMemory();
}

#endif
