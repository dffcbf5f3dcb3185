/* hakheap level 4: reserve - the process's SuperSlabs: reservations, reserve, nursery */
#ifndef HAK_RESERVE_H
#define HAK_RESERVE_H

#include "superslab.h"

/*
 * Role: where SuperSlabs come from and go to. Callers: meta, ladders. Thread-safe; one process-wide
 * lock of rank RESERVE.
 *
 *   kernel --reserve()--> reservation (PROT_NONE, up to 1 GiB) --commit--> SuperSlab --> a heap's set
 *                                                                  ^          |  |
 *                                        dirty (bounded) or clean reserve <---+  +--> nursery, metadata
 *
 * A reservation is never unmapped, so a lookup can never fault on what was once ours. The reserve
 * keeps SuperSlabs that heaps gave back: at first with as many pages as RESERVE_DIRTY of them have,
 * the others purged. Each SuperSlab that was purged and is taken again lets one more keep its
 * pages, up to a quarter of those in use: what was saved is paid for twice, in faults. A trim
 * starts anew.
 *
 * The nursery is a set of SuperSlabs that many small heaps share, granule by granule: a heap with
 * one block costs one page and its share of a page-table page, not a SuperSlab.
 */
enum {
    LIMIT_SHARE = 8,         /* a reservation takes at most this part of a limited address space */
    RESERVE_DIRTY = 8,       /* SuperSlabs whose pages are kept: 16 MiB, */
    RESERVE_DIRTY_SHARE = 4, /* or up to this part of those in use */
    NURSERY_TOUCHED = 16 * 256, /* touched free pages the nursery keeps: 16 MiB */
};

/* A SuperSlab of the caller's own, all granules free, registered; NULL where the system refuses.
 * Sets *refused. */
superslab_t *reserve_take(bool shared, uint32_t *refused);
/* Gives an empty SuperSlab back; `giver` may later trim what it gave. False: may not wait, and the
 * lock is busy. */
bool reserve_put(superslab_t *ss, const void *giver, bool may_wait);

typedef struct nursery_run {
    run_t run;
    unsigned granules;
    pages_t pages; /* that may have been written */
} nursery_run_t;

/* Runs of the nursery. Put as superslab_put, with the registry's entries written before; false as
 * reserve_put. */
run_t nursery_take(unsigned granules, uint32_t *refused);
bool nursery_put(const nursery_run_t *runs, size_t count, bool may_wait);

/* Purges what `giver` left in the reserve; NULL: all of it. Returns bytes. */
size_t reserve_trim(const void *giver);
/* Purges what the nursery holds free, and what it left in the reserve. Returns bytes. */
size_t nursery_trim(void);

typedef struct reserve_stats {
    size_t reservations;
    size_t reserved_bytes;
    size_t dirty_superslabs;
    size_t clean_superslabs;
    size_t nursery_superslabs;
    size_t nursery_touched_bytes;
} reserve_stats_t;
reserve_stats_t reserve_stats(void);

#endif
