/* hakheap level 6: ledger - what heaps may have live and in use, in trees: limits, leases, credits */
#ifndef HAK_LEDGER_H
#define HAK_LEDGER_H

#include "base.h"
#include "hakheap.h"

/*
 * Role: counts what metered heaps have live, and the memory that they use for it, their footprint,
 * so that no heap of a tree, with all below it, is above its limits. Callers: recall, tree, life, and
 * the ladders, which charge and refund. Memory: each ledger is a part of its heap's record. Nothing
 * here knows of blocks or caches.
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
 * The footprint is the second measure, in the same tree: sums and limits of its own, but no credit.
 * Its lease is what the heap has in use: the ladders ask before memory is touched (ledger_admit), and
 * say what is left once some is gone (ledger_settle), with the heap's lock held. Both name the whole
 * figure, and no difference, so that nothing adds up that was lost. A large block names its own bytes,
 * which is quicker; the next whole figure puts right what that might lose, and the check compares.
 *
 * What frees leave of a lease stays with the heap for what comes next, up to `idle` and `keep`: of what is live
 * a part of the lease, of both measures as much as might be borrowed ahead. Nothing more than a part
 * of the lease stays below a soft limit, which would not see what was freed, and nothing at all in a
 * tight heap. A trim, a reset and a recall return all of it.
 *
 * A soft limit refuses nothing. A heap whose sum of what is live passes it is due: whoever asked tells
 * it, once, and not again before the sum has come below LEDGER_CALM of it.
 *
 * Lock: TREE, one of the process, taken here: a few steps for each level of the tree, or for
 * LEDGER_AT_ONCE ledgers. Nothing else is locked, called or waited for under it.
 *
 * Invariants: the two of the picture, whenever TREE is free; sum <= limit at every moment, because
 * all of a chain is asked before anything is added; so for both measures. Of the footprint, lease
 * >= footprint at every moment, and more where TREE was busy when memory went, and where a free has
 * left room.
 */
enum {
    LEDGER_DEPTH = 32,      /* heaps from the root to the deepest */
    LEDGER_AT_ONCE = 64,    /* ledgers of one step of a recall */
    LEDGER_SHARE = 64,      /* of the room in its chain a heap borrows such a part ahead, */
    LEDGER_AHEAD = HAK_MIB, /* and no more than this, */
    LEDGER_OF_LEASE = 8,    /* than such a part of what it has, and a page; */
    LEDGER_SLACK = 8,       /* a recall that leaves less than such a part of a limit makes tight, */
    LEDGER_TIGHT_MS = 100,  /* for so long; and one that comes so soon after another */
    LEDGER_CALM = 8,        /* a soft limit is passed once more when such a part of it was free, */
    LEDGER_IDLE = 4,        /* and a heap that has such a part of its lease as credit returns it, */
    LEDGER_KEEP = 32 * HAK_MIB /* but as much as it might borrow ahead, up to this, it may keep */
};

enum { LIVE, FOOTPRINT, MEASURES };

#define LEDGER_NO_LIMIT SIZE_MAX

/* Which heap is full, and whom it tells. A copy: the heap itself may go. */
typedef struct refused {
    hak_heap_t *heap;
    hak_pressure_fn on_pressure;
    void *ctx;
} refused_t;

/* What is counted up to the root. Lock: TREE; what is atomic is read by anybody, relaxed: figures. Of
 * the footprint the lease is written under the heap's lock, too. */
typedef struct measure {
    _Atomic size_t lease;
    _Atomic size_t sum;
    _Atomic size_t limit;
    _Atomic size_t peak;     /* of sum */
    _Atomic size_t refusals; /* requests refused because this heap is full */
    /* The epoch of such a refusal, and the bytes asked for: as long as nothing is freed, so many are
     * refused again. */
    uint64_t refused_at;
    size_t refused_size;
} measure_t;

/* What has become of a soft limit: it is not passed, or passed and to be told, or told. */
typedef enum soft_state { SOFT_BELOW, SOFT_DUE, SOFT_TOLD } soft_state_t;

/* Why a heap's requests fail: its own limit, one above, the system; or it is closed, or a signal
 * handler asked that has interrupted the library. */
enum { FAILED_HERE, FAILED_ABOVE, FAILED_SYSTEM, FAILED_TURNED, FAILURES };

