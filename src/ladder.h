/* hakheap level 8: ladder - the three ladders: refill, drain, trim */
#ifndef HAK_LADDER_H
#define HAK_LADDER_H

#include "heap.h"

/*
 * Role: the data flow. Each rung asks one layer; a layer that has nothing returns none, and one
 * that overflows returns the overflow. Callers: api, inside the gate (gate.h).
 *
 *   refill   hot > spare > cold > remote > slab > fresh slab > fresh SuperSlab
 *   drain    hot > spare > cold > slab > SuperSlab > reserve;  a busy lock: remote list
 *   trim     areas > fence > cold, remote > slabs > SuperSlabs > kernel
 */

/* ---- refill: NULL and hak_last_error() where memory is refused ---- */
void *refill_block(hak_heap_t *heap, unsigned cls);
void *refill_mid(hak_heap_t *heap, size_t size, size_t alignment, bool *zeroed);
void *refill_large(hak_heap_t *heap, size_t size, size_t alignment, bool *zeroed);

/* The rung that needs no lock and no gate: the spare magazine. NULL: it is empty, or this is the
 * twin. */
void *refill_from_spare(hak_heap_t *heap, unsigned cls);

/* The running CPU's area and index; made where there is none. NULL where the thread must go
 * without. */
area_t *refill_area(hak_heap_t *heap, int *index, bool may_wait);
/* Tells a hot magazine which blocks are at home there. */
void refill_tag(const hak_heap_t *heap, area_t *area, int index, unsigned cls);

/* ---- adapt: how much magazines may hold; never waits ---- */

enum { ADAPT_PERIOD = 512 }; /* misses of an area */

/* Counts that a magazine was of no help: a hot one had no block, an outbox no room. */
void adapt_missed(area_t *area, magazine_t *magazine);
/*
 * A class that is freed much more than it is allocated: the running CPU's frees of it go to the
 * outbox and back to their slabs, past the hot magazine, so that what little is allocated meanwhile
 * comes from few slabs and not from all. adapt_returns: whether it is so. adapt_overflowed: frees
 * filled all magazines, and so many blocks go to their slabs; true: it is so from now on.
 * adapt_wants: an allocation has missed; it may end.
 */
HAK_INLINE bool adapt_returns(const area_t *area, unsigned cls)
{
    return load_relaxed(&((area_t *)(uintptr_t)area)->hot[cls].tag) == TAG_NONE;
}
bool adapt_overflowed(const hak_heap_t *heap, area_t *area, magazine_t *outbox, unsigned cls,
                      size_t blocks);
void adapt_wants(const hak_heap_t *heap, area_t *area, int index, unsigned cls);
/* Lets a magazine of this area hold more, inside the heap's budget. */
void adapt_grow(hak_heap_t *heap, area_t *area, magazine_t *magazine, const class_state_t *state);
/* How many blocks a hot magazine that missed asks for. */
size_t adapt_refill(const magazine_t *hot);
/* At a period's end: takes from the running CPU's magazines, and from the cold level, what the
 * period did not use. */
void adapt_area(hak_heap_t *heap, area_t *area, int index);

/* ---- drain: a free whose magazine was full. Never waits. ---- */
void drain_block(hak_heap_t *heap, entry_t entry, void *ptr);
/* Whether the home of a block is another CPU than the one that runs; if so, the running CPU's
 * outbox learns it. */
bool drain_is_away(hak_heap_t *heap, entry_t entry);
/* The rung that needs no lock and no gate: a full hot magazine becomes the spare one, where that is
 * empty. */
bool drain_to_spare(hak_heap_t *heap, entry_t entry, void *ptr);
/* The same from a signal handler or during a fork: only the remote list, or the deferred list, is
 * touched. */
void drain_remote(hak_heap_t *heap, unsigned cls, void *ptr);
/* Mid and large blocks, by now marked as freed. `deferred`: only note it, for whoever next holds
 * the HEAP lock. */
void drain_big(hak_heap_t *heap, void *ptr, bool deferred);
/* What was noted; lock: HEAP. */
void drain_deferred(hak_heap_t *heap, bool may_wait);
/* The same, where the lock is not held: so that figures count no block whose free is done. */
void drain_settle(hak_heap_t *heap);

/* A chain to the cold level, or further down. */
void drain_chain(hak_heap_t *heap, class_state_t *state, chain_t chain, int index, bool may_wait);
/* Takes the outbox of a class and sends its blocks home. */
void drain_outbox(hak_heap_t *heap, class_state_t *state, magazine_t *outbox, int index);
/* Returns the first `most` blocks of a chain to their slabs; lock: CLASS. Returns what is left of
 * the chain. */
chain_t drain_to_slabs(hak_heap_t *heap, class_state_t *state, chain_t chain, size_t most);
/* Returns a chain that was taken from the cold level to its slabs; lock: CLASS. Returns bytes. */
size_t drain_cold(hak_heap_t *heap, class_state_t *state, chain_t chain);
/* Returns the oldest cold chain to its slabs, and adds to *bytes what it held; false: there is
 * none. Lock: CLASS. */
bool drain_oldest(hak_heap_t *heap, class_state_t *state, size_t *bytes);
/* Takes the remote list into the slabs; lock: CLASS. Returns blocks. */
size_t drain_remote_list(hak_heap_t *heap, class_state_t *state);
/* Gives a slab without blocks outside back; lock: CLASS. False: may not wait and HEAP is busy. */
bool drain_retire(hak_heap_t *heap, class_state_t *state, slab_t *slab, bool may_wait);

/* ---- trim ---- */

/* Returns cached blocks of classes [first, end) to their slabs. False: fence refused, and only the
 * running CPU's moved. */
bool trim_flush(hak_heap_t *heap, unsigned first, unsigned end, size_t *bytes);
bool trim_heap(hak_heap_t *heap, size_t keep, size_t *bytes);
/* For an allocation that the system has refused: gives it the heap's cached mappings, then what the
 * process's reserve keeps. False: there was nothing, and to ask again is in vain. No lock is held. */
bool trim_make_room(hak_heap_t *heap);
/* Everything gone at once; the heap stays. */
void trim_reset(hak_heap_t *heap);
/* Everything gone, the heap too. */
void trim_destroy(hak_heap_t *heap);

#endif
