/* large: records of mid and large blocks, mappings that grow, shrink and move, the cache of them. */
#include "large.h"

#include <criterion/criterion.h>

#include "support_contract.h"
#include "support_os.h"

TestSuite(large, .timeout = 600);

enum { MANY = LARGE_CACHED + 8 };

static large_set_t set;
static large_t records[MANY];
static char heap; /* an owner is an address to this layer */

/* A mapped block in the set. */
static large_t *make(unsigned at, size_t bytes)
{
    char *base = large_map(bytes, HAK_PAGE);
    cr_assert(base != NULL && (uintptr_t)base % SUPERSLAB == 0);
    large_add(&set, &records[at], &heap, base, bytes);
    return &records[at];
}

static void must_hold(size_t live, size_t live_bytes, size_t cached, size_t cached_bytes)
{
    cr_assert(set.live_blocks == live && set.live_bytes == live_bytes, "%zu live, %zu bytes",
              set.live_blocks, set.live_bytes);
    cr_assert(set.cached_blocks == cached && set.cached_bytes == cached_bytes,
              "%zu cached, %zu bytes", set.cached_blocks, set.cached_bytes);
    size_t count = 0, bytes = 0;
    for (large_t *at = set.live; at; at = at->next, count++) bytes += large_bytes(at);
    cr_assert(count == live && bytes == live_bytes, "%zu on the list", count);
    count = bytes = 0;
    large_t *last = NULL;
    for (large_t *at = set.cached; at; last = at, at = at->next, count++) bytes += large_bytes(at);
    cr_assert(count == cached && bytes == cached_bytes && set.oldest == last);
}

static void drop(large_t *large)
{
    cr_assert(large_unmap(large_base(large), large_bytes(large), LARGE_RELEASED));
}

static void into_cache(large_t *large)
{
    large_remove(&set, large);
    large_cache(&set, large);
}

/* ---- Finding ---- */

Test(large, every_byte_of_a_block_leads_to_its_record)
{
    size_t bytes = 5 * HAK_MIB + HAK_PAGE;
    large_t *large = make(0, bytes);
    char *base = large_base(large);
    cr_assert(large_heap(large) == &heap);
    const size_t inside[] = {0, 1, SUPERSLAB - 1, SUPERSLAB, 2 * SUPERSLAB, bytes - 1};
    for (size_t i = 0; i < CONTRACT_LENGTH(inside); i++)
        cr_assert(large_find(base + inside[i]) == large, "byte %zu", inside[i]);
    cr_assert(large_find(base + bytes) == NULL && large_find(base - 1) == NULL);
    store_relaxed(&large->state, (uint32_t)LARGE_FREED);
    cr_assert(large_find(base) == NULL, "a freed block is found");
    store_relaxed(&large->state, (uint32_t)LARGE_LIVE);
    must_hold(1, bytes, 0, 0);
    large_remove(&set, large);
    must_hold(0, 0, 0, 0);
    drop(large);
    cr_assert(large_find(base) == NULL && registry_range(base) == LARGE_RELEASED);
    cr_assert(registry_range(base + SUPERSLAB) == NULL, "one tombstone is enough");
}

Test(large, a_refused_unmap_changes_nothing)
{
    large_t *large = make(0, 5 * HAK_MIB);
    char *base = large_base(large);
    base[3 * HAK_MIB] = 7;
    fake_os_use();
    fake_os_refuse(FAKE_UNMAP, 1, 1);
    cr_assert(!large_unmap(base, 5 * HAK_MIB, LARGE_DEAD));
    cr_assert(large_find(base) == large && large_find(base + 5 * HAK_MIB - 1) == large);
    cr_assert(base[3 * HAK_MIB] == 7);
    cr_assert(large_unmap(base, 5 * HAK_MIB, LARGE_DEAD));
    cr_assert(registry_range(base) == LARGE_DEAD);
    fake_os_restore();
}

static os_table_t watched;
static large_t *named_then[2]; /* what names the mapping's first slots when it goes */

static bool look_and_unmap(void *at, size_t bytes)
{
    for (size_t i = 0; i < 2; i++) named_then[i] = registry_range((char *)at + i * SUPERSLAB);
    return os_kernel.unmap(at, bytes);
}

