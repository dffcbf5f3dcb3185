/* hakheap level 14: recall - the ladder of a request that a limit refuses */
#include "recall.h"

#include "gate.h"
#include "os.h"
#include "stall.h"
#include "tls.h"
#include "trim.h"

static hak_lock_t squeeze_lock; /* rank SQUEEZE */

static uint32_t now(void) { return (uint32_t)os->milliseconds(); }

enum { FORKS = 8 /* that may come between steps of a recall */ };

/* One recall of all below a heap, and what for. */
typedef struct below {
    recall_t recall;
    unsigned measure, forks;
    bool cut; /* a fork came before all was done */
} below_t;

static void release_free(below_t *below, hak_heap_t *const heaps[], size_t count)
{
    for (size_t i = 0; i < count && !below->cut; i++)
        below->cut = !trim_release(heaps[i], below->forks < FORKS);
}

/* A step: what these heaps have cached goes to their slabs, then their credits to the chain. */
static bool recall_step(below_t *below)
{
    hak_heap_t *heaps[LEDGER_AT_ONCE];
    recall_t *recall = &below->recall;
    ledger_step(recall);
    for (size_t i = 0; i < recall->count; i++) heaps[i] = recall->at[i]->own.heap;
    bool fenced = trim_recall(heaps, recall->count);
    if (below->measure == FOOTPRINT && fenced) release_free(below, heaps, recall->count);
    ledger_settle(recall);
    return fenced;
}

/* A fork goes first; what others have recalled meanwhile is recalled once more. */
static void let_fork(below_t *below, ledger_t *top)
{
    below->forks++;
    below->cut = false;
    lock_release(&squeeze_lock, RANK_SQUEEZE);
    gate_pass();
    lock_acquire(&squeeze_lock, RANK_SQUEEZE);
    ledger_begin(&below->recall, below->recall.of, top, now());
}

/* Lock: SQUEEZE. */
static bool recall_below(hak_heap_t *heap, ledger_t *top, unsigned measure)
{
    below_t below = {.measure = measure};
    bool fenced = true;
    ledger_begin(&below.recall, heap->ledger, top, now());
    while ((below.recall.more || below.cut) && fenced) {
        fenced = recall_step(&below);
        bool more = below.recall.more || below.cut;
        if (more && (below.cut || gate_is_closed()) && below.forks < FORKS) let_fork(&below, top);
    }
    if (fenced) ledger_end(&below.recall, measure, now());
    return fenced;
}

static bool refuse(hak_error_t why)
{
    hak_tls.last_error = why;
    return false;
}

static bool refuse_full(const borrowed_t *refusal, refused_t *refused)
{
    *refused = refusal->by;
    return refuse(HAK_ERROR_LIMIT);
}

/* What is known holds no longer than it was known: a free that came since may have made room. */
static bool refuse_again(hak_heap_t *heap, unsigned measure, const borrowed_t *refusal,
                         refused_t *refused)
{
    ledger_note_again(heap->ledger, measure, refusal);
    return refuse_full(refusal, refused);
}

/* Lock: SQUEEZE. Each heap of the chain may be full in turn. True: it may be tried once more. */
static bool recall_full(hak_heap_t *heap, unsigned measure, const borrowed_t *refusal,
                        tried_t *tried, refused_t *refused)
{
    enum { ROUNDS = 2 * LEDGER_DEPTH };
    STALL(recall_refused);
    if (refusal->again) return refuse_again(heap, measure, refusal, refused);
    if (refusal->full == tried->full || tried->rounds++ == ROUNDS) {
        ledger_note_refused(heap->ledger, measure, refusal, tried->epoch);
        return refuse_full(refusal, refused);
    }
    tried->full = refusal->full;
    tried->epoch = ledger_epoch(measure);
    return recall_below(heap, refusal->full, measure) ? true : refuse(HAK_ERROR_FENCE);
}

/* Lock: SQUEEZE. */
static charged_t borrow_or_recall(hak_heap_t *heap, size_t bytes, refused_t *refused)
{
    tried_t tried = {0};
    for (;;) {
        borrowed_t answer = ledger_borrow(heap->ledger, bytes, now());
        if (!answer.full) return answer.due ? CHARGED_DUE : CHARGED;
        if (!recall_full(heap, LIVE, &answer, &tried, refused)) return CHARGE_REFUSED;
    }
}

charged_t recall_charge(hak_heap_t *heap, size_t bytes, refused_t *refused)
{
    ledger_return_idle(heap->ledger);
    if (HAK_LIKELY(ledger_take(heap->ledger, bytes))) return CHARGED;
    borrowed_t answer = ledger_borrow(heap->ledger, bytes, now());
    if (HAK_LIKELY(!answer.full)) return answer.due ? CHARGED_DUE : CHARGED;
    if (answer.again) return (charged_t)refuse_again(heap, LIVE, &answer, refused);
    lock_acquire(&squeeze_lock, RANK_SQUEEZE);
    charged_t charged = borrow_or_recall(heap, bytes, refused);
    lock_release(&squeeze_lock, RANK_SQUEEZE);
    return charged;
}

bool recall_room(hak_heap_t *heap, tried_t *tried, refused_t *refused)
{
    enum { MOVES = 8 /* of the heap, to where there may be room */ };
    lock_acquire(&squeeze_lock, RANK_SQUEEZE);
    borrowed_t refusal = ledger_lacks(heap->ledger, hak_max(tried->least, HAK_PAGE));
    bool again = refusal.full ? recall_full(heap, FOOTPRINT, &refusal, tried, refused)
                              : tried->rounds++ < MOVES;
    lock_release(&squeeze_lock, RANK_SQUEEZE);
    return again;
}

bool recall_all(hak_heap_t *heap, ledger_t *top, unsigned measure)
{
    lock_acquire(&squeeze_lock, RANK_SQUEEZE);
    bool done = recall_below(heap, top, measure);
    lock_release(&squeeze_lock, RANK_SQUEEZE);
    return done ? true : refuse(HAK_ERROR_FENCE);
}

bool recall_is_pressed(uint32_t frame)
{
    return (hak_tls.pressing && os_on_signal_stack()) || tls_is_pressed(frame);
}
