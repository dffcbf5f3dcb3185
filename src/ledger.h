/* hakheap level 6: ledger - what heaps may have live, in trees: limits, leases, credits */
#ifndef HAK_LEDGER_H
#define HAK_LEDGER_H

#include "base.h"
#include "hakheap.h"

/*
 * Role: counts what metered heaps have live, so that no heap of a tree, with all below it, is above
 * its limit. Callers: recall, tree, life, and the ladders, which charge and refund. Memory: each
 * ledger is a part of its heap's record. Nothing here knows of blocks or caches.
 *
 *   root     sum <= limit           sum == lease + the sums of the children
 *    |- heap sum <= limit           lease - credit == bytes of blocks that are outside of slabs, regions
 *    |                              and runs: live, cached, or in a thread's hands
 *    `- heap
 *
 * A heap borrows from its chain, itself and all above it, more than it needs at once: its lease. What
 * no block has of that is its credit, which the next blocks take by a compare-and-swap, and which
 * frees give back to: no lock, no step up the tree. Where a chain has no room, credits and caches of
 * all heaps below the one that is full are recalled (recall.c). So whether a request is refused
 * follows from what is live, and not from who has borrowed what.
 *
 * A heap whose chain was recalled a short while ago, and is still nearly full, is tight: it borrows a
 * block at a time, and caches nothing: it has no area, and no budget. So there is nothing to fence
 * when it is refused again, and a heap that hammers its limit causes ten fences a second at most.
 *
 * Lock: TREE, one of the process, taken here: a few steps for each level of the tree, or for
 * LEDGER_AT_ONCE ledgers. Nothing else is locked, called or waited for under it.
 *
 * Invariants: the two of the picture, whenever TREE is free; sum <= limit at every moment, because
 * all of a chain is asked before anything is added.
 */
enum {
    LEDGER_DEPTH = 32,      /* heaps from the root to the deepest */
    LEDGER_AT_ONCE = 64,    /* ledgers of one step of a recall */
    LEDGER_SHARE = 64,      /* of the room in its chain a heap borrows such a part ahead, */
    LEDGER_AHEAD = HAK_MIB, /* and no more than this, */
    LEDGER_OF_LEASE = 8,    /* than such a part of what it has, and a page; */
    LEDGER_SLACK = 8,       /* a recall that leaves less than such a part of a limit makes tight, */
    LEDGER_TIGHT_MS = 100   /* for so long; and one that comes so soon after another */
};

#define LEDGER_NO_LIMIT SIZE_MAX

/* Which heap is full, and whom it tells. A copy: the heap itself may go. */
typedef struct refused {
    hak_heap_t *heap;
    hak_pressure_fn on_pressure;
    void *ctx;
} refused_t;

typedef struct ledger {
    /* Ordered: pairs of `tight` and `credit` are written one after the other, and read in the other
     * order: see ledger_refund. Any thread. */
    _Atomic size_t credit;
    _Atomic uint32_t tight;
    uint16_t height; /* lock: TREE, as all that follows; of the tree below it, at least; 1: alone */
    bool away;       /* is emptied, or leaves: a recall passes it by */
    bool squeezed;   /* what is below was recalled a short while ago, and is tight */
    uint32_t squeezed_at; /* milliseconds of the clock: when the last recall has ended, or, where it
                           * is squeezed no more, when that has */
    uint32_t pins;        /* steps of recalls that are at it */
    uint32_t stamp, done; /* the last recall that was at it, and that was at all below it */
    struct ledger *parent, *first, *last, *next, *prev;
    refused_t own;        /* const: whose ledger it is */
    _Atomic size_t lease; /* these: lock: TREE; read by anybody, relaxed: figures */
    _Atomic size_t sum;
    _Atomic size_t limit;
    _Atomic size_t peak;     /* of sum */
    _Atomic size_t refusals; /* requests refused because this heap is full */
    /* The epoch of such a refusal, and the bytes asked for: as long as nothing is freed, so many are
     * refused again. */
    uint64_t refused_at;
    size_t refused_size;
    const struct ledger *refused_by; /* what refused this heap's last request; it may be gone */
} ledger_t;