/* What is unmapped may be another thread's at once: the tombstone stands before. */
Test(large, the_tombstone_stands_before_the_mapping_goes)
{
    large_t *large = make(0, 5 * HAK_MIB);
    watched = os_kernel;
    watched.unmap = look_and_unmap;
    os = &watched;
    bool gone = large_unmap(large_base(large), 5 * HAK_MIB, LARGE_RELEASED);
    os = &os_kernel;
    cr_assert(gone && named_then[0] == LARGE_RELEASED && named_then[1] == NULL);
}

/* Where the tables of its address space are refused, the mapping goes back. */
Test(large, a_mapping_without_tables_goes_back)
{
    size_t before = contract_mappings();
    fake_os_use();
    fake_os_refuse(FAKE_MAP, 2, FAKE_FOREVER);
    cr_assert(large_map(8 * HAK_GIB, HAK_PAGE) == NULL, "no table was wanted");
    cr_assert(fake_os_calls(FAKE_UNMAP) == 1 && contract_mappings() == before);
    fake_os_restore();
}

/* ---- The list ---- */

Test(large, blocks_leave_from_any_place)
{
    for (unsigned gone = 0; gone < 3; gone++) {
        for (unsigned i = 0; i < 3; i++) make(i, (i + 2) * HAK_MIB);
        must_hold(3, 9 * HAK_MIB, 0, 0);
        large_remove(&set, &records[gone]);
        must_hold(2, (9 - 2 - gone) * HAK_MIB, 0, 0);
        for (unsigned i = 0; i < 3; i++) {
            if (i != gone) large_remove(&set, &records[i]);
            drop(&records[i]);
        }
        must_hold(0, 0, 0, 0);
    }
}

/* ---- Records without a block ---- */

Test(large, records_wait_for_the_next_block)
{
    cr_assert(large_take_unused(&set) == NULL);
    for (unsigned i = 0; i < 3; i++) large_put_unused(&set, &records[i]);
    for (unsigned i = 3; i-- > 0;) cr_assert(large_take_unused(&set) == &records[i]);
    cr_assert(large_take_unused(&set) == NULL);
}

enum { UNCACHED = 4 * HAK_MIB, CACHED = 2 * HAK_MIB /* by a heap that caches 3 MiB */ };

static void free_to_the_kernel(hak_heap_t *of)
{
    void *ptr = hak_heap_malloc(of, UNCACHED);
    cr_assert(ptr != NULL);
    hak_free(ptr);
}

static void free_and_trim(hak_heap_t *of)
{
    void *ptr = hak_heap_malloc(of, CACHED);
    cr_assert(ptr != NULL);
    hak_free(ptr);
    cr_assert(hak_heap_trim(of, 0) >= CACHED);
}

static void be_refused(hak_heap_t *of)
{
    fake_os_use();
    fake_os_bound(FAKE_MAP, HAK_MIB);
    cr_assert(hak_heap_malloc(of, CACHED) == NULL);
    fake_os_restore();
}

/* Each way on which a mapping leaves keeps its record for the next one. */
Test(large, a_record_is_used_again)
{
    enum { MORE_THAN_A_PAGE = 2 * HAK_PAGE / sizeof(large_t) };
    void (*const ways[])(hak_heap_t *) = {free_to_the_kernel, free_and_trim, be_refused};
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 3 * HAK_MIB;
    for (size_t way = 0; way < CONTRACT_LENGTH(ways); way++) {
        hak_heap_t *of = hak_heap_create(&config);
        cr_assert(of != NULL);
        ways[way](of);
        size_t before = contract_stats(of).metadata_bytes;
        for (size_t i = 0; i < MORE_THAN_A_PAGE; i++) ways[way](of);
        cr_assert(contract_stats(of).metadata_bytes == before, "way %zu", way);
        cr_assert(contract_unsound(of, 0) == 0 && hak_heap_destroy(of) == 0);
    }
}

/* ---- The cache ---- */

Test(large, the_oldest_leaves_first_above_a_number)
{
    set.cache_limit = SIZE_MAX;
    for (unsigned i = 0; i < MANY; i++) into_cache(make(i, 2 * HAK_MIB));
    must_hold(0, 0, MANY, MANY * 2 * HAK_MIB);
    for (unsigned i = 0; i < MANY - LARGE_CACHED; i++) {
        large_t *out = large_evict(&set, SIZE_MAX);
        cr_assert(out == &records[i], "number %u left out of turn", i);
        drop(out);
    }
    cr_assert(large_evict(&set, SIZE_MAX) == NULL, "%u may stay", LARGE_CACHED);
    must_hold(0, 0, LARGE_CACHED, LARGE_CACHED * 2 * HAK_MIB);
}

