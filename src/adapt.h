/* hakheap level 11: adapt - how much each magazine may hold, from what it missed */
#ifndef HAK_ADAPT_H
#define HAK_ADAPT_H

#include "area.h"

/*
 * Role: sets the limits of magazines and outboxes, inside the heap's budget. Callers: the ladders,
 * inside the gate. No lock, no memory; limits are atomic words. What a lowered limit leaves over is
 * returned to the caller, which places it: nothing here reaches a slab.
 *
 * A magazine may first hold FEW_BLOCKS, and twice as many after each miss that reached a lock, up
 * to MOST_BYTES, MOST_BLOCKS or half of the class's blocks outside, as long as the heap's budget
 * has room; the budget is charged for hot and spare alike. What a miss asks for starts with
 * FIRST_BLOCKS and doubles with the misses of the period: a heap that wants a block or two of a
 * class touches no more of its pages, and has no more to flush.
 *
 * What was allowed once is taken back at the end of a period, which is ADAPT_PERIOD misses of one
 * area: a heap that misses nothing has no reason to give up what serves it. Then the blocks, and
 * half of the limit, go from the magazines that the period did not use, and the CPU's cold chains
 * that lay there all the period go to their slabs. Blocks in idle magazines pin slabs that other
 * classes could use, one block a whole slab; and where they are taken again, they spread few live
 * blocks over many slabs.
 *
 * Not used is what missed nothing. Where the budget is nearly spent it is also what missed less,
 * for each byte it may hold, than half the average: with misses inverse to a magazine's size, as
 * those of random sequences are, the misses of all are fewest where they are equal for each byte.
 *
 * Sources: the working set minimum of Bonwick and Adams (USENIX 2001, section 3.4), with misses in
 * place of seconds, and the misses of a per-CPU cache that tcmalloc's resizing counts.
 *
 * Invariant: budget.room + limits * block bytes (twice, for hot and spare) + bytes of cold chains
 * + remote_charged * block bytes == cache_bytes.
 */

enum { ADAPT_PERIOD = 512 }; /* misses of an area */

/* Counts that a magazine was of no help: a hot one had no block, an outbox no room. */
void adapt_missed(area_t *area, magazine_t *magazine);
/*
 * A class that is freed much more than it is allocated: the running CPU's frees of it go to the
 * outbox and back to their slabs, past the hot magazine (area_returns), so that what little is
 * allocated meanwhile comes from few slabs and not from all. adapt_overflowed: frees filled all
 * magazines, and so many blocks go to their slabs; true: it is so from now on. adapt_wants: an
 * allocation has missed; it may end.
 */
bool adapt_overflowed(const hak_heap_t *heap, area_t *area, magazine_t *outbox, unsigned cls,
                      size_t blocks);
void adapt_wants(const hak_heap_t *heap, area_t *area, int index, unsigned cls);
/* Lets a magazine of this area hold more, inside the heap's budget. */
void adapt_grow(hak_heap_t *heap, area_t *area, magazine_t *magazine, const class_state_t *state);
/* How many blocks a hot magazine that missed asks for. */
size_t adapt_refill(const magazine_t *hot);
/* Whether a class takes and takes: a good part of its blocks came since one went back to a slab. */
bool adapt_is_growing(const class_state_t *state);
/* What a hot magazine that missed asks for, with what else a take wants to know: a class may have as
 * many blocks carved, in pages of which no block was asked for yet, as an AHEAD-th of those it has
 * outside, or an AHEAD_GROWING-th while it grows. Then it asks for as many, too. */
slab_wanted_t adapt_wanted(const class_state_t *state, const magazine_t *hot);

/* What one magazine, or all of an area, missed in the period, and the bytes that it may hold. */
typedef struct adapt_share {
    uint64_t misses, bytes;
} adapt_share_t;

typedef struct adapt_period {
    magazine_t *outbox; /* of the area; NULL: none */
    adapt_share_t all;  /* of the area where the budget is nearly spent, else of nothing */
} adapt_period_t;

/* What the period did not use of a class. */
typedef struct adapt_unused {
    chain_t hot, spare; /* taken; the caller places them */
    bool outbox;        /* the caller empties it */
} adapt_unused_t;

/* Whether a period of the area is over; if so, adapt_begin follows, then adapt_end for each
 * class. */
HAK_INLINE bool adapt_is_over(const area_t *area)
{
    return load_relaxed(&((area_t *)(uintptr_t)area)->misses) >= ADAPT_PERIOD;
}
void adapt_begin(hak_heap_t *heap, area_t *area, adapt_period_t *period);
/* Lowers the limits of a class that the period did not use. */
adapt_unused_t adapt_end(hak_heap_t *heap, area_t *area, const adapt_period_t *period,
                         unsigned cls);

#endif
