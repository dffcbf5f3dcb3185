/* The limit of what heaps use: at no moment is more in use, and what was refused passes after frees. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "heap.h"
#include "support_contract.h"
#include "support_os.h"
#include "support_random.h"

TestSuite(committed, .timeout = 600);

enum { MOST = 20000 };

typedef struct wanted {
    hak_heap_t *parent;
    size_t committed, live, soft;
    hak_level_t level;
    hak_pressure_fn on_pressure;
    void *ctx;
} wanted_t;

static hak_heap_t *create(wanted_t wanted)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "committed";
    config.parent = wanted.parent;
    config.committed_limit = wanted.committed;
    config.live_limit = wanted.live;
    config.soft_limit = wanted.soft;
    config.level = wanted.level;
    config.on_pressure = wanted.on_pressure;
    config.pressure_ctx = wanted.ctx;
    return hak_heap_create(&config);
}

static hak_heap_t *bounded(hak_heap_t *parent, size_t limit, hak_level_t level)
{
    hak_heap_t *heap = create((wanted_t){.parent = parent, .committed = limit, .level = level});
    cr_assert(heap != NULL, "%s", hak_error_text(hak_last_error()));
    return heap;
}

static hak_usage_t usage_of(const hak_heap_t *heap)
{
    hak_usage_t usage = {.struct_size = sizeof usage};
    cr_assert(hak_heap_usage(heap, &usage) == 0);
    cr_assert(usage.live_bytes <= usage.committed_bytes);
    cr_assert(usage.committed_bytes <= usage.peak_bytes);
    cr_assert(usage.committed_bytes <= usage.tree_committed_bytes);
    cr_assert(usage.tree_committed_bytes <= usage.committed_limit);
    cr_assert(usage.tree_committed_bytes <= usage.tree_committed_peak_bytes);
    return usage;
}

static size_t used(const hak_heap_t *heap) { return usage_of(heap).tree_committed_bytes; }

/* Of a heap that no other thread uses: the ledger was told, and keeps, what it has in use. */
static void settled(const hak_heap_t *heap)
{
    size_t footprint = heap_footprint(heap);
    cr_assert(load_relaxed(&heap->ledger->footprint) == footprint);
    cr_assert(load_relaxed(&heap->ledger->of[FOOTPRINT].lease) == footprint);
}

/* What the heap says of itself, by figures of its own. */
static void prove(hak_heap_t *heap)
{
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    cr_assert(hak_heap_check(heap) == 0 && ledger_is_sound(heap->ledger));
    const measure_t *of = &heap->ledger->of[FOOTPRINT];
    cr_assert(load_relaxed(&((measure_t *)(uintptr_t)of)->sum) <= usage_of(heap).committed_limit);
    cr_assert(hak_heap_stats(heap, &stats) == 0);
    cr_assert(usage_of(heap).committed_bytes <= stats.committed_bytes);
    cr_assert(usage_of(heap).committed_bytes >= stats.live_bytes);
}

static size_t fill(hak_heap_t *heap, size_t bytes, void *blocks[MOST])
{
    size_t count = 0;
    while (count < MOST && (blocks[count] = hak_heap_malloc(heap, bytes)) != NULL) {
        memset(blocks[count], (int)count, bytes);
        count++;
    }
    cr_assert(count < MOST);
    cr_assert(errno == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT, "%s",
              hak_error_text(hak_last_error()));
    return count;
}

static void empty(hak_heap_t *heap, size_t bytes, void *blocks[MOST], size_t count)
{
    for (size_t i = 0; i < count; i++) {
        cr_assert(((char *)blocks[i])[bytes - 1] == (char)i);
        hak_heap_free(heap, blocks[i]);
    }
}

static const size_t sizes[] = {16, 200, 1024, 3000, 32768, 40000, 1 << 20, 3 << 20};
#define SIZES (sizeof sizes / sizeof sizes[0])