typedef struct ledger {
    /* Ordered: pairs of `tight` and `credit` are written one after the other, and read in the other
     * order: see ledger_refund. Any thread. */
    _Atomic size_t credit;
    _Atomic uint32_t tight;
    /* Written under TREE, read by any thread: so much may be credit before it goes back. */
    _Atomic size_t idle;
    uint16_t height; /* lock: TREE, as all that follows; of the tree below it, at least; 1: alone */
    bool away;       /* is emptied, or leaves: a recall passes it by */
    bool squeezed;   /* what is below was recalled a short while ago, and is tight */
    uint32_t squeezed_at; /* milliseconds of the clock: when the last recall has ended, or, where it
                           * is squeezed no more, when that has */
    uint32_t pins;        /* steps of recalls that are at it */
    uint32_t stamp, done; /* the last recall that was at it, and that was at all below it */
    struct ledger *parent, *first, *last, *next, *prev;
    refused_t own; /* const: whose ledger it is */
    measure_t of[MEASURES];
    _Atomic size_t soft; /* written under TREE; a figure, as above; LEDGER_NO_LIMIT: none */
    soft_state_t passed; /* lock: TREE */
    /* As `idle`: so much of both leases may stay for what comes next; nothing in a tight heap. */
    _Atomic uint32_t keep;
    /* Lock: the heap's; the heap's own now, and its highest. The lease never grows beyond what is asked
     * for, so it is no more than the highest. */
    _Atomic size_t footprint, most;
    _Atomic size_t failed[FAILURES]; /* relaxed, any thread: requests of this heap */
    _Atomic size_t
        failed_below; /* lock: TREE; of this heap and those below, but for FAILED_TURNED */
    /* What the last growth of the footprint that was refused has lacked, and whose growth it was; lock:
     * TREE. Each thread of the heap writes here, so one believes only what it has written itself: what
     * another has lacked says nothing of it. Where that has gone, the thread asks for the least that it
     * may lack, and forgets no shortage: the next try of its ladder writes anew. */
    uint32_t lacks_by;
    unsigned refused_of;             /* the measure that refused this heap's last request, */
    const struct ledger *refused_by; /* and the heap; it may be gone */
    size_t lacks;
} ledger_t;

/* ---- Any thread, no lock ---- */

/* Takes up to n times so many bytes from the credit. Returns how many times; 0: borrow. */
size_t ledger_grab(ledger_t *ledger, size_t bytes, size_t n);
/* Bytes of a request of which no block has come: what is in use has not become less. */
void ledger_uncharge(ledger_t *ledger, size_t bytes);
/* A change that may make room, or bring what may be recalled. */
void ledger_note_change(void);
HAK_INLINE bool ledger_is_tight(const ledger_t *ledger)
{
    /* Ordered: pairs with ledger_step, which sets it before it takes the credit. */
    return load_ordered(&((ledger_t *)(uintptr_t)ledger)->tight);
}
/* Something of a tight heap was freed that is not refunded yet. */
HAK_INLINE void ledger_note_freed(const ledger_t *ledger)
{
    if (HAK_UNLIKELY(ledger_is_tight(ledger))) ledger_note_change();
}
/* Bytes that no block has any more; after the block is free for others. Never waits. */
HAK_INLINE void ledger_refund(ledger_t *ledger, size_t bytes)
{
    /* Ordered: either the thread that recalls sees these bytes, or this one sees that the heap is
     * tight. */
    add_ordered(&ledger->credit, bytes);
    ledger_note_freed(ledger);
}
/* As ledger_grab, once. */
HAK_INLINE bool ledger_grab_one(ledger_t *ledger, size_t bytes)
{
    size_t had = load_relaxed(&ledger->credit);
    do
        if (HAK_UNLIKELY(had < bytes || ledger_is_tight(ledger))) return false;
    /* Relaxed: as in ledger_grab. */
    while (HAK_UNLIKELY(!cas_relaxed(&ledger->credit, &had, had - bytes)));
    return true;
}
/* Whether much of what the heap has borrowed is credit: then it counts against neighbours, and
 * hides that a soft limit is passed no longer. More than is ever borrowed ahead, so that it is not
 * asked for again at once. */
HAK_INLINE bool ledger_is_idle(const ledger_t *ledger)
{
    ledger_t *at = (ledger_t *)(uintptr_t)ledger;
    return load_relaxed(&at->credit) > load_relaxed(&at->idle);
}
/* Takes bytes from a credit that is not idle. */
HAK_INLINE bool ledger_grab_needed(ledger_t *ledger, size_t bytes)
{
    size_t had = load_relaxed(&ledger->credit);
    do
        if (HAK_UNLIKELY(had < bytes || had > load_relaxed(&ledger->idle) ||
                         ledger_is_tight(ledger)))
            return false;
    /* Relaxed: as in ledger_grab. */
    while (HAK_UNLIKELY(!cas_relaxed(&ledger->credit, &had, had - bytes)));
    return true;
}
/* Whether it may borrow ahead, and owes nothing back; about. */
HAK_INLINE bool ledger_is_free(const ledger_t *ledger)
{
    return !ledger_is_idle(ledger) && !ledger_is_tight(ledger);
}
/* What the chain owes for this heap, and what blocks have of it; while others work, about. */
size_t ledger_live(const ledger_t *ledger);

