/* hakheap level 13: refill - the ladder of an allocation that found its magazine empty */
#ifndef HAK_REFILL_H
#define HAK_REFILL_H

#include "heap.h"

/*
 * Role: where blocks come from. Each rung asks one layer; a layer that has nothing returns none.
 *
 *   refill   pocket, region, while the class has few blocks;   hot > spare > cold > remote > slab > fresh slab > fresh SuperSlab
 *
 * Callers: api and resize, inside the gate but where a call says so. Locks: CLASS and HEAP, taken
 * inside. NULL and hak_last_error() where memory is refused.
 */
void *refill_block(hak_heap_t *heap, unsigned cls, size_t alignment);
void *refill_mid(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty);
void *refill_large(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty);

/* The rungs that need no lock and no gate. A region, for a class that regions serve: NULL where they
 * do not, or have no room. `alignment`: a power of two; of slabs' blocks each is a multiple of what
 * the class is. */
void *refill_from_region(hak_heap_t *heap, unsigned cls, size_t alignment);
/* The spare magazine. NULL: it is empty, or this is the
 * twin. */
void *refill_from_spare(hak_heap_t *heap, unsigned cls);

#endif