Test(large, the_oldest_leaves_first_above_a_number_of_bytes)
{
    for (unsigned i = 0; i < 4; i++) into_cache(make(i, (i + 2) * HAK_MIB));
    size_t held = (2 + 3 + 4 + 5) * HAK_MIB;
    cr_assert(large_evict(&set, held) == NULL, "all fit");
    cr_assert(large_evict(&set, held - 1) == &records[0]);
    must_hold(0, 0, 3, held - 2 * HAK_MIB);
    for (unsigned i = 1; i < 4; i++) cr_assert(large_evict(&set, 0) == &records[i]);
    cr_assert(large_evict(&set, 0) == NULL);
    must_hold(0, 0, 0, 0);
    for (unsigned i = 0; i < 4; i++) drop(&records[i]);
}

Test(large, a_mapping_that_lay_long_leaves)
{
    into_cache(make(0, 2 * HAK_MIB));
    set.frees += LARGE_IDLE;
    cr_assert(large_evict(&set, SIZE_MAX) == NULL, "%u frees are not too many", LARGE_IDLE);
    set.frees++;
    cr_assert(large_evict(&set, SIZE_MAX) == &records[0]);
    drop(&records[0]);
}

Test(large, the_mapping_that_wastes_least_serves_again)
{
    static const size_t sizes[] = {8, 3, 5, 12};
    for (unsigned i = 0; i < 4; i++) into_cache(make(i, sizes[i] * HAK_MIB));
    cr_assert(large_reuse(&set, 13 * HAK_MIB, SUPERSLAB) == NULL, "none is so long");
    /* 3 MiB is at most four times 768 KiB, and no less of a fit than the longer ones. */
    cr_assert(large_reuse(&set, 3 * HAK_MIB / LARGE_SLACK - HAK_PAGE, SUPERSLAB) == NULL,
              "more than four times the size");
    must_hold(0, 0, 4, 28 * HAK_MIB);
    cr_assert(large_reuse(&set, 4 * HAK_MIB, SUPERSLAB) == &records[2]);
    must_hold(1, 5 * HAK_MIB, 3, 23 * HAK_MIB);
    cr_assert(large_find(large_base(&records[2])) == &records[2], "it is live again");
    cr_assert(large_reuse(&set, 3 * HAK_MIB, SUPERSLAB) == &records[1], "an exact fit");
    cr_assert(large_reuse(&set, 9 * HAK_MIB, SUPERSLAB) == &records[3]);
    cr_assert(large_reuse(&set, 2 * HAK_MIB, SUPERSLAB) == &records[0], "four times is not more");
    must_hold(4, 28 * HAK_MIB, 0, 0);
}

Test(large, an_alignment_is_kept)
{
    into_cache(make(0, 2 * HAK_MIB));
    size_t alignment = SUPERSLAB;
    while ((uintptr_t)large_base(&records[0]) % (2 * alignment) == 0) alignment *= 2;
    cr_assert(large_reuse(&set, 2 * HAK_MIB, 2 * alignment) == NULL);
    cr_assert(large_reuse(&set, 2 * HAK_MIB, alignment) == &records[0]);
}

/* ---- Growing, shrinking, moving ---- */

static void must_be_at(large_t *large, size_t bytes, unsigned seed, size_t written)
{
    char *base = large_base(large);
    cr_assert(large_bytes(large) == bytes && set.live_bytes == bytes, "%zu bytes, %zu counted",
              large_bytes(large), set.live_bytes);
    cr_assert(contract_holds(base, hak_min(written, bytes), seed));
    cr_assert(large_find(base) == large && large_find(base + bytes - 1) == large);
    cr_assert(registry_range(base + hak_round_up(bytes, SUPERSLAB)) != large, "a slot too many");
}

Test(large, a_block_changes_its_size_and_keeps_its_content)
{
    static const size_t mib[] = {7, 3, 3, 2, 9, 8, 64, 5};
    large_t *large = make(0, 4 * HAK_MIB);
    contract_fill(large_base(large), 2 * HAK_MIB, 3);
    for (size_t i = 0; i < CONTRACT_LENGTH(mib); i++) {
        cr_assert(large_remap(&set, large, mib[i] * HAK_MIB), "step %zu", i);
        must_be_at(large, mib[i] * HAK_MIB, 3, 2 * HAK_MIB);
    }
    cr_assert(contract_is_zero(large_base(large) + 4 * HAK_MIB, HAK_MIB), "fresh pages are zero");
}

