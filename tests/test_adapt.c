/* adapt: what a miss counts, what a period's end takes back, and how a scarce budget is shared. */
#define _GNU_SOURCE
#include <criterion/criterion.h>

#include "drain.h"
#include "heap.h"
#include "support_must.h"

TestSuite(adapt, .init = contract_slabs_only, .timeout = 600);

enum { SIZE = 256, OTHER = 1024, MOST = 40000 };

static void *blocks[MOST];

static unsigned class_of(size_t size) { return hak_size_class_of(size); }
static class_state_t *state_of(const hak_heap_t *heap, size_t size)
{
    return heap_class_made(heap, class_of(size));
}

/* A heap whose thread stays on one CPU, and that CPU's area. */
static hak_heap_t *heap_here(int level, size_t cache_bytes)
{
    int cpu;
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.cache_bytes = cache_bytes;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    cr_assert(contract_cpus(&cpu, 1) > 0 && contract_move_to(cpu));
    return heap;
}

static area_t *area_here(hak_heap_t *heap)
{
    int index;
    area_t *area = area_get(heap, &index, true);
    cr_assert(area != NULL);
    return area;
}

static void fill(hak_heap_t *heap, size_t size, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++) {
        blocks[i] = hak_heap_malloc(heap, size);
        cr_assert(blocks[i] != NULL);
        contract_fill(blocks[i], size, (unsigned)i);
    }
}

static void empty(hak_heap_t *heap, size_t size, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++) {
        cr_assert(contract_holds(blocks[i], size, (unsigned)i));
        hak_heap_free(heap, blocks[i]);
    }
}

/* The period is over, and nothing but what `misses` says was used in it. */
static void end_period(hak_heap_t *heap, area_t *area, size_t used, uint16_t misses)
{
    int index = percpu_index();
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
        store_relaxed(&area->hot[cls].misses, (uint16_t)0);
    if (used) store_relaxed(&area->hot[class_of(used)].misses, misses);
    store_relaxed(&area->misses, (uint32_t)ADAPT_PERIOD);
    drain_period(heap, area, index);
    cr_assert(load_relaxed(&area->misses) == 0);
}

static size_t outside_of(const hak_heap_t *heap, size_t size)
{
    return load_relaxed(&state_of(heap, size)->outside);
}

/* A first miss asks for few blocks, and each one more of the period for twice as many, up to what
 * the magazine may hold. */
Test(adapt, what_a_miss_asks_for_doubles)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        static const size_t asked[] = {4, 8, 16, 32, 32};
        size_t count = 0, outside = 0;
        for (size_t i = 0; i < CONTRACT_LENGTH(asked); i++) {
            fill(heap, 16, count++, 1);
            size_t got = outside_of(heap, 16) - outside;
            cr_assert(got == asked[i], "miss %zu got %zu blocks", i, got);
            fill(heap, 16, count, got - 1);
            count += got - 1;
            outside += got;
            cr_assert(outside_of(heap, 16) == outside && outside == count, "a hit took blocks");
        }
        empty(heap, 16, 0, count);
        /* A trimmed heap begins anew. */
        (void)hak_heap_trim(heap, 0);
        cr_assert(outside_of(heap, 16) == 0);
        fill(heap, 16, 0, 1);
        cr_assert(outside_of(heap, 16) == 4);
        empty(heap, 16, 0, 1);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Growth ---- */

static slab_wanted_t wanted_of(size_t size, uint32_t limit, size_t outside, uint16_t grown)
{
    class_state_t state = {.cls = (uint8_t)class_of(size)};
    magazine_t hot = {0};
    store_relaxed(&hot.limit, limit);
    store_relaxed(&hot.misses, (uint16_t)1);
    store_relaxed(&state.outside, outside);
    store_relaxed(&state.grown, grown);
    cr_assert(adapt_is_growing(&state) == (grown >= outside / 2));
    return adapt_wanted(&state, &hot);
}

