/* hakheap level 7: heap - hak_heap_t: what a heap is composed of */
#ifndef HAK_HEAP_H
#define HAK_HEAP_H

#include "cold.h"
#include "counters.h"
#include "hakheap.h"
#include "large.h"
#include "ledger.h"
#include "meta.h"
#include "options.h"
#include "percpu.h"
#include "pocket.h"
#include "region.h"
#include "reserve.h"
#include "slab.h"
#include "tls.h"

/*
 * Role: what a heap is, and how much it has committed. Callers: every level above. Memory: the heap
 * lies in a granule of the process's record pages, its cradle, with its first blocks around it.
 * Pages for areas and class records follow when they are needed (record.h).
 *
 *   cradle, 16 KiB
 *   +--------+-------------------------------------------------------+---------------------------+
 *   | blocks | hak_heap_t: slow paths | maps of regions 0 to 2 | line | blocks, to the end of the |
 *   |        |                        |        of every call and table | granule                   |
 *   +--------+-------------------------------------------------------+---------------------------+
 *            ^ colour * 64 bytes: page-aligned heaps would all fall in the same cache sets
 *
 * Invariant: live + cached + free + untouched + metadata == committed.
 */
enum {
    /* of slabs' and mid blocks' runs that a heap takes from the nursery: as many granules as a
     * SuperSlab has, so that many runs at most */
    NURSERY_MOST = SUPERSLAB_GRANULES,
    REGION_MOST = 32, /* regions, the cradle's with them */
    REGIONS_NEAR = 3, /* whose maps are in the heap's own record */
};

enum { HEAP_COLOURS = 8 /* places for a heap in its page, a line apart */ };

/* What a level asks of every layer; one for each level, const. */
typedef struct policy {
    const char *name;
    /* free blocks carry a seal (block.h), which is proved wherever one is followed or handed out */
    bool sealed;
    bool starts; /* a free proves that the address is the start of a block */
    bool sizes;  /* a free that names a size proves it */
} policy_t;

/* How often a heap's regions gave a block for each that lives there: few times, or so often that
 * speed counts for more than density. Then classes move to slabs with fewer blocks, and where the
 * budget had room for all that pockets hold, those that stay have pockets. */
enum { CALM, BUSY_BARE, BUSY_POCKETS };

enum { LOOKS_BEFORE = 3 }; /* a class must have so many blocks at these, and at one more */

enum { UNDIVIDED, DUE, DIVIDED }; /* whether CPUs have slabs of their own: see home.h */

/* What one CPU has of one class. */
typedef struct home {
    slab_set_t slabs; /* first: see home_next_set */
    chain_t seen;     /* its hot magazine, when others last sent blocks home */
    uint32_t still;   /* how often in a row that was the same */
} home_t;

/* One size class of one heap; made when the class is first used. */
typedef struct class_state {
    hak_lock_t lock; /* rank CLASS; guards slabs and cold */
    uint8_t cls;     /* const */
    uint8_t one_way; /* lock: this; how often in a row `taker` was the same */
    /* as `outside`; blocks that slabs gave since one came back, as far as it can count */
    _Atomic uint16_t grown;
    remote_t remote; /* atomic */
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
    _Atomic uint32_t slabs; /* of all homes; as `outside` */
} class_state_t;

_Static_assert(sizeof(class_state_t) <= 3 * HAK_LINE,
               "a heap has one for each class, and takes whole lines");

/* Runs in the nursery; made at first use. */
typedef struct nursery {
    char *start[NURSERY_MOST];
    uint8_t granules[NURSERY_MOST];
} nursery_t;

/* Tables that few heaps need: made when they do. */
typedef struct classes {
    class_state_t *_Atomic at[CLASS_COUNT]; /* NULL until made; release pairs with acquire */
} classes_t;
typedef struct far_regions {
    region_t *_Atomic at[REGION_MOST - REGIONS_NEAR]; /* the same */
} far_regions_t;

typedef struct meta_page {
    struct meta_page *next;
    size_t pages;
} meta_page_t;

struct hak_heap {
    /* ---- every slow path ---- */
    _Atomic uint64_t magic;     /* HEAP_MAGIC ^ address while the heap lives */
    guard_t guard;              /* const */
    ledger_t *ledger;           /* const: behind the record; NULL: the heap counts nothing */
    budget_t budget;            /* atomic: what magazines may still take */
    class_bits_t made;          /* of classes; written under the HEAP lock */
    classes_t *_Atomic classes; /* never NULL; release pairs with acquire; made under HEAP */
    _Atomic uint32_t closed;    /* ordered: pairs with trim_close; 1: gives no blocks */
    _Atomic uint32_t divided;   /* relaxed: UNDIVIDED, DUE, then DIVIDED for ever */
    _Atomic uint32_t missed;    /* relaxed: allocations that no area served; some may be lost */
    hak_lock_t trim_lock;       /* rank TRIM: the order of `superslabs`, which trims turn */
    remote_t deferred;          /* mid and large blocks that wait for HEAP */