Test(large, a_refused_change_changes_nothing)
{
    static const struct {
        fake_call_t call;
        size_t mib;
    } ways[] = {{FAKE_RESIZE, 2}, {FAKE_RESERVE, 9}, {FAKE_MOVE, 9}};
    large_t *large = make(0, 4 * HAK_MIB);
    char *base = large_base(large);
    contract_fill(base, 4 * HAK_MIB, 5);
    fake_os_use();
    for (size_t i = 0; i < CONTRACT_LENGTH(ways); i++) {
        fake_os_refuse(FAKE_RESIZE, 1, 1); /* what grows has to move */
        if (ways[i].call != FAKE_RESIZE) fake_os_refuse(ways[i].call, 1, 1);
        cr_assert(!large_remap(&set, large, ways[i].mib * HAK_MIB), "way %zu", i);
        cr_assert(large_base(large) == base);
        must_be_at(large, 4 * HAK_MIB, 5, 4 * HAK_MIB);
    }
    fake_os_refuse(FAKE_RESIZE, 1, 1);
    cr_assert(large_remap(&set, large, 9 * HAK_MIB) && large_base(large) != base, "it moves");
    must_be_at(large, 9 * HAK_MIB, 5, 4 * HAK_MIB);
    cr_assert(registry_range(base) == LARGE_RELEASED && large_find(base + SUPERSLAB) == NULL);
    fake_os_restore();
}

static size_t resized_to[4];
static unsigned resizes;

static bool resize_by_name(void *at, size_t bytes, size_t wanted)
{
    (void)at, (void)bytes;
    cr_assert(resizes < CONTRACT_LENGTH(resized_to));
    resized_to[resizes++] = wanted;
    return true;
}

static void *map_nothing(size_t bytes, size_t alignment)
{
    return (void)bytes, (void)alignment, NULL;
}

/* Where there is no table for what it grew into, a mapping is cut to what it was. */
Test(large, a_mapping_that_grew_without_tables_is_cut)
{
    large_t *large = make(0, 4 * HAK_MIB);
    watched = os_kernel;
    watched.resize = resize_by_name;
    watched.map = map_nothing;
    os = &watched;
    bool done = large_remap(&set, large, 8 * HAK_GIB);
    os = &os_kernel;
    cr_assert(!done && large_bytes(large) == 4 * HAK_MIB);
    cr_assert(resizes == 2 && resized_to[0] == 8 * HAK_GIB && resized_to[1] == 4 * HAK_MIB);
    must_hold(1, 4 * HAK_MIB, 0, 0);
}

/* ---- Mid blocks ---- */

static char descriptors[SUPERSLAB_GRANULES * DESCRIPTOR_BYTES] __attribute__((aligned(64)));

Test(large, mid_blocks_are_counted)
{
    static superslab_t ss;
    superslab_set_t superslabs = {0};
    char *base = large_map(SUPERSLAB, SUPERSLAB); /* memory to name; nothing is written there */
    superslab_init(&ss, base, descriptors);
    superslab_set_add(&superslabs, &ss);
    mid_t *mids[3];
    size_t granules = 0;
    for (unsigned i = 0; i < 3; i++) {
        run_t run = superslab_take(&superslabs, i + 3, 1);
        mids[i] = mid_add(&set, run, i + 3, (i + 3) * (size_t)GRANULE);
        cr_assert(mids[i]->start == superslab_granule(&ss, run.first));
        granules += i + 3;
        cr_assert(set.mid_blocks == i + 1 && set.mid_bytes == granules * GRANULE);
    }
    mid_resize(&set, mids[1], 9);
    cr_assert(mids[1]->granules == 9 && mid_bytes(mids[1]) == 9 * (size_t)GRANULE);
    cr_assert(set.mid_bytes == (granules + 5) * GRANULE);
    mid_remove(&set, mids[1]);
    cr_assert(set.mid_blocks == 2 && set.mid_bytes == 8 * (size_t)GRANULE);
    cr_assert(set.mids == mids[2] && mids[2]->next == mids[0] && mids[0]->prev == mids[2]);
    mid_remove(&set, mids[2]);
    mid_remove(&set, mids[0]);
    cr_assert(set.mids == NULL && set.mid_blocks == 0 && set.mid_bytes == 0);
}
