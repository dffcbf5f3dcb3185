/* hakheap level 7: heap - hak_heap_t, composed of its layers; create, memory of its own, charging */
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
 * Role: what a heap is. Callers: api and the ladders. Memory: one metadata page holds the heap, its first area and the
 * records of its first size classes; more pages follow when they are needed.
 *
 *   metadata page
 *   +----------+------------+------+--------+------------------+
 *   |  small   | hak_heap_t | cold |  area  |  class records   |
 *   | records  |            |      |   0    |                  |
 *   +----------+------------+------+--------+------------------+
 *              ^ colour * 64 bytes: page-aligned heaps would all fall in the same cache sets
 *
 * Invariant (DESIGN, section 5): live + cached + free + untouched + metadata == committed.
 */
enum {
    NURSERY_RUNS = 40,     /* runs a heap takes from the nursery before it takes SuperSlabs */
    NURSERY_GRANULES = 16, /* longest such run */
    COARSE_RUNS = 16,      /* runs with which a heap uses the coarse classes */
};

/* One size class of one heap; made when the class is first used. */
typedef struct class_state {
    hak_lock_t lock;  /* rank CLASS; guards slabs and cold */
    uint32_t cls;     /* const */
    remote_t remote;  /* atomic */
    slab_set_t slabs; /* lock: this */
    cold_t *cold;     /* lock: this; made at first use */
} class_state_t;

typedef struct meta_page {
    struct meta_page *next;
    size_t pages;
} meta_page_t;

struct hak_heap {
    /* ---- line 0: every call ---- */
    entry_t owner;         /* const: what the registry's entries of this heap begin with */
    uint64_t key;          /* const: guard.key, here for its line */
    _Atomic size_t lookup; /* relaxed: CLASSES_COARSE, then CLASSES_FINE for ever; either serves at any time */
    percpu_t percpu;       /* its first 40 bytes are what sections read */

    /* ---- every slow path ---- */
    guard_t guard;                               /* const */
    _Atomic uint64_t magic;                      /* HEAP_MAGIC ^ address while the heap lives */
    budget_t budget;                             /* atomic: what magazines may still take */
    class_state_t *_Atomic classes[CLASS_COUNT]; /* atomic: NULL until made; release pairs with acquire */
    void *_Atomic deferred;                      /* atomic: mid and large blocks freed while the HEAP lock was busy */

    /* ---- lock: HEAP ---- */
    hak_lock_t lock;
    hak_lock_t areas_lock;       /* rank AREAS: percpu */
    superslab_set_t superslabs;  /* owned */
    char *nursery[NURSERY_RUNS]; /* starts of runs in the nursery */
    uint16_t nursery_granules[NURSERY_RUNS];
    uint32_t nursery_count;
    bool nursery_given; /* runs went back to the nursery with their pages since the last trim */
    large_set_t large;
    meta_page_t *pages;          /* all but the first */
    char *room[2], *room_end[2]; /* unused bytes of metadata pages */

    _Atomic size_t committed; /* atomic, relaxed: a figure */
    _Atomic size_t peak;
    _Atomic size_t metadata; /* part of committed */
    settings_t settings;     /* const */
    counters_t counters;

    area_t first_area __attribute__((aligned(HAK_LINE)));
};

#define HEAP_MAGIC 0x68616b6865617031ull

_Static_assert(offsetof(struct hak_heap, percpu) + offsetof(percpu_t, areas) <= HAK_LINE, "hot fields share a line");
_Static_assert(sizeof(struct hak_heap) + 8 * HAK_LINE <= HAK_PAGE || HAK_COUNTERS, "a page, with room for colours");

/* Once a process: keys, the mode of the magazines, the fork handlers. False: the C library refused the handlers. */
bool heap_start_process(void);
hak_heap_t *heap_create(const hak_heap_config_t *config, int *error);
/* Whether a value is a live heap. Safe for every value: only the library's own pages are read. */
bool heap_is_valid(const hak_heap_t *heap);

/* The class that serves a size up to SMALL_MAX in this heap now. */
HAK_INLINE unsigned heap_class_of(const hak_heap_t *heap, size_t size)
{
    return size <= LOOKUP_MAX ? sizeclass_lookup(load_relaxed(&heap->lookup), size) : sizeclass_of(size);
}

/* Zeroed memory for the heap's lifetime; lock: HEAP. NULL and hak_last_error() where refused. */
void *heap_record(hak_heap_t *heap, size_t bytes);
/* The same for a free: NULL, and no error, rather than wait. */
void *heap_record_now(hak_heap_t *heap, size_t bytes);
/* The record of a class, made where there is none; NULL where memory is refused. */
class_state_t *heap_class(hak_heap_t *heap, unsigned cls);
HAK_INLINE class_state_t *heap_class_made(const hak_heap_t *heap, unsigned cls)
{
    return load_acquire(&((hak_heap_t *)(uintptr_t)heap)->classes[cls]);
}

/* ---- Granules; lock: HEAP. The registry's entries are the heap's business, in these two. ---- */
run_t heap_take_run(hak_heap_t *heap, unsigned granules, unsigned alignment, unsigned code);
/* Gives a run back. False: may not wait, and the process's lock is busy; nothing has changed. */
bool heap_put_run(hak_heap_t *heap, run_t run, unsigned granules, pages_t pages, bool may_wait);
/* Gives an empty SuperSlab back to the reserve; false as heap_put_run. */
bool heap_put_superslab(hak_heap_t *heap, superslab_t *ss, bool may_wait);

/* All that a heap holds, given back at once: every block of it is gone. Destroy and reset. */
void heap_empty(hak_heap_t *heap);
void heap_destroy(hak_heap_t *heap);

void heap_charge(hak_heap_t *heap, size_t bytes);
HAK_INLINE void heap_uncharge(hak_heap_t *heap, size_t bytes) { sub_relaxed(&heap->committed, bytes); }

#endif
