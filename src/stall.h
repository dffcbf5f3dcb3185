/* hakheap level 1: stall - places where a test may hold a thread, in builds with DEBUG=1 */
#ifndef HAK_STALL_H
#define HAK_STALL_H

#include "base.h"

/*
 * Role: a race has a moment at which it opens. STALL(name) marks such a moment in the code. A test
 * arms a point with a function, which the thread that reaches the point runs there. So a test opens
 * a race at will, and does not wait for luck. Callers: every level above; tests arm
 * (tests/support_stall.h). In release builds STALL is empty, and no object has any of this.
 *
 * The function may take its time, and may wait, with a bound, for other threads. It holds what the
 * row of its point says. A lock that stands in parentheses is held on some of the ways that lead
 * there. So:
 *
 *   - the thread itself may do what a signal handler may do that came at this point;
 *   - other threads may call everything. A call that needs a lock of the row, or a fork where the
 *     row says "gate", waits until the function has returned. A free does not wait, but for what
 *     hak_heap_free says.
 *
 * Cost of a point that is not armed: one load.
 *
 * One row a point: its name, what is held, what has happened and what is yet to happen.
 */
/* clang-format off */
#define STALL_POINTS(X)                                                                            \
    X(areas_halted,       "gate AREAS (TRIM)",      "areas are halted; not yet fenced")            \
    X(areas_fenced,       "gate AREAS (TRIM)",      "the fence is over; no word is taken yet")     \
    X(word_read,          "gate AREAS (TRIM)",      "a halted word is read; not yet emptied")      \
    X(area_stolen,        "gate AREAS (TRIM)",      "a halted area is empty; not yet restarted")   \
    X(twin_chosen,        "gate (AREAS)",           "an area is chosen; not yet its try-lock")     \
    X(area_made,          "gate AREAS",             "an area is made; no index has it yet")        \
    X(outbox_made,        "gate HEAP",              "an outbox is made; no area has it yet")       \
    X(class_missed,       "gate",                   "a class has no record; not yet HEAP")         \
    X(remote_linked,      "(gate HEAP)",            "a list's head is read; not yet the push")     \
    X(remote_pushed,      "(gate)",                 "blocks are on a list; not yet charged")       \
    X(remote_taken,       "gate (TRIM CLASS HEAP)", "a list is taken; not yet noted as taken")     \
    X(free_in_hand,       "",                       "a free has the hot chain in hand")            \
    X(refill_in_hand,     "gate",                   "a refill has a chain in hand")                \
    X(slab_retiring,      "gate CLASS HEAP (TRIM)", "a slab is in no set; not yet its granules")   \
    X(slab_looked_at,     "gate TRIM",              "an entry is read; not yet the CLASS lock")    \
    X(home_moving,        "gate CLASS",             "a slab changed sets; not yet its entries")    \
    X(home_taken_over,    "gate CLASS",             "slabs have moved; not yet cold chains")       \
    X(limit_charged,      "gate",                   "the budget is charged; not yet the limit")    \
    X(limit_read,         "gate",                   "a limit is read; not yet lowered")            \
    X(limit_halved,       "gate",                   "a limit is lowered; not yet credited")        \
    X(deferred_pushed,    "(gate HEAP)",            "a mid or large block is deferred")            \
    X(deferred_counted,   "gate HEAP (TRIM)",       "what is deferred is counted; none is taken")  \
    X(superslab_leaving,  "gate HEAP (TRIM CLASS)", "in no set; not yet in the reserve")           \
    X(superslab_left,     "gate HEAP (TRIM CLASS)", "in the reserve; the heap is still charged")   \
    X(superslab_unlisted, "gate HEAP (TRIM CLASS)", "in no list; not yet the kernel's")            \
    X(nursery_given,      "gate HEAP (TRIM CLASS)", "a run is given; its heap still names it")     \
    X(superslab_purged,   "gate TRIM",              "its free pages are gone; not yet slabs'")     \
    X(large_buried,       "gate (HEAP TRIM)",       "a block has its tombstone; still mapped"  )   \
    X(pieces_moved,       "gate",                   "pieces are in no set; not yet a block")        \
    X(piece_dropped,      "gate (TRIM)",            "a piece is in no set; not yet unmapped")      \
    X(large_read,         "(gate)",                 "a record is read; not yet looked at again")   \
    X(pocket_putting,     "",                       "a block is given up, and in no pocket yet")   \
    X(pocket_left,        "",                       "a block is in no pocket; not yet free")       \
    X(region_part_taken,  "",                       "a part of a block's units is taken")          \
    X(region_put_held,    "",                       "a block's first unit is held; not yet free")  \
    X(region_opening,     "",                       "a page's bit is set; its units are held")     \
    X(recall_stepped,     "gate SQUEEZE",           "heaps are tight and pinned; not yet flushed")  \
    X(recall_refused,     "gate SQUEEZE",           "a chain has refused once more; not yet noted") \
    X(tree_held,          "gate TREE",              "limits are changed; not yet told to others")  \
    X(gate_counted,       "gate",                   "a thread is counted in; it has not looked")   \
    X(gate_waiting,       "",                       "found closed; not yet asleep")                \
    X(gate_closed,        "GATE_CLOSE",             "a fork has the gate closed and empty")        \
    X(gate_opening,       "GATE_CLOSE",             "in the child: all is whole; not yet open")
/* clang-format on */

#define STALL_NUMBER(name, held, words) STALL_##name,
typedef enum stall_point { STALL_POINTS(STALL_NUMBER) STALL_COUNT } stall_point_t;
#undef STALL_NUMBER

/* Memory of the test that arms; lives until no thread can reach the point any more. */
typedef struct stall {
    void (*run)(void *ctx); /* const while armed */
    void *ctx;
    uint32_t nth;            /* the visit that runs it, from 1; const while armed */
    _Atomic uint32_t visits; /* relaxed: since it was armed; any thread */
} stall_t;

/* NULL: not armed. Written by tests only; release pairs with the acquire in STALL. */
extern stall_t *_Atomic stall_armed[STALL_COUNT];

#if HAK_DEBUG
void stall_reached(stall_t *stall);

#define STALL(name)                                                     \
    do {                                                                \
        stall_t *stall_here = load_acquire(&stall_armed[STALL_##name]); \
        if (HAK_UNLIKELY(stall_here)) stall_reached(stall_here);        \
    } while (0)
#else
#define STALL(name) \
    do {            \
    } while (0)
#endif

#endif