/* As many as it may carve ahead, but no more than the magazine holds, nor than fill a granule. */
Test(adapt, a_class_that_grows_asks_for_more)
{
    slab_wanted_t wanted = wanted_of(256, 64, 320, 159);
    cr_assert(wanted.blocks == 4 && wanted.ahead == 10 && wanted.most == 64);
    wanted = wanted_of(256, 64, 320, 160);
    cr_assert(wanted.blocks == 40 && wanted.ahead == 40 && wanted.most == 64);
    wanted = wanted_of(256, 32, 320, 160);
    cr_assert(wanted.blocks == 32 && wanted.ahead == 40 && wanted.most == 32);
    wanted = wanted_of(1024, 64, 320, 160);
    cr_assert(wanted.blocks == 16 && wanted.ahead == 40, "not a granule");
    wanted = wanted_of(256, 64, 16, 16);
    cr_assert(wanted.blocks == 4 && wanted.ahead == 2, "fewer than a first miss gets");
    wanted = wanted_of(256, 0, 0, 0);
    cr_assert(wanted.blocks == 1 && wanted.ahead == 0 && wanted.most == 1);
}

/* What slabs give is counted until a block comes back to one. */
Test(adapt, growth_ends_with_what_comes_back)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        fill(heap, SIZE, 0, 6000);
        class_state_t *state = state_of(heap, SIZE);
        cr_assert(load_relaxed(&state->grown) == outside_of(heap, SIZE) && adapt_is_growing(state));
        empty(heap, SIZE, 4000, 2000);
        cr_assert(outside_of(heap, SIZE) < 6000 && load_relaxed(&state->grown) == 0 &&
                  !adapt_is_growing(state));
        size_t before = outside_of(heap, SIZE);
        fill(heap, SIZE, 4000, 2000);
        cr_assert(load_relaxed(&state->grown) <= outside_of(heap, SIZE) - before &&
                  !adapt_is_growing(state));
        empty(heap, SIZE, 0, 6000);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* The count stays at the most that it can say. */
Test(adapt, growth_is_counted_as_far_as_it_goes)
{
    hak_heap_t *heap = heap_here(0, 0);
    for (uint32_t i = 0; i < UINT16_MAX + 1000u; i++) cr_assert(hak_heap_malloc(heap, 16) != NULL);
    cr_assert(load_relaxed(&state_of(heap, 16)->grown) == UINT16_MAX);
    must_be_sound(heap, UINT16_MAX + 1000u);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Each miss of a class that grows gets what it asks for, also where its last slab ends before. */
Test(adapt, a_class_that_grows_has_slabs_for_what_it_asks)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        size_t count = 1000;
        fill(heap, OTHER, 0, count);
        area_t *area = area_here(heap);
        magazine_t *hot = &area->hot[class_of(OTHER)];
        for (unsigned misses = 0; misses < 20;) {
            slab_wanted_t wanted = adapt_wanted(state_of(heap, OTHER), hot);
            size_t before = outside_of(heap, OTHER);
            store_relaxed(&area->misses, 0u);
            fill(heap, OTHER, count++, 1);
            size_t got = outside_of(heap, OTHER) - before;
            if (!got) continue;
            misses++;
            cr_assert(got >= hak_min(wanted.blocks, wanted.ahead), "%zu of %u", got, wanted.blocks);
        }
        empty(heap, OTHER, 0, count);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Blocks in the cold level of a divided heap when `freed` of `count` have been freed. */
static size_t kept_cold(int level, size_t size, size_t count, size_t freed)
{
    hak_heap_t *heap = heap_here(level, 0);
    (void)area_here(heap);
    home_divide_soon(heap);
    for (unsigned round = 0; round < 2; round++) {
        fill(heap, size, 0, count);
        home_divide(heap, percpu_index());
        if (!round) empty(heap, size, 0, count);
    }
    cr_assert(home_is_divided(heap));
    empty(heap, size, 0, freed);
    class_state_t *state = state_of(heap, size);
    size_t kept = state->cold ? state->cold->blocks : 0;
    size_t outside = outside_of(heap, size), runs = heap->runs;
    /* What is kept serves again: no slab, and no block of one, is needed. */
    if (kept) fill(heap, size, 0, kept);
    cr_assert(outside_of(heap, size) == outside && heap->runs == runs, "%zu blocks of %zu", kept,
              size);
    if (kept) empty(heap, size, 0, kept);
    empty(heap, size, freed, count - freed);
    must_be_sound(heap, 0);
    cr_assert(hak_heap_destroy(heap) == 0);
    return kept;
}

/* Chains of a divided heap stay in the cold level where that holds most of the class, or blocks of
 * pages. */
Test(adapt, a_divided_heap_keeps_what_comes_and_goes)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        cr_assert(kept_cold(level, 256, 1500, 1500) > 100, "a class that fits");
        cr_assert(kept_cold(level, 1024, 900, 900) > 100, "a class that fits");
        cr_assert(kept_cold(level, HAK_PAGE, 3000, 1500) > 100, "blocks of a page");
        cr_assert(kept_cold(level, 1024, 8000, 2000) == 0, "a class that does not fit");
        cr_assert(kept_cold(level, 1024, 8000, 8000) == 0, "the last blocks of such a class");
        cr_assert(kept_cold(level, 64, 3000, 3000) == 0, "small blocks");
    }
}