/* ---- What follows takes TREE ---- */

typedef enum ledger_answer { LEDGER_DONE, LEDGER_FULL, LEDGER_LOOP, LEDGER_DEEP } ledger_answer_t;

/* Bytes for the caller, and some ahead as credit, where all of the chain has room and is at ease:
 * none is tight, was recalled a short while ago, or passes a soft limit. False: that is for
 * ledger_borrow to say. */
bool ledger_lend(ledger_t *ledger, size_t bytes);
/* From the credit, else so. */
HAK_INLINE bool ledger_take(ledger_t *ledger, size_t bytes)
{
    return HAK_LIKELY(ledger_grab_one(ledger, bytes)) || ledger_lend(ledger, bytes);
}

/* What has no room, and of what. */
typedef struct full {
    ledger_t *ledger;
    unsigned measure;
} full_t;

/* Begins as a root, or below a parent, with such a footprint, and limits that are each a number.
 * LEDGER_DEEP: the tree would be deeper than LEDGER_DEPTH; LEDGER_FULL: as ledger_admit, of the
 * parent. */
ledger_answer_t ledger_join(ledger_t *ledger, ledger_t *parent, const hak_limits_t *limits,
                            size_t footprint);
/* From here on no recall comes to it. False: one is at it now, and this is to be asked again. */
bool ledger_hide(ledger_t *ledger);
/* All of its lease goes back: its blocks are gone. It was hidden; recalls come again. */
void ledger_clear(ledger_t *ledger);
/* Leaves the tree with its lease; it is hidden, and has no children. */
void ledger_leave(ledger_t *ledger);
/* Some child, or NULL. */
ledger_t *ledger_child(const ledger_t *ledger);

/* Moves a heap, with all below it, under another parent; NULL: it becomes a root. LEDGER_FULL: *full,
 * of the chain, has no room for what is borrowed; LEDGER_LOOP: the parent is below the heap. */
ledger_answer_t ledger_move(ledger_t *ledger, ledger_t *parent, full_t *full);
/* False: there is more of *full than that; nothing has changed. */
bool ledger_set_limits(ledger_t *ledger, const hak_limits_t *limits, full_t *full);

/* What refused a request. */
typedef struct borrowed {
    ledger_t *full; /* the lowest of the chain without room; NULL: none, and the bytes are the
                     * caller's */
    /* No recall helps: it is more than the limit, or was refused since the last one, and nothing was
     * freed since. */
    bool again;
    bool due; /* a soft limit of the chain is passed, and is to be told */
    refused_t by;
    size_t bytes; /* the request */
} borrowed_t;
/* As ledger_lend, and room for a footprint, as ledger_admit, in one step. Lock: the heap's. */
bool ledger_lend_both(ledger_t *ledger, size_t bytes, size_t footprint);
/* As ledger_lend wherever there is room. */
borrowed_t ledger_borrow(ledger_t *ledger, size_t bytes, uint32_t now);
/* Then it goes back. Never waits; inside the gate. */
void ledger_return_credit(ledger_t *ledger);
HAK_INLINE void ledger_return_idle(ledger_t *ledger)
{
    if (HAK_UNLIKELY(ledger_is_idle(ledger))) ledger_return_credit(ledger);
}
/* ledger_refund inside the gate; what the heap has borrowed in vain goes back. */
HAK_INLINE void ledger_refund_inside(ledger_t *ledger, size_t bytes)
{
    ledger_refund(ledger, bytes);
    ledger_return_idle(ledger);
}
/* Notes that `full` refused so many bytes after a whole recall that began in this epoch. */
void ledger_note_refused(ledger_t *ledger, unsigned measure, const borrowed_t *refusal,
                         uint64_t epoch);
/* The same where that was known. */
void ledger_note_again(ledger_t *ledger, unsigned measure, const borrowed_t *refusal);
/* A request has failed. FAILED_TURNED: any thread, at any time; FAILED_HERE: a limit refused it, which
 * may be one above. */
