/*
 * Coarse classes, those beyond regions: what a heap with few blocks of each keeps of all of them
 * together, and what that costs a heap which uses what it keeps.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <string.h>

#include "drain.h"
#include "support_contract.h"
#include "support_random.h"

TestSuite(coarse, .timeout = 120);

enum { LEAST = REGION_BLOCK_MAX + 1, MOST_LIVE = 64, KINDS = CLASS_COUNT - REGION_CLASSES };

static unsigned char *blocks[MOST_LIVE];
static size_t sizes[MOST_LIVE];

/* Each size class is as likely as any other. */
static size_t any_coarse(randoms_t *randoms)
{
    return size_classes[REGION_CLASSES + random_below(randoms, KINDS)].bytes - 8;
}

static void replace(hak_heap_t *heap, size_t at, size_t size)
{
    if (blocks[at])
        cr_assert(contract_holds(blocks[at], sizes[at], (unsigned)at), "%zu bytes are torn",
                  sizes[at]);
    hak_heap_free(heap, blocks[at]);
    cr_assert((blocks[at] = hak_heap_malloc(heap, size)) != NULL);
    contract_fill(blocks[at], sizes[at] = size, (unsigned)at);
}

static size_t live_bytes(size_t count)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += hak_good_size(sizes[i]);
    return bytes;
}

static void free_all(hak_heap_t *heap, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        cr_assert(contract_holds(blocks[i], sizes[i], (unsigned)i));
        hak_heap_free(heap, blocks[i]);
        blocks[i] = NULL;
    }
    cr_assert(contract_unsound(heap, 0) == 0 && hak_heap_destroy(heap) == 0);
}

static hak_heap_t *heap_of_one_cpu(int level)
{
    int cpu;
    if (contract_cpus(&cpu, 1)) (void)contract_move_to(cpu);
    return contract_heap(level, "coarse");
}

/* What is cached, and blocks of slabs that were written, stay below what lived at most: half of it
 * is kept at a look, as much may miss until the next, and a slab's page may have a block or two
 * beside. The long slabs of a CHECKED heap have more. */
static void stays_dense(hak_heap_t *heap, size_t count)
{
    randoms_t randoms = {count};
    size_t most = 0, live = 2 * (size_t)COARSE_LEAST;
    for (size_t i = 0; i < count; i++) replace(heap, i, any_coarse(&randoms));
    for (size_t step = 0; step < 40 * count + 150; step++) {
        replace(heap, random_below(&randoms, (unsigned)count), any_coarse(&randoms));
        live = hak_max(live, live_bytes(count));
        if (step % 8) continue;
        hak_heap_stats_t stats = contract_stats(heap);
        size_t kept = contract_cached(&stats) + (heap->policy.starts ? 0 : stats.free_bytes);
        most = hak_max(most, kept * 100 / live);
        if (step % 128 == 0) cr_assert(contract_unsound(heap, count) == 0);
    }
    cr_log_info("%zu blocks: at most %zu %% of what lives was kept", count, most);
    cr_assert(most <= 200, "%zu blocks: %zu %% of what lives was kept", count, most);
}

Test(coarse, few_blocks_of_many_classes_stay_dense)
{
    static const size_t counts[] = {1, 4, 16, 32};
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (size_t i = 0; i < CONTRACT_LENGTH(counts); i++) {
            hak_heap_t *heap = heap_of_one_cpu(level);
            stays_dense(heap, counts[i]);
            free_all(heap, counts[i]);
        }
}

/* A class's first slab has room for a block, the next ones for as many as it has; not in a CHECKED
 * heap. */
Test(coarse, the_first_slabs_of_a_class_are_short)
{
    for (unsigned cls = REGION_CLASSES; cls < CLASS_COUNT; cls++) {
        hak_heap_t *heap = heap_of_one_cpu(0);
        size_t bytes = size_classes[cls].bytes, count = 0;
        while (count < 24 && count * bytes < 300000) {
            replace(heap, count++, bytes);
            size_t room = hak_max(count * bytes * 2, hak_round_up(bytes, GRANULE)) + 2 * GRANULE;
            hak_heap_stats_t stats = contract_stats(heap);
            size_t used = stats.committed_bytes - stats.metadata_bytes - contract_cradle(heap);
            cr_assert(used <= room, "%zu blocks of %zu bytes: %zu bytes", count, bytes, used);
            hak_class_stats_t row = {.struct_size = sizeof row};
            cr_assert(hak_heap_class_stats(heap, cls, &row) == 0);
            cr_assert(row.slabs <= 5 + count / 8, "%zu slabs for %zu blocks", row.slabs, count);
        }
        free_all(heap, count);
    }
}

/* Of a CHECKED heap each slab is as long as its class. */
Test(coarse, slabs_of_a_checked_heap_are_whole)
{
    hak_heap_t *heap = heap_of_one_cpu(1);
    for (unsigned cls = REGION_CLASSES; cls < CLASS_COUNT; cls++) {
        hak_heap_free(heap, hak_heap_malloc(heap, size_classes[cls].bytes));
        cr_assert(contract_room(heap, cls) % size_classes[cls].blocks == 0);
    }
    free_all(heap, 0);
}

