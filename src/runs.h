/* hakheap level 9: runs - the granules of a heap: from the nursery or SuperSlabs of its own */
#ifndef HAK_RUNS_H
#define HAK_RUNS_H

#include "heap.h"

/*
 * Role: runs of neighbouring granules for slabs, mid blocks and regions; SuperSlabs come from the
 * reserve and go back to it. Callers: the ladders, life. The registry's entries of a heap are written here
 * and nowhere else. Lock: HEAP, around every call.
 *
 * A heap takes its first runs, of up to NURSERY_GRANULES each and NURSERY_MOST together, and the
 * granules of its first regions from the process's nursery. Once it owns a SuperSlab it takes no more there: a heap
 * either is small or owns its memory, and a trim of it does not search the nursery.
 *
 * Invariant: runs == slabs + mid blocks + regions but the cradle; each granule in use carries the
 * heap's owner bits.
 */
enum { NURSERY_GRANULES = 16 /* longest run from the nursery */ };

/* What the entries of a heap's granules say of its level, or-ed to a class code. */
HAK_INLINE unsigned runs_code(const hak_heap_t *heap, unsigned code)
{
    return code | (heap->policy.sealed ? (unsigned)CODE_CHECKED : 0);
}

/* `ss` NULL and hak_last_error(): refused. */
run_t runs_take(hak_heap_t *heap, unsigned granules, unsigned alignment, unsigned code);
/* Gives a run back. False: may not wait, and the process's lock is busy; nothing has changed. */
bool runs_put(hak_heap_t *heap, run_t run, unsigned granules, pages_t pages, bool may_wait);
/* Makes a run of one block longer or shorter where it is. False: it is the nursery's, or what
 * follows is not free. */
bool runs_resize(hak_heap_t *heap, run_t run, unsigned granules, unsigned wanted);
/* Gives an empty SuperSlab back to the reserve; false as runs_put. */
bool runs_put_superslab(hak_heap_t *heap, superslab_t *ss, bool may_wait);
/* Gives all runs and SuperSlabs back at once; what blocks lie in them is gone. The cradle stays, as
 * it is. */
void runs_empty(hak_heap_t *heap);

/* One more region with a granule; false: the heap has REGION_MOST, or, and hak_last_error(), memory
 * is refused. */
bool runs_take_region(hak_heap_t *heap);
/* Gives back a region's granule, where no block is in it; false: it stays. */
bool runs_put_region(hak_heap_t *heap, region_t *region);

#endif
