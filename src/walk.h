/* hakheap level 10: walk - one visit of what a class has cached and in slabs, for all that look */
#ifndef HAK_WALK_H
#define HAK_WALK_H

#include "home.h"

/*
 * Role: leads stats, reports and the check to every chain and every sum of a class. The parts of a
 * visit stand beside what they visit: FOR_AREAS and FOR_WORDS (percpu.h), FOR_SETS (home.h),
 * FOR_SLABS (slab.h), FOR_CLASSES (percpu.h); flush, trim and reset use those. Memory: none.
 * Locks: AREAS and the class's, around every call but where it says less.
 */
typedef enum walk_place {
    WALK_HOT = AREA_HOT,
    WALK_SPARE = AREA_SPARE,
    WALK_OUTBOX = AREA_OUTBOX,
    WALK_COLD = AREA_KINDS,
    WALK_REMOTE, /* a part of the remote list: see cold.h for what it counts */
    WALK_PLACES
} walk_place_t;

typedef void (*walk_fn)(void *ctx, walk_place_t place, chain_t chain);

/* Every cached chain of a class. Hot, spare and outbox chains may be followed only where all areas
 * are halted; the others any time. */
void walk_chains(const hak_heap_t *heap, const class_state_t *state, walk_fn visit, void *ctx);

/* Blocks of a class by place, by what the words count: no chain is followed, but a remote list that
 * is too long for its word. */
void walk_count(const hak_heap_t *heap, const class_state_t *state, size_t blocks[WALK_PLACES]);

/* Blocks on the remote list of a class; exact where no free is under way. Lock: the class's. */
size_t walk_waiting(const hak_heap_t *heap, const class_state_t *state);

/* What the sets of a class have together. */
typedef struct walk_sums {
    size_t slabs, granules, blocks, pages, outside, carved; /* as slab_set_t */
} walk_sums_t;
/* Lock: the class's. */
walk_sums_t walk_sums(class_state_t *state);

#endif
