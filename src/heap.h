/* hakheap level 7: heap - hak_heap_t: what a heap is composed of */
#ifndef HAK_HEAP_H
#define HAK_HEAP_H

#include "cold.h"
#include "counters.h"
#include "hakheap.h"
#include "large.h"
#include "meta.h"
#include "options.h"
#include "percpu.h"
#include "reserve.h"
#include "slab.h"

/*
 * Role: what a heap is. Callers: api and the ladders. Memory: one metadata page (more on a machine
 * of many CPUs) holds the heap, its first area and the records of its first size classes; more
 * pages follow when they are needed.
 *
 *   metadata page
 *   +----------+-----------------------------------------------------+------------------+
 *   |  small   | hak_heap_t: slow paths | area 0 | line of every call |  class records   |
 *   | records  |                        |        | and table          |                  |
 *   +----------+-----------------------------------------------------+------------------+
 *              ^ colour * 64 bytes: page-aligned heaps would all fall in the same cache sets
 *
 * Invariant: live + cached + free + untouched + metadata == committed.
 */
enum {
    FEWEST_HOMES = 2,      /* records for homes, at first */
    NURSERY_RUNS = 40,     /* runs a heap takes from the nursery before it takes SuperSlabs */
    NURSERY_GRANULES = 16, /* longest such run */
    DIVIDE_RUNS = 128,     /* with which each CPU gets slabs of its own; */
    DIVIDE_SLABS = 8,      /* or with so many of one class; */
    DIVIDE_ONE_WAY = 32,   /* or when blocks of a class went to one CPU so often and never back */
    COARSE_RUNS = 16,      /* runs with which a heap uses the coarse classes */
    /* Looks at a home, one for each outbox of its blocks that fills up, after which it is idle. A
     * thread that only waits its turn must not lose its slabs: with 3, two threads that free in
     * batches share half of their cache lines; with 32, 0.3 % (bench/sharing.c). */
    HOME_STILL = 32,
};

enum { UNDIVIDED, DUE, DIVIDED };

/* What one CPU has of one class. */
typedef struct home {
    slab_set_t slabs; /* first: see heap_next_set */
    chain_t seen;     /* its hot magazine, when others last sent blocks home */
    uint32_t still;   /* how often in a row that was the same */
} home_t;

/* One size class of one heap; made when the class is first used. */
typedef struct class_state {
    hak_lock_t lock; /* rank CLASS; guards slabs and cold */
    uint32_t cls;    /* const */
    remote_t remote; /* atomic */
    _Atomic size_t
        /* blocks live or cached; written under the lock, read by who sizes magazines; relaxed */
        outside;
    slab_set_t shared; /* lock: this; slabs without a home */
    home_t *at_home;   /* lock: this; made when the class is divided */
    cold_t *cold;      /* lock: this; made at first use */
    uint16_t homes;    /* lock: this; of at_home */
    int16_t taker;     /* lock: this; the CPU that got the last blocks that another had given up */
    uint32_t one_way;  /* lock: this; how often in a row that was the same */
} class_state_t;

_Static_assert(sizeof(class_state_t) <= 2 * HAK_LINE,
               "a heap has one for each class, and takes whole lines");

/* The sets of a class one after another, `shared` first; lock: CLASS. */
HAK_INLINE slab_set_t *heap_next_set(class_state_t *state, const slab_set_t *set)
{
    size_t next = set == &state->shared
                      ? 0
                      : (size_t)((const home_t *)(const void *)set - state->at_home) + 1;
    return next < state->homes ? &state->at_home[next].slabs : NULL;
}
HAK_INLINE slab_set_t *heap_set_of(class_state_t *state, unsigned home)
{
    return home < state->homes ? &state->at_home[home].slabs : &state->shared;
}

typedef struct meta_page {
    struct meta_page *next;
    size_t pages;
} meta_page_t;

struct hak_heap {
    /* ---- every slow path ---- */
    _Atomic uint64_t magic; /* HEAP_MAGIC ^ address while the heap lives */
    guard_t guard;          /* const */
    budget_t budget;        /* atomic: what magazines may still take */
    class_bits_t made;      /* of classes; written under the HEAP lock */
    class_state_t
        *_Atomic classes[CLASS_COUNT]; /* atomic: NULL until made; release pairs with acquire */
    _Atomic uint32_t divided;          /* relaxed: UNDIVIDED, DUE, then DIVIDED for ever */
    hak_lock_t trim_lock;              /* rank TRIM: the order of `superslabs`, which trims turn */
    void *_Atomic deferred; /* atomic: mid and large blocks freed while the HEAP lock was busy */

    /* ---- lock: HEAP ---- */
    hak_lock_t lock;
    hak_lock_t areas_lock;       /* rank AREAS: percpu */
    superslab_set_t superslabs;  /* owned */
    char *nursery[NURSERY_RUNS]; /* starts of runs in the nursery */
    uint16_t nursery_granules[NURSERY_RUNS];
    uint32_t runs; /* slabs and mid blocks */
    uint16_t nursery_count;
    bool nursery_given; /* runs went back to the nursery with their pages since the last trim */
    bool first_area_used;
    size_t
        returned; /* bytes that went to the kernel on the way to the reserve; a trim takes them */
    large_set_t large;
    meta_page_t *pages;          /* all but the first */
    char *room[2], *room_end[2]; /* unused bytes of metadata pages */

    _Atomic size_t committed; /* these three: lock: this; read by anybody, relaxed: figures */
    _Atomic size_t peak;
    _Atomic size_t metadata; /* part of committed */
    settings_t settings;     /* const */
    counters_t counters;