/* ---- Any thread, no lock ---- */

/* Takes up to n times so many bytes from the credit. Returns how many times; 0: borrow. */
size_t ledger_grab(ledger_t *ledger, size_t bytes, size_t n);
/* Bytes that no block has any more; after the block is free for others. Never waits. */
void ledger_refund(ledger_t *ledger, size_t bytes);
/* Something of a tight heap was freed that is not refunded yet. */
void ledger_note_freed(ledger_t *ledger);
HAK_INLINE bool ledger_is_tight(const ledger_t *ledger)
{
    /* Ordered: pairs with ledger_step, which sets it before it takes the credit. */
    return load_ordered(&((ledger_t *)(uintptr_t)ledger)->tight);
}
/* What the chain owes for this heap, and what blocks have of it; while others work, about. */
size_t ledger_live(const ledger_t *ledger);

/* ---- What follows takes TREE ---- */

/* Begins as a root, or below a parent. False: the tree would be deeper than LEDGER_DEPTH. */
bool ledger_join(ledger_t *ledger, ledger_t *parent, size_t limit);
/* From here on no recall comes to it. False: one is at it now, and this is to be asked again. */
bool ledger_hide(ledger_t *ledger);
/* All of its lease goes back: its blocks are gone. It was hidden; recalls come again. */
void ledger_clear(ledger_t *ledger);
/* Leaves the tree with its lease; it is hidden, and has no children. */
void ledger_leave(ledger_t *ledger);
/* Some child, or NULL. */
ledger_t *ledger_child(const ledger_t *ledger);

typedef enum ledger_answer { LEDGER_DONE, LEDGER_FULL, LEDGER_LOOP, LEDGER_DEEP } ledger_answer_t;
/* Moves a heap, with all below it, under another parent; NULL: it becomes a root. LEDGER_FULL: *full,
 * of the chain, has no room for what is borrowed; LEDGER_LOOP: the parent is below the heap. */
ledger_answer_t ledger_move(ledger_t *ledger, ledger_t *parent, ledger_t **full);
/* False: more than that is borrowed; nothing has changed. */
bool ledger_set_limit(ledger_t *ledger, size_t limit);

/* What refused a request. */
typedef struct borrowed {
    ledger_t *full; /* the lowest of the chain without room; NULL: none, and the bytes are the
                     * caller's */
    bool again; /* no recall helps: it is more than the limit, or was refused since the last one,
                     * and nothing was freed since */
    refused_t by;
} borrowed_t;
/* Bytes for the caller, and some ahead as credit. */
borrowed_t ledger_borrow(ledger_t *ledger, size_t bytes, uint32_t now);
/* Notes that `full` refused so many bytes after a whole recall that began in this epoch. */
void ledger_note_refused(ledger_t *ledger, const ledger_t *full, size_t bytes, uint64_t epoch);
/* The same where that was known. */
void ledger_note_again(ledger_t *ledger, const ledger_t *full);
/* What refused the last request, where it is still above; NULL: none. */
hak_heap_t *ledger_refused_by(ledger_t *ledger);
uint64_t ledger_epoch(void);

/* ---- A recall: begin, steps until there is no more, end; one at a time ---- */

typedef struct recall {
    ledger_t *of;  /* the heap that asks: it lives */
    ledger_t *top; /* all below this; an ancestor of `of`, or itself */
    uint32_t serial;
    uint32_t now; /* milliseconds */
    bool more;
    bool again; /* the last one, or the time that it was squeezed, ended a short while ago */
    size_t count;
    ledger_t *at[LEDGER_AT_ONCE]; /* of this step; pinned */
} recall_t;

void ledger_begin(recall_t *recall, ledger_t *of, ledger_t *top, uint32_t now);
/* The next ledgers, which are tight from here on. */
void ledger_step(recall_t *recall);
/* The credits of the step's ledgers go back, and their pins. */
void ledger_settle(recall_t *recall);
/* All was recalled. */
void ledger_end(recall_t *recall, uint32_t now);

/* Proves the sums of a whole tree; false: one is wrong. For tests and checks. */
bool ledger_is_sound(ledger_t *ledger);

#endif