Test(adapt, a_miss_is_counted_and_a_hit_is_not)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        fill(heap, SIZE, 0, 1);
        area_t *area = area_here(heap);
        cr_assert(load_relaxed(&area->hot[class_of(SIZE)].misses) == 1 &&
                  load_relaxed(&area->misses) == 1);
        for (unsigned i = 0; i < 100; i++) {
            empty(heap, SIZE, 0, 1);
            fill(heap, SIZE, 0, 1);
        }
        cr_assert(load_relaxed(&area->hot[class_of(SIZE)].misses) == 1 &&
                  load_relaxed(&area->misses) == 1);
        fill(heap, OTHER, 1, 1);
        cr_assert(load_relaxed(&area->hot[class_of(OTHER)].misses) == 1 &&
                  load_relaxed(&area->misses) == 2);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(adapt, what_a_period_did_not_use_goes_back)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        fill(heap, SIZE, 0, 200);
        fill(heap, OTHER, 200, 50);
        empty(heap, SIZE, 0, 200);
        empty(heap, OTHER, 200, 50);
        area_t *area = area_here(heap);
        magazine_t *used = &area->hot[class_of(SIZE)], *idle = &area->hot[class_of(OTHER)];
        uint32_t limit = load_relaxed(&idle->limit), kept = load_relaxed(&used->limit);
        chain_t word = load_relaxed(&used->word);
        int64_t room = load_relaxed(&heap->budget.room);
        cr_assert(limit > 2 && load_relaxed(&idle->word) && word);
        end_period(heap, area, SIZE, 1);
        cr_assert(!load_relaxed(&idle->word) && !load_relaxed(&area->spare[class_of(OTHER)]));
        cr_assert(load_relaxed(&idle->limit) == limit / 2 &&
                  load_relaxed(&heap->budget.room) >= room + limit * OTHER);
        cr_assert(load_relaxed(&used->word) == word && load_relaxed(&used->limit) == kept,
                  "it is in use");
        cr_assert(load_relaxed(&used->misses) == 0);
        must_be_sound(heap, 0);
        for (unsigned i = 0; i < 8; i++) end_period(heap, area, 0, 0);
        cr_assert(!load_relaxed(&used->word) && load_relaxed(&used->limit) == 0);
        cr_assert(load_relaxed(&heap->budget.room) == (int64_t)heap->settings.cache_bytes ||
                  state_of(heap, SIZE)->cold);
        fill(heap, SIZE, 0, 200);
        empty(heap, SIZE, 0, 200);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(adapt, cold_chains_stay_one_period)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        fill(heap, SIZE, 0, 400); /* so few that the heap is not divided: what overflows is cold */
        empty(heap, SIZE, 0, 400);
        area_t *area = area_here(heap);
        class_state_t *state = state_of(heap, SIZE);
        cr_assert(state->cold && state->cold->count > 0);
        uint32_t count = state->cold->count;
        end_period(heap, area, SIZE, 1);
        cr_assert(state->cold->count == count);
        end_period(heap, area, SIZE, 1);
        cr_assert(state->cold->count == 0);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Of two classes that both missed, the one that missed little for what it may hold makes room for
 * the other. */
