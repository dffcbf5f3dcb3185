/* hakheap level 13: refill - the ladder of an allocation that found its magazine empty */
#ifndef HAK_REFILL_H
#define HAK_REFILL_H

#include "heap.h"

/*
 * Role: where blocks come from. Each rung asks one layer; a layer that has nothing returns none.
 *
 *   refill   tail of a region, pocket, hole of a region, while the class has few blocks;
 *            hot > spare > cold > remote > slab > fresh slab > fresh SuperSlab
 *
 * Callers: api and resize, inside the gate but where a call says so. Locks: CLASS and HEAP, taken
 * inside. NULL and hak_last_error() where memory is refused.
 *
 * In a heap that counts a block is `charged` before, or what no cache has is charged to what the
 * heap has borrowed. Then NULL may mean that this does not suffice.
 */
void *refill_block(hak_heap_t *heap, unsigned cls, size_t alignment, bool charged);
void *refill_mid(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty, bool charged);
void *refill_large(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty, bool charged);

/* The rungs that need no lock and no gate. */

/* A region, for a class that regions serve: NULL where they do not, or have no room. `alignment`: a
 * power of two; of slabs' blocks each is a multiple of what the class is. */
void *refill_from_region(hak_heap_t *heap, unsigned cls, size_t alignment);
/* The same for a class that regions are known to serve, without a look into its pocket. */
void *refill_hole(hak_heap_t *heap, unsigned cls, size_t alignment);
/* The block that a pocket's word names first. */
void *refill_pocketed(hak_heap_t *heap, unsigned cls, uint64_t word);
/* Where no hole is as long, behind all other blocks; for a class that regions serve. NULL: neither
 * has room. */
HAK_INLINE void *refill_open(hak_heap_t *heap, unsigned cls)
{
    unsigned units = size_classes[cls].bytes / REGION_UNIT;
    if (!heap_has_no_hole(heap, units)) return refill_hole(heap, cls, BLOCK_ALIGN);
    region_t *region = heap_tail_region(heap);
    void *ptr = region_append_word(region, units, &heap->guard);
    if (!ptr && !(ptr = region_append(region, units, &heap->guard))) return NULL;
    heap_note_taken(heap, cls);
    counter_add(&heap->counters, refill_region, 1);
    return ptr;
}
/* Charges a block of a region to what a heap that counts has borrowed; false: it is too little. */
bool refill_charge(const hak_heap_t *heap, unsigned cls);
/* What most heaps do whose classes are in regions, up to LOOKUP_MAX: from the pocket, else
 * refill_open. NULL: the other rungs are asked. Of a heap that is gone nothing is read but that it
 * has no regions. */
HAK_INLINE void *refill_plain(hak_heap_t *heap, unsigned cls)
{
    if (HAK_UNLIKELY(!load_relaxed(&heap->regions) || heap_is_closed(heap))) return NULL;
    uint64_t word = pocket_take(&heap->pocket[cls]);
    if (word) return refill_pocketed(heap, cls, word);
    if (!heap_in_regions(heap, cls)) return NULL;
    if (HAK_UNLIKELY(heap->ledger != NULL) && !refill_charge(heap, cls)) return NULL;
    void *ptr = refill_open(heap, cls);
    if (HAK_UNLIKELY(!ptr)) heap_refund(heap, size_classes[cls].bytes);
    return ptr;
}
/* The spare magazine. NULL: it is empty, or this is the twin. */
void *refill_from_spare(hak_heap_t *heap, unsigned cls);

#endif
