/* hakheap level 4: slab - blocks of one class: descriptors, freelists, blocks never touched */
#ifndef HAK_SLAB_H
#define HAK_SLAB_H

#include "block.h"
#include "registry.h"
#include "superslab.h"

/*
 * Role: the blocks of one size class of one heap that are in no cache. Callers: the ladders, validate, report. Memory:
 * descriptors lie beside the SuperSlab, none of it in the slab itself. Lock: the class's, around every call.
 *
 *   slab   start        origin                         start + granules * 16 KiB
 *         +------------+------+------+------+------------+----+
 *         |            | block| block| block|            |rest|
 *         +------------+------+------+------+------------+----+
 *          never touched <---- carved ------> never touched        carving wraps around at the last block
 *
 * The origin differs from slab to slab (Bonwick's slab colouring, USENIX 1994): slabs start at multiples of 16 KiB, and
 * the few blocks of many small heaps would all fall in the same cache sets. It costs nothing, because no bytes are set
 * aside for it, and lies in the first half of a page, so that few blocks still touch one page.
 *
 * Carving stops at the end of a page, so a page is touched only when a block in it is wanted. Slabs sit in bins by how full
 * they are; blocks come from the fullest first, and within a bin from low addresses before high ones where two are
 * compared, so that the emptiest slabs drain and go back.
 *
 * Invariant: carved == blocks outside (live or cached) + chain_count(free).
 */
enum {
    BIN_FULL, /* nothing to take */
    BIN_HIGH, /* 3/4 outside or more */
    BIN_HALF,
    BIN_LOW,
    BIN_SPARSE,
    BIN_EMPTY, /* no block outside */
    SLAB_BINS
};

typedef struct slab {
    struct slab *next; /* in its bin */
    struct slab *prev;
    char *start;      /* const while the slab lives */
    chain_t free;     /* freelist */
    uint16_t carved;  /* blocks */
    uint16_t origin;  /* const while the slab lives: index of the block that was carved first */
    uint32_t scratch; /* check's: where this slab's bits begin, in words */
    uint8_t bin;
    uint8_t cls; /* const while the slab lives */
} slab_t;

_Static_assert(sizeof(slab_t) <= DESCRIPTOR_BYTES, "descriptors are an array");

typedef struct slab_set {
    slab_t *bin[SLAB_BINS];
    size_t slabs;
    _Atomic size_t outside; /* blocks live or cached; written under the lock, read by who sizes magazines */
    size_t carved;          /* blocks, over all slabs */
} slab_set_t;

HAK_INLINE size_t slab_outside(const slab_t *slab) { return slab->carved - chain_count(slab->free); }

/* The descriptor of the slab that a pointer lies in; its entry has been read. */
HAK_INLINE slab_t *slab_of(entry_t entry, const void *ptr)
{
    const char *start = entry_run_start(entry, ptr);
    superslab_t *ss = registry_superslab(start);
    return superslab_descriptor(ss, superslab_index(ss, start));
}

/* The run of a slab, and the pages of it that may have been written. */
run_t slab_run(const slab_t *slab);
pages_t slab_pages(const slab_t *slab);

void slab_add(slab_set_t *set, run_t run, unsigned cls);
void slab_remove(slab_set_t *set, slab_t *slab);
/* Undoes slab_remove. */
void slab_restore(slab_set_t *set, slab_t *slab);
/* A chain of up to `want` blocks, more only to fill a cache line; the empty chain where no slab has one. */
chain_t slab_take(slab_set_t *set, unsigned cls, size_t want, const guard_t *guard);
/* Returns a block. True where the slab has no block outside any more. */
bool slab_put(slab_set_t *set, slab_t *slab, void *ptr, const guard_t *guard);
/* Any slab with no block outside, or NULL. */
HAK_INLINE slab_t *slab_empty(const slab_set_t *set) { return set->bin[BIN_EMPTY]; }
/* Whether another slab could serve, were this empty one gone. */
bool slab_is_spare(const slab_set_t *set, const slab_t *slab);
/* Whether the block's address is one that this slab has handed out. */
bool slab_has(const slab_t *slab, const void *ptr);

#endif
