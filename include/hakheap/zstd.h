/**
 * @file zstd.h
 * @brief A heap for a zstd context: hak_zstd_mem() for ZSTD_createCCtx_advanced() and its kind.
 *
 * **Which heap.** The one that is named, for the context and all that it allocates later.
 * **Ownership.** The heap stays the caller's. It goes after ZSTD_freeCCtx() or its kind; in their
 * place only where the context has no worker threads (ZSTD_c_nbWorkers), which have to be ended.
 * **Threads.** Worker threads of a context allocate from its heap, too, which every thread may.
 * **Refusal.** A context is NULL; a call gives ZSTD_error_memory_allocation, and the context can be
 * used again once there is room.
 * **Traps.** zstd counts this interface as not stable: include this header before, or in place of,
 * <zstd.h>, or define ZSTD_STATIC_LINKING_ONLY yourself. ZSTD_compress() and ZSTD_decompress() make
 * a context by malloc.
 */
#ifndef HAKHEAP_ZSTD_H
#define HAKHEAP_ZSTD_H

#ifndef ZSTD_STATIC_LINKING_ONLY
/** Has zstd.h declare ZSTD_customMem. */
#define ZSTD_STATIC_LINKING_ONLY
#endif
#include <hakheap.h>
#include <zstd.h>

#ifdef __cplusplus
extern "C" {
#endif

/** ZSTD_allocFunction of a heap. @param heap the heap. @param size bytes.
 *  @return as hak_heap_malloc(). */
static inline void *hak_zstd_alloc(void *heap, size_t size)
{
    return hak_heap_malloc((hak_heap_t *)heap, size);
}

/** ZSTD_freeFunction of a heap. @param heap the heap. @param ptr a block, or NULL. */
static inline void hak_zstd_free(void *heap, void *ptr) { hak_heap_free((hak_heap_t *)heap, ptr); }

/**
 * @param heap the heap; outlives what is made with the struct.
 * @return the last argument of ZSTD_createCCtx_advanced(), ZSTD_createDCtx_advanced(),
 *         ZSTD_createCDict_advanced() and their kind.
 */
static inline ZSTD_customMem hak_zstd_mem(hak_heap_t *heap)
{
    ZSTD_customMem mem;
    mem.customAlloc = hak_zstd_alloc;
    mem.customFree = hak_zstd_free;
    mem.opaque = heap;
    return mem;
}

#ifdef __cplusplus
}
#endif

#endif
