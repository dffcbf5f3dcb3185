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

/* The block, which may lie elsewhere by then; NULL: nothing has changed, and the caller copies. */
void *resize_block(const block_id_t *id, void *ptr, size_t size);

#endif
