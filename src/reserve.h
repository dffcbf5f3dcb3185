/* hakheap level 4: reserve - the process's SuperSlabs: reservations, reserve, nursery */
#ifndef HAK_RESERVE_H
#define HAK_RESERVE_H

#include "pieces.h"
#include "superslab.h"

/*
 * Role: where SuperSlabs come from and go to. Callers: meta, ladders. Thread-safe; one lock of rank
 * RESERVE for each reserve. The process has one; tests make their own.
 *
 *   kernel --reserve()--> reservation (PROT_NONE, up to 1 GiB) --commit--> SuperSlab --> a heap's set
 *                                        |                         ^          |  |
 *                                        |       committed: dirty <-----------+  +--> nursery, metadata
 *                                        +----------> clean <---- decommit, or again with a commit
 *
 * A reservation is never unmapped, so a lookup can never fault on what was once ours. The reserve
 * keeps SuperSlabs that heaps gave back, with their pages, as long as so much was in use a short
 * while ago: heaps that breathe, and heaps that come and go, find their pages again. The most that
 * was in use is remembered and forgotten by degrees (`recent_t`), about nine tenths of the
 * difference in two thirds of a second. What lies beyond that, or beyond the limit, is decommitted,
 * the oldest first: its pages are gone, and the system counts it as free for others (overcommit
 * mode 2, RLIMIT_DATA). What is decommitted is unreadable, so its entries in the registry lose their
 * owner first: a stale pointer is judged by the entry alone, and no free takes it for a block. Where
 * the kernel refuses, the pages are purged; where it refuses that too, they stay, and are dirty.
 *
 * No thread of ours watches the time: the slow paths of all heaps do (reserve_tick), and each gives
 * back RESERVE_STEP SuperSlabs at most. A process that calls nothing keeps what it has.
 *
 * A decommitted SuperSlab between committed ones is a hole: it makes three mappings of one, and a
 * process may have max_map_count of them. So no more than RESERVE_HOLES are decommitted at a time,
 * wherever they lie; beyond that, SuperSlabs are purged and stay committed.
 *
 * The nursery is a set of SuperSlabs that many small heaps share, granule by granule: a heap with
 * one block costs one page and its share of a page-table page, not a SuperSlab.
 *
 * A refusal is remembered: what the kernel did not take (locked pages) is not offered again on the
 * way until twice as much has gathered. A trim always asks.
 */
enum {
    LIMIT_SHARE = 8,     /* a reservation takes at most this part of a limited address space, */
    MEMORY_SHARE = 8,    /* and the reserve keeps at most this part of the machine's memory */
    RESERVE_LEAST = 512, /* pages that stay whatever was in use; of the nursery, too */
    RESERVE_STEP = 2,    /* SuperSlabs that a slow path gives back at most */
    NURSERY_STEP = 128,  /* and pages of the nursery */
    RESERVE_HOLES = 65530 / 4, /* SuperSlabs decommitted, 32 GiB: they make no more mappings than
                                * half of the default max_map_count */
    TICK_MS = 1 << 6,          /* how often what was in use is forgotten by a degree */
    TAKE_SHARE = 6, /* and this part of what is more than is in use at each large block */
    SHORT_KEPT = 32 * HAK_MIB / HAK_PAGE, /* pages that are kept besides while blocks below
                                           * PARTS_FROM come and go: each needs a piece that is long
                                           * enough as it is; and half as much again before the
                                           * first of it goes, so that many go at once */
    SHORT_STEPS = 2,
    PIECES_SHARE = 8,                /* of the pieces kept too long a tick gives back this part, */
    PIECES_STEP_LEAST = 4 * HAK_MIB, /* but so many bytes at least, */
    PIECES_STEP_MOST = 32 * HAK_MIB, /* so many at most, */
    PIECES_STEP = 16,                /* and no more than so many pieces */
};

/* The most pages that were in use in the recent past. */
typedef struct recent {
    size_t most;
} recent_t;

typedef struct reserve {
    const os_table_t *os; /* const: what this reserve asks the kernel by; NULL: the process's */
    superslab_t *_Atomic arrived; /* atomic: were given to the kernel without the lock, and are on
                                   * no list yet; any thread pushes, the holder of the lock takes all */
    _Atomic uint32_t
        tick;             /* relaxed, written under the lock: when it was last looked at the time */
    _Atomic uint32_t due; /* relaxed, written under the lock: more is kept than may be */
    _Atomic uint32_t pieces_due; /* the same of pieces, as far as frees shall know */
    _Atomic size_t large;        /* relaxed: bytes of live large blocks; any thread */
    hak_lock_t lock;             /* rank RESERVE; guards all below */
    size_t limit;                /* pages that may be kept, of the nursery too */
    size_t out;                  /* SuperSlabs in the hands of heaps, the nursery and metadata */
    recent_t recent;             /* of `out`, */
    recent_t recent_nursery;     /* and of the nursery's granules in use */
    /* the newest reservation's SuperSlabs that were never handed out */
    char *next, *end;
    superslab_t *next_record;
    char *next_descriptors;
    superslab_t *dirty, *oldest; /* committed, with what pages they have; a list by both links */
    superslab_t *clean;          /* decommitted; a list by `next` */
    superslab_set_t nursery;
    pieces_t pieces;       /* of large blocks */
    recent_t recent_large; /* of `large` */
    recent_t recent_short; /* what may be kept besides, while blocks below PARTS_FROM come and go */
    size_t pieces_again;   /* so many pages of them are worth another call; 0: the bound */
    size_t dirty_count;
    _Atomic size_t holes; /* relaxed; clean ones, and those that are being decommitted without the
                           * lock; at most RESERVE_HOLES */
    size_t dirty_pages;   /* kept by all that are dirty, those of descriptors too */
    size_t dirty_again;   /* so many dirty pages are worth another call; 0: the bound */
    size_t nursery_again; /* the same of free touched pages of the nursery */
    size_t reservations, reserved_bytes;
} reserve_t;

