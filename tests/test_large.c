/* large: records of mid and large blocks, mappings that grow, shrink and move. */
#include "large.h"

#include <criterion/criterion.h>

#include "reserve.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_os.h"

TestSuite(large, .timeout = 600);

static large_set_t set;
static large_t records[4];
static char heap; /* an owner is an address to this layer */

/* A mapped block in the set. */
static large_t *make(unsigned at, size_t bytes)
{
    char *base = large_map(bytes, HAK_PAGE);
    cr_assert(base != NULL && (uintptr_t)base % SUPERSLAB == 0);
    large_add(&set, &records[at], &heap, base, bytes);
    return &records[at];
}

static void must_hold(size_t live, size_t live_bytes)
{
    cr_assert(set.live_blocks == live && set.live_bytes == live_bytes, "%zu live, %zu bytes",
              set.live_blocks, set.live_bytes);
    size_t count = 0, bytes = 0;
    for (large_t *at = set.live; at; at = at->next, count++) bytes += large_bytes(at);
    cr_assert(count == live && bytes == live_bytes, "%zu on the list", count);
}

static void drop(large_t *large)
{
    cr_assert(large_unmap(large_base(large), large_bytes(large), LARGE_RELEASED));
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
    must_hold(1, bytes);
    large_remove(&set, large);
    must_hold(0, 0);
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
        must_hold(3, 9 * HAK_MIB);
        large_remove(&set, &records[gone]);
        must_hold(2, (9 - 2 - gone) * HAK_MIB);
        for (unsigned i = 0; i < 3; i++) {
            if (i != gone) large_remove(&set, &records[i]);
            drop(&records[i]);
        }
        must_hold(0, 0);
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

enum { UNKEPT = 4 * HAK_MIB, KEPT = 2 * HAK_MIB /* of a heap that may leave 3 MiB */ };

static void free_to_the_kernel(hak_heap_t *of)
{
    void *ptr = hak_heap_malloc(of, UNKEPT);
    cr_assert(ptr != NULL);
    hak_free(ptr);
}

static void free_and_trim(hak_heap_t *of)
{
    void *ptr = hak_heap_malloc(of, KEPT);
    cr_assert(ptr != NULL);
    hak_free(ptr);
    cr_assert(hak_heap_trim(of, 0) >= KEPT);
}

static void be_refused(hak_heap_t *of)
{
    fake_os_use();
    fake_os_bound(FAKE_MAP, HAK_MIB);
    cr_assert(hak_heap_malloc(of, KEPT) == NULL);
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
    must_hold(1, 4 * HAK_MIB);
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

/* ---- Blocks of pieces that others left ---- */

static void *fill(hak_heap_t *of, size_t bytes, unsigned seed)
{
    void *ptr = hak_heap_malloc(of, bytes);
    cr_assert(ptr && hak_usable_size(ptr) == bytes, "the request, by pages");
    contract_fill(ptr, bytes, seed);
    return ptr;
}

/* One block of two mappings, the first of 4 MiB. */
static char *make_joined(hak_heap_t *of, unsigned seed)
{
    (void)hak_reserve_trim();
    void *first = fill(of, 3 * HAK_MIB, 1), *second = fill(of, 4 * HAK_MIB, 1);
    hak_heap_free(of, first);
    hak_heap_free(of, second);
    char *ptr = fill(of, 9 * HAK_MIB, seed);
    cr_assert(registry_range(ptr)->parts.count == 2, "it is of both");
    contract_fill(ptr, 2 * HAK_MIB, seed);
    contract_fill(ptr + 4 * HAK_MIB, HAK_MIB, seed + 1);
    return ptr;
}

Test(large, a_block_of_several_mappings_changes_its_size)
{
    static const size_t mib[] = {12, 5, 7, 2, 20};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *of = contract_heap(level, "joined");
        for (size_t i = 0; i < CONTRACT_LENGTH(mib); i++) {
            char *ptr = make_joined(of, 7);
            size_t bytes = mib[i] * HAK_MIB;
            ptr = hak_heap_realloc(of, ptr, bytes);
            cr_assert(ptr && hak_usable_size(ptr) >= bytes);
            cr_assert(contract_holds(ptr, 2 * HAK_MIB, 7), "%zu MiB", mib[i]);
            if (bytes >= 5 * HAK_MIB) cr_assert(contract_holds(ptr + 4 * HAK_MIB, HAK_MIB, 8));
            cr_assert(contract_unsound(of, 1) == 0);
            hak_heap_free(of, ptr);
            cr_assert(contract_unsound(of, 0) == 0);
        }
        cr_assert(hak_heap_destroy(of) == 0);
    }
}

/* Where it is, in front of what is left of its mappings. */
Test(large, a_block_of_several_mappings_shrinks_where_it_is)
{
    hak_heap_t *of = contract_heap(0, "joined");
    char *ptr = make_joined(of, 7);
    cr_assert(hak_heap_realloc(of, ptr, 3 * HAK_MIB) == ptr);
    cr_assert(registry_range(ptr)->parts.count == 1);
    hak_heap_free(of, ptr);
    cr_assert(contract_stats(of).large_cached_bytes == 3 * HAK_MIB);
    cr_assert(hak_heap_trim(of, 0) >= 3 * HAK_MIB && hak_heap_destroy(of) == 0);
}

/* What is cleared is what was used, and what is fresh stays untouched. */
Test(large, pieces_are_cleared_for_calloc)
{
    hak_heap_t *of = contract_heap(0, "zero");
    void *dirty = fill(of, 4 * HAK_MIB, 3);
    hak_heap_free(of, dirty);
    char *ptr = hak_heap_calloc(of, 12, HAK_MIB);
    cr_assert(ptr && registry_range(ptr)->parts.count == 1, "a piece, made longer");
    cr_assert(memory_is_resident(ptr) && !memory_is_resident(ptr + 5 * HAK_MIB));
    cr_assert(contract_is_zero(ptr, 12 * HAK_MIB));
    hak_heap_free(of, ptr);
    cr_assert(hak_heap_destroy(of) == 0);
}

/* A heap that goes leaves its pages to the next one. */
Test(large, heaps_that_come_and_go_share_pages)
{
    void *before = NULL;
    for (unsigned i = 0; i < 5; i++) {
        hak_heap_t *of = contract_heap(0, "short life");
        cr_assert(contract_stats(of).large_cached_bytes == 0, "what others left is not its own");
        char *ptr = fill(of, 25 * HAK_MIB, i);
        cr_assert(!before || ptr == before);
        before = ptr;
        if (i % 2) hak_heap_free(of, ptr);
        cr_assert(hak_heap_destroy(of) == 0);
    }
    cr_assert(reserve_stats(&process_reserve).piece_bytes == 25 * HAK_MIB);
    cr_assert(hak_reserve_trim() >= 25 * HAK_MIB);
}

/* Two seconds of other work later they are the kernel's, though that work hits magazines. */
static uint64_t now_ms = 1000;
static uint64_t given_time(void) { return now_ms; }

/* One miss each, which the flush before it sends to the slabs, and hits. */
static void work_for(hak_heap_t *of, unsigned ms, unsigned each)
{
    enum { HITS = 64 };
    for (unsigned passed = 0; passed < ms; passed += each, now_ms += each) {
        (void)hak_heap_flush(of);
        for (unsigned i = 0; i < HITS; i++) hak_heap_free(of, hak_heap_malloc(of, 2000));
    }
}

static hak_heap_t *wave(void)
{
    enum { COUNT = 12 };
    void *blocks[COUNT];
    watched = os_kernel;
    watched.milliseconds = given_time;
    os = &watched;
    hak_heap_t *of = contract_heap(0, "waves");
    for (unsigned i = 0; i < COUNT; i++) blocks[i] = fill(of, 25 * HAK_MIB, i);
    for (unsigned i = 0; i < COUNT; i++) hak_heap_free(of, blocks[i]);
    cr_assert(contract_stats(of).large_cached_bytes == COUNT * 25 * HAK_MIB);
    return of;
}

Test(large, pages_go_while_others_work)
{
    contract_slabs_only();
    hak_heap_t *of = wave(), *other = contract_heap(0, "other");
    work_for(other, 2000, 50);
    size_t left = contract_stats(of).large_cached_bytes;
    cr_assert(left <= 8 * HAK_MIB, "%zu bytes", left);
    os = &os_kernel;
    cr_assert(hak_heap_destroy(other) == 0 && hak_heap_destroy(of) == 0);
}

/* The same where all that is allocated is large. */
Test(large, pages_go_while_large_blocks_come)
{
    enum { STEPS = 20 };
    hak_heap_t *of = wave();
    size_t before = contract_stats(of).large_cached_bytes;
    for (unsigned i = 0; i < STEPS; i++) {
        now_ms += 100;
        cr_assert(hak_heap_malloc(of, 2 * HAK_MIB) != NULL);
    }
    size_t gone = before - contract_stats(of).large_cached_bytes;
    cr_assert(gone >= 200 * HAK_MIB, "%zu bytes, 40 MiB of them in use", gone);
    os = &os_kernel;
    cr_assert(contract_unsound(of, STEPS) == 0 && hak_heap_destroy(of) == 0);
}

/* What counts as in use is what is live, whatever became of it. */
Test(large, what_is_in_use_is_counted)
{
    hak_heap_t *of = contract_heap(0, "count");
    _Atomic size_t *used = &process_reserve.large;
    void *ptr = hak_heap_malloc(of, 3 * HAK_MIB);
    cr_assert(load_relaxed(used) == 3 * HAK_MIB);
    ptr = hak_heap_realloc(of, ptr, 9 * HAK_MIB);
    cr_assert(ptr && load_relaxed(used) == 9 * HAK_MIB);
    ptr = hak_heap_realloc(of, ptr, 2 * HAK_MIB);
    cr_assert(ptr && load_relaxed(used) == 2 * HAK_MIB);
    be_refused(of);
    cr_assert(load_relaxed(used) == 2 * HAK_MIB);
    hak_heap_free(of, ptr);
    cr_assert(load_relaxed(used) == 0);
    cr_assert(hak_heap_malloc(of, 3 * HAK_MIB) && hak_heap_destroy(of) == 0);
    cr_assert(load_relaxed(used) == 0);
}

/* More blocks than the reserve has room for, and a kernel that takes none of them. */
Test(large, a_heap_with_many_blocks_goes)
{
    enum { COUNT = PIECES_MOST + 50 };
    static void *blocks[COUNT];
    hak_heap_t *of = contract_heap(0, "many");
    for (unsigned i = 0; i < COUNT; i++)
        cr_assert((blocks[i] = hak_heap_malloc(of, 2 * HAK_MIB)) != NULL);
    fake_os_use();
    fake_os_refuse(FAKE_UNMAP, 1, FAKE_FOREVER);
    (void)!hak_heap_malloc(NULL, 1);
    cr_assert(hak_heap_destroy(of) == 0 && hak_last_error() == HAK_ERROR_PURGE);
    cr_assert(fake_os_calls(FAKE_PURGE) >= COUNT - PIECES_MOST, "their pages go");
    for (unsigned i = 0; i < COUNT; i++)
        cr_assert(registry_range(blocks[i]) == LARGE_DEAD && hak_heap_of(blocks[i]) == NULL);
    cr_assert(load_relaxed(&process_reserve.large) == 0);
    fake_os_restore();
    cr_assert(hak_reserve_trim() >= (size_t)PIECES_STAY * 2 * HAK_MIB);
}