Test(adapt, a_scarce_budget_goes_where_the_misses_are)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 100 * HAK_KIB);
        fill(heap, SIZE, 0, 60); /* few, so that its magazine stays at its first size */
        fill(heap, OTHER, 60, 200);
        area_t *area = area_here(heap);
        magazine_t *busy = &area->hot[class_of(SIZE)], *lazy = &area->hot[class_of(OTHER)];
        uint32_t limit = load_relaxed(&lazy->limit), small = load_relaxed(&busy->limit);
        cr_assert(limit > 0 && small > 0);
        cr_assert(load_relaxed(&heap->budget.room) < 100 * (int64_t)HAK_KIB / 8);
        store_relaxed(&busy->misses, (uint16_t)100);
        store_relaxed(&lazy->misses, (uint16_t)1);
        store_relaxed(&area->misses, (uint32_t)ADAPT_PERIOD);
        drain_period(heap, area, percpu_index());
        cr_assert(load_relaxed(&lazy->limit) == limit / 2 && load_relaxed(&busy->limit) == small);
        fill(heap, SIZE, 260, 140);
        adapt_grow(heap, area, busy, state_of(heap, SIZE));
        cr_assert(load_relaxed(&busy->limit) > small, "there is room now");
        must_be_sound(heap, 400);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* What is only freed goes past the hot magazine; what is allocated again, as much as it is freed,
 * does not. */
Test(adapt, a_class_that_is_only_freed_returns_its_blocks)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        enum { COUNT = 16000, LEFT = 1000 };
        fill(heap, SIZE, 0, COUNT);
        area_t *area = area_here(heap);
        unsigned cls = class_of(SIZE);
        for (unsigned i = 0; i < 4; i++) end_period(heap, area, 0, 0);
        cr_assert(!area_returns(area, cls));
        empty(heap, SIZE, LEFT, COUNT - LEFT);
        cr_assert(area_returns(area, cls));
        cr_assert(load_relaxed(&state_of(heap, SIZE)->outside) <= LEFT + 2 * 64,
                  "%zu blocks outside", load_relaxed(&state_of(heap, SIZE)->outside));
        must_be_sound(heap, LEFT);
        /* A few allocations do not end it, and do not come from all over the place. */
        fill(heap, SIZE, LEFT, 32);
        cr_assert(area_returns(area, cls));
        fill(heap, SIZE, LEFT + 32, COUNT - LEFT - 32);
        cr_assert(!area_returns(area, cls));
        must_be_sound(heap, COUNT);
        empty(heap, SIZE, 0, COUNT);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* It stays so until an allocation wants blocks. */
