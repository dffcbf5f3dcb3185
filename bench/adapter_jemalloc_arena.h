/*
 * jemalloc with one arena per heap. The automatic thread cache ignores the arena a call names, so
 * each (thread, arena) pair has an explicit cache, which only its own thread may use: it is created
 * at the thread's first call on the arena and destroyed when the thread ends or the arena goes.
 * jemalloc has 4093 of them in a process; beyond that a pair goes without a cache, which is correct
 * and slow.
 */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "adapter_jemalloc_control.h"

#include <stdbool.h>

/* What a thread's table has room for: jemalloc allows four times as many, and each thread pays for
 * the table. */
enum { JEMALLOC_HEAPS = 1024 };

typedef struct alloc_heap {
    unsigned index; /* place in the threads' tables */
    unsigned arena;
} alloc_heap_t;

/* One thread's use of one heap. `flags` go to mallocx, rallocx and dallocx; 0 until the first
 * call. */
typedef struct jemalloc_binding {
    int flags;
    unsigned cache;
} jemalloc_binding_t;

static alloc_heap_t jemalloc_heaps[JEMALLOC_HEAPS];
static __thread jemalloc_binding_t jemalloc_bindings[JEMALLOC_HEAPS];

static inline const char *alloc_name(void) { return "jemalloc-arenas"; }
static inline const char *alloc_symbol(void) { return "mallocx"; }
static inline const char *alloc_library(void) { return "libjemalloc"; }
static inline bool alloc_has_heaps(void) { return true; }
static inline const char *alloc_mode(void) { return "-"; }

static inline alloc_heap_t *alloc_heap_create(const char *level, unsigned index)
{
    (void)level;
    if (index >= JEMALLOC_HEAPS) return NULL;
    alloc_heap_t *heap = &jemalloc_heaps[index];
    size_t length = sizeof heap->arena;
    heap->index = index;
    return mallctl("arenas.create", &heap->arena, &length, NULL, 0) == 0 ? heap : NULL;
}

/* A cache of its own for the calling thread and this heap, or none where jemalloc has no more. */
__attribute__((noinline)) static int jemalloc_bind(alloc_heap_t *heap)
{
    jemalloc_binding_t *binding = &jemalloc_bindings[heap->index];
    size_t length = sizeof binding->cache;
    bool cached = mallctl("tcache.create", &binding->cache, &length, NULL, 0) == 0;
    binding->flags = MALLOCX_ARENA(heap->arena) |
                     (cached ? MALLOCX_TCACHE(binding->cache) : MALLOCX_TCACHE_NONE);
    return binding->flags;
}

static inline int jemalloc_flags_of(alloc_heap_t *heap)
{
    int flags = jemalloc_bindings[heap->index].flags;
    return __builtin_expect(flags != 0, 1) ? flags : jemalloc_bind(heap);
}

static inline void jemalloc_unbind(alloc_heap_t *heap)
{
    jemalloc_binding_t *binding = &jemalloc_bindings[heap->index];
    bool cached =
        binding->flags != 0 && binding->flags != (MALLOCX_ARENA(heap->arena) | MALLOCX_TCACHE_NONE);
    binding->flags = 0;
    if (cached &&
        mallctl("tcache.destroy", NULL, NULL, &binding->cache, sizeof binding->cache) != 0)
        harness_exit(HARNESS_FAILED, "jemalloc refuses tcache.destroy of %u", binding->cache);
}

static inline void alloc_thread_end(void)
{
    for (unsigned i = 0; i < JEMALLOC_HEAPS; i++)
        if (jemalloc_bindings[i].flags) jemalloc_unbind(&jemalloc_heaps[i]);
}

static inline void alloc_heap_destroy(alloc_heap_t *heap)
{
    jemalloc_unbind(heap);
    jemalloc_arena_command(heap->arena, "destroy");
}

static inline void *alloc_malloc(alloc_heap_t *heap, size_t size)
{
    return mallocx(size, jemalloc_flags_of(heap));
}
static inline void *alloc_realloc(alloc_heap_t *heap, void *block, size_t size)
{
    return rallocx(block, size, jemalloc_flags_of(heap));
}
static inline void alloc_free(alloc_heap_t *heap, void *block)
{
    dallocx(block, jemalloc_flags_of(heap));
}

/* Destroying the calling thread's cache flushes it; other threads' caches are out of reach. */
static inline void alloc_flush(alloc_heap_t *heap) { jemalloc_unbind(heap); }
static inline void alloc_trim(alloc_heap_t *heap) { jemalloc_arena_command(heap->arena, "purge"); }

#endif
