/* hakheap level 3: superslab - 2 MiB of granules, which are free and touched; sets of them */
#ifndef HAK_SUPERSLAB_H
#define HAK_SUPERSLAB_H

#include "os.h"
#include "sizeclass.h"

/*
 * Role: finds runs of granules. A set is a heap's SuperSlabs, the nursery, or those that hold
 * metadata. Callers: reserve, meta, heap, ladders. Memory: the records lie out of line, beside the
 * reservation. No lock of its own: the owner of a set holds the set's lock around every call.
 *
 *   SuperSlab, 2 MiB aligned
 *   +--------+--------+--------+-- --+--------+
 *   |granule |granule |granule |     |granule |   128 of 16 KiB; a run is 1 or more neighbours
 *   +--------+--------+--------+-- --+--------+
 *
 * Sets keep SuperSlabs in bins by the largest power of two of free neighbours. A run goes into the
 * shortest hole with room for it among the first few SuperSlabs of the lowest bin that has one:
 * long holes stay for long runs, and untouched SuperSlabs for last (best fit; Wilson, Johnstone,
 * Neely, Boles: "Dynamic Storage Allocation", 1995).
 *
 * A run in use has a descriptor: the first that is free when the run is taken. So a SuperSlab of
 * few long runs has one page of descriptors and not two.
 *
 * A bit for each page says whether it may have been written since it came from the kernel:
 * touched[g], four pages a granule. That is what a purge returns, what tells zeroed memory from
 * used memory, and which pages of a slab hold blocks.
 *
 * Invariant: free_granules == bits in free; free_touched == bits in touched[g] over free g; begins
 * has no free granule; used has slot[g] for each g in begins, and nothing else, each once.
 */
enum {
    GRANULE_PAGES = GRANULE / HAK_PAGE,
    ALL_TOUCHED = (1 << GRANULE_PAGES) - 1,
    DESCRIPTOR_BYTES = 64, /* of a slab or a mid block; slab.h and large.h assert that they fit */
    DESCRIPTORS_NEAR = HAK_PAGE / DESCRIPTOR_BYTES, /* on the first of two pages */
    SUPERSLAB_BINS = 9, /* none free, then the largest free run is >= 1, 2, 4, ... 128 granules */
};

typedef struct superslab {
    char *base;        /* const */
    char *descriptors; /* const: SUPERSLAB_GRANULES of DESCRIPTOR_BYTES, written by slab and meta */
    struct superslab *next; /* lock: the set's; in its bin, or on a list of the reserve */
    struct superslab *prev;
    struct superslab *set_next; /* lock: the set's; all of the set */
    struct superslab *set_prev;
    uint64_t free[2];       /* lock: the set's; a bit for each free granule, */
    uint64_t begins[2];     /* for each granule where a run in use begins, */
    uint64_t used[2];       /* and for each descriptor that a run has */
    uint32_t free_granules; /* lock: the set's */
    uint32_t free_touched;  /* lock: the set's; pages */
    uint8_t bin;            /* lock: the set's */
    /* lock: the set's; const for as long as the reader has a run here; the nursery's or metadata, in
     * no heap's set */
    bool shared;
    bool far; /* lock: the set's; the second page of descriptors may have been written */
    bool
        /* lock: RESERVE; false: no thread may read or write it. Of what is in a set: true */
        committed;
    const void *giver; /* lock: RESERVE; the live heap that gave it to the reserve last, or NULL */
    int64_t tally;     /* lock: the heap's; scratch of the check */
    /* Page bits; of free granules: lock: the set's; else written by the run's owner. Relaxed: read
     * by any free. */
    _Atomic uint8_t touched[SUPERSLAB_GRANULES];
    /* The descriptor of the run that begins at a granule; written under the set's lock, read by the
     * run's owner. Relaxed: read for any value that claims to be a block, too. */
    _Atomic uint8_t slot[SUPERSLAB_GRANULES];
} superslab_t;

typedef struct superslab_set {
    superslab_t *bin[SUPERSLAB_BINS];
    superslab_t *all, *last;
    uint32_t count;
    uint32_t empty;       /* SuperSlabs with all granules free */
    size_t free_granules; /* over the set, */
    size_t free_touched;  /* and their pages that may have been written */
    const os_table_t *os; /* const: what purges them; NULL: the process's */
} superslab_set_t;

HAK_INLINE bool superslab_is_empty(const superslab_t *ss)
{
    return ss->free_granules == SUPERSLAB_GRANULES;
}
HAK_INLINE bool superslab_is_free(const superslab_t *ss, unsigned granule)
{
    return ss->free[granule / 64] >> granule % 64 & 1;
}
HAK_INLINE char *superslab_granule(const superslab_t *ss, unsigned granule)
{
    return ss->base + (size_t)granule * GRANULE;
}
HAK_INLINE unsigned superslab_index(const superslab_t *ss, const void *ptr)
{
    (void)ss; /* which starts at a multiple of its size */
    return (unsigned)((uintptr_t)ptr >> GRANULE_SHIFT) % SUPERSLAB_GRANULES;
}
/* Whether the page of an address may have been written; its run is in use. */
HAK_INLINE bool superslab_is_touched(const superslab_t *ss, const void *ptr)
{
    uint8_t pages =
        load_relaxed(&((superslab_t *)(uintptr_t)ss)->touched[superslab_index(ss, ptr)]);
    return pages >> ((uintptr_t)ptr >> HAK_PAGE_SHIFT) % GRANULE_PAGES & 1;
}
/* Notes that the pages of these bytes may have been written; the owner of their run. Returns for
 * how many that is news. */
