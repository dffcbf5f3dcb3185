/* hakheap: a heap is a heap. Nothing is bound to a thread, so there is nothing to do when one
 * ends. */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "harness.h"

#include "hakheap.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef hak_heap_t alloc_heap_t;

#ifdef HAK_BENCH_LIMITED
static inline const char *alloc_name(void) { return "hakheap_limited"; }

static inline void alloc_limit(hak_heap_config_t *config)
{
    static hak_heap_t *root;
    hak_heap_config_t all = HAK_HEAP_CONFIG_INIT;
    all.name = "root";
    all.live_limit = (size_t)4 << 30;
    if (!root && !(root = hak_heap_create(&all))) harness_exit(HARNESS_FAILED, "no heap: %m");
    config->parent = root;
    config->live_limit = (size_t)2 << 30;
}
#else
static inline const char *alloc_name(void) { return "hakheap"; }
static inline void alloc_limit(hak_heap_config_t *config) { (void)config; }
#endif
static inline const char *alloc_symbol(void) { return "hak_heap_malloc"; }
static inline const char *alloc_library(void) { return "libhakheap"; }
static inline bool alloc_has_heaps(void) { return true; }
static inline const char *alloc_mode(void) { return hak_percpu_mode(); }

static inline void alloc_version(char *text, size_t size)
{
    int version = hak_version();
    snprintf(text, size, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

static inline alloc_heap_t *alloc_heap_create(const char *level, unsigned index)
{
    (void)index;
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "bench"; /* to print a name takes longer than to create a heap */
    config.level = strcmp(level, "checked") == 0 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    alloc_limit(&config);
    return hak_heap_create(&config);
}

static inline void alloc_heap_destroy(alloc_heap_t *heap) { hak_heap_destroy(heap); }
static inline void alloc_thread_end(void) {}
static inline void *alloc_malloc(alloc_heap_t *heap, size_t size)
{
    return hak_heap_malloc(heap, size);
}
static inline void *alloc_realloc(alloc_heap_t *heap, void *block, size_t size)
{
    return hak_heap_realloc(heap, block, size);
}
static inline void alloc_free(alloc_heap_t *heap, void *block) { hak_heap_free(heap, block); }
static inline void alloc_flush(alloc_heap_t *heap) { hak_heap_flush(heap); }
static inline void alloc_trim(alloc_heap_t *heap) { hak_heap_trim(heap, 0); }

#define ALLOC_MEASURES 1
static inline void alloc_measure(alloc_heap_t *heap, size_t *records, size_t *cached)
{
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    if (hak_heap_stats(heap, &stats) != 0) harness_exit(HARNESS_FAILED, "no figures of the heap");
    *records = stats.metadata_bytes;
    *cached = stats.hot_bytes + stats.spare_bytes + stats.cold_bytes;
}

#endif
