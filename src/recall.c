/* hakheap level 14: recall - the ladder of a request that a limit refuses */
#include "recall.h"

#include "gate.h"
#include "os.h"
#include "stall.h"
#include "tls.h"
#include "trim.h"

static hak_lock_t squeeze_lock; /* rank SQUEEZE */

static uint32_t now(void) { return (uint32_t)os->milliseconds(); }

/* A step: what these heaps have cached goes to their slabs, then their credits to the chain. */
static bool recall_step(recall_t *recall)
{
    hak_heap_t *heaps[LEDGER_AT_ONCE];
    ledger_step(recall);
    for (size_t i = 0; i < recall->count; i++) heaps[i] = recall->at[i]->own.heap;
    bool fenced = trim_recall(heaps, recall->count);
    ledger_settle(recall);
    return fenced;
}

/* A fork goes first; what others have recalled meanwhile is recalled once more. */
static void let_fork(recall_t *recall, ledger_t *top)
{
    lock_release(&squeeze_lock, RANK_SQUEEZE);
    gate_pass();
    lock_acquire(&squeeze_lock, RANK_SQUEEZE);
    ledger_begin(recall, recall->of, top, now());
}

/* Lock: SQUEEZE. */
static bool recall_below(hak_heap_t *heap, ledger_t *top)
{
    enum { FORKS = 8 /* that may come between */ };
    recall_t recall;
    bool fenced = true;
    unsigned forks = 0;
    ledger_begin(&recall, heap->ledger, top, now());
    while (recall.more && fenced) {
        fenced = recall_step(&recall);
        if (recall.more && HAK_UNLIKELY(gate_is_closed()) && forks++ < FORKS)
            let_fork(&recall, top);
    }
    if (fenced) ledger_end(&recall, now());
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
static bool refuse_again(hak_heap_t *heap, const borrowed_t *refusal, refused_t *refused)
{
    ledger_note_again(heap->ledger, refusal->full);
    return refuse_full(refusal, refused);
}

/* Lock: SQUEEZE. Each heap of the chain may be full in turn. */
static bool borrow_or_recall(hak_heap_t *heap, size_t bytes, refused_t *refused)
{
    enum { ROUNDS = 2 * LEDGER_DEPTH };
    const ledger_t *last = NULL;
    uint64_t epoch = 0;
    for (unsigned round = 0;; round++) {
        borrowed_t refusal = ledger_borrow(heap->ledger, bytes, now());
        if (!refusal.full) return true;
        STALL(recall_refused);
        if (refusal.again) return refuse_again(heap, &refusal, refused);
        if (refusal.full == last || round == ROUNDS) {
            ledger_note_refused(heap->ledger, refusal.full, bytes, epoch);
            return refuse_full(&refusal, refused);
        }
        last = refusal.full;
        epoch = ledger_epoch();
        if (!recall_below(heap, refusal.full)) return refuse(HAK_ERROR_FENCE);
    }
}

bool recall_charge(hak_heap_t *heap, size_t bytes, refused_t *refused)
{
    *refused = (refused_t){0};
    if (HAK_LIKELY(ledger_grab(heap->ledger, bytes, 1))) return true;
    borrowed_t refusal = ledger_borrow(heap->ledger, bytes, now());
    if (HAK_LIKELY(!refusal.full)) return true;
    if (refusal.again) return refuse_again(heap, &refusal, refused);
    lock_acquire(&squeeze_lock, RANK_SQUEEZE);
    bool done = borrow_or_recall(heap, bytes, refused);
    lock_release(&squeeze_lock, RANK_SQUEEZE);
    return done;
}

bool recall_all(hak_heap_t *heap, ledger_t *top)
{
    lock_acquire(&squeeze_lock, RANK_SQUEEZE);
    bool done = recall_below(heap, top);
    lock_release(&squeeze_lock, RANK_SQUEEZE);
    return done ? true : refuse(HAK_ERROR_FENCE);
}