extern reserve_t process_reserve;

/* A reserve of its own; `table` NULL: the process's. What it reserves is never unmapped. */
void reserve_init(reserve_t *reserve, const os_table_t *table);

/* A SuperSlab of the caller's own, all granules free, registered; NULL where the system refuses.
 * Sets *refused. */
superslab_t *reserve_take(reserve_t *reserve, bool shared, uint32_t *refused);
/* Gives an empty SuperSlab back; `giver` may later trim what it gave. Adds the bytes that went to
 * the kernel to *returned. False: may not wait, and the lock is busy. */
bool reserve_put(reserve_t *reserve, superslab_t *ss, const void *giver, bool may_wait,
                 size_t *returned);

typedef struct nursery_run {
    run_t run;
    unsigned granules;
    pages_t pages; /* that may have been written */
} nursery_run_t;

/* Runs of the nursery. Put as superslab_put, with the registry's entries written before; `returned`
 * and false as reserve_put. */
run_t nursery_take(reserve_t *reserve, unsigned granules, uint32_t *refused);
bool nursery_put(reserve_t *reserve, const nursery_run_t *runs, size_t count, bool may_wait,
                 size_t *returned);

/* ---- Large blocks ---- */

/* Pages for a large block, which counts as in use from here on. NULL: of no piece that is worth it,
 * or the kernel refused, and the caller maps them. What may not read as zero is the first *dirty
 * bytes. */
char *reserve_take_pieces(reserve_t *reserve, size_t bytes, size_t alignment, parts_t *parts,
                          size_t *dirty);
/* Puts a block back, which no table names any more. What would make more than `limit` bytes of this
 * giver goes as soon as a call may. False: may not wait, and the lock is busy, or there is no
 * room. */
bool reserve_put_pieces(reserve_t *reserve, piece_t block, const parts_t *parts, size_t limit,
                        bool may_wait);
/* A large block is longer, or shorter, or gone another way. */
void reserve_note_large(reserve_t *reserve, size_t more, size_t less);
/* Gives back pieces that may not stay: as much as the caller put, and a step. Never waits for the
 * lock; no lock may be held. */
void reserve_settle_pieces(reserve_t *reserve, size_t put);
HAK_INLINE void reserve_settle(reserve_t *reserve, size_t put)
{
    if (HAK_UNLIKELY(load_relaxed(&reserve->pieces_due))) reserve_settle_pieces(reserve, put);
}
/* Bytes that a giver left in pieces. */
size_t reserve_given(reserve_t *reserve, const void *giver);
/* Gives back one piece that a giver left, or of it so many bytes; NULL: of any. Returns bytes. */
size_t reserve_trim_piece(reserve_t *reserve, const void *giver, size_t most);
/* A giver is gone, and what it left stays. */
void reserve_disown(reserve_t *reserve, const void *giver);

/* Lets what was in use be forgotten, and gives back a step of what is kept too long. Never waits; no
 * lock may be held. */
void reserve_tick(reserve_t *reserve);
/* How many bytes may be kept from here on; what is beyond goes at once. */
void reserve_set_limit(reserve_t *reserve, size_t bytes);

/* Gives back what `giver` left in the reserve; NULL: all of it. Returns bytes. */
size_t reserve_trim(reserve_t *reserve, const void *giver);
/* Purges what the nursery holds free, and decommits what it left in the reserve. Returns bytes. */
size_t nursery_trim(reserve_t *reserve);

/* Whether so many free pages are worth an automatic purge; `again` is what reserve_again said after
 * the last one. */
HAK_INLINE bool reserve_is_due(size_t pages, size_t bound, size_t again)
{
    return pages > bound && pages >= again;
}
/* After a purge that left so many pages. */
HAK_INLINE size_t reserve_again(size_t left) { return 2 * left; }

typedef struct reserve_stats {
    size_t reservations;
    size_t reserved_bytes;
    size_t dirty_superslabs;
    size_t clean_superslabs;
    size_t nursery_superslabs;
    size_t nursery_touched_bytes;
    size_t pieces, piece_bytes;
} reserve_stats_t;
reserve_stats_t reserve_stats(reserve_t *reserve);

#endif
