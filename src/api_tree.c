/* hakheap level 16: api_tree - the exported functions of limits and trees */
#include <errno.h>

#include "drain.h"
#include "gate.h"
#include "hakheap.h"
#include "life.h"
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
static int read_limits(const hak_heap_t *heap, const hak_limits_t *from, hak_limits_t *out)
{
    hak_error_t why = HAK_ERROR_ARGUMENT;
    if (!from || !options_struct_is_known(from, from->struct_size, sizeof *out, sizeof *out))
        return refuse(why, EINVAL);
    if (options_limits(from, heap->settings.on_pressure != NULL, out, &why))
        return refuse(why, EINVAL);
    if (out->committed_limit < life_least()) return refuse(HAK_ERROR_COMMITTED_LIMIT, EINVAL);
    return 0;
}

/* What was refused may be borrowed, cached or free. */
static int set_limits(hak_heap_t *heap, const hak_limits_t *limits)
{
    full_t full;
    bool recalled[MEASURES] = {false};
    /* What is kept of what was freed is no reason to tell a heap. */
    if (load_relaxed(&heap->ledger->of[LIVE].sum) > limits->soft_limit) {
        recalled[LIVE] = true;
        if (!recall_all(heap, heap->ledger, LIVE)) return EAGAIN;
    }
    while (!ledger_set_limits(heap->ledger, limits, &full)) {
        if (recalled[full.measure]) return refuse(HAK_ERROR_LIMIT, EBUSY);
        recalled[full.measure] = true;
        if (!recall_all(heap, heap->ledger, full.measure)) return EAGAIN;
    }
    return 0;
}

int hak_heap_set_limits(hak_heap_t *heap, const hak_limits_t *limits)
{
    hak_limits_t wanted;
    int before = errno, error = enter(heap);
    if (!error) {
        error = read_limits(heap, limits, &wanted);
        if (!error) error = set_limits(heap, &wanted);
        gate_leave();
    }
    errno = before;
    return error;
}

/* A program that left a callback asks here first, where it has landed: then the callback is known to
 * be over before the stack grows again. */
hak_heap_t *hak_heap_refused_by(const hak_heap_t *heap)
{
    (void)recall_is_pressed(tls_frame(__builtin_frame_address(0)));
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

/* What is in the way may be borrowed, cached or free: in what moves, or below a heap of the new
 * chain. */
static int move(hak_heap_t *heap, hak_heap_t *parent)
{
    ledger_t *above = parent ? parent->ledger : NULL;
    full_t full = {NULL, 0}, last = {NULL, 0};
    for (unsigned round = 0;; round++) {
        ledger_answer_t answer = ledger_move(heap->ledger, above, &full);
        bool same = full.ledger == last.ledger && full.measure == last.measure;
        if (answer != LEDGER_FULL || same || round > MEASURES * LEDGER_DEPTH)
            return answer_of(answer);
        if (!recall_all(heap, heap->ledger, full.measure) ||
            !recall_all(parent, full.ledger, full.measure))
            return EAGAIN;
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

static size_t failed(const ledger_t *ledger, unsigned why)
{
    return load_relaxed(&((ledger_t *)(uintptr_t)ledger)->failed[why]);
}

static void read_failures(ledger_t *ledger, hak_usage_t *out)
{
    out->committed_refusals = load_relaxed(&ledger->of[FOOTPRINT].refusals);
    out->refusals = load_relaxed(&ledger->of[LIVE].refusals) + out->committed_refusals;
    out->failed_here = failed(ledger, FAILED_HERE);
    out->failed_above = failed(ledger, FAILED_ABOVE);
    out->failed_system = failed(ledger, FAILED_SYSTEM);
    out->failed_turned_away = failed(ledger, FAILED_TURNED);
    out->tree_failed = load_relaxed(&ledger->failed_below);
}

/* A bound is read after what it bounds, and what others changed meanwhile is held to it. */
static void read_tree(ledger_t *ledger, unsigned measure, size_t *sum, size_t *limit, size_t *peak)
{
    measure_t *of = &ledger->of[measure];
    *sum = load_relaxed(&of->sum);
    *limit = load_relaxed(&of->limit);
    *sum = hak_min(*sum, *limit);
    *peak = hak_max(load_relaxed(&of->peak), *sum);
}

int hak_heap_usage(const hak_heap_t *heap, hak_usage_t *out)
{
    if (!counts(heap) || !out || out->struct_size < sizeof out->struct_size)
        return refuse(HAK_ERROR_ARGUMENT, EINVAL);
    ledger_t *ledger = heap->ledger;
    hak_usage_t usage = {.struct_size = out->struct_size};
    size_t live = ledger_live(ledger), committed = load_relaxed(&ledger->footprint);
    read_tree(ledger, LIVE, &usage.tree_bytes, &usage.live_limit, &usage.tree_peak_bytes);
    read_tree(ledger, FOOTPRINT, &usage.tree_committed_bytes, &usage.committed_limit,
              &usage.tree_committed_peak_bytes);
    usage.soft_limit = load_relaxed(&ledger->soft);
    usage.committed_bytes = hak_min(committed, usage.tree_committed_bytes);
    usage.live_bytes = hak_min(hak_min(live, usage.tree_bytes), usage.committed_bytes);
    usage.peak_bytes = hak_max(load_relaxed(&ledger->most), usage.committed_bytes);
    read_failures(ledger, &usage);
    memcpy(out, &usage, hak_min(out->struct_size, sizeof usage));
    return 0;
}