/* Each kind of block to where the limit is; freed, as many fit once more, also of another kind. */
static void fill_and_empty(hak_level_t level, size_t limit)
{
    static void *blocks[MOST];
    hak_heap_t *heap = bounded(NULL, limit, level);
    size_t first[SIZES];
    for (size_t round = 0; round < 3; round++)
        for (size_t i = 0; i < SIZES; i++) {
            if (limit / sizes[i] >= MOST) continue;
            size_t count = fill(heap, sizes[i], blocks);
            prove(heap);
            cr_assert(hak_heap_refused_by(heap) == heap);
            if (!round) first[i] = count;
            /* Slabs may lie otherwise, and records stay. */
            cr_assert(count + count / 8 + 2 >= first[i], "%zu: %zu, then %zu of %zu bytes", round,
                      first[i], count, sizes[i]);
            empty(heap, sizes[i], blocks, count);
            prove(heap);
        }
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(committed, blocks_fill_a_heap_to_its_limit_again_and_again)
{
    for (int level = HAK_LEVEL_FAST; level <= HAK_LEVEL_CHECKED; level++) {
        fill_and_empty((hak_level_t)level, 300 << 10);
        fill_and_empty((hak_level_t)level, 5 << 20);
        fill_and_empty((hak_level_t)level, 9 << 20);
    }
}

/* To the byte where the layout is known: a large block is its pages, and a record. */
Test(committed, large_blocks_are_refused_at_the_page)
{
    hak_heap_t *heap = bounded(NULL, 8 << 20, HAK_LEVEL_FAST);
    hak_heap_free(heap, hak_heap_malloc(heap, 2 << 20));
    size_t room = (8 << 20) - used(heap);
    cr_assert(hak_heap_malloc(heap, room + 1) == NULL && hak_last_error() == HAK_ERROR_LIMIT);
    char *block = hak_heap_malloc(heap, room);
    cr_assert(block != NULL && used(heap) == 8 << 20);
    cr_assert(hak_heap_realloc(heap, block, room + 1) == NULL);
    cr_assert((block = hak_heap_realloc(heap, block, room - 4096)) != NULL);
    cr_assert(used(heap) == (8 << 20) - 4096);
    cr_assert((block = hak_heap_realloc(heap, block, room)) != NULL && used(heap) == 8 << 20);
    prove(heap);
    hak_heap_free(heap, block);
    cr_assert(used(heap) == (8 << 20) - room);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- What was refused passes once there is room ---- */

/* A class of which another region was refused stays in the regions: in slabs it could not use what
 * is freed there. */
Test(committed, small_heaps_use_what_was_freed)
{
    static void *blocks[MOST];
    hak_heap_t *heap = bounded(NULL, 24 << 10, HAK_LEVEL_FAST);
    for (size_t round = 0; round < 3; round++)
        for (size_t bytes = 16; bytes <= 1024; bytes *= 2) {
            size_t count = fill(heap, bytes, blocks);
            cr_assert(count * bytes > 8 << 10, "%zu: %zu of %zu bytes", round, count, bytes);
            empty(heap, bytes, blocks, count);
        }
    prove(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* What a trim and a reset give back of a heap that owns no SuperSlab. */
Test(committed, regions_and_runs_of_the_nursery_go_back)
{
    static void *blocks[MOST];
    hak_heap_t *heap = bounded(NULL, 300 << 10, HAK_LEVEL_FAST);
    for (size_t round = 0; round < 2; round++) {
        size_t count = fill(heap, 100, blocks);
        settled(heap);
        if (round) break;
        empty(heap, 100, blocks, count);
        (void)hak_heap_trim(heap, 0);
        cr_assert(used(heap) < 64 << 10);
        settled(heap), prove(heap);
    }
    cr_assert(used(heap) > 250 << 10 && hak_heap_reset(heap) == 0 && used(heap) < 64 << 10);
    settled(heap), prove(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Free pages and caches of one heap are room for another below the same limit. */
static void room_of_neighbours(hak_level_t level)
{
    static void *blocks[2][MOST];
    hak_heap_t *root = bounded(NULL, 12 << 20, level), *left = bounded(root, 0, level),
               *right = bounded(root, 0, HAK_LEVEL_FAST);
    for (size_t i = 0; i < SIZES; i++) {
        if (sizes[i] < 1000) continue;
        size_t alone = fill(left, sizes[i], blocks[0]);
        cr_assert(hak_heap_refused_by(left) == root);
        cr_assert(hak_heap_malloc(right, sizes[i] > 1 << 20 ? sizes[i] : 1 << 20) == NULL);
        cr_assert(hak_heap_refused_by(right) == root);
        empty(left, sizes[i], blocks[0], alone);
        size_t other = fill(right, sizes[i], blocks[1]);
        cr_assert(other + other / 8 + 4 >= alone, "%zu and %zu of %zu bytes", alone, other,
                  sizes[i]);
        prove(left), prove(right), prove(root);
        empty(right, sizes[i], blocks[1], other);
    }
    cr_assert(hak_heap_destroy(left) == 0 && hak_heap_reset(root) == 0);
    cr_assert(used(root) == usage_of(root).committed_bytes && ledger_is_sound(root->ledger));
    cr_assert(hak_heap_destroy(root) == 0);
}

Test(committed, what_neighbours_have_free_is_room)
{
    for (int level = HAK_LEVEL_FAST; level <= HAK_LEVEL_CHECKED; level++)
        room_of_neighbours((hak_level_t)level);
}

/* Pages that a SuperSlab of the reserve brings along count, and go where there is no room for them. */
Test(committed, pages_from_the_reserve_count)
{
    enum { BLOCKS = 4 };
    hak_heap_t *before = contract_heap(0, "before");
    char *blocks[BLOCKS];
    for (size_t i = 0; i < BLOCKS; i++) {
        cr_assert((blocks[i] = hak_heap_aligned_alloc(before, 1 << 16, 1 << 20)) != NULL);
        memset(blocks[i], 1, 1 << 20);
    }
    cr_assert(hak_heap_destroy(before) == 0);
    hak_heap_t *heap = bounded(NULL, 1 << 20, HAK_LEVEL_FAST);
    char *block = hak_heap_aligned_alloc(heap, 1 << 16, 900 << 10);
    cr_assert(block != NULL, "%s", hak_error_text(hak_last_error()));
    cr_assert(used(heap) >= 900 << 10);
    prove(heap);
    hak_heap_free(heap, block);
    cr_assert(used(heap) >= 900 << 10, "free pages count as long as they are there");
    cr_assert(hak_heap_trim(heap, 0) > 0 && used(heap) < 64 << 10);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Callbacks ---- */

typedef struct heard {
    hak_heap_t *full;
    size_t calls, bytes;
    void **frees;
    size_t count;
} heard_t;

static void hear(void *ctx, hak_heap_t *full, size_t bytes)
{
    heard_t *heard = ctx;
    heard->full = full;
    heard->bytes = bytes;
    heard->calls++;
    while (heard->count) hak_free(heard->frees[--heard->count]);
}

Test(committed, a_callback_makes_room)
{
    static void *blocks[MOST];
    heard_t heard = {.frees = blocks};
    hak_heap_t *root = create((wanted_t){.committed = 6 << 20, .on_pressure = hear, .ctx = &heard});
    hak_heap_t *heap = bounded(root, 0, HAK_LEVEL_FAST);
    heard.count = fill(heap, 40000, blocks) / 2;
    cr_assert(heard.calls == 1 && heard.full == root && heard.bytes == hak_good_size(40000));
    for (size_t kept = heard.count; heard.count;) {
        cr_assert(hak_heap_malloc(heap, 40000) != NULL && heard.calls == 2 && kept > 0);
    }
    char *block = hak_heap_malloc(heap, 1 << 20);
    size_t before = heard.calls;
    cr_assert(block && hak_heap_realloc(heap, block, 5 << 20) == NULL && heard.calls == before + 1);
    hak_heap_free(heap, block);
    cr_assert(usage_of(root).committed_refusals == 2 && usage_of(root).refusals == 2);
    prove(heap);
    cr_assert(hak_heap_destroy(root) == 0);
}

/* ---- Soft limits ---- */

static void pass_soft(size_t bytes, size_t region)
{
    enum { BLOCKS = 64 };
    heard_t heard = {0};
    size_t charge = hak_good_size(bytes), soft = BLOCKS * charge;
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.soft_limit = soft;
    config.region_bytes = region;
    config.on_pressure = hear;
    config.pressure_ctx = &heard;
    hak_heap_t *heap = hak_heap_create(&config);
    void *blocks[2 * BLOCKS];
    for (unsigned round = 1; round <= 3; round++) {
        size_t count = 0;
        for (; count < 2 * BLOCKS; count++) {
            cr_assert((blocks[count] = hak_heap_malloc(heap, bytes)) != NULL);
            if (count + 1 <= BLOCKS / 2) cr_assert(heard.calls == round - 1, "%zu", count);
        }
        cr_assert(heard.calls == round && heard.full == heap && heard.bytes == 0, "%zu: %zu", bytes,
                  heard.calls);
        while (count) hak_heap_free(heap, blocks[--count]);
        (void)hak_heap_flush(heap);
    }
    cr_assert(usage_of(heap).soft_limit == soft && hak_heap_check(heap) == 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(committed, a_soft_limit_is_told_once_each_time_it_is_passed)
{
    static const size_t kinds[] = {1000, 3000, 40000, 1 << 20, 2 << 20};
    for (size_t i = 0; i < CONTRACT_LENGTH(kinds); i++) pass_soft(kinds[i], 1);
    pass_soft(1000, 0);
}

/* Not at each call around the limit: an eighth of it has to be free in between. */
Test(committed, a_soft_limit_is_not_told_at_each_call)
{
    heard_t heard = {0};
    hak_heap_t *root = create((wanted_t){.soft = 80 << 20, .on_pressure = hear, .ctx = &heard});
    heard_t other = {0};
    hak_heap_t *heap =
        create((wanted_t){.parent = root, .soft = 60 << 20, .on_pressure = hear, .ctx = &other});
    void *kept = hak_heap_malloc(heap, 60 << 20);
    cr_assert(kept && !heard.calls && !other.calls, "what is at the limit is not above it");
    for (size_t i = 0; i < 10; i++) {
        void *block = hak_heap_malloc(heap, 2 << 20);
        cr_assert(block && other.calls == 1 && !heard.calls);
        hak_heap_free(heap, block);
    }
    void *block = hak_heap_malloc(heap, 21 << 20);
    cr_assert(block && heard.calls == 1 && heard.full == root && other.calls == 1);
    cr_assert((block = hak_heap_realloc(heap, block, 2 << 20)) != NULL);
    cr_assert((block = hak_heap_realloc(heap, block, 21 << 20)) != NULL);
    cr_assert(heard.calls == 2 && other.calls == 1, "%zu %zu", heard.calls, other.calls);
    cr_assert(hak_heap_destroy(root) == 0);
}

/* It is a limit of what is live, not of the memory for that. */
Test(committed, a_soft_limit_is_none_of_the_footprint)
{
    heard_t heard = {0};
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.soft_limit = 60000;
    config.region_bytes = 1;
    config.on_pressure = hear;
    config.pressure_ctx = &heard;
    hak_heap_t *heap = hak_heap_create(&config);
    for (size_t bytes = 16; bytes <= 4096; bytes *= 2) {
        cr_assert(hak_heap_malloc(heap, bytes) != NULL);
        (void)hak_heap_flush(heap);
    }
    cr_assert(used(heap) > 120000 && heard.calls == 0, "%zu", used(heap));
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Another heap's soft limit is not told inside of a callback, and is not forgotten. */
static hak_heap_t *second;
static void ask_second(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)full, (void)bytes;
    ++*(size_t *)ctx;
    cr_assert(hak_heap_malloc(second, 2 << 20) != NULL);
}

Test(committed, a_soft_limit_waits_for_the_end_of_a_callback)
{
    size_t calls = 0;
    heard_t heard = {0};
    hak_heap_t *first =
        create((wanted_t){.soft = 1 << 20, .on_pressure = ask_second, .ctx = &calls});
    second = create((wanted_t){.soft = 1 << 20, .on_pressure = hear, .ctx = &heard});
    cr_assert(hak_heap_malloc(first, 2 << 20) != NULL && calls == 1 && heard.calls == 0);
    cr_assert(hak_heap_malloc(second, 2 << 20) != NULL && heard.calls == 1);
    cr_assert(hak_heap_destroy(first) == 0 && hak_heap_destroy(second) == 0);
}

/* ---- Changes ---- */

static int set_limits(hak_heap_t *heap, size_t live, size_t committed, size_t soft)
{
    hak_limits_t limits = {sizeof limits, live, committed, soft};
    return hak_heap_set_limits(heap, &limits);
}

Test(committed, a_limit_below_what_is_in_use_trims_or_is_refused)
{
    static void *blocks[MOST];
    hak_heap_t *heap = bounded(NULL, 16 << 20, HAK_LEVEL_FAST);
    size_t count = fill(heap, 3000, blocks), most = used(heap);
    cr_assert(set_limits(heap, 0, most / 2, 0) == EBUSY && hak_last_error() == HAK_ERROR_LIMIT);
    cr_assert(usage_of(heap).committed_limit == 16 << 20 && used(heap) <= most);
    cr_assert(set_limits(heap, 1 << 20, 0, 0) == EBUSY);
    cr_assert(usage_of(heap).live_limit == HAK_NO_LIMIT);
    empty(heap, 3000, blocks, count);
    cr_assert(set_limits(heap, 1 << 20, 1 << 20, 0) == 0 && used(heap) <= 1 << 20);
    cr_assert(set_limits(heap, 0, 16383, 0) == EINVAL);
    cr_assert(hak_last_error() == HAK_ERROR_COMMITTED_LIMIT);
    cr_assert(set_limits(heap, 0, 0, 1 << 19) == EINVAL && hak_last_error() == HAK_ERROR_UNHEARD);
    cr_assert(usage_of(heap).committed_limit == 1 << 20);
    cr_assert(set_limits(heap, 0, 0, 0) == 0 && hak_heap_malloc(heap, 4 << 20) != NULL);
    prove(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(committed, a_move_needs_room_for_both)
{
    hak_heap_t *from = bounded(NULL, HAK_NO_LIMIT, HAK_LEVEL_FAST),
               *to = bounded(NULL, 6 << 20, HAK_LEVEL_FAST),
               *heap = bounded(from, 0, HAK_LEVEL_FAST), *below = bounded(heap, 0, HAK_LEVEL_FAST);
    size_t empty_to = used(to);
    void *one = hak_heap_malloc(heap, 3 << 20), *two = hak_heap_malloc(below, 3 << 20);
    cr_assert(hak_heap_move(heap, to) == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT);
    hak_heap_free(below, two);
    void *free_pages = hak_heap_malloc(below, 40000);
    cr_assert(free_pages != NULL);
    hak_heap_free(below, free_pages);
    cr_assert(hak_heap_move(heap, to) == 0);
    cr_assert(used(to) == empty_to + used(heap) && used(from) == usage_of(from).committed_bytes);
    cr_assert(hak_heap_malloc(below, 3 << 20) == NULL && hak_heap_refused_by(below) == to);
    hak_heap_free(heap, one);
    prove(from), prove(to), prove(heap), prove(below);
    cr_assert(hak_heap_destroy(heap) == 0 && used(to) == empty_to);
    cr_assert(hak_heap_destroy(to) == 0 && hak_heap_destroy(from) == 0);
}

Test(committed, a_heap_begins_where_there_is_room)
{
    enum { HEAPS = 8 };
    hak_heap_t *root = bounded(NULL, HEAPS * 16384 + 100, HAK_LEVEL_FAST), *heaps[HEAPS];
    for (size_t i = 1; i < HEAPS; i++) heaps[i] = bounded(root, 0, HAK_LEVEL_CHECKED);
    errno = 0;
    cr_assert(create((wanted_t){.parent = root}) == NULL && errno == ENOMEM);
    cr_assert(hak_last_error() == HAK_ERROR_LIMIT && hak_heap_refused_by(root) == root);
    cr_assert(used(root) == HEAPS * 16384 && ledger_is_sound(root->ledger));
    cr_assert(hak_heap_destroy(heaps[3]) == 0);
    heaps[3] = bounded(root, 0, HAK_LEVEL_FAST);
    cr_assert(hak_heap_malloc(heaps[3], 5000) == NULL && hak_heap_malloc(heaps[3], 100) != NULL);
    cr_assert(hak_heap_destroy(root) == 0);
    cr_assert(create((wanted_t){.committed = 16383}) == NULL && errno == EINVAL);
    cr_assert(hak_last_error() == HAK_ERROR_COMMITTED_LIMIT);
    cr_assert((root = create((wanted_t){.committed = 16384})) != NULL);
    cr_assert(hak_heap_malloc(root, 5000) == NULL && hak_heap_malloc(root, 100) != NULL);
    cr_assert(hak_heap_destroy(root) == 0);
}

Test(committed, failures_are_told_by_reason)
{
    hak_heap_t *root = bounded(NULL, 4 << 20, HAK_LEVEL_FAST),
               *heap = create((wanted_t){.parent = root, .live = 1 << 20});
    cr_assert(hak_heap_malloc(heap, 2 << 20) == NULL && hak_heap_malloc(root, 5 << 20) == NULL);
    cr_assert(set_limits(heap, 0, 0, 0) == 0 && hak_heap_malloc(heap, 5 << 20) == NULL);
    void *block = hak_heap_malloc(heap, 100);
    cr_assert(block != NULL && hak_heap_realloc(heap, block, 6 << 20) == NULL);
    fake_os_use();
    fake_os_refuse(FAKE_MAP, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_RESERVE, 1, FAKE_FOREVER);
    cr_assert(hak_heap_malloc(heap, 3 << 20) == NULL && hak_last_error() != HAK_ERROR_LIMIT);
    fake_os_restore();
    hak_usage_t own = usage_of(heap), all = usage_of(root);
    cr_assert(own.failed_here == 1 && own.failed_above == 2 && own.failed_system == 1);
    cr_assert(own.refusals == 1 && own.committed_refusals == 0 && own.tree_failed == 4);
    cr_assert(all.failed_here == 1 && all.failed_above == 0 && all.tree_failed == 5);
    cr_assert(all.refusals == 3 && all.committed_refusals == 3);
    cr_assert(hak_heap_close(heap) == 0 && hak_heap_malloc(heap, 3000) == NULL);
    cr_assert(usage_of(heap).failed_turned_away == 1 && usage_of(root).tree_failed == 5);
    prove(heap);
    cr_assert(hak_heap_destroy(root) == 0);
}

/* ---- Sequences: whatever is asked, nothing is above its limit, and the sums are those of the heaps ---- */

enum { HEAPS = 6, HELD = 60, OPERATIONS = 4000 };

typedef struct item {
    char *block;
    size_t size;
    char mark;
} item_t;

typedef struct place {
    hak_heap_t *heap;
    item_t items[HELD];
} place_t;

typedef struct forest {
    hak_heap_t *root;
    place_t places[HEAPS];
    randoms_t randoms;
    size_t refused;
} forest_t;

static size_t some_size(randoms_t *randoms)
{
    unsigned bits = 4 + random_below(randoms, 18);
    return 1 + random_below(randoms, 1u << bits);
}

static void drop(place_t *place, item_t *item)
{
    if (!item->block) return;
    cr_assert(item->block[0] == item->mark && item->block[item->size - 1] == item->mark);
    hak_heap_free(place->heap, item->block);
    item->block = NULL;
}

static void note(forest_t *forest, item_t *item, char *block, size_t size)
{
    if (!block) {
        cr_assert(errno == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT, "%s",
                  hak_error_text(hak_last_error()));
        forest->refused++;
        return;
    }
    *item = (item_t){block, size, (char)random_next(&forest->randoms)};
    memset(block, item->mark, size);
}

static void ask(forest_t *forest, place_t *place, item_t *item)
{
    size_t size = some_size(&forest->randoms);
    unsigned how = random_below(&forest->randoms, 4);
    if (how == 0 && item->block) {
        size_t kept = size < item->size ? size : item->size;
        char *block = hak_heap_realloc(place->heap, item->block, size);
        if (block) cr_assert(block[0] == item->mark && block[kept - 1] == item->mark);
        note(forest, item, block, size);
        return;
    }
    drop(place, item);
    size_t alignment = (size_t)16 << random_below(&forest->randoms, 18);
    note(forest, item,
         how == 1 ? hak_heap_aligned_alloc(place->heap, alignment, size)
                  : hak_heap_malloc(place->heap, size),
         size);
}

static void change(forest_t *forest, place_t *place)
{
    hak_heap_t *heap = place->heap;
    size_t at = (size_t)(place - forest->places);
    switch (random_below(&forest->randoms, 8)) {
    case 0: (void)hak_heap_trim(heap, 0); return;
    case 1: (void)hak_heap_flush(heap); return;
    case 2: {
        size_t limit = (1 << 20) + random_below(&forest->randoms, 8 << 20);
        int error = set_limits(heap, 0, limit, 0);
        cr_assert(error == 0 || (error == EBUSY && used(heap) > limit));
        return;
    }
    case 3: {
        hak_heap_t *parent =
            at ? forest->places[random_below(&forest->randoms, (unsigned)at)].heap : forest->root;
        int error = hak_heap_move(heap, parent);
        cr_assert(error == 0 || error == ENOMEM || error == EINVAL, "%d", error);
        return;
    }
    case 4:
        if (at != HEAPS - 1) return; /* it would take others along */
        for (size_t i = 0; i < HELD; i++) place->items[i].block = NULL;
        cr_assert(hak_heap_reset(heap) == 0);
        return;
    default: prove(heap);
    }
}

static void prove_all(forest_t *forest)
{
    (void)used(forest->root);
    size_t sum = usage_of(forest->root).committed_bytes;
    for (size_t i = 0; i < HEAPS; i++) sum += usage_of(forest->places[i].heap).committed_bytes;
    cr_assert(sum == used(forest->root), "%zu, not %zu", used(forest->root), sum);
}

static void play(uint64_t seed)
{
    forest_t *forest = calloc(1, sizeof *forest);
    forest->randoms = (randoms_t){seed};
    forest->root = bounded(NULL, 12 << 20, HAK_LEVEL_FAST);
    for (size_t i = 0; i < HEAPS; i++)
        forest->places[i].heap = bounded(
            i ? forest->places[random_below(&forest->randoms, (unsigned)i)].heap : forest->root,
            (3 << 20) + random_below(&forest->randoms, 8 << 20),
            i % 2 ? HAK_LEVEL_FAST : HAK_LEVEL_CHECKED);
    for (size_t i = 0; i < contract_work(OPERATIONS); i++) {
        place_t *place = &forest->places[random_below(&forest->randoms, HEAPS)];
        if (random_below(&forest->randoms, 50) == 0) change(forest, place);
        else ask(forest, place, &place->items[random_below(&forest->randoms, HELD)]);
        settled(place->heap);
        prove_all(forest);
    }
    cr_assert(forest->refused > 10, "%zu", forest->refused);
    for (size_t i = 0; i < HEAPS; i++) {
        for (size_t k = 0; k < HELD; k++) drop(&forest->places[i], &forest->places[i].items[k]);
        (void)hak_heap_trim(forest->places[i].heap, 0);
        prove(forest->places[i].heap);
        cr_assert(usage_of(forest->places[i].heap).committed_bytes < 256 << 10, "%zu",
                  usage_of(forest->places[i].heap).committed_bytes);
    }
    cr_assert(hak_heap_destroy(forest->root) == 0);
    free(forest);
}

Test(committed, sums_are_those_of_the_heaps_whatever_is_asked)
{
    for (uint64_t seed = 1; seed <= 12; seed++) play(seed);
}

/* ---- The system refuses what the limit has granted ---- */

static void run_refused(hak_heap_t *heap, fake_call_t call, long k, long times)
{
    static void *blocks[SIZES];
    fake_os_use();
    fake_os_refuse(call, k, times);
    for (size_t i = 0; i < SIZES; i++) {
        blocks[i] = hak_heap_malloc(heap, sizes[i]);
        settled(heap);
        if (!blocks[i]) continue;
        char *longer = hak_heap_realloc(heap, blocks[i], sizes[i] + sizes[i] / 2);
        if (longer) blocks[i] = longer;
        settled(heap);
    }
    (void)usage_of(heap);
    for (size_t i = 0; i < SIZES; i++) hak_heap_free(heap, blocks[i]);
    (void)hak_heap_trim(heap, 0);
    (void)hak_reserve_trim();
    (void)usage_of(heap);
    fake_os_restore();
    prove(heap);
}

Test(committed, what_the_system_refuses_is_not_counted)
{
    for (int call = 0; call < FAKE_CALLS; call++) {
        if (call == FAKE_PAGE_SIZE || call == FAKE_FENCE_REGISTER) continue;
        for (long k = 1; k <= 12; k++)
            for (int forever = 0; forever < 2; forever++) {
                hak_heap_t *heap = bounded(NULL, k % 2 ? 64 << 20 : 6 << 20, HAK_LEVEL_FAST);
                run_refused(heap, (fake_call_t)call, k, forever ? FAKE_FOREVER : 1);
                (void)hak_heap_trim(heap, 0);
                cr_assert(used(heap) < 256 << 10, "call %d, %ld: %zu", call, k, used(heap));
                prove(heap);
                cr_assert(hak_heap_destroy(heap) == 0);
            }
    }
}

/* Takes what the process has of granules and record pages, by heaps without limits. */
static void use_up(hak_heap_t *others[], size_t most)
{
    size_t count = 0;
    for (; count < most; count++) {
        if ((others[count] = contract_heap(0, "other")) == NULL) break;
        for (size_t bytes = 256 << 10; bytes > SMALL_MAX;)
            if (!hak_heap_malloc(others[count], bytes)) bytes /= 2;
    }
    cr_assert(count < most);
    for (size_t i = 0; i < count; i++)
        while (hak_heap_malloc(others[i], 5000) != NULL) {
        }
}

Test(committed, what_the_process_has_no_room_for_is_not_counted)
{
    enum { OTHERS = 1000, BOUNDED = 64 };
    static hak_heap_t *others[OTHERS], *heaps[BOUNDED];
    size_t refused[2] = {0};
    /* Half of them have room for one more granule, and none for a SuperSlab. */
    for (size_t i = 0; i < BOUNDED; i++)
        heaps[i] = bounded(NULL, i % 2 ? 1 << 20 : 40 << 10, HAK_LEVEL_FAST);
    fake_os_use();
    fake_os_refuse(FAKE_COMMIT, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_RESERVE, 1, FAKE_FOREVER);
    use_up(others, OTHERS);
    for (size_t i = 0; i < BOUNDED; i++) {
        size_t before = used(heaps[i]);
        refused[0] += hak_heap_malloc(heaps[i], 5000) == NULL;
        settled(heaps[i]);
        refused[1] += hak_heap_malloc(heaps[i], 40000) == NULL && used(heaps[i]) == before;
        settled(heaps[i]);
        while (hak_heap_malloc(heaps[i], 1000) != NULL) {
        }
        settled(heaps[i]);
    }
    cr_assert(refused[0] == BOUNDED && refused[1] > 0, "%zu %zu", refused[0], refused[1]);
    fake_os_restore();
    for (size_t i = 0; i < BOUNDED; i++) {
        cr_assert(hak_heap_malloc(heaps[i], 5000) != NULL || i % 2 == 0);
        prove(heaps[i]);
    }
}

/* ---- Threads ---- */

static hak_heap_t *shared, *children[3];
static _Atomic bool over;

static void *look(void *arg)
{
    size_t looks = 0;
    (void)arg;
    for (; !over; looks++) {
        /* As it is, and not as usage shows it, inside of its bound. */
        cr_assert(load_relaxed(&shared->ledger->of[FOOTPRINT].sum) <= 8 << 20);
        (void)usage_of(shared);
        for (size_t i = 0; i < 3; i++) (void)usage_of(children[i]);
    }
    return (void *)looks;
}

static void *use(void *arg)
{
    randoms_t randoms = {(uintptr_t)arg};
    item_t items[HELD] = {{NULL, 0, 0}};
    for (size_t i = contract_work(6000); i; i--) {
        item_t *item = &items[random_below(&randoms, HELD)];
        if (item->block) hak_free(item->block);
        size_t size = some_size(&randoms);
        item->block = hak_heap_malloc(children[random_below(&randoms, 3)], size);
        if (item->block) memset(item->block, 1, size);
        else cr_assert(errno == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT);
        if (random_below(&randoms, 400) == 0) (void)hak_heap_trim(children[0], 0);
    }
    for (size_t i = 0; i < HELD; i++) hak_free(items[i].block);
    return NULL;
}

Test(committed, no_reader_sees_more_than_the_limit)
{
    pthread_t reader, users[4];
    void *looks;
    shared = bounded(NULL, 8 << 20, HAK_LEVEL_FAST);
    for (size_t i = 0; i < 3; i++) children[i] = bounded(shared, (3 + i) << 20, HAK_LEVEL_FAST);
    cr_assert(pthread_create(&reader, NULL, look, NULL) == 0);
    for (size_t i = 0; i < 4; i++)
        cr_assert(pthread_create(&users[i], NULL, use, (void *)(i + 1)) == 0);
    for (size_t i = 0; i < 4; i++) pthread_join(users[i], NULL);
    over = true;
    pthread_join(reader, &looks);
    cr_assert((size_t)looks > 0 && usage_of(shared).committed_refusals > 0);
    for (size_t i = 0; i < 3; i++) prove(children[i]);
    cr_assert(hak_heap_destroy(shared) == 0);
}

/* A heap that hammers its limit: what is known is not looked for again. */
Test(committed, a_heap_that_hammers_its_limit_causes_few_fences)
{
    static void *blocks[MOST];
    hak_heap_t *heap = bounded(NULL, 3 << 20, HAK_LEVEL_FAST);
    size_t count = fill(heap, 3000, blocks), known = 0;
    fake_os_use();
    for (size_t i = 0; i < 20000; i++) {
        uint32_t stamp = heap->ledger->stamp;
        bool squeezed = heap->ledger->squeezed;
        cr_assert(hak_heap_malloc(heap, 3000) == NULL);
        if (i % 16 && squeezed && heap->ledger->squeezed) known += heap->ledger->stamp == stamp;
        if (i % 16) continue;
        hak_heap_free(heap, blocks[i % count]);
        cr_assert((blocks[i % count] = hak_heap_malloc(heap, 3000)) != NULL);
    }
    long fences = fake_os_calls(FAKE_FENCE);
    fake_os_restore();
    cr_assert(fences <= 100 && known > 15000, "%ld fences, %zu known", fences, known);
    prove(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- fork ---- */

static void *use_on(void *arg)
{
    while (!over) (void)use(arg);
    return NULL;
}

/* Of a child: what other threads were doing is over, and all sums hold. */
static int use_all(void)
{
    for (size_t i = 0; i < 3; i++) {
        if (hak_heap_check(children[i]) || children[i]->coming) return 1;
        void *block = hak_heap_malloc(children[i], 40000);
        if (!block && hak_last_error() != HAK_ERROR_LIMIT) return 2;
        hak_free(block);
        (void)hak_heap_trim(children[i], 0);
        if (heap_footprint(children[i]) != load_relaxed(&children[i]->ledger->of[FOOTPRINT].lease))
            return 3;
    }
    if (!ledger_is_sound(shared->ledger)) return 4;
    return hak_heap_destroy(shared) ? 5 : 0;
}

Test(committed, a_child_of_fork_has_the_sums)
{
    pthread_t users[2];
    shared = bounded(NULL, 8 << 20, HAK_LEVEL_FAST);
    for (size_t i = 0; i < 3; i++) children[i] = bounded(shared, (3 + i) << 20, HAK_LEVEL_FAST);
    for (size_t i = 0; i < 2; i++)
        cr_assert(pthread_create(&users[i], NULL, use_on, (void *)(i + 1)) == 0);
    for (size_t i = 0; i < contract_work(60); i++) {
        pid_t pid = fork();
        if (pid == 0) _exit(use_all());
        int status = -1;
        cr_assert(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "%d", status);
    }
    over = true;
    for (size_t i = 0; i < 2; i++) pthread_join(users[i], NULL);
    for (size_t i = 0; i < 3; i++) prove(children[i]);
    cr_assert(hak_heap_destroy(shared) == 0);
}
