/**
 * @file nghttp2.h
 * @brief A heap for each HTTP/2 session: hak_nghttp2_mem() for nghttp2_session_client_new3() and
 * its kind.
 *
 * **Which heap.** The one that is named. nghttp2 copies the struct, so it may be a local variable.
 * **Ownership.** The heap stays the caller's. It goes after nghttp2_session_del(), or in its place:
 * a session owns nothing but memory of its heap, so hak_heap_destroy() alone ends it, too.
 * **Threads.** Any thread may work on a session, one at a time, as nghttp2 asks; the heap takes
 * all.
 * **Refusal.** A refused request is NGHTTP2_ERR_NOMEM, or NGHTTP2_ERR_CALLBACK_FAILURE where a
 * callback of the program met it. Such a session is only good for being deleted.
 * **Traps.** nghttp2_session_callbacks_new() and nghttp2_option_new() take no such struct: what
 * they make comes from malloc. A header field that the program keeps by nghttp2_rcbuf_incref() lies
 * in the session's heap and goes with it.
 */
#ifndef HAKHEAP_NGHTTP2_H
#define HAKHEAP_NGHTTP2_H

#include <hakheap.h>
#include <nghttp2/nghttp2.h>

#ifdef __cplusplus
extern "C" {
#endif

/** nghttp2_malloc of a heap. @param size bytes. @param heap the heap. @return as hak_heap_malloc().
 */
static inline void *hak_nghttp2_malloc(size_t size, void *heap)
{
    return hak_heap_malloc((hak_heap_t *)heap, size);
}

/** nghttp2_free of a heap. @param ptr a block, or NULL. @param heap the heap. */
static inline void hak_nghttp2_free(void *ptr, void *heap)
{
    hak_heap_free((hak_heap_t *)heap, ptr);
}

/** nghttp2_calloc of a heap. @param count elements. @param size bytes of each.
 *  @param heap the heap. @return as hak_heap_calloc(). */
static inline void *hak_nghttp2_calloc(size_t count, size_t size, void *heap)
{
    return hak_heap_calloc((hak_heap_t *)heap, count, size);
}

/** nghttp2_realloc of a heap. @param ptr a block, or NULL. @param size bytes. @param heap the heap.
 *  @return as hak_heap_realloc(). */
static inline void *hak_nghttp2_realloc(void *ptr, size_t size, void *heap)
{
    return hak_heap_realloc((hak_heap_t *)heap, ptr, size);
}

/**
 * @param heap the heap; outlives what is made with the struct.
 * @return the last argument of nghttp2_session_client_new3(), nghttp2_session_server_new3(),
 *         nghttp2_hd_deflate_new2() and nghttp2_hd_inflate_new2().
 */
static inline nghttp2_mem hak_nghttp2_mem(hak_heap_t *heap)
{
    nghttp2_mem mem;
    mem.mem_user_data = heap;
    mem.malloc = hak_nghttp2_malloc;
    mem.free = hak_nghttp2_free;
    mem.calloc = hak_nghttp2_calloc;
    mem.realloc = hak_nghttp2_realloc;
    return mem;
}

#ifdef __cplusplus
}
#endif

#endif
