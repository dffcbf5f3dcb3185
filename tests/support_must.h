/* What tests of the public contract demand, by assertions of Criterion: a header only, like
 * support_server.h. */
#ifndef HAK_SUPPORT_MUST_H
#define HAK_SUPPORT_MUST_H

#include <criterion/criterion.h>

#include "support_contract.h"

/* No thread uses the heap now; contract_unsound() says what is looked at. */
__attribute__((unused)) static void must_be_sound(const hak_heap_t *heap, size_t live_blocks)
{
    int line = contract_unsound(heap, live_blocks);
    cr_assert(line == 0, "%s: support_contract.c:%d (%zu blocks live, %zu expected)",
              hak_percpu_mode(), line, contract_stats(heap).live_blocks, live_blocks);
}

/* Returns the heap. */
__attribute__((unused)) static hak_heap_t *must_create(const hak_heap_config_t *config)
{
    hak_heap_t *heap = hak_heap_create(config);
    cr_assert(heap != NULL, "%s", hak_error_text(hak_last_error()));
    return heap;
}

/* Returns the block. */
__attribute__((unused)) static void *must_have(void *ptr, size_t size)
{
    cr_assert(ptr != NULL, "no block of %zu bytes: %s", size, hak_error_text(hak_last_error()));
    return ptr;
}

#endif
