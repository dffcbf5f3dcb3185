/* hakheap level 12: drain - the ladder of a free that found its magazine full */
#ifndef HAK_DRAIN_H
#define HAK_DRAIN_H

#include "adapt.h"
#include "pointer.h"

/*
 * Role: where freed blocks go. Each rung asks one layer; one that overflows returns the overflow,
 * for the next rung.
 *
 *   drain    pocket, region;   hot > spare > outbox, cold > slab > SuperSlab > reserve;   a busy lock: the remote or the deferred list
 *
 * Callers: api, refill, trim, life, inside the gate but where a call says so. Locks: CLASS and
 * HEAP, taken inside; a free tries them. It waits only where as many blocks wait as the heap's
 * budget allows, or DRAIN_DEFERRED large ones, and then for a step of the thread that has the lock:
 * no step returns more than a chain and DRAIN_AT_ONCE blocks.
 */
enum {
    DRAIN_AT_ONCE = 64,    /* waiting blocks that are returned in one step */
    DRAIN_BIG_AT_ONCE = 8, /* mid and large ones, which the kernel may have to take */
    DRAIN_DEFERRED = 64,   /* mid and large blocks that may wait */
};

/* A block of a region, with neither lock nor gate; false: none begins there. */
bool drain_to_region(hak_heap_t *heap, entry_t entry, void *ptr);
/* A block that a word of its class's pocket named, back into it; the caller took it off there. */
void drain_to_pocket(hak_heap_t *heap, unsigned cls, uint64_t name);
/* Frees what the pockets of some classes have. Returns bytes. */
size_t drain_pockets(hak_heap_t *heap, unsigned first, unsigned end);
void drain_block(hak_heap_t *heap, entry_t entry, void *ptr);
/* Whether the home of a block is another CPU than the one that runs; if so, the running CPU's
 * outbox learns it. */
bool drain_is_away(hak_heap_t *heap, entry_t entry);
/* The rung that needs no lock and no gate: a full hot magazine becomes the spare one, where that is
 * empty. */
bool drain_to_spare(hak_heap_t *heap, entry_t entry, void *ptr);
/* Puts blocks on the class's remote list, without the budget; never waits. From a signal handler,
 * during a fork, and outside of the gate. */
void drain_remote(hak_heap_t *heap, unsigned cls, chain_t chain);
/* Mid and large blocks, by now marked as freed. `deferred`: the lock is not even tried. */
void drain_big(hak_heap_t *heap, void *ptr, bool deferred);
/* Frees a block of a heap that counts, past all caches, without a refund: its charge is another
 * block's by now. Inside the gate; a mid or large block is marked as freed. */
void drain_charged(const block_id_t *id, void *ptr);
/* Some of what was deferred; lock: HEAP. Returns how many. */
size_t drain_some_deferred(hak_heap_t *heap, bool may_wait);
HAK_INLINE size_t drain_deferred(hak_heap_t *heap, bool may_wait)
{
    return HAK_UNLIKELY(remote_blocks(&heap->deferred)) ? drain_some_deferred(heap, may_wait) : 0;
}
/* All that was deferred before this call, so that figures count no block whose free is done; no
 * lock is held. What a thread freed before, by whatever order the program gave it, is seen here. */
void drain_all_deferred(hak_heap_t *heap);
HAK_INLINE void drain_settle(hak_heap_t *heap)
{
    if (HAK_UNLIKELY(remote_blocks(&heap->deferred))) drain_all_deferred(heap);
}
/* At a period's end (adapt.h): returns what the period did not use. */
void drain_ended_period(hak_heap_t *heap, area_t *area, int index);
HAK_INLINE void drain_period(hak_heap_t *heap, area_t *area, int index)
{
    if (HAK_UNLIKELY(adapt_is_over(area))) drain_ended_period(heap, area, index);
}

/*
 * Coarse classes are those beyond LOOKUP_MAX. A heap with few blocks of each keeps more of them than it
 * uses: a block or two in the magazine of each, or its last slab. So after misses of half as many
 * bytes as lived at the last look, the running CPU looks at what its magazines, and last slabs, have
 * of all coarse classes together. Where that is more than half of what lives, all of it goes back. A
 * heap that uses much of what it keeps is left alone, and the cost of a look is spread over as many
 * bytes as it may return.
 *
 * COARSE_LEAST may be kept in any case, and twice as much after each COARSE_PATIENCE looks that gave
 * something back, up to COARSE_DOUBLINGS times: a heap that misses so often is busy, and shall find
 * a block of each class when it goes through them in turn. A trim or reset begins anew.
 */
enum {
    COARSE_FIRST = POCKET_CLASSES,
    COARSE_LEAST = 32 * 1024, /* bytes */
    COARSE_SHARE = 2,
    COARSE_PATIENCE = 64,
    COARSE_DOUBLINGS = 4,
    COARSE_LATEST = 1024 * 1024, /* bytes that miss before a look */
};
void drain_kept_coarse(hak_heap_t *heap, area_t *area, int index);
HAK_INLINE void drain_coarse(hak_heap_t *heap, area_t *area, int index, unsigned cls)
{
    if (cls < COARSE_FIRST) return;
    /* Relaxed: what another thread of the same CPU adds may be lost. */
    uint32_t missed = load_relaxed(&area->coarse_missed) + size_classes[cls].bytes;
    store_relaxed(&area->coarse_missed, missed);
    if (HAK_UNLIKELY(missed > hak_max(load_relaxed(&area->coarse_most), (uint32_t)COARSE_LEAST)))
        drain_kept_coarse(heap, area, index);
}

/* A chain to the cold level, or further down. */
void drain_chain(hak_heap_t *heap, class_state_t *state, chain_t chain, int index, bool may_wait);
/* Takes the outbox of a class and sends its blocks home. */
void drain_outbox(hak_heap_t *heap, class_state_t *state, magazine_t *outbox, int index);

/* ---- Lock: CLASS ---- */

/* Returns the first `most` blocks of a chain to their slabs. Returns what is left of the chain. */
chain_t drain_to_slabs(hak_heap_t *heap, class_state_t *state, chain_t chain, size_t most);
/* Returns a chain that was taken from the cold level to its slabs. Returns bytes. */
size_t drain_cold(hak_heap_t *heap, class_state_t *state, chain_t chain);
/* Returns the oldest cold chain to its slabs, and adds to *bytes what it held; false: there is
 * none. */
bool drain_oldest(hak_heap_t *heap, class_state_t *state, size_t *bytes);
/* Returns at most so many blocks of the remote list to their slabs. Returns how many. */
size_t drain_waiting(hak_heap_t *heap, class_state_t *state, size_t most);
/* Gives a slab without blocks outside back. False: may not wait and HEAP is busy. */
bool drain_retire(hak_heap_t *heap, class_state_t *state, slab_t *slab, bool may_wait);
/* Gives the lock back, after a step for those that found it busy. */
void drain_leave(hak_heap_t *heap, class_state_t *state);

#endif
