/* The C library's malloc: the baseline that every ratio in the table refers to. Its per-thread
 * caches have no flush. */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "adapter_global.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline const char *alloc_name(void) { return "system"; }
static inline const char *alloc_symbol(void) { return "malloc"; }
static inline const char *alloc_library(void) { return "libc."; }

static inline void alloc_version(char *text, size_t size)
{
    char name[64] = "";
    confstr(_CS_GNU_LIBC_VERSION, name, sizeof name);
    const char *space = strchr(name, ' ');
    snprintf(text, size, "%s", space ? space + 1 : "unknown");
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

static inline void alloc_flush(alloc_heap_t *heap) { (void)heap; }

/* Looked up by name: only glibc has it. */
static inline void alloc_trim(alloc_heap_t *heap)
{
    (void)heap;
    int (*trim)(size_t) = (int (*)(size_t))dlsym(RTLD_DEFAULT, "malloc_trim");
    if (trim) trim(0);
}

#endif
