/* hakheap level 14: resize - the ladder of a block that grows or shrinks */
#ifndef HAK_RESIZE_H
#define HAK_RESIZE_H

#include "pointer.h"

/*
 * Role: gives a block another size without a copy. Each rung is cheaper than the next.
 *
 *   resize   the block holds it > units or granules behind it > mremap in place > mremap elsewhere;   else the caller copies
 *
 * Callers: api, outside the gate. Lock: HEAP, taken inside; none for a block of a region.
 */

/* Of a heap that counts: whether the block is charged what a fresh one of that size, and alignment,
 * would be. */
bool resize_is_charged(const block_id_t *id, size_t size);

/* Whether the block has so much, and so little more, that a copy would save nothing to speak of. */
HAK_INLINE bool resize_holds(const block_id_t *id, size_t size)
{
    return size <= id->usable && size >= id->usable / 2 &&
           (HAK_LIKELY(!id->heap->ledger) || resize_is_charged(id, size));
}
/* Of a block that is in no slab. */
void *resize_other(const block_id_t *id, void *ptr, size_t size);
/* The block, which may lie elsewhere by then; NULL: nothing has changed, and the caller copies. */
HAK_INLINE void *resize_block(const block_id_t *id, void *ptr, size_t size)
{
    if (HAK_UNLIKELY(id->kind != KIND_SMALL)) return resize_other(id, ptr, size);
    return resize_holds(id, size) ? ptr : NULL;
}

#endif
