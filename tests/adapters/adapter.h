/* What the tests of adapters share: heaps with a limit, and what a heap and malloc have in use. */
#ifndef HAK_ADAPTER_H
#define HAK_ADAPTER_H

#include <criterion/criterion.h>
#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "support_contract.h"
#ifdef __cplusplus
}
#endif

/* A heap that counts, and holds at most `limit` bytes. */
__attribute__((unused)) static hak_heap_t *adapter_heap(int level, size_t limit)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "adapter";
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.live_limit = limit;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    return heap;
}

__attribute__((unused)) static void adapter_set_limit(hak_heap_t *heap, size_t limit)
{
    hak_limits_t limits = {sizeof limits, limit, 0, 0};
    cr_assert(hak_heap_set_limits(heap, &limits) == 0);
}

__attribute__((unused)) static size_t adapter_live(const hak_heap_t *heap)
{
    return contract_stats(heap).live_bytes;
}

__attribute__((unused)) static size_t adapter_refusals(const hak_heap_t *heap)
{
    hak_usage_t usage;
    usage.struct_size = sizeof usage;
    cr_assert(hak_heap_usage(heap, &usage) == 0);
    return usage.refusals;
}

/* No block lives, and the heap is sound. */
__attribute__((unused)) static void adapter_require_empty(const hak_heap_t *heap)
{
    cr_assert(adapter_live(heap) == 0, "%zu bytes live", adapter_live(heap));
    int line = contract_unsound(heap, 0);
    cr_assert(line == 0, "support_contract.c:%d", line);
}

__attribute__((unused)) static void adapter_end(hak_heap_t *heap)
{
    adapter_require_empty(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/*
 * Notes the first line whose condition does not hold, for adapter_require_noted(). For stretches
 * between two looks at adapter_malloc_bytes(): an assertion of Criterion allocates by malloc.
 */
__attribute__((unused)) static int adapter_noted;
#define ADAPTER_NOTE(condition) \
    (void)(adapter_noted || (condition) ? adapter_noted : (adapter_noted = __LINE__))

__attribute__((unused)) static void adapter_require_noted(void)
{
    cr_assert(adapter_noted == 0, "line %d does not hold", adapter_noted);
}

/* Bytes that malloc has given out in this process; a sanitizer's malloc says 0 at all times. */
__attribute__((unused)) static size_t adapter_malloc_bytes(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

/* Something that can be compressed, but not to nothing: words of a small vocabulary. */
__attribute__((unused)) static void adapter_text(unsigned char *at, size_t bytes, unsigned seed)
{
    static const char *const words[] = {"heap", "slab", "magazine", "region", "query", "tenant"};
    size_t used = 0;
    while (used < bytes) {
        seed = seed * 1664525u + 1013904223u;
        const char *word = words[(seed >> 16) % 6];
        for (; *word && used < bytes; word++) at[used++] = (unsigned char)*word;
        if (used < bytes) at[used++] = (unsigned char)('0' + (seed >> 24) % 10);
    }
}

#endif
