/* hakheap level 4: slab - blocks of one class: descriptors, freelists, blocks never touched */
#ifndef HAK_SLAB_H
#define HAK_SLAB_H

#include "block.h"
#include "registry.h"
#include "superslab.h"

/*
 * Role: the blocks of one size class of one heap that are in no cache. Callers: the ladders,
 * validate, report. Memory: descriptors lie beside the SuperSlab, none of it in the slab itself.
 * Lock: the class's, around every call.
 *
 *   slab   start        origin                         start + granules * 16 KiB
 *         +------------+------+------+------+------------+----+
 *         |            | block| block| block|            |rest|
 *         +------------+------+------+------+------------+----+
 *          never touched <---- carved ------> never touched        carving wraps around at the last block
 *
 * The origin differs from slab to slab (Bonwick's slab colouring, USENIX 1994): slabs start at
 * multiples of 16 KiB, and the few blocks of many small heaps would all fall in the same cache
 * sets. It costs nothing, because no bytes are set aside for it, and lies in the first half of a
 * page, so that few blocks still touch one page.
 *
 * Carving stops at the end of a page, so a page is touched only when a block in it is wanted; but
 * for as many blocks as the caller expects its class to want soon. Slabs sit in bins by how full
 * they are; blocks come from the fullest first, and within a bin from low addresses before high
 * ones where two are compared, so that the emptiest slabs drain and go back.
 *
 * A trim may give back pages of a slab in use that no block outside overlaps. Blocks that overlap
 * such a page leave the freelist and count as never touched again; the page's bit in the
 * SuperSlab's record remembers it, and a take asks for one after another.
 *
 * Invariant: carved == blocks outside (live or cached) + chain_count(free) + released_blocks; pages
 * == bits in touched[g] (superslab.h) over the run.
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
    uint8_t cls;              /* const while the slab lives */
    uint8_t home;             /* whose set it is in; what the registry's entries say */
    uint8_t pages;            /* of its run that may have been written */
    uint16_t released_blocks; /* carved blocks that overlap released pages */
    uint16_t least, most;     /* blocks outside with which it stays in its bin */
    uint16_t blocks;          /* const while the slab lives: that it has room for */
    uint8_t granules;         /* const while the slab lives: of its run */
    pages_t used_before;      /* pages that may have been written before the run was this slab */
} slab_t;

_Static_assert(sizeof(slab_t) <= DESCRIPTOR_BYTES, "descriptors are an array");

/* Slabs of one class and one home. */
typedef struct slab_set {
    slab_t *bin[SLAB_BINS];
    uint32_t slabs;
    uint32_t pages; /* that may have been written; sums over all slabs, as the next ones */
    uint32_t granules;
    size_t blocks;  /* that they have room for */
    size_t outside; /* blocks live or cached */
    size_t carved;  /* blocks, but for released ones */
} slab_set_t;

/*
 * The slabs of a set, one after another; lock: the class's. The bin is the one that a slab was
 * found in, whatever its descriptor says.
 *     FOR_SLABS (at, set) look(at.slab);
 */
typedef struct slab_at {
    slab_t *slab; /* NULL: all were visited */
    unsigned bin;
} slab_at_t;

/* The slab itself where there is one, else the first of the bins that follow. */
HAK_INLINE slab_at_t slab_at_from(const slab_set_t *set, slab_t *slab, unsigned bin)
{
    while (!slab && ++bin < SLAB_BINS) slab = set->bin[bin];
    return (slab_at_t){slab, bin};
}
#define FOR_SLABS(at, set)                                                \
    for (slab_at_t at = slab_at_from((set), (set)->bin[0], 0); (at).slab; \
         at = slab_at_from((set), (at).slab->next, (at).bin))

/* Whether a block begins in a page that was given back, or never written, so that no seal says
 * whether it is free: none there is in the program's hands. Any thread, no lock: the bit of a live
 * block's page was set before that was handed out, and stays so while it lives. */
HAK_INLINE bool slab_forgot(const void *ptr)
{
    return !superslab_is_touched(registry_superslab(ptr), ptr);
}

/*
 * Writes a slab's home into the entries of its granules. In a CHECKED heap a slab with released
 * pages has HOME_LOOK there, as long as it has any: the seals of blocks in those pages are gone, so
 * that a second free of one is known by slab_forgot only, and no push may skip that. Lock: the
 * class's.
 */
