/*
 * Threads allocate, free, move and hand blocks to each other, and prove every byte of every block,
 * while a janitor flushes, trims, measures and checks the same heaps in a loop. The one heap has
 * homes from the start, the other grows and is divided under load. In the end everything balances
 * to the block.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "support_contract.h"
#include "support_stress.h"

enum { HEAPS = 2, SLOTS = 1024, MAILBOXES = 64 };

static hak_heap_t *heaps[HEAPS];
static const char *const names[HEAPS] = {"fast", "checked"};
static _Atomic(void *) mailboxes[MAILBOXES];
static _Atomic size_t live[HEAPS]; /* by the programs' own count */
static stress_options_t options;

typedef struct worker {
    pthread_t thread;
    randoms_t randoms;
    void *slots[SLOTS];
    size_t done;
} worker_t;

static void release(randoms_t *randoms, void *block)
{
    uint16_t heap;
    size_t bytes = stress_prove(block, &heap);
    /* The count first: the janitor never sees more blocks live than counted at quiescence, and only
     * then it is exact. */
    atomic_fetch_sub_explicit(&live[heap], 1, memory_order_relaxed);
    unsigned how = random_below(randoms, 4);
    if (how == 0) hak_free(block);
    else if (how == 1) hak_heap_free_sized(heaps[heap], block, bytes);
    else hak_heap_free(heaps[heap], block);
}

static void *obtain(randoms_t *randoms)
{
    uint16_t heap = (uint16_t)random_below(randoms, HEAPS);
    size_t bytes = stress_size(randoms);
    unsigned how = random_below(randoms, 16);
    void *block;
    if (how == 0) {
        block = hak_heap_calloc(heaps[heap], 1, bytes);
        if (block && !contract_is_zero(block, bytes))
            stress_fail("calloc gave %zu bytes that are not zero", bytes);
    } else if (how == 1) {
        size_t alignment = (size_t)16 << random_below(randoms, 9);
        /* A size that free_sized may be told: a multiple of the alignment. */
        bytes = (bytes + alignment - 1) & ~(alignment - 1);
        block = hak_heap_aligned_alloc(heaps[heap], alignment, bytes);
        if ((uintptr_t)block % alignment) stress_fail("%p is not aligned to %zu", block, alignment);
    } else {
        block = hak_heap_malloc(heaps[heap], bytes);
    }
    if (!block) stress_fail("no memory for %zu bytes: %s", bytes, hak_error_text(hak_last_error()));
    atomic_fetch_add_explicit(&live[heap], 1, memory_order_relaxed);
    stress_write(block, bytes, (uint32_t)random_next(randoms), heap);
    return block;
}

static void *resize(randoms_t *randoms, void *block)
{
    uint16_t heap;
    size_t before = stress_prove(block, &heap);
    size_t after = stress_size(randoms);
    void *moved = hak_heap_realloc(heaps[heap], block, after);
    if (!moved) stress_fail("no memory to move %zu bytes to %zu", before, after);
    /* What both sizes have is kept; the head says the size from before, so only a block that grew
     * proves itself. */
    if (after >= before && stress_prove(moved, NULL) != before)
        stress_fail("%p lost its head", moved);
    stress_write(moved, after, (uint32_t)random_next(randoms), heap);
    return moved;
}

/* Leaves a block for whoever comes, and takes what lay there. */
static void *swap(randoms_t *randoms, void *block)
{
    return atomic_exchange_explicit(&mailboxes[random_below(randoms, MAILBOXES)], block,
                                    memory_order_acq_rel);
}

