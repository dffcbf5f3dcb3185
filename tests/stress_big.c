/*
 * Mid and large blocks: allocated by one thread, freed by another, moved by realloc, cached, reused
 * and unmapped, while a janitor trims and checks. Every byte of every block is proved.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "support_contract.h"
#include "support_stress.h"

enum { HEAPS = 3, SLOTS = 10, MAILBOXES = 8 };

static hak_heap_t *heaps[HEAPS];
static const char *const names[HEAPS] = {"fast", "checked", "no cache"};
static _Atomic(void *) mailboxes[MAILBOXES];
static stress_options_t options;

typedef struct worker {
    pthread_t thread;
    randoms_t randoms;
    void *slots[SLOTS];
    size_t done;
} worker_t;

/* Mostly mid, some large, some at the boundaries between kinds. */
static size_t big_size(randoms_t *randoms)
{
    static const size_t edges[] = {32768,   32769,   49152,   1048576,
                                   1048577, 1052672, 2097152, 2097153};
    unsigned dice = random_below(randoms, 128);
    if (dice < 8) return edges[dice];
    if (dice < 120) return 32 * 1024 + random_below(randoms, 100 * 1024);
    return 1024 * 1024 + random_below(randoms, 2 * 1024 * 1024);
}

static void release(randoms_t *randoms, void *block)
{
    uint16_t heap;
    (void)stress_prove(block, &heap);
    if (hak_heap_of(block) != heaps[heap]) stress_fail("block %p is in another heap", block);
    if (random_below(randoms, 2)) hak_free(block);
    else hak_heap_free(heaps[heap], block);
}

static void *obtain(randoms_t *randoms)
{
    uint16_t heap = (uint16_t)random_below(randoms, HEAPS);
    size_t bytes = big_size(randoms);
    unsigned how = random_below(randoms, 6);
    void *block;
    if (how == 0) {
        block = hak_heap_calloc(heaps[heap], bytes, 1);
        if (block && !contract_is_zero(block, bytes))
            stress_fail("calloc gave %zu bytes that are not zero", bytes);
    } else if (how == 1) {
        size_t alignment = (size_t)4096 << random_below(randoms, 11);
        block = hak_heap_aligned_alloc(heaps[heap], alignment, bytes);
        if ((uintptr_t)block % alignment) stress_fail("%p is not aligned to %zu", block, alignment);
    } else {
        block = hak_heap_malloc(heaps[heap], bytes);
    }
    if (!block) stress_fail("no memory for %zu bytes: %s", bytes, hak_error_text(hak_last_error()));
    if (hak_usable_size(block) < bytes)
        stress_fail("%zu of %zu bytes", hak_usable_size(block), bytes);
    stress_write(block, bytes, (uint32_t)random_next(randoms), heap);
    return block;
}

static void *resize(randoms_t *randoms, void *block)
{
    uint16_t heap;
    size_t before = stress_prove(block, &heap), after = big_size(randoms);
    void *moved = hak_heap_realloc(heaps[heap], block, after);
    if (!moved) stress_fail("no memory to move %zu bytes to %zu", before, after);
    if (after >= before && stress_prove(moved, NULL) != before)
        stress_fail("%p lost its content", moved);
    stress_write(moved, after, (uint32_t)random_next(randoms), heap);
    return moved;
}

static void *work(void *arg)
{
    worker_t *worker = arg;
    randoms_t *randoms = &worker->randoms;
    for (; !stress_is_over(); worker->done++) {
        void **slot = &worker->slots[random_below(randoms, SLOTS)];
        unsigned what = random_below(randoms, 8);
        if (!*slot) {
            *slot = obtain(randoms);
        } else if (what < 2) {
            *slot = resize(randoms, *slot);
        } else if (what < 5) {
            *slot = atomic_exchange(&mailboxes[random_below(randoms, MAILBOXES)], *slot);
        } else {
            release(randoms, *slot);
            *slot = NULL;
        }
    }
    return NULL;
}

static void *clean(void *arg)
{
    randoms_t randoms = {*(const uint64_t *)arg};
    while (!stress_is_over()) {
        unsigned which = random_below(&randoms, HEAPS);
        hak_heap_stats_t stats;
        switch (random_below(&randoms, 6)) {
        case 0: (void)hak_heap_flush(heaps[which]); break;
        case 1: (void)hak_heap_trim(heaps[which], 0); break;
        case 2: (void)hak_heap_trim(heaps[which], 4 * 1024 * 1024); break;
        case 3: (void)hak_reserve_trim(); break;
        case 4:
            if (hak_heap_check(heaps[which]) != 0)
                stress_fail("%s: check fails while threads run", names[which]);
            break;
        default:
            stats = contract_stats(heaps[which]);
            if (stats.live_bytes > stats.committed_bytes ||
                stats.committed_bytes > stats.peak_bytes)
                stress_fail("%s: %zu live, %zu committed, %zu peak", names[which], stats.live_bytes,
                            stats.committed_bytes, stats.peak_bytes);
            break;
        }
    }
    return NULL;
}

static worker_t workers[256];

/* Runs the workers and the janitor for as long as was asked. Returns steps. */
static size_t run(void)
{
    pthread_t janitor;
    for (unsigned i = 0; i < options.threads; i++) {
        workers[i].randoms.state = options.seed * 1000 + i;
        STRESS_REQUIRE(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
    uint64_t seed = ~options.seed;
    STRESS_REQUIRE(pthread_create(&janitor, NULL, clean, &seed) == 0);
    stress_wait(&options);
    size_t done = 0;
    for (unsigned i = 0; i < options.threads; i++) {
        pthread_join(workers[i].thread, NULL);
        done += workers[i].done;
    }
    pthread_join(janitor, NULL);
    return done;
}

static void release_all(void)
{
    for (unsigned i = 0; i < options.threads; i++)
        for (unsigned k = 0; k < SLOTS; k++)
            if (workers[i].slots[k]) release(&workers[i].randoms, workers[i].slots[k]);
    randoms_t randoms = {options.seed};
    for (unsigned i = 0; i < MAILBOXES; i++) {
        void *block = atomic_exchange(&mailboxes[i], NULL);
        if (block) release(&randoms, block);
    }
}

static void prove_all_empty(void)
{
    for (int i = 0; i < HEAPS; i++) {
        stress_prove_empty(heaps[i], names[i]);
        (void)hak_heap_trim(heaps[i], 0);
        hak_heap_stats_t stats = contract_stats(heaps[i]);
        if (stats.large_cached_bytes || stats.superslabs)
            stress_fail("%s: %zu bytes and %zu SuperSlabs after the trim", names[i],
                        stats.large_cached_bytes, stats.superslabs);
        STRESS_REQUIRE(hak_heap_destroy(heaps[i]) == 0);
    }
}

int main(int argc, char *argv[])
{
    options = stress_begin(argc, argv, 4);
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = names[2];
    config.large_cache_bytes = 1;
    for (int i = 0; i < 2; i++) STRESS_REQUIRE((heaps[i] = contract_heap(i, names[i])) != NULL);
    STRESS_REQUIRE((heaps[2] = hak_heap_create(&config)) != NULL);
    size_t done = run();
    release_all();
    prove_all_empty();
    printf("%zu steps, all proved\n", done);
    return 0;
}
