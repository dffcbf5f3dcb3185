/* hakheap level 15: request - a request that no magazine serves: charged, tried, refused */
#ifndef HAK_REQUEST_H
#define HAK_REQUEST_H

#include "pointer.h"

/*
 * Role: what becomes of a malloc that found its magazine empty, and of a realloc in a heap that
 * counts: which ladders it climbs, in which order, and what the program is told. Callers: api,
 * outside of the gate and with nothing locked. Memory: the ladders'. Any thread.
 *
 *   a heap that does not count     ladder --> what the process keeps goes --> ladder --> NULL
 *
 *   a heap that counts             ladder, of what is cached or borrowed
 *                                    | there is too little of that, or no memory
 *                                    v
 *                        +-------> charge: the chain lends, or is recalled (recall.h)
 *                        |           |
 *                        |           v
 *   on_pressure, once <--+-------- ladder --> room for the footprint is recalled --> ladder --> NULL
 *
 * A request that has passed a soft limit tells of it once it is served. Callbacks run outside of
 * the gate.
 *
 * Invariant: a request that is not served leaves nothing charged, and the old block of a realloc as
 * it was.
 */

/* Everything but the pop; the arguments are not looked at yet. NULL: hak_last_error() and errno say
 * why. *dirty as in refill.h. */
void *request_malloc(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty);
/* A realloc of a live block of a heap that counts. */
void *request_realloc(const block_id_t *id, void *ptr, size_t size);

/* What has failed before it began. Returns NULL. */
void *request_fail(hak_error_t why, int error);
/* A size that no address space has room for; tested before any rounding, by every entry point. */
HAK_INLINE bool request_is_too_large(size_t size)
{
    return size > ((size_t)1 << ADDRESS_BITS) - 2 * SUPERSLAB;
}

#endif