static void *work(void *arg)
{
    worker_t *worker = arg;
    randoms_t *randoms = &worker->randoms;
    for (; !stress_is_over(); worker->done++) {
        void **slot = &worker->slots[random_below(randoms, SLOTS)];
        if (!*slot) {
            *slot = obtain(randoms);
            continue;
        }
        unsigned what = random_below(randoms, 8);
        if (what == 0) {
            *slot = resize(randoms, *slot);
        } else if (what < 4) {
            *slot = swap(randoms, *slot);
        } else {
            release(randoms, *slot);
            *slot = NULL;
        }
        /* Now and then all at once: magazines overflow into cold chains, slabs become empty. */
        if (random_below(randoms, 20000) == 0)
            for (unsigned i = 0; i < SLOTS; i++) {
                if (worker->slots[i]) release(randoms, worker->slots[i]);
                worker->slots[i] = NULL;
            }
    }
    return NULL;
}

static int count_text(void *ctx, const char *text, size_t length)
{
    (void)text;
    *(size_t *)ctx += length;
    return 0;
}

static void look_at(hak_heap_t *heap, const char *name)
{
    hak_heap_stats_t stats = contract_stats(heap);
    if (stats.live_bytes > stats.committed_bytes || stats.committed_bytes > stats.peak_bytes)
        stress_fail("%s: %zu live, %zu committed, %zu peak", name, stats.live_bytes,
                    stats.committed_bytes, stats.peak_bytes);
}

static void *clean(void *arg)
{
    randoms_t randoms = {*(const uint64_t *)arg};
    size_t rounds = 0;
    for (; !stress_is_over(); rounds++) {
        unsigned which = random_below(&randoms, HEAPS);
        hak_heap_t *heap = heaps[which];
        size_t text = 0;
        switch (random_below(&randoms, 8)) {
        case 0: (void)hak_heap_flush(heap); break;
        case 1: (void)hak_heap_trim(heap, 0); break;
        case 2: (void)hak_heap_trim(heap, 1024 * 1024); break;
        case 3:
            (void)hak_heap_flush_class(heap, random_below(&randoms, hak_size_class_count()));
            break;
        case 4: look_at(heap, names[which]); break;
        case 5:
            if (hak_heap_check(heap) != 0)
                stress_fail("%s: check fails while threads run", names[which]);
            break;
        case 6:
            if (hak_heap_report(heap, count_text, &text) != 0 || text == 0)
                stress_fail("no report");
            break;
        default: (void)hak_reserve_trim(); break;
        }
    }
    printf("%zu rounds of the janitor\n", rounds);
    return NULL;
}

static void drain_mailboxes(void)
{
    randoms_t randoms = {options.seed};
    for (unsigned i = 0; i < MAILBOXES; i++) {
        void *block = atomic_exchange(&mailboxes[i], NULL);
        if (block) release(&randoms, block);
    }
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

static void prove_all_counted(void)
{
    for (int i = 0; i < HEAPS; i++) {
        STRESS_REQUIRE(hak_heap_check(heaps[i]) == 0);
        size_t blocks = contract_stats(heaps[i]).live_blocks, counted = atomic_load(&live[i]);
        if (blocks != counted)
            stress_fail("%s: %zu blocks live, %zu counted", names[i], blocks, counted);
    }
}

int main(int argc, char *argv[])
{
    options = stress_begin(argc, argv, 8);
    for (int i = 0; i < HEAPS; i++) STRESS_REQUIRE((heaps[i] = contract_heap(i, names[i])) != NULL);
    stress_divide(heaps[0]);
    size_t done = run();
    STRESS_REQUIRE(stress_is_divided(heaps[1]) || options.threads < 8);
    stress_prove_posted(stress_posted(heaps[0]));
    stress_prove_posted(stress_posted(heaps[1]));
    prove_all_counted();
    for (unsigned i = 0; i < options.threads; i++)
        for (unsigned k = 0; k < SLOTS; k++)
            if (workers[i].slots[k]) release(&workers[i].randoms, workers[i].slots[k]);
    drain_mailboxes();
    for (int i = 0; i < HEAPS; i++) {
        stress_prove_empty(heaps[i], names[i]);
        STRESS_REQUIRE(hak_heap_destroy(heaps[i]) == 0);
    }
    printf("%zu steps, all proved\n", done);
    return 0;
}