static void one_of_each(hak_heap_t *heap, unsigned first, unsigned rounds)
{
    for (unsigned round = 0; round < rounds; round++)
        for (unsigned cls = first; cls < CLASS_COUNT; cls++) {
            void *block = hak_heap_malloc(heap, size_classes[cls].bytes);
            cr_assert(block != NULL);
            hak_heap_free(heap, block);
        }
}

/* A heap that goes through some classes, or all, again and again finds a block of each in the end. */
Test(coarse, what_is_used_stays)
{
    static const unsigned firsts[] = {CLASS_COUNT - 4, CLASS_COUNT - 8, REGION_CLASSES};
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (size_t i = 0; i < CONTRACT_LENGTH(firsts); i++) {
            hak_heap_t *heap = heap_of_one_cpu(level);
            one_of_each(heap, firsts[i], 1000);
            uint32_t missed = load_relaxed(&heap->missed);
            one_of_each(heap, firsts[i], 100);
            cr_assert(load_relaxed(&heap->missed) == missed, "from class %u on %u misses",
                      firsts[i], load_relaxed(&heap->missed) - missed);
            cr_assert(contract_unsound(heap, 0) == 0 && hak_heap_destroy(heap) == 0);
        }
}

/* A slab that has gone is not kept: a heap that grows looks again and again, and gives nothing back.
 */
Test(coarse, what_is_gone_is_not_counted)
{
    if (!HAK_COUNTERS) cr_skip_test("what a look gives back is counted by COUNTERS=1");
    enum { SIZE = 20480 };
    hak_heap_t *heap = heap_of_one_cpu(0);
    one_of_each(heap, REGION_CLASSES, 2);
    uint64_t given = load_relaxed(&heap->counters.count[COUNTER_kept_coarse]);
    for (size_t i = 0; i < MOST_LIVE; i++) replace(heap, i, SIZE);
    given = load_relaxed(&heap->counters.count[COUNTER_kept_coarse]) - given;
    cr_assert(given <= 1, "all that was kept went back %zu times", (size_t)given);
    free_all(heap, MOST_LIVE);
}

/* A trim, and a reset, forget what was kept in a heap's better days. */
Test(coarse, a_peak_is_forgotten)
{
    for (int reset = 0; reset < 2; reset++) {
        hak_heap_t *heap = heap_of_one_cpu(0);
        enum { PEAK = 400 };
        static void *many[PEAK];
        for (int i = 0; i < PEAK; i++) cr_assert((many[i] = hak_heap_malloc(heap, 30000)) != NULL);
        for (int i = 0; i < PEAK && !reset; i++) hak_heap_free(heap, many[i]);
        if (reset) cr_assert(hak_heap_reset(heap) == 0);
        else (void)hak_heap_trim(heap, 0);
        size_t most = 0, given = 0;
        FOR_AREAS (at, &heap->percpu) most = hak_max(most, load_relaxed(&at.area->coarse_most));
        for (area_t *at = *percpu_idle(&heap->percpu); at; at = at->next) {
            most = hak_max(most, load_relaxed(&at->coarse_most));
            given = hak_max(given, load_relaxed(&at->coarse_given));
        }
        cr_assert(most == 0 && given == 0, "%zu bytes", most);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Of many blocks the magazines keep more than COARSE_LEAST, and the next look waits for as many
 * bytes. */
Test(coarse, what_is_kept_follows_what_lives)
{
    hak_heap_t *heap = heap_of_one_cpu(0);
    enum { SIZE = 4096, COUNT = 60, OUT = 12, LONG = 4 };
    for (size_t i = 0; i < COUNT; i++) replace(heap, i, SIZE);
    void *out[OUT];
    for (size_t i = 0; i < OUT; i++) cr_assert((out[i] = hak_heap_malloc(heap, SIZE)) != NULL);
    for (size_t i = 0; i < OUT; i++) hak_heap_free(heap, out[i]);
    /* These miss, so that a look comes. */
    for (size_t i = 0; i < LONG; i++) replace(heap, COUNT + i, SMALL_MAX);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.hot_bytes + stats.spare_bytes > COARSE_LEAST, "%zu bytes kept",
              stats.hot_bytes + stats.spare_bytes);
    size_t most = 0;
    FOR_AREAS (at, &heap->percpu) {
        size_t wait = hak_max(load_relaxed(&at.area->coarse_most), (size_t)COARSE_LEAST);
        cr_assert(load_relaxed(&at.area->coarse_missed) <= wait, "the look began no count anew");
        most = hak_max(most, load_relaxed(&at.area->coarse_most));
    }
    cr_assert(most > live_bytes(COUNT) / 4 && most <= live_bytes(COUNT + LONG), "%zu bytes", most);
    free_all(heap, COUNT + LONG);
}
