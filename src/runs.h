/* hakheap level 8: runs - the granules of a heap: from the nursery or SuperSlabs of its own */
#ifndef HAK_RUNS_H
#define HAK_RUNS_H

#include "heap.h"

/*
 * Role: runs of neighbouring granules for slabs and mid blocks; SuperSlabs come from the reserve
 * and go back to it. Callers: the ladders, life. The registry's entries of a heap are written here
 * and nowhere else. Lock: HEAP, around every call.
 *
 * A heap takes its first NURSERY_RUNS runs, of up to NURSERY_GRANULES each, from the process's
 * nursery. Once it owns a SuperSlab it takes no more there: a heap either is small or owns its
 * memory, and a trim of it does not search the nursery.
 *
 * Invariant: runs == slabs + mid blocks; each granule in use carries the heap's owner bits.
 */
enum {
    NURSERY_GRANULES = 16, /* longest run from the nursery */
    /* runs with which a heap uses all size classes in place of the coarse ones */
    COARSE_RUNS = 16,
};

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
/* Gives all runs and SuperSlabs back at once; what blocks lie in them is gone. */
void runs_empty(hak_heap_t *heap);
/* Chooses the table of size classes: CLASSES_COARSE or CLASSES_FINE. */
HAK_INLINE void runs_set_lookup(hak_heap_t *heap, size_t table)
{
    /* Relaxed: either table serves a request at any time. */
    store_relaxed(&heap->lookup, table + (heap->policy.sealed ? CLASSES_MARKED : 0));
}

#endif
