/*
 * Young heaps: a thread that works in a heap makes its records (areas, outboxes, classes) while
 * others flush, measure and check it. Each round is a heap of its own, because a record is made
 * once.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "support_contract.h"
#include "support_stress.h"

enum { BLOCKS = 400, TIMES = 3 };

static hak_heap_t *heap;
static _Atomic bool done;

static void *work(void *arg)
{
    void *blocks[BLOCKS];
    randoms_t randoms = *(const randoms_t *)arg;
    for (int time = 0; time < TIMES; time++) {
        for (int i = 0; i < BLOCKS; i++)
            STRESS_REQUIRE((blocks[i] = hak_heap_malloc(heap, 16 + random_below(&randoms, 100))));
        for (int i = 0; i < BLOCKS; i++) hak_heap_free(heap, blocks[i]);
    }
    atomic_store(&done, true);
    return NULL;
}

static void watch(void)
{
    hak_class_stats_t row = {.struct_size = sizeof row};
    (void)hak_heap_flush(heap);
    hak_heap_stats_t stats = contract_stats(heap);
    STRESS_REQUIRE(contract_sum(&stats) <= stats.committed_bytes);
    STRESS_REQUIRE(stats.resident_bytes <= stats.committed_bytes);
    STRESS_REQUIRE(hak_heap_class_stats(heap, 3, &row) == 0);
    STRESS_REQUIRE(hak_heap_check(heap) == 0);
}

static void *rounds(void *arg)
{
    const stress_options_t *options = arg;
    randoms_t randoms = {options->seed};
    size_t count = 0;
    for (; !stress_is_over(); count++) {
        STRESS_REQUIRE((heap = contract_heap((int)(count & 1), "young")) != NULL);
        atomic_store(&done, false);
        pthread_t threads[2];
        for (int i = 0; i < 2; i++)
            STRESS_REQUIRE(pthread_create(&threads[i], NULL, work, &randoms) == 0);
        while (!atomic_load(&done)) watch();
        for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
        (void)random_next(&randoms);
        stress_prove_empty(heap, "young");
        STRESS_REQUIRE(hak_heap_destroy(heap) == 0);
    }
    printf("%zu heaps\n", count);
    return NULL;
}

int main(int argc, char *argv[])
{
    stress_options_t options = stress_begin(argc, argv, 2);
    pthread_t thread;
    STRESS_REQUIRE(pthread_create(&thread, NULL, rounds, &options) == 0);
    stress_wait(&options);
    pthread_join(thread, NULL);
    return 0;
}