    area_t first_area __attribute__((aligned(HAK_LINE)));

    /* ---- the line of every call ---- */
    entry_t owner __attribute__((
        aligned(HAK_LINE))); /* const: what the registry's entries of this heap begin with */
    uint64_t key;            /* const: guard.key, here for its line */
    /* Relaxed: CLASSES_COARSE, then CLASSES_FINE for ever; either serves at any time. Marked:
     * CHECKED. */
    _Atomic size_t lookup;
    percpu_t percpu; /* its tables are the end of the record */
};

#define HEAP_MAGIC 0x68616b6865617031ull

_Static_assert(offsetof(struct hak_heap, percpu) == PERCPU_AT, "sections know this place");

/* Once a process: keys, the mode of the magazines, the fork handlers. False: the C library refused
 * the handlers. */
bool heap_start_process(void);
hak_heap_t *heap_create(const hak_heap_config_t *config, int *error);
/* Whether a value is a live heap. Safe for every value: only the library's own pages are read. */
bool heap_is_valid(const hak_heap_t *heap);

/* The class that serves a size up to SMALL_MAX in this heap now. */
HAK_INLINE unsigned heap_class_of(const hak_heap_t *heap, size_t size)
{
    return size <= LOOKUP_MAX ? sizeclass_lookup(load_relaxed(&heap->lookup), size)
                              : sizeclass_of(size);
}

/* Zeroed memory for the heap's lifetime; lock: HEAP. NULL and hak_last_error() where refused. */
void *heap_record(hak_heap_t *heap, size_t bytes);
/* The same for a free: NULL, and no error, rather than wait. */
void *heap_record_now(hak_heap_t *heap, size_t bytes);
/* A zeroed area: the heap's own, or a record; lock: HEAP. */
area_t *heap_area(hak_heap_t *heap, bool may_wait);
/* The record of a class, made where there is none; NULL where memory is refused. */
class_state_t *heap_class(hak_heap_t *heap, unsigned cls);
HAK_INLINE class_state_t *heap_class_made(const hak_heap_t *heap, unsigned cls)
{
    return load_acquire(&((hak_heap_t *)(uintptr_t)heap)->classes[cls]);
}

/*
 * ---- Homes; lock: CLASS. ----
 *
 * In a heap of more than a few runs each CPU takes blocks from slabs of its own, and blocks go back
 * to their slab's home: blocks of two CPUs in one cache line, or in two that a prefetcher fetches
 * together, cost each of them a miss whenever the other writes. (mimalloc keeps threads apart in
 * the same way, by pages that a thread owns; here a home is a hint in the granule's entry, and a
 * CPU that is out of blocks takes over a slab that its home hardly uses.) A small heap is not
 * divided: its CPUs share slabs, because few blocks in many slabs cost more in pages than they save
 * in lines. All classes are divided at once: a free whose branch meets slabs with and without a
 * home in turn is guessed wrong half the time.
 */
HAK_INLINE bool heap_is_divided(const hak_heap_t *heap)
{
    return load_relaxed(&heap->divided) != UNDIVIDED;
}
HAK_INLINE void heap_divide_soon(hak_heap_t *heap)
{
    uint32_t undivided = UNDIVIDED;
    (void)cas_relaxed(&heap->divided, &undivided, (uint32_t)DUE);
}
/* Once, when the heap has grown enough: gives all slabs to the CPU that runs. No lock is held. */
void heap_divide(hak_heap_t *heap, int index);
/* The home of what a CPU takes from slabs; HOME_NONE in an undivided heap, and where memory for its
 * set is refused, or would have to be waited for. */
unsigned heap_home(hak_heap_t *heap, class_state_t *state, int index, bool may_wait);
/* Whether a home's CPU has done nothing with a class, as far as the last few calls show. */
bool heap_home_is_idle(hak_heap_t *heap, class_state_t *state, unsigned home);
/* Moves all that a home has of a class to another. */
void heap_take_over(class_state_t *state, unsigned from, unsigned to);
/* Moves a slab to another home. */
void heap_rehome(class_state_t *state, slab_t *slab, unsigned home);

/* ---- Granules; lock: HEAP. The registry's entries are the heap's business, in these two. ---- */
run_t heap_take_run(hak_heap_t *heap, unsigned granules, unsigned alignment, unsigned code);
/* Gives a run back. False: may not wait, and the process's lock is busy; nothing has changed. */
bool heap_put_run(hak_heap_t *heap, run_t run, unsigned granules, pages_t pages, bool may_wait);
/* Makes a run of one block longer or shorter where it is. False: it is the nursery's, or what
 * follows is not free. */
bool heap_resize_run(hak_heap_t *heap, run_t run, unsigned granules, unsigned wanted);
/* Gives an empty SuperSlab back to the reserve; false as heap_put_run. */
bool heap_put_superslab(hak_heap_t *heap, superslab_t *ss, bool may_wait);

/* Unmaps a large block that large_evict took out. False, and hak_last_error(), where the kernel
 * refuses: nothing has changed, and it is in no list. Lock: HEAP. */
bool heap_drop_large(hak_heap_t *heap, large_t *large, large_t *tombstone);

/* All that a heap holds, given back at once: every block of it is gone. Destroy and reset. */
void heap_empty(hak_heap_t *heap);
void heap_destroy(hak_heap_t *heap);

/* Lock: HEAP. */
void heap_charge(hak_heap_t *heap, size_t bytes);
HAK_INLINE void heap_uncharge(hak_heap_t *heap, size_t bytes)
{
    store_relaxed(&heap->committed, load_relaxed(&heap->committed) - bytes);
}

#endif