Test(adapt, a_tag_is_not_put_over_a_class_that_returns)
{
    hak_heap_t *heap = heap_here(0, 0);
    fill(heap, SIZE, 0, 1);
    int index;
    unsigned cls = class_of(SIZE);
    area_t *area = area_get(heap, &index, true);
    area_tag(heap, area, index, cls);
    cr_assert(!area_returns(area, cls));
    percpu_tag(area, cls, TAG_NONE);
    area_tag(heap, area, index, cls);
    cr_assert(area_returns(area, cls));
    adapt_wants(heap, area, index, cls);
    cr_assert(!area_returns(area, cls));
    empty(heap, SIZE, 0, 1);
    must_be_sound(heap, 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* In a heap that is not divided chains wait in the cold level, and slabs are shared. */
Test(adapt, a_small_heap_returns_no_class)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        fill(heap, SIZE, 0, 400);
        area_t *area = area_here(heap);
        store_relaxed(&area->hot[class_of(SIZE)].misses, (uint16_t)0); /* nothing was taken */
        empty(heap, SIZE, 0, 400);
        cr_assert(state_of(heap, SIZE)->cold && state_of(heap, SIZE)->cold->count > 0);
        cr_assert(!home_is_divided(heap) && !area_returns(area, class_of(SIZE)));
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Nothing helps it along but the frees themselves; and it ends where as much is allocated as is
 * freed, first in, first out. */
Test(adapt, returning_begins_and_ends_by_itself)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        enum { BYTES = 64, QUEUE = 2000, TURNS = 4000000 };
        static void *many[200000];
        for (size_t i = 0; i < CONTRACT_LENGTH(many); i++)
            cr_assert((many[i] = hak_heap_malloc(heap, BYTES)) != NULL);
        area_t *area = area_here(heap);
        for (size_t i = QUEUE; i < CONTRACT_LENGTH(many); i++) hak_heap_free(heap, many[i]);
        cr_assert(area_returns(area, class_of(BYTES)));
        size_t turns = 0;
        for (; turns < TURNS && area_returns(area, class_of(BYTES)); turns++) {
            hak_heap_free(heap, many[turns % QUEUE]);
            cr_assert((many[turns % QUEUE] = hak_heap_malloc(heap, BYTES)) != NULL);
        }
        cr_assert(turns < TURNS, "it goes on for ever");
        must_be_sound(heap, QUEUE);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Freelists that go whole fit the limit, so that magazines never hold more than the budget. */
Test(adapt, magazines_never_hold_more_than_the_budget)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        enum { BUDGET = 16384, BLOCKS = 4000 };
        hak_heap_t *heap = heap_here(level, BUDGET);
        fill(heap, SIZE, 0, BLOCKS);
        for (size_t i = 0; i < BLOCKS; i++) {
            if (i % 4 == 0) continue;
            hak_heap_free(heap, blocks[i]);
            blocks[i] = NULL;
        }
        (void)hak_heap_flush(heap);
        uint64_t dice = 1;
        for (unsigned turn = 0; turn < 100000; turn++) {
            dice = dice * 6364136223846793005u + 1442695040888963407u;
            void **at = &blocks[(dice >> 33) % BLOCKS];
            if (*at) hak_heap_free(heap, *at);
            *at = *at ? NULL : hak_heap_malloc(heap, SIZE);
            hak_heap_stats_t stats = contract_stats(heap);
            cr_assert(turn % 16 || contract_cached(&stats) <= BUDGET, "%zu bytes",
                      contract_cached(&stats));
        }
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* The whole of it: blocks of one size go, blocks of another come, and no slab stays for what is
 * only cached. */
Test(adapt, a_change_of_sizes_leaves_no_slab_behind)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_here(level, 0);
        enum { SMALL = 48, COUNT = 20000, WIDE = 2048, PHASE = 2048, TURNS = 100 };
        fill(heap, SMALL, 0, COUNT);
        for (size_t i = 0; i < COUNT;
             i++) { /* an order that leaves cached blocks all over their slabs */
            void **at = &blocks[i * 7919 % COUNT];
            hak_heap_free(heap, *at);
        }
        class_state_t *state = state_of(heap, SMALL);
        size_t turns = 0;
        for (; turns < TURNS && load_relaxed(&state->outside); turns++) {
            empty(heap, WIDE, 0, turns ? PHASE : 0);
            fill(heap, WIDE, 0, PHASE);
        }
        cr_assert(load_relaxed(&state->outside) == 0, "%zu blocks are cached",
                  load_relaxed(&state->outside));
        must_be_sound(heap, PHASE);
        empty(heap, WIDE, 0, PHASE);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A first limit is much at once: a budget that has no room for it, but for half of it, gives
 * half. */
Test(adapt, a_budget_with_room_for_half_gives_half)
{
    enum { BYTES = 8192, BLOCKS = 8 };
    for (int level = 0; level < 2; level++) {
        hak_heap_t *heap = heap_here(level, 256 * HAK_KIB); /* 32 blocks, twice, would be 512 KiB */
        char *held[BLOCKS];
        for (unsigned i = 0; i < BLOCKS; i++)
            cr_assert((held[i] = hak_heap_malloc(heap, BYTES)) != NULL);
        for (unsigned i = 0; i < BLOCKS; i++) hak_heap_free(heap, held[i]);
        cr_assert(contract_stats(heap).hot_bytes >= BLOCKS * BYTES, "%zu bytes",
                  contract_stats(heap).hot_bytes);
        cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
    }
}
