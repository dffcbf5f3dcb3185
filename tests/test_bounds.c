/* Limits where calls meet: callbacks that change limits, moves, reallocs that a heap above refuses. */
#include <errno.h>

#include <criterion/criterion.h>

#include "heap.h"

TestSuite(bounds, .timeout = 300);

static hak_heap_t *bounded(hak_heap_t *parent, size_t live, size_t committed)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = parent;
    config.live_limit = live;
    config.committed_limit = committed;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL, "%s", hak_error_text(hak_last_error()));
    return heap;
}

static hak_heap_t *told(hak_heap_t *parent, hak_pressure_fn on_pressure, void *ctx, size_t soft)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = parent;
    config.live_limit = HAK_NO_LIMIT;
    config.soft_limit = soft;
    config.on_pressure = on_pressure;
    config.pressure_ctx = ctx;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL, "%s", hak_error_text(hak_last_error()));
    return heap;
}

/* ---- Soft limits ---- */

/* Raises the soft limit, but not above what is live. */
static void raise_a_little(void *ctx, hak_heap_t *full, size_t bytes)
{
    enum { ENOUGH = 4 };
    size_t *calls = ctx;
    (void)bytes;
    if (++*calls == ENOUGH) return;
    hak_limits_t limits = {sizeof limits, 0, 0, ((size_t)1 << 20) + *calls * 4096};
    cr_assert(hak_heap_set_limits(full, &limits) == 0);
}

Test(bounds, a_callback_that_changes_the_soft_limit_runs_once_for_a_request)
{
    size_t calls = 0;
    hak_heap_t *heap = told(NULL, raise_a_little, &calls, 1 << 20);
    cr_assert(hak_heap_malloc(heap, 2 << 20) != NULL && calls == 1, "%zu", calls);
    cr_assert(hak_heap_malloc(heap, 2 << 20) != NULL && calls == 2, "%zu", calls);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Create ---- */

/* A heap that is refused leaves nothing, and so makes no room: what is known of refusals stays. */
Test(bounds, a_create_that_is_refused_changes_nothing)
{
    hak_heap_t *root = bounded(NULL, 0, 3 * 16384 + 100);
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = root;
    for (size_t i = 0; i < 2; i++) cr_assert(hak_heap_create(&config) != NULL);
    uint64_t before[MEASURES] = {ledger_epoch(LIVE), ledger_epoch(FOOTPRINT)};
    cr_assert(hak_heap_create(&config) == NULL && hak_last_error() == HAK_ERROR_LIMIT);
    for (unsigned measure = 0; measure < MEASURES; measure++)
        cr_assert(ledger_epoch(measure) == before[measure]);
    cr_assert(hak_heap_destroy(root) == 0);
}