    /* ---- lock: HEAP ---- */
    hak_lock_t lock;
    hak_lock_t areas_lock;      /* rank AREAS: percpu */
    superslab_set_t superslabs; /* owned */
    nursery_t *nursery;         /* NULL until it is needed */
    uint32_t runs;              /* slabs, mid blocks, and regions but the cradle */
    uint32_t regions_looked;    /* so many regions there were at the last look; see refill.c */
    uint16_t nursery_count, nursery_granules;
    bool nursery_given; /* runs went back to the nursery with their pages since the last trim */
    size_t
        returned; /* bytes that went to the kernel on the way to the reserve; a trim takes them */
    large_set_t large;
    meta_page_t *pages;          /* all but the first */
    char *room[2], *room_end[2]; /* unused bytes of metadata pages */
    size_t coming;               /* bytes of large blocks that the chain has room for, and that are
                                  * not there yet */

    _Atomic size_t committed; /* these three: lock: this; read by anybody, relaxed: figures */
    _Atomic size_t peak;
    _Atomic size_t metadata; /* part of committed */
    settings_t settings;     /* const */
    policy_t policy;         /* const: what the level of `settings` asks for */
    counters_t counters;
    hak_on_destroy_t *_Atomic on_destroy; /* any thread adds; newest first; release and acquire */

    /* ---- regions: any thread ---- */
    far_regions_t *_Atomic far_regions; /* release pairs with acquire; made under HEAP */
    _Atomic size_t region_bytes; /* relaxed: of a class; what the settings say, 0 once closed */
    _Atomic uint32_t regions;    /* maps that there are; release pairs with acquire; under HEAP */
    /* Relaxed, a bit for each class: had a page's worth of blocks at the last looks of a busy heap,
     * the latest first; had it so often that slabs shall serve it. */
    _Atomic uint64_t region_many[LOOKS_BEFORE], region_leaves;
    _Atomic uint32_t busy; /* relaxed: CALM, then another until a reset; written in the gate */
    pocket_t pocket[POCKET_CLASSES]; /* atomic; of a class that has not moved */
    /* Relaxed, and an addition of two threads at a time may be lost: about so many blocks of a
     * class are in regions, those of its pocket with them. Only what serves a class follows from
     * it. */
    _Atomic uint16_t region_blocks[REGION_CLASSES];
    rooms_t region_rooms; /* hints, as in region.h: of regions, their longest holes */
    /* Hints: no hole of all regions has more units; a block that finds none goes to the tail of
     * this one; the page that is opened next is one of a third region, or of one behind it. */
    _Atomic uint8_t region_room, region_tail, region_opens;
    /* relaxed: takes that looked for a hole, since the heap was empty; some may be lost */
    _Atomic uint32_t region_takes;
    region_t near_region[REGIONS_NEAR];

    /* ---- the line of every call ---- */
    entry_t owner __attribute__((
        aligned(HAK_LINE))); /* const: what the registry's entries of this heap begin with */
    uint64_t key;            /* const: guard.key, here for its line */
    size_t lookup;           /* const: CLASSES_PLAIN, or CLASSES_MARKED in a CHECKED heap */
    percpu_t percpu;         /* its tables are the end of the record */
};

#define HEAP_MAGIC 0x68616b6865617031ull

_Static_assert(offsetof(struct hak_heap, percpu) - offsetof(struct hak_heap, owner) +
                       offsetof(percpu_t, table) + PERCPU_FEWEST * sizeof(area_t *) ==
                   HAK_LINE,
               "a call reads one line of its heap where the machine has few CPUs");

/* The sections of malloc and free. They address the table from the heap. */
PERCPU_CALLS(heap, offsetof(struct hak_heap, percpu))

extern const policy_t heap_policies[HAK_LEVEL_CHECKED + 1]; /* by hak_level_t */
/* Whether a value is a live heap. Safe for every value: only the library's own pages are read. */
bool heap_is_valid(const hak_heap_t *heap);

/* The record of a class; NULL where the class was never used. */
HAK_INLINE class_state_t *heap_class_made(const hak_heap_t *heap, unsigned cls)
{
    return load_acquire(&load_acquire(&((hak_heap_t *)(uintptr_t)heap)->classes)->at[cls]);
}
/* Whose classes are all not made. */
extern classes_t heap_no_classes;

