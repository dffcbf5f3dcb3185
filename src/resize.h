/* hakheap level 14: resize - the ladder of a block that grows or shrinks */
#ifndef HAK_RESIZE_H
#define HAK_RESIZE_H

#include "pointer.h"

/*
 * Role: gives a block another size without a copy. Each rung is cheaper than the next.
 *
 *   resize   the block holds it > granules behind the run > mremap in place > mremap elsewhere;   else the caller copies
 *
 * Callers: api, outside the gate. Lock: HEAP, taken inside.
 */

/* Whether the block has so much, and so little more, that a copy would save nothing to speak of. */
HAK_INLINE bool resize_holds(const block_id_t *id, size_t size)
{
    return size <= id->usable && size >= id->usable / 2;
}
/* Of a mid or large block. */
void *resize_big(const block_id_t *id, void *ptr, size_t size);
/* The block, which may lie elsewhere by then; NULL: nothing has changed, and the caller copies. */
HAK_INLINE void *resize_block(const block_id_t *id, void *ptr, size_t size)
{
    if (id->kind != KIND_SMALL) return resize_big(id, ptr, size);
    return resize_holds(id, size) ? ptr : NULL;
}

#endif
