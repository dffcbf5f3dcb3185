/* counters: the table, adding, and what a heap counts. */
#include "counters.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

#include "hakheap.h"
#include "heap.h"
#include "support_contract.h"

TestSuite(counters, .init = contract_slabs_only, .timeout = 600);

Test(counters, rows_stand_where_their_names_say)
{
#define ROW_IS_RIGHT(id, of_group, says)                                \
    cr_assert(strcmp(counter_rows[COUNTER_##id].name, #id) == 0, "%s",  \
              counter_rows[COUNTER_##id].name);                         \
    cr_assert(strcmp(counter_rows[COUNTER_##id].group, of_group) == 0); \
    cr_assert(strcmp(counter_rows[COUNTER_##id].text, says) == 0);
    COUNTERS(ROW_IS_RIGHT)
    for (unsigned a = 0; a < COUNTER_COUNT; a++) {
        cr_assert(counter_rows[a].text[0] != '\0');
        for (unsigned b = 0; b < a; b++)
            cr_assert(strcmp(counter_rows[a].name, counter_rows[b].name) != 0);
    }
}

Test(counters, adding_changes_one_counter)
{
    counters_t counters = {0};
    counter_add(&counters, early_mid, 3);
    counter_add(&counters, early_mid, 4);
    if (!HAK_COUNTERS) {
        cr_assert(sizeof counters.count / sizeof counters.count[0] == 1);
        cr_assert(counters.count[0] == 0, "counted in a build without counters");
        return;
    }
    size_t rows = sizeof counters.count / sizeof counters.count[0];
    cr_assert(rows == COUNTER_COUNT);
    for (size_t i = 0; i < rows; i++)
        cr_assert(counters.count[i] == (i == COUNTER_early_mid ? 7 : 0), "%s",
                  counter_rows[i].name);
}

static counters_t shared;

static void *add_many(void *arg)
{
    (void)arg;
    for (int i = 0; i < 50000; i++) counter_add(&shared, tls_sll, 1);
    return NULL;
}

Test(counters, no_addition_is_lost)
{
    if (!HAK_COUNTERS) cr_skip_test("built without counters");
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) cr_assert(pthread_create(&threads[i], NULL, add_many, NULL) == 0);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    cr_assert(shared.count[HAK_COUNTERS ? COUNTER_tls_sll : 0] == 150000);
}

static uint64_t count_of(hak_heap_t *heap, counter_t counter)
{
    return heap->counters.count[HAK_COUNTERS ? counter : 0];
}

Test(counters, a_heap_counts_the_ways_through_it)
{
    if (!HAK_COUNTERS) cr_skip_test("built without counters");
    hak_heap_t *heap = hak_heap_create(NULL);
    cr_assert(heap != NULL);
    void *mid = hak_heap_malloc(heap, 100000);
    void *large = hak_heap_malloc(heap, 3 * HAK_MIB);
    void *small = hak_heap_malloc(heap, 64);
    cr_assert(mid && large && small);
    cr_assert(count_of(heap, COUNTER_early_mid) == 1);
    cr_assert(count_of(heap, COUNTER_early_large) == 1);
    cr_assert(count_of(heap, COUNTER_early_empty) == 1);
    cr_assert(count_of(heap, COUNTER_refill_fresh_slab) == 1);
    cr_assert(count_of(heap, COUNTER_refill_slab) == 1);
    hak_heap_free(heap, mid);
    hak_heap_free(heap, large);
    cr_assert(count_of(heap, COUNTER_early_wrong_owner) == 2);
    hak_heap_free(heap, small);
    cr_assert(hak_heap_destroy(heap) == 0);
}