/* A region's map, of those that there are. */
HAK_INLINE region_t *heap_region(hak_heap_t *heap, unsigned index)
{
    if (HAK_LIKELY(index < REGIONS_NEAR)) return &heap->near_region[index];
    /* Acquire: pairs with the releases in runs_take_region. */
    return load_acquire(&load_acquire(&heap->far_regions)->at[index - REGIONS_NEAR]);
}
/* A region has a hole of so many units. */
HAK_INLINE void heap_note_hole(hak_heap_t *heap, unsigned index, unsigned units)
{
    unsigned most = (unsigned)hak_min(units, REGION_ROOM);
    rooms_raise(&heap->region_rooms, index, most);
    if (load_relaxed(&heap->region_room) < most) store_relaxed(&heap->region_room, (uint8_t)most);
}
/* Forgets what the hints say of a region: others held its units for a while, or hints lag. */
HAK_INLINE void heap_look_again(hak_heap_t *heap, unsigned index)
{
    region_look_again(heap_region(heap, index));
    heap_note_hole(heap, index, REGION_ROOM);
}
/* Those that have a granule.
 *     FOR_REGIONS (region, heap) look(region);
 */
HAK_INLINE region_t *heap_region_from(hak_heap_t *heap, unsigned *index)
{
    uint32_t regions =
        load_acquire(&heap->regions); /* pairs with the release in runs_take_region */
    for (; *index < regions; ++*index) {
        region_t *region = heap_region(heap, *index);
        if (region_is_attached(region)) return region;
    }
    return NULL;
}
#define FOR_REGIONS(region, heap)                                                       \
    for (unsigned region##_at = 0, region##_once = 1; region##_once; region##_once = 0) \
        for (region_t *region = heap_region_from((heap), &region##_at); region;         \
             ++region##_at, region = heap_region_from((heap), &region##_at))

/* Whether a class has too few blocks to fill pages of its own, and magazines. */
HAK_INLINE bool heap_has_few(hak_heap_t *heap, unsigned cls)
{
    /* Relaxed, both: a guess. */
    if (load_relaxed(&heap->region_leaves) >> cls & 1) return false;
    size_t blocks = (size_t)load_relaxed(&heap->region_blocks[cls]) + 1;
    return blocks * size_classes[cls].bytes <= load_relaxed(&heap->region_bytes);
}
/* Whether regions serve a class: the one place that decides. A class that has moved to slabs stays
 * there. */
HAK_INLINE bool heap_in_regions(hak_heap_t *heap, unsigned cls)
{
    return cls < REGION_CLASSES && !heap_class_made(heap, cls) && heap_has_few(heap, cls);
}
/* Whether no hole has so many units, at most REGION_ROOM, so that a block goes to the tail without a
 * search. */
HAK_INLINE bool heap_has_no_hole(hak_heap_t *heap, unsigned units)
{
    return units > load_relaxed(&heap->region_room);
}
/* Where blocks go on that find no hole. */
HAK_INLINE region_t *heap_tail_region(hak_heap_t *heap)
{
    return heap_region(heap, load_relaxed(&heap->region_tail));
}

/* Regions have one block of a class more. */
HAK_INLINE void heap_note_taken(hak_heap_t *heap, unsigned cls)
{
    _Atomic uint16_t *blocks = &heap->region_blocks[cls];
    store_relaxed(blocks, (uint16_t)(load_relaxed(blocks) + 1));
}
/* And one less, of so many units. */
HAK_INLINE void heap_note_freed(hak_heap_t *heap, unsigned units)
{
    _Atomic uint16_t *blocks = &heap->region_blocks[sizeclass_of(units * REGION_UNIT)];
    uint16_t were = load_relaxed(blocks);
    store_relaxed(blocks, (uint16_t)(were - (were != 0)));
}

/* What the pocket of a class has; 0: nothing, or the class has none. */
HAK_INLINE uint64_t heap_pocket_word(const hak_heap_t *heap, unsigned cls)
{
    return cls < POCKET_CLASSES ? pocket_look(&heap->pocket[cls]) : 0;
}
/* The block that a pocket's word names first. */
HAK_INLINE void *heap_pocketed(hak_heap_t *heap, uint64_t word)
{
    /* Relaxed: its granule stays while a block is in it. */
    char *base = load_relaxed(&heap_region(heap, pocket_region(word))->base);
    return base + (size_t)pocket_unit(word) * REGION_UNIT;
}

/* Whether a heap gives no blocks any more. */
HAK_INLINE bool heap_is_closed(const hak_heap_t *heap)
{
    /* Ordered: pairs with trim_close, which sets it before it takes the areas. */
    return load_ordered(&((hak_heap_t *)(uintptr_t)heap)->closed);
}

/* ---- What is live, where the heap counts ---- */

HAK_INLINE bool heap_is_tight(const hak_heap_t *heap)
{
    return heap->ledger && ledger_is_tight(heap->ledger);
}
/* Whether a heap may charge what it takes of its slabs; about. */
HAK_INLINE bool heap_may_charge(const hak_heap_t *heap)
{
    return HAK_LIKELY(!heap->ledger) || ledger_is_free(heap->ledger);
}
/* Charges so many bytes to what the heap has borrowed, without a lock or the gate; false: there is
 * too little of that, or so much that some goes back. */
HAK_INLINE bool heap_lends(const hak_heap_t *heap, size_t bytes)
{
    return ledger_grab_needed(heap->ledger, bytes);
}
/* Charges a block, unless it is charged; false: the chain does not lend it at once. */
HAK_INLINE bool heap_take_charge(const hak_heap_t *heap, size_t bytes, bool charged)
{
    return HAK_LIKELY(!heap->ledger) || charged || ledger_take(heap->ledger, bytes);
}
/* There is no block. */
HAK_INLINE void heap_put_charge(const hak_heap_t *heap, size_t bytes, bool charged)
{
    if (heap->ledger && !charged) ledger_uncharge(heap->ledger, bytes);
}
HAK_INLINE void heap_refund(hak_heap_t *heap, size_t bytes)
{
    if (HAK_UNLIKELY(heap->ledger != NULL) && bytes) ledger_refund(heap->ledger, bytes);
}
/* Blocks were freed that wait for another thread. */
HAK_INLINE void heap_note_waiting(hak_heap_t *heap)
{
    if (HAK_UNLIKELY(heap->ledger != NULL)) ledger_note_freed(heap->ledger);
}
/* Whether a heap may have areas and fill its caches: a tight one, and one that is closed, may not. */
HAK_INLINE bool heap_may_cache(const hak_heap_t *heap)
{
    return !heap_is_tight(heap) && !heap_is_closed(heap);
}
/* Room in the budget of magazines and cold chains. */
HAK_INLINE bool heap_budget_take(hak_heap_t *heap, size_t bytes)
{
    /* The budget first: one that is spent is asked for less and less. */
    if (!budget_take(&heap->budget, bytes)) return false;
    bool may = heap_may_cache(heap);
    if (HAK_UNLIKELY(!may)) budget_put(&heap->budget, bytes);
    return may;
}

/* The same inside the gate: of what the heap has borrowed and does not need some goes back. Never
 * waits. */
HAK_INLINE void heap_refund_inside(hak_heap_t *heap, size_t bytes)
{
    if (HAK_UNLIKELY(heap->ledger != NULL) && bytes) ledger_refund_inside(heap->ledger, bytes);
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

/*
 * ---- The footprint of a heap that counts; lock: HEAP ----
 *
 *     granules in use + free pages that may have been written + large blocks + records
 *
 * That is what is committed, but for free pages of its SuperSlabs that were never written. A call
 * that makes it larger asks heap_admit before it touches anything; one that makes it smaller ends in
 * heap_settle.
 */
HAK_INLINE size_t heap_footprint(const hak_heap_t *heap)
{
    const superslab_set_t *set = &heap->superslabs;
    size_t untouched = set->free_granules * GRANULE - set->free_touched * HAK_PAGE;
    return load_relaxed(&((hak_heap_t *)(uintptr_t)heap)->committed) - untouched + heap->coming;
}
/* Whether the limits have room for the footprint and so many bytes more. False, and where it may
 * wait hak_last_error(): they have not. */
HAK_INLINE bool heap_admit(hak_heap_t *heap, size_t more, bool may_wait)
{
    if (HAK_LIKELY(!heap->ledger)) return true;
    size_t footprint = heap_footprint(heap) + more;
    if (ledger_covers(heap->ledger, footprint)) return true;
    if (ledger_admit(heap->ledger, footprint, may_wait)) return true;
    if (may_wait) hak_tls.last_error = HAK_ERROR_LIMIT;
    return false;
}
/* A free, which may not wait, leaves the room for what comes next, as far as the ledger allows. */
HAK_INLINE void heap_settle(hak_heap_t *heap, bool may_wait)
{
    if (HAK_LIKELY(!heap->ledger)) return;
    size_t footprint = heap_footprint(heap);
    if (may_wait ? ledger_is_settled(heap->ledger, footprint)
                 : ledger_keeps(heap->ledger, footprint))
        return;
    ledger_settle_at(heap->ledger, footprint, may_wait);
}

#endif