void slab_tell_home(const slab_t *slab);

/* Blocks that may have been written. */
HAK_INLINE size_t slab_touched(const slab_t *slab)
{
    return (size_t)slab->carved - slab->released_blocks;
}
HAK_INLINE size_t slab_outside(const slab_t *slab)
{
    return slab_touched(slab) - chain_count(slab->free);
}

/* The descriptor of the slab that a pointer lies in; its entry has been read. */
HAK_INLINE slab_t *slab_of(entry_t entry, const void *ptr)
{
    const char *start = entry_run_start(entry, ptr);
    superslab_t *ss = registry_superslab(start);
    return superslab_descriptor(ss, superslab_index(ss, start));
}

run_t slab_run(const slab_t *slab);
/* Whether pages were given back that blocks were carved from. */
HAK_INLINE bool slab_has_released(const slab_t *slab) { return slab->released_blocks != 0; }

/* Lays a slab over a run, which may be shorter than the class's slabs: it has room for a block at
 * least. */
slab_t *slab_add(slab_set_t *set, run_t run, unsigned granules, unsigned cls);
void slab_remove(slab_set_t *set, slab_t *slab);
/* Undoes slab_remove. */
void slab_restore(slab_set_t *set, slab_t *slab);
/* Moves a slab, with what is outside of it, to another set of its class. */
void slab_move(slab_set_t *from, slab_set_t *to, slab_t *slab);
/* The fullest slab that is no fuller than `bin` and has a block to give; NULL: there is none. */
slab_t *slab_find(const slab_set_t *set, unsigned bin);
/* What a take asks for. */
typedef struct slab_wanted {
    uint32_t blocks;
    uint32_t most;  /* a slab's freelist of no more blocks than these is taken whole */
    uint32_t ahead; /* so many may be carved beyond the page where carving begins */
    uint32_t bound; /* never more than these; 0: a cache line more does no harm */
} slab_wanted_t;
/* Blocks that the slabs of a set could give. */
HAK_INLINE size_t slab_room(const slab_set_t *set) { return set->blocks - set->outside; }
/* A chain of about as many blocks as are wanted: more where they fill a cache line or are a whole
 * freelist, fewer where freelists have a quarter of them; the empty chain where no slab has
 * one. */
chain_t slab_take(slab_set_t *set, unsigned cls, const slab_wanted_t *wanted, const guard_t *guard);
/* Returns a block. True where the slab has no block outside any more. */
bool slab_put(slab_set_t *set, slab_t *slab, void *ptr, const guard_t *guard);
/*
 * Returns the blocks of a chain, at most `most`, until one lies in a slab of another home than the
 * first, or a slab has no block outside any more: that one is *empty then, else NULL. Returns what
 * is left of the chain. Blocks that follow each other and lie in one slab, as consecutive frees
 * mostly do, cost one lookup and one look at its counts and bin. Each is proved as slab_put proves
 * it, and its seal where the heap has seals.
 */
chain_t slab_put_chain(slab_set_t *set, chain_t chain, size_t most, unsigned cls,
                       const guard_t *guard, slab_t **empty);
/* Gives back pages that no block outside overlaps, also those that were written before the run
 * became this slab; the first `keep` of them stay, and are taken off it. `purge` tells the kernel,
 * and false says that it refused: then they stay too. Returns pages. */
size_t slab_release(slab_set_t *set, slab_t *slab, const guard_t *guard, size_t *keep,
                    bool (*purge)(void *, size_t));
/* Moves a slab's far descriptor to the near page, where there is room; lock: also the SuperSlab's
 * set's. Returns the slab. */
slab_t *slab_move_near(slab_set_t *set, slab_t *slab);
/* Any slab with no block outside, or NULL. */
HAK_INLINE slab_t *slab_empty(const slab_set_t *set) { return set->bin[BIN_EMPTY]; }
/* Whether another slab could serve, were this empty one gone. */
bool slab_is_spare(const slab_set_t *set, const slab_t *slab);
/* Whether the block's address is one that this slab has handed out. */
bool slab_has(const slab_t *slab, const void *ptr);

#endif
