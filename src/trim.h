/* hakheap level 13: trim - giving back: caches to slabs to SuperSlabs to the kernel */
#ifndef HAK_TRIM_H
#define HAK_TRIM_H

#include "heap.h"

/*
 * Role: flush and trim. Each rung takes what the one before it has freed.
 *
 *   trim     areas > fence > cold, remote > slabs > SuperSlabs > kernel
 *
 * Callers: api, inside the gate. Locks: TRIM, AREAS, CLASS and HEAP, taken inside; none is held for
 * longer than a chain, or one SuperSlab, takes; but TRIM, which is let go so often where a recall or a
 * fork waits.
 */

/* Returns cached blocks of classes [first, end) to their slabs. False: fence refused, and only the
 * running CPU's moved. */
bool trim_flush(hak_heap_t *heap, unsigned first, unsigned end, size_t *bytes);
bool trim_heap(hak_heap_t *heap, size_t keep, size_t *bytes);
/* The heap gives no blocks from here on. False: the kernel refused the fence, and it is open. */
bool trim_close(hak_heap_t *heap);
/* For a recall: returns all that these heaps, at most LEDGER_AT_ONCE, have cached, waiting and
 * deferred, with one fence for all of them, and leaves their magazines without limits. False: the
 * kernel refused the fence, and what other CPUs have cached stays. */
bool trim_recall(hak_heap_t *const heaps[], size_t count);
/* Then, of one of them: what makes its footprint smaller goes, empty slabs and regions, free pages,
 * empty SuperSlabs. False: a fork waits, and with `may_stop` not all has gone. */
bool trim_release(hak_heap_t *heap, bool may_stop);
/* For an allocation that the system has refused: gives it the heap's cached mappings, then what the
 * process's reserve keeps. False: there was nothing, and to ask again is in vain. No lock is
 * held. */
bool trim_make_room(void);

#endif