HAK_INLINE uint32_t superslab_touch(superslab_t *ss, const char *from, size_t bytes)
{
    uint32_t fresh = 0;
    uintptr_t last = (uintptr_t)(from + bytes - 1) >> HAK_PAGE_SHIFT;
    for (uintptr_t page = (uintptr_t)from >> HAK_PAGE_SHIFT; page <= last; page++) {
        _Atomic uint8_t *pages = &ss->touched[page / GRANULE_PAGES % SUPERSLAB_GRANULES];
        uint8_t old = load_relaxed(pages), bit = (uint8_t)(1u << page % GRANULE_PAGES);
        if (old & bit) continue;
        store_relaxed(pages, (uint8_t)(old | bit));
        fresh++;
    }
    return fresh;
}
/* The page of an address has been written, or was purged, where threads do this for neighbours at a
 * time. Relaxed: a bit orders nothing. */
HAK_INLINE void superslab_touch_one(superslab_t *ss, const void *ptr)
{
    or_relaxed(&ss->touched[superslab_index(ss, ptr)],
               (uint8_t)(1u << ((uintptr_t)ptr >> HAK_PAGE_SHIFT) % GRANULE_PAGES));
}
HAK_INLINE void superslab_forget_one(superslab_t *ss, const void *ptr)
{
    and_relaxed(&ss->touched[superslab_index(ss, ptr)],
                (uint8_t) ~(1u << ((uintptr_t)ptr >> HAK_PAGE_SHIFT) % GRANULE_PAGES));
}
/* Of the run in use that begins there. */
HAK_INLINE unsigned superslab_slot(const superslab_t *ss, unsigned granule)
{
    return load_relaxed(&((superslab_t *)(uintptr_t)ss)->slot[granule]);
}
HAK_INLINE void *superslab_descriptor(const superslab_t *ss, unsigned granule)
{
    return ss->descriptors + (size_t)superslab_slot(ss, granule) * DESCRIPTOR_BYTES;
}

/* Makes a record of an empty SuperSlab whose pages were never touched. */
void superslab_init(superslab_t *ss, char *base, char *descriptors);
bool superslab_is_valid(const superslab_t *ss);

void superslab_set_add(superslab_set_t *set, superslab_t *ss);
void superslab_set_remove(superslab_set_t *set, superslab_t *ss);
/* The first of all, which becomes the last; NULL: there is none. As many turns as the set has
 * SuperSlabs reach each that stays in it, also where its lock is dropped in between: what is added
 * is the last, too. One caller at a time. */
superslab_t *superslab_set_turn(superslab_set_t *set);

typedef struct run {
    superslab_t *ss; /* NULL: none */
    unsigned first;  /* granule */
} run_t;

/* Pages of a run, a bit each from its start; pages beyond 64 go with the last four. */
typedef uint64_t pages_t;
#define PAGES_ALL (~(pages_t)0)

/* Takes neighbours, the first at a multiple of `alignment` granules (a power of two). */
run_t superslab_take(superslab_set_t *set, unsigned granules, unsigned alignment);
/* Takes the `more` granules behind a run of so many; false: they are not free. */
bool superslab_extend(superslab_set_t *set, run_t run, unsigned granules, unsigned more);
/* Of a run, for its owner: notes that pages may have been written, that pages are gone, and says
 * which, and how many, may have been written. */
void superslab_note(run_t run, unsigned granules, pages_t pages);
void superslab_forget(run_t run, unsigned granules, pages_t pages);
pages_t superslab_touched(run_t run, unsigned granules);
uint32_t superslab_touched_count(run_t run, unsigned granules);
/* Gives a run back, or neighbours as one; notes these pages. */
void superslab_put(superslab_set_t *set, run_t run, unsigned granules, pages_t pages);
/* Frees all granules of a SuperSlab that is in no set; what its runs have written is noted. */
void superslab_clear(superslab_t *ss);
/* Whether no page of a run was ever written. */
bool superslab_run_is_clean(run_t run, unsigned granules);
/* Purges the touched free pages of a SuperSlab, those between two runs in use in one call, until
 * `pages` are gone. Returns pages. */
size_t superslab_purge(superslab_set_t *set, superslab_t *ss, size_t pages);

/* Notes that no page of an empty SuperSlab, which is in no set, is there any more. Returns
 * pages. */
size_t superslab_forget_all(superslab_t *ss);

HAK_INLINE bool superslab_is_far(run_t run)
{
    return superslab_slot(run.ss, run.first) >= DESCRIPTORS_NEAR;
}
/* Gives a run whose descriptor is far a near one, and returns that; NULL where there is none. The
 * owner copies what it says. */
void *superslab_move_near(run_t run);
/* Purges the second page of descriptors where no run has one there. */
void superslab_purge_far(const superslab_set_t *set, superslab_t *ss);

#endif
