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
 * Role: what a heap is, and how much it has committed. Callers: every level above. Memory: one
 * metadata page (more on a machine of many CPUs) holds the heap, its first area and the records of
 * its first size classes; more pages follow when they are needed (record.h).
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
enum { NURSERY_RUNS = 40 /* runs a heap takes from the nursery before it takes SuperSlabs */ };

enum { HEAP_COLOURS = 8 /* places for a heap in its page, a line apart */ };

/* What a level asks of every layer; one for each level, const. */
typedef struct policy {
    const char *name;
    /* free blocks carry a seal (block.h), which is proved wherever one is followed or handed out */
    bool sealed;
    bool starts; /* a free proves that the address is the start of a block */
    bool sizes;  /* a free that names a size proves it */
} policy_t;

enum { UNDIVIDED, DUE, DIVIDED }; /* whether CPUs have slabs of their own: see home.h */

/* What one CPU has of one class. */
typedef struct home {
    slab_set_t slabs; /* first: see home_next_set */
    chain_t seen;     /* its hot magazine, when others last sent blocks home */
    uint32_t still;   /* how often in a row that was the same */
} home_t;

/* One size class of one heap; made when the class is first used. */
typedef struct class_state {
    hak_lock_t lock;  /* rank CLASS; guards slabs and cold */
    uint16_t cls;     /* const */
    uint16_t one_way; /* lock: this; how often in a row `taker` was the same */
    remote_t remote;  /* atomic */
    _Atomic size_t
        /* blocks live or cached; written under the lock, read by what sizes magazines; relaxed */
        outside;
    slab_set_t shared; /* lock: this; slabs without a home */
    home_t *at_home;   /* lock: this; made when the class is divided */
    cold_t *cold;      /* lock: this; made at first use */
    uint16_t homes;    /* lock: this; of at_home */
    int16_t taker;     /* lock: this; the CPU that got the last blocks that another had given up */
    /* relaxed; of the blocks of `remote`, how many the budget is charged for; raised in the gate,
     * lowered under the lock */
    _Atomic uint32_t remote_charged;
} class_state_t;

_Static_assert(sizeof(class_state_t) <= 2 * HAK_LINE,
               "a heap has one for each class, and takes whole lines");

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
    _Atomic uint32_t missed; /* relaxed: allocations that no area served; some may be lost */
    hak_lock_t trim_lock;    /* rank TRIM: the order of `superslabs`, which trims turn */
    remote_t deferred;       /* mid and large blocks that wait for HEAP */

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
    policy_t policy;         /* const: what the level of `settings` asks for */
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

_Static_assert(offsetof(struct hak_heap, percpu) - offsetof(struct hak_heap, owner) +
                       offsetof(percpu_t, table) + PERCPU_FEWEST * sizeof(area_t *) ==
                   HAK_LINE,
               "a call reads one line of its heap where the machine has few CPUs");

/* The sections of malloc and free. They address the table from the heap. */
PERCPU_CALLS(heap, offsetof(struct hak_heap, percpu))

extern const policy_t heap_policies[]; /* by hak_level_t */
/* Whether a value is a live heap. Safe for every value: only the library's own pages are read. */
bool heap_is_valid(const hak_heap_t *heap);

/* The class that serves a size up to SMALL_MAX in this heap now. */
HAK_INLINE unsigned heap_class_of(const hak_heap_t *heap, size_t size)
{
    return size <= LOOKUP_MAX ? sizeclass_lookup(load_relaxed(&heap->lookup), size)
                              : sizeclass_of(size);
}

/* The record of a class; NULL where the class was never used. */
HAK_INLINE class_state_t *heap_class_made(const hak_heap_t *heap, unsigned cls)
{
    return load_acquire(&((hak_heap_t *)(uintptr_t)heap)->classes[cls]);
}

/* ---- What is committed; lock: HEAP ---- */

HAK_INLINE void heap_charge(hak_heap_t *heap, size_t bytes)
{
    size_t now = load_relaxed(&heap->committed) + bytes;
    store_relaxed(&heap->committed, now);
    if (now > load_relaxed(&heap->peak)) store_relaxed(&heap->peak, now);
}
HAK_INLINE void heap_uncharge(hak_heap_t *heap, size_t bytes)
{
    store_relaxed(&heap->committed, load_relaxed(&heap->committed) - bytes);
}
/* The same for records: part of what is committed. */
HAK_INLINE void heap_charge_records(hak_heap_t *heap, size_t bytes)
{
    store_relaxed(&heap->metadata, load_relaxed(&heap->metadata) + bytes);
    heap_charge(heap, bytes);
}
HAK_INLINE void heap_uncharge_records(hak_heap_t *heap, size_t bytes)
{
    store_relaxed(&heap->metadata, load_relaxed(&heap->metadata) - bytes);
    heap_uncharge(heap, bytes);
}

#endif
