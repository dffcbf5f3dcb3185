/**
 * @file zlib.h
 * @brief A heap for a zlib stream: hak_zlib_use() before deflateInit() or inflateInit().
 *
 * **Which heap.** The one that is named, for all that the stream allocates; `opaque` is the heap.
 * **Ownership.** The heap stays the caller's. It goes after deflateEnd() or inflateEnd(), or in
 * their place: a stream owns nothing else.
 * **Threads.** Streams of one heap may work on several threads at once.
 * **Refusal.** A refused request is Z_MEM_ERROR. Where it is deflateInit(), inflateInit() or a copy
 * that fails, nothing of the stream is left. inflate() allocates, too: where it fails so, the stream
 * is only good for inflateEnd() or inflateReset().
 * **Traps.** zlib reads the fields when it initialises the stream: later is too late, and a free
 * goes to the heap then named. deflateCopy() and inflateCopy() put the copy into the heap of its
 * source. gzopen() and its kind, compress() and uncompress() take no hook and use malloc.
 */
#ifndef HAKHEAP_ZLIB_H
#define HAKHEAP_ZLIB_H

#include <hakheap.h>
#include <zlib.h>

#ifdef __cplusplus
extern "C" {
#endif

/** alloc_func of a heap. @param heap the heap. @param items elements. @param size bytes of each.
 *  @return the block, with undefined content as zlib expects; Z_NULL. */
static inline voidpf hak_zlib_alloc(voidpf heap, uInt items, uInt size)
{
    /* Two factors of 32 bits: their product fits. */
    return (voidpf)hak_heap_malloc((hak_heap_t *)heap, (size_t)items * size);
}

/** free_func of a heap. @param heap the heap. @param ptr a block. */
static inline void hak_zlib_free(voidpf heap, voidpf ptr)
{
    hak_heap_free((hak_heap_t *)heap, ptr);
}

/**
 * Names the heap of a stream that is not initialised yet.
 * @param stream the stream; only `zalloc`, `zfree` and `opaque` are written.
 * @param heap the heap; outlives the stream.
 */
static inline void hak_zlib_use(z_streamp stream, hak_heap_t *heap)
{
    stream->zalloc = hak_zlib_alloc;
    stream->zfree = hak_zlib_free;
    stream->opaque = heap;
}

#ifdef __cplusplus
}
#endif

#endif