void ledger_count_failed(ledger_t *ledger, unsigned why);
/* Whom a request has told of soft limits: each once, whatever a callback changes. Ledgers that may
 * be gone, only to compare; all zeros at first. */
typedef struct told {
    size_t count;
    const ledger_t *at[LEDGER_DEPTH];
} told_t;
/* A soft limit of the chain that is due and was not told, which is from here on; false: there is
 * none. */
bool ledger_take_due(ledger_t *ledger, told_t *told, refused_t *soft);

/* ---- The footprint; lock: the heap's ---- */

/* Whether the chain has room for a footprint of so many bytes: then it is the heap's. `may_wait`
 * false: nor where TREE is busy, and nothing is noted. */
bool ledger_admit(ledger_t *ledger, size_t footprint, bool may_wait);
/* The footprint is no more than this. Where it may not wait, and TREE is busy, the lease stays. */
void ledger_settle_at(ledger_t *ledger, size_t footprint, bool may_wait);
/* Whether the lease has room for it: then it is the heap's. */
HAK_INLINE bool ledger_covers(ledger_t *ledger, size_t footprint)
{
    if (footprint > load_relaxed(&ledger->of[FOOTPRINT].lease)) return false;
    store_relaxed(&ledger->footprint, footprint); /* as much as that there was before: see `most` */
    return true;
}
/* Whether a lease may stay as it is after a free, for what comes next: then the footprint is that. In
 * a tight heap nothing stays. */
HAK_INLINE bool ledger_keeps_for(ledger_t *ledger, size_t credit, size_t footprint)
{
    size_t unused = load_relaxed(&ledger->of[FOOTPRINT].lease) - footprint;
    /* Ordered: as `tight`, with which it becomes 0. */
    if (HAK_UNLIKELY(unused > load_ordered(&ledger->keep) || credit > load_relaxed(&ledger->idle)))
        return false;
    store_relaxed(&ledger->footprint, footprint);
    return true;
}
HAK_INLINE bool ledger_keeps(ledger_t *ledger, size_t footprint)
{
    return ledger_keeps_for(ledger, load_relaxed(&ledger->credit), footprint);
}
/* A large block of what was freed before: its charge and its room, in one step. What the ledger was
 * told last is the whole figure, to which the block adds. False: nothing has changed. */
HAK_INLINE bool ledger_take_kept(ledger_t *ledger, size_t bytes)
{
    size_t footprint = load_relaxed(&ledger->footprint) + bytes;
    if (footprint > load_relaxed(&ledger->of[FOOTPRINT].lease)) return false;
    if (!ledger_grab_one(ledger, bytes)) return false;
    store_relaxed(&ledger->footprint, footprint);
    return true;
}
/* The free of one. False: it is refunded, and is to be settled. */
HAK_INLINE bool ledger_keep_freed(ledger_t *ledger, size_t bytes)
{
    /* Ordered: as in ledger_refund. */
    size_t credit = add_ordered(&ledger->credit, bytes) + bytes;
    if (HAK_LIKELY(ledger_keeps_for(ledger, credit, load_relaxed(&ledger->footprint) - bytes)))
        return true;
    ledger_note_freed(ledger);
    return false;
}
/* Whether that is what was said last, */
HAK_INLINE bool ledger_is_admitted(const ledger_t *ledger, size_t footprint)
{
    return load_relaxed(&((ledger_t *)(uintptr_t)ledger)->footprint) == footprint;
}
/* and nothing of it has still to go back. */
HAK_INLINE bool ledger_is_settled(const ledger_t *ledger, size_t footprint)
{
    return ledger_is_admitted(ledger, footprint) &&
           load_relaxed(&((ledger_t *)(uintptr_t)ledger)->of[FOOTPRINT].lease) == footprint;
}
/* What refuses the last growth that this thread was refused, which has lacked `least` at least; `full`
 * NULL: nothing does any more. */
borrowed_t ledger_lacks(ledger_t *ledger, size_t least);

/* What refused the last request, where it is still above; NULL: none. */
hak_heap_t *ledger_refused_by(ledger_t *ledger);
uint64_t ledger_epoch(unsigned measure);

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
/* All was recalled, for the sake of one measure. */
void ledger_end(recall_t *recall, unsigned measure, uint32_t now);

/* Proves the sums of a whole tree; false: one is wrong. For tests. */
bool ledger_is_sound(ledger_t *ledger);
/* The same of one heap and its children, for the check, and that the footprint is what was said of it
 * last; NULL, or what is wrong. Lock: the heap's. */
const char *ledger_check(ledger_t *ledger, size_t footprint);

#endif
