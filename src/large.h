/* hakheap level 4: large - blocks that are a run of granules (mid) or a mapping (large) */
#ifndef HAK_LARGE_H
#define HAK_LARGE_H

#include "pieces.h"
#include "registry.h"
#include "superslab.h"

/*
 * Role: the records of blocks too big for a slab. Callers: the ladders, validate, report. Memory: a
 * mid block's record is the descriptor of its first granule; a large block's is given by the heap.
 * Lock: HEAP, except where a call says so.
 *
 *   mid    (32 KiB, 1 MiB]   a run of granules in a SuperSlab; the granule table knows it
 *   large  above, or aligned beyond 1 MiB: a mapping that starts at a multiple of 2 MiB, so that no two share a slot of
 *          the range table:  gib_t.range[2 MiB slot] -> large_t of the block that covers it
 *
 * A freed large block goes to the process's reserve, whose pieces serve for large blocks of any
 * heap. mremap moves pages, not bytes.
 */
/* What a big block was last asked for with; written by the owner of the block, read by
 * free_sized. */
typedef struct asked {
    size_t size, alignment;
} asked_t;

typedef struct mid {
    struct mid *next;
    struct mid *prev;
    char *start;
    _Atomic size_t bytes; /* usable; lock: HEAP, and read by anybody, relaxed */
    unsigned granules;
    asked_t asked;
} mid_t;

_Static_assert(sizeof(mid_t) <= DESCRIPTOR_BYTES, "it lies in a descriptor");

typedef enum large_state { LARGE_LIVE = 1, LARGE_FREED } large_state_t;

typedef struct large {
    struct large *next;
    struct large *prev;
    void *_Atomic
        heap; /* these three are written under the lock and read by large_find without it */
    char *_Atomic base;
    _Atomic size_t bytes; /* mapped and usable */
    asked_t asked;
    parts_t parts;     /* the mappings it is made of; written by its owner, inside the gate */
    bool charge_moved; /* lock: HEAP; it is freed, and what it was charged another block is */
    /* large_state_t; LIVE -> FREED by compare-and-swap of the thread that frees it */
    _Atomic uint32_t state;
} large_t;

HAK_INLINE size_t mid_bytes(const mid_t *mid)
{
    return load_relaxed(&((mid_t *)(uintptr_t)mid)->bytes);
}

/* Relaxed: large_find proves what it read by the range table; everybody else holds the lock or the
 * block. */
HAK_INLINE void *large_heap(const large_t *large)
{
    return load_relaxed(&((large_t *)(uintptr_t)large)->heap);
}
HAK_INLINE char *large_base(const large_t *large)
{
    return load_relaxed(&((large_t *)(uintptr_t)large)->base);
}
HAK_INLINE size_t large_bytes(const large_t *large)
{
    return load_relaxed(&((large_t *)(uintptr_t)large)->bytes);
}

/* Stands in the range table where a large block began: names a second free. The rest of its slots
 * are empty. */
#define LARGE_RELEASED ((large_t *)(uintptr_t)SUPERSLAB)
/* The same where its heap was reset or destroyed. */
#define LARGE_DEAD ((large_t *)(uintptr_t)(2 * SUPERSLAB))

HAK_INLINE bool large_is_record(const large_t *large)
{
    return large && large != LARGE_RELEASED && large != LARGE_DEAD;
}

typedef struct large_set {
    mid_t *mids;
    size_t mid_blocks, mid_bytes;
    large_t *live;
    size_t live_blocks, live_bytes;
    large_t *unused; /* records without a block, by next */
} large_set_t;

/* The record of the large block that a pointer lies in; NULL where there is none. Any thread, no
 * lock; reads the record only, which stays readable for ever. */
large_t *large_find(const void *ptr);

mid_t *mid_add(large_set_t *set, run_t run, unsigned granules, size_t bytes);
void mid_remove(large_set_t *set, mid_t *mid);
/* Notes that a mid block's run is longer or shorter. */
void mid_resize(large_set_t *set, mid_t *mid, unsigned granules);
mid_t *mid_of(entry_t entry, const void *ptr);

/* ---- Mappings; no lock needed ---- */
char *large_map(size_t bytes, size_t alignment);
bool large_unmap(char *base, size_t bytes, large_t *tombstone);
/* Writes the tombstone of a block whose address space is still its own. */
void large_bury(char *base, size_t bytes, large_t *tombstone);
/* Whether the kernel can be asked to: several mappings do not move as one. */
HAK_INLINE bool large_may_remap(const large_t *large, size_t bytes)
{
    return large->parts.count <= 1 || bytes <= large_bytes(large);
}
/* Grows or shrinks where it is, or moves the pages, and notes it. False: refused, nothing has
 * changed. Lock: HEAP. */
bool large_remap(large_set_t *set, large_t *large, size_t bytes);

/* ---- The set ---- */
void large_add(large_set_t *set, large_t *large, void *heap, char *base, size_t bytes);
void large_remove(large_set_t *set, large_t *large);
/* A record without a block waits for the next block. */
void large_put_unused(large_set_t *set, large_t *large);
large_t *large_take_unused(large_set_t *set); /* NULL: there is none */

#endif
