/* hakheap level 15: api_tree - the exported functions of limits and trees */
#include <errno.h>

#include "drain.h"
#include "gate.h"
#include "hakheap.h"
#include "options.h"
#include "recall.h"
#include "report.h"
#include "tls.h"
#include "tree.h"
#include "trim.h"

static int refuse(hak_error_t why, int error)
{
    hak_tls.last_error = why;
    return error;
}

static bool counts(const hak_heap_t *heap) { return heap && heap_is_valid(heap) && heap->ledger; }

static int enter_any(const hak_heap_t *heap)
{
    if (!heap || !heap_is_valid(heap)) return refuse(HAK_ERROR_ARGUMENT, EINVAL);
    return gate_enter(true) == GATE_IN ? 0 : refuse(HAK_ERROR_REENTERED, EDEADLK);
}

/* Enters for a call on a heap that counts. */
static int enter(const hak_heap_t *heap)
{
    return counts(heap) ? enter_any(heap) : refuse(HAK_ERROR_ARGUMENT, EINVAL);
}

/* ---- Limits ---- */

/* No version has a struct that ends inside a field. */
static bool read_limits(const hak_limits_t *from, hak_limits_t *out)
{
    if (!from || !options_struct_is_known(from, from->struct_size, sizeof *out, sizeof *out))
        return false;
    *out = *from;
    if (!out->live_limit) out->live_limit = HAK_NO_LIMIT;
    return true;
}

/* What was refused may be borrowed or cached. */
static int set_limit(hak_heap_t *heap, size_t limit)
{
    if (ledger_set_limit(heap->ledger, limit)) return 0;
    if (!recall_all(heap, heap->ledger)) return EAGAIN;
    return ledger_set_limit(heap->ledger, limit) ? 0 : refuse(HAK_ERROR_LIMIT, EBUSY);
}

int hak_heap_set_limits(hak_heap_t *heap, const hak_limits_t *limits)
{
    hak_limits_t wanted;
    if (!read_limits(limits, &wanted)) return refuse(HAK_ERROR_ARGUMENT, EINVAL);
    int before = errno, error = enter(heap);
    if (!error) {
        error = set_limit(heap, wanted.live_limit);
        gate_leave();
    }
    errno = before;
    return error;
}

/* A program that left a callback asks here first, where it has landed: then the callback is known to
 * be over before the stack grows again. */
hak_heap_t *hak_heap_refused_by(const hak_heap_t *heap)
{
    (void)tls_is_pressed(tls_frame(__builtin_frame_address(0)));
    if (enter(heap)) return NULL;
    hak_heap_t *full = ledger_refused_by(heap->ledger);
    gate_leave();
    return full;
}

/* ---- Trees ---- */

static int answer_of(ledger_answer_t answer)
{
    switch (answer) {
    case LEDGER_DONE: return 0;
    case LEDGER_FULL: return refuse(HAK_ERROR_LIMIT, ENOMEM);
    case LEDGER_LOOP: return refuse(HAK_ERROR_ARGUMENT, EINVAL);
    case LEDGER_DEEP: break;
    }
    return refuse(HAK_ERROR_DEPTH, E2BIG);
}

/* What is in the way may be borrowed or cached: by what moves, or below a heap of the new chain. */
static int move(hak_heap_t *heap, hak_heap_t *parent)
{
    ledger_t *above = parent ? parent->ledger : NULL, *full = NULL, *last = NULL;
    for (unsigned round = 0;; round++) {
        ledger_answer_t answer = ledger_move(heap->ledger, above, &full);
        if (answer != LEDGER_FULL || full == last || round > LEDGER_DEPTH) return answer_of(answer);
        if (!recall_all(heap, heap->ledger) || !recall_all(parent, full)) return EAGAIN;
        last = full;
    }
}

int hak_heap_move(hak_heap_t *heap, hak_heap_t *parent)
{
    if (parent && !counts(parent)) return refuse(HAK_ERROR_ARGUMENT, EINVAL);
    int before = errno, error = enter(heap);
    if (!error) {
        error = move(heap, parent);
        gate_leave();
    }
    errno = before;
    return error;
}

/* ---- Ends ---- */

int hak_heap_on_destroy(hak_heap_t *heap, hak_on_destroy_t *node)
{
    if (!heap || !heap_is_valid(heap) || !node || !node->run)
        return refuse(HAK_ERROR_ARGUMENT, EINVAL);
    tree_on_destroy(heap, node);
    return 0;
}

int hak_heap_close(hak_heap_t *heap)
{
    int before = errno, error = enter_any(heap);
    if (!error) {
        if (!heap_is_closed(heap) && !trim_close(heap)) error = refuse(HAK_ERROR_FENCE, EAGAIN);
        gate_leave();
    }
    errno = before;
    return error;
}

/* Inside the gate. */
static int destroy_if_empty(hak_heap_t *heap, size_t *blocks)
{
    hak_heap_stats_t stats;
    drain_settle(heap);
    report_stats(heap, &stats);
    if (blocks) *blocks = stats.live_blocks;
    if (stats.live_blocks || (heap->ledger && ledger_child(heap->ledger)))
        return refuse(HAK_ERROR_LIVE, EBUSY);
    return tree_destroy(heap) ? 0 : refuse(HAK_ERROR_ARGUMENT, EINVAL);
}

int hak_heap_destroy_if_empty(hak_heap_t *heap, size_t *blocks)
{
    int before = errno, error = enter_any(heap);
    if (!error) {
        error = destroy_if_empty(heap, blocks);
        gate_leave();
    }
    errno = before;
    return error;
}

/* ---- Usage ---- */

int hak_heap_usage(const hak_heap_t *heap, hak_usage_t *out)
{
    if (!counts(heap) || !out || out->struct_size < sizeof out->struct_size)
        return refuse(HAK_ERROR_ARGUMENT, EINVAL);
    hak_heap_t *at = (hak_heap_t *)(uintptr_t)heap;
    ledger_t *ledger = at->ledger;
    hak_usage_t usage = {.struct_size = out->struct_size,
                         .tree_bytes = load_relaxed(&ledger->sum),
                         .committed_bytes = load_relaxed(&at->committed),
                         .refusals = load_relaxed(&ledger->refusals)};
    /* A bound is read after what it bounds. */
    usage.live_bytes =
        hak_min(hak_min(ledger_live(ledger), usage.tree_bytes), usage.committed_bytes);
    usage.peak_bytes = hak_max(load_relaxed(&at->peak), usage.committed_bytes);
    usage.live_limit = load_relaxed(&ledger->limit);
    usage.tree_bytes = hak_min(usage.tree_bytes, usage.live_limit);
    usage.live_bytes = hak_min(usage.live_bytes, usage.tree_bytes);
    usage.tree_peak_bytes = hak_max(load_relaxed(&ledger->peak), usage.tree_bytes);
    memcpy(out, &usage, hak_min(out->struct_size, sizeof usage));
    return 0;
}
