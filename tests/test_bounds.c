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
