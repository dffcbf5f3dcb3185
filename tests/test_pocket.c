/* pocket: a heap becomes busy, and freed blocks of its regions are taken again from a word. */
#include "pocket.h"

#include <criterion/criterion.h>
#include <unistd.h>

#include "hakheap.h"
#include "heap.h"
#include "support_child.h"
#include "support_must.h"
#include "support_random.h"

TestSuite(pocket, .timeout = 300);

/* ---- The word ---- */

Test(pocket, a_word_has_the_newest_first_and_shifts_the_oldest_out)
{
    for (unsigned units = 1; units <= REGION_ROOM; units++) {
        pocket_t pocket = {0};
        unsigned most = pocket_most(units);
        cr_assert(most >= 1 && most <= POCKET_MOST && pocket_take(&pocket) == 0);
        for (unsigned i = 0; i < 10; i++) {
            char *at = (char *)(uintptr_t)GRANULE + i * 50 * REGION_UNIT;
            uint64_t name = pocket_name(31 - i, at), oldest;
            cr_assert(!pocket_names(pocket_look(&pocket), name));
            cr_assert(pocket_put(&pocket, name, units, &oldest));
            cr_assert(pocket_count(pocket_look(&pocket)) == hak_min(i + 1, most));
            cr_assert(pocket_names(pocket_look(&pocket), name));
            cr_assert(!pocket_put(&pocket, name, units, &oldest), "named twice");
            cr_assert((oldest == 0) == (i < most) && oldest <= UINT16_MAX);
            if (oldest) cr_assert(pocket_region(oldest) == 31 - (i - most));
            if (oldest) cr_assert(pocket_unit(oldest) == (i - most) * 50);
        }
        for (unsigned i = 0; i < most; i++) {
            uint64_t word = pocket_take(&pocket);
            cr_assert(pocket_region(word) == 22 + i && pocket_unit(word) == (9 - i) * 50);
        }
        cr_assert(pocket_take(&pocket) == 0 && pocket_empty(&pocket) == 0);
    }
}

/* Every pair of names, at each place of a word: one is no other. */
Test(pocket, a_word_names_what_it_has_and_nothing_else)
{
    randoms_t randoms = {3};
    for (unsigned round = 0; round < 1000000; round++) {
        uint64_t word = 0, name[POCKET_MOST + 1];
        unsigned count = random_below(&randoms, POCKET_MOST + 1);
        for (unsigned i = 0; i <= count; i++) {
            name[i] = POCKET_NAMED | random_below(&randoms, round % 2 ? POCKET_NAMED : 8);
            if (i < count) word = word << POCKET_BITS | name[i];
        }
        bool has = false;
        for (unsigned i = 0; i < count; i++) has |= name[i] == name[count];
        cr_assert(pocket_names(word, name[count]) == has, "%#zx in %#zx", (size_t)name[count],
                  (size_t)word);
    }
}

/* ---- A busy heap ---- */

static hak_heap_t *heap_of(int level)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    return heap;
}
static bool is_in_region(const void *ptr)
{
    return entry_code(registry_lookup(ptr)) == CODE_REGION;
}

enum { COUNT = 40, BYTES = 96 };
typedef struct scene {
    hak_heap_t *heap;
    char *block[COUNT];
} scene_t;

/* Replaces one block until the heap is busy. Returns how often. */
static size_t replace_until_busy(scene_t *scene, size_t bytes, size_t most)
{
    size_t rounds = 0;
    for (; load_relaxed(&scene->heap->busy) == CALM && rounds < most; rounds++) {
        char **block = &scene->block[rounds % COUNT];
        hak_heap_free(scene->heap, *block);
        *block = hak_heap_malloc(scene->heap, bytes);
        cr_assert(*block && is_in_region(*block));
    }
    return rounds;
}

static scene_t busy_scene(int level, size_t bytes)
{
    scene_t scene = {.heap = heap_of(level)};
    for (unsigned i = 0; i < COUNT; i++) scene.block[i] = hak_heap_malloc(scene.heap, bytes);
    (void)replace_until_busy(&scene, bytes, SIZE_MAX);
    cr_assert(load_relaxed(&scene.heap->busy) == BUSY_POCKETS);
    for (unsigned i = 0; i < COUNT; i++) contract_fill(scene.block[i], bytes, i);
    return scene;
}

static size_t cached(const hak_heap_t *heap) { return contract_stats(heap).hot_bytes; }

/* Each block replaced 60 times is not busy yet; soon after that it is, and a reset begins anew. */
Test(pocket, a_heap_is_busy_when_its_blocks_have_turned_over)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_t scene = {.heap = heap_of(level)};
        for (unsigned round = 0; round < 2; round++) {
            for (unsigned i = 0; i < COUNT; i++)
                scene.block[i] = hak_heap_malloc(scene.heap, BYTES);
            size_t rounds = replace_until_busy(&scene, BYTES, 100000);
            cr_assert(rounds > (size_t)60 * COUNT && rounds < (size_t)80 * COUNT, "%zu", rounds);
            hak_heap_free(scene.heap, scene.block[0]);
            cr_assert(cached(scene.heap) == BYTES);
            must_be_sound(scene.heap, COUNT - 1);
            cr_assert(hak_heap_reset(scene.heap) == 0);
            cr_assert(load_relaxed(&scene.heap->busy) == CALM && cached(scene.heap) == 0);
            must_be_sound(scene.heap, 0);
        }
        cr_assert(hak_heap_destroy(scene.heap) == 0);
    }
}

/* Where all that pockets may hold does not fit the budget, there are none. */
Test(pocket, a_small_budget_has_none)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.cache_bytes = 10000;
    scene_t scene = {.heap = hak_heap_create(&config)};
    for (unsigned i = 0; i < COUNT; i++) scene.block[i] = hak_heap_malloc(scene.heap, BYTES);
    cr_assert(replace_until_busy(&scene, BYTES, 100000) < 100000);
    cr_assert(load_relaxed(&scene.heap->busy) == BUSY_BARE);
    hak_heap_free(scene.heap, scene.block[0]);
    cr_assert(cached(scene.heap) == 0);
    must_be_sound(scene.heap, COUNT - 1);
    cr_assert(hak_heap_destroy(scene.heap) == 0);
}

/* The newest is taken first, and each counts as cached until then. */
Test(pocket, what_is_freed_is_taken_again)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (size_t bytes = 16; bytes <= BYTES; bytes += 16) {
            scene_t scene = busy_scene(level, bytes);
            unsigned cls = sizeclass_of(bytes);
            for (unsigned round = 0; round < 3; round++) {
                hak_free(scene.block[0]);
                hak_heap_free(scene.heap, scene.block[7]);
                cr_assert(hak_usable_size(scene.block[7]) == 0 && !hak_heap_of(scene.block[0]));
                cr_assert(cached(scene.heap) == 2 * bytes);
                hak_class_stats_t stats = {.struct_size = sizeof stats};
                cr_assert(hak_heap_class_stats(scene.heap, cls, &stats) == 0);
                cr_assert(stats.hot_blocks == 2 && stats.live_blocks == COUNT - 2);
                must_be_sound(scene.heap, COUNT - 2);
                char *aligned = hak_heap_aligned_alloc(scene.heap, 64, bytes);
                cr_assert((uintptr_t)aligned % 64 == 0 && cached(scene.heap) == 2 * bytes);
                cr_assert(hak_heap_malloc(scene.heap, bytes) == scene.block[7]);
                cr_assert(hak_heap_malloc(scene.heap, bytes) == scene.block[0]);
                cr_assert(cached(scene.heap) == 0 && hak_usable_size(scene.block[7]) == bytes);
                contract_fill(scene.block[0], bytes, 0);
                contract_fill(scene.block[7], bytes, 7);
                hak_free(aligned);
                (void)hak_heap_flush(scene.heap);
            }
            for (unsigned i = 0; i < COUNT; i++)
                cr_assert(contract_holds(scene.block[i], bytes, i), "block %u", i);
            must_be_sound(scene.heap, COUNT);
            cr_assert(hak_heap_destroy(scene.heap) == 0);
        }
}

/* Random sizes for long: what is in pockets is neither lost nor handed out twice. */
Test(pocket, keeps_blocks_of_all_sizes)
{
    enum { BLOCKS = 60 };
    static struct {
        char *ptr;
        size_t bytes;
        unsigned seed;
    } item[BLOCKS];
    randoms_t randoms = {5};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of(level);
        size_t live = 0, most = 0;
        memset(item, 0, sizeof item);
        for (unsigned i = 0; i < contract_work(200000); i++) {
            unsigned at = random_below(&randoms, BLOCKS);
            if (item[at].ptr) {
                cr_assert(contract_holds(item[at].ptr, item[at].bytes, item[at].seed));
                hak_free(item[at].ptr);
                live--;
            }
            item[at].bytes = random_below(&randoms, 1024) + 1;
            item[at].seed = i;
            item[at].ptr = hak_heap_malloc(heap, item[at].bytes);
            contract_fill(item[at].ptr, item[at].bytes, i);
            live++;
            if (i % 20000 == 0) must_be_sound(heap, live);
            if (i % 1000 == 0) most = hak_max(most, cached(heap));
        }
        cr_assert(load_relaxed(&heap->busy) == BUSY_POCKETS && most > 1000, "%zu", most);
        must_be_sound(heap, live);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(pocket, a_flush_frees_what_it_has)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (int trim = 0; trim < 3; trim++) {
            scene_t scene = busy_scene(level, BYTES);
            for (unsigned i = 0; i < 3; i++) hak_heap_free(scene.heap, scene.block[i]);
            size_t kept = cached(scene.heap), free = contract_stats(scene.heap).free_bytes;
            cr_assert(kept == 3 * BYTES);
            unsigned cls = sizeclass_of(BYTES);
            if (trim == 0) cr_assert(hak_heap_flush_class(scene.heap, cls - 1) == 0);
            if (trim == 0) cr_assert(hak_heap_flush_class(scene.heap, cls) == kept);
            if (trim == 1) cr_assert(hak_heap_flush(scene.heap) == kept);
            if (trim == 2) (void)hak_heap_trim(scene.heap, SIZE_MAX / 2);
            cr_assert(cached(scene.heap) == 0);
            cr_assert(contract_stats(scene.heap).free_bytes == free + kept);
            must_be_sound(scene.heap, COUNT - 3);
            cr_assert(hak_heap_destroy(scene.heap) == 0);
        }
}

/* A class with a page's worth of blocks moves, as it would with region_bytes of them; what pockets
 * have of it is used up, or free. */
Test(pocket, a_class_with_many_blocks_moves_to_slabs)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        static char *many[100];
        scene_t scene = busy_scene(level, BYTES);
        for (size_t i = 0; i < 100; i++) many[i] = hak_heap_malloc(scene.heap, BYTES);
        cr_assert(is_in_region(many[99]));
        size_t rounds = 0;
        for (; !heap_class_made(scene.heap, sizeclass_of(BYTES)) && rounds < 10000; rounds++) {
            char **few = &scene.block[rounds % COUNT], **others = &many[rounds % 100];
            hak_heap_free(scene.heap, *few), hak_heap_free(scene.heap, *others);
            *few = hak_heap_malloc(scene.heap, 128), *others = hak_heap_malloc(scene.heap, BYTES);
            for (unsigned i = 0; i < 6; i++) hak_heap_free(scene.heap, many[i]);
            for (unsigned i = 0; i < 6; i++) many[i] = hak_heap_malloc(scene.heap, BYTES);
        }
        cr_assert(rounds < 10000);
        for (size_t i = 0; i < 100; i++) hak_heap_free(scene.heap, many[i]);
        cr_assert(pocket_look(&scene.heap->pocket[sizeclass_of(BYTES)]) == 0);
        must_be_sound(scene.heap, COUNT);
        cr_assert(hak_heap_destroy(scene.heap) == 0);
    }
}

/* No pocket makes a class of long blocks quick: in a busy heap slabs do, however few there are. */
Test(pocket, a_class_of_long_blocks_moves_to_slabs)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (size_t bytes = 1025; bytes <= REGION_BLOCK_MAX; bytes += 1023) {
            hak_heap_t *heap = contract_heap(level, "long");
            void *block = hak_heap_malloc(heap, bytes), *other = hak_heap_malloc(heap, bytes);
            cr_assert(is_in_region(block));
            size_t pairs = 0;
            for (; is_in_region(block) && pairs < 10000; pairs++) {
                hak_heap_free(heap, block);
                block = hak_heap_malloc(heap, bytes);
            }
            cr_assert(pairs < 10000, "%zu bytes", bytes);
            must_be_sound(heap, 2);
            hak_heap_free(heap, other), hak_heap_free(heap, block);
            cr_assert(hak_heap_destroy(heap) == 0);
        }
}

/* ---- Misuse ---- */

static void free_twice(void *arg)
{
    scene_t *scene = arg;
    hak_heap_free(scene->heap, scene->block[5]);
    hak_free(scene->block[5]);
}
static void free_twice_with_others(void *arg)
{
    scene_t *scene = arg;
    for (unsigned i = 0; i < 4; i++) hak_heap_free(scene->heap, scene->block[i]);
    hak_heap_free(scene->heap, scene->block[0]);
}
static void free_shifted_out(void *arg)
{
    scene_t *scene = arg;
    for (unsigned i = 0; i < 9; i++) hak_heap_free(scene->heap, scene->block[i]);
    hak_heap_free(scene->heap, scene->block[0]);
}
static void free_inside(void *arg)
{
    scene_t *scene = arg;
    hak_heap_free(scene->heap, scene->block[5]);
    hak_heap_free(scene->heap, scene->block[5] + 32);
}
static void realloc_freed(void *arg)
{
    scene_t *scene = arg;
    hak_heap_free(scene->heap, scene->block[5]);
    if (!hak_heap_realloc(scene->heap, scene->block[5], BYTES)) _exit(99);
}
static void write_after_free(void *arg)
{
    scene_t *scene = arg;
    hak_heap_free(scene->heap, scene->block[5]);
    scene->block[5][BYTES - 1] ^= 1;
    if (!hak_heap_malloc(scene->heap, BYTES)) _exit(99);
}
static void write_and_shift_out(void *arg)
{
    scene_t *scene = arg;
    hak_heap_free(scene->heap, scene->block[5]);
    scene->block[5][BYTES - 1] ^= 1;
    for (unsigned i = 10; i < 14; i++) hak_heap_free(scene->heap, scene->block[i]);
}

static void must_abort(void (*run)(void *), scene_t *scene, const char *code, const char *operation)
{
    child_result_t result;
    child_run(&result, run, scene);
    cr_assert(child_aborted(&result, code, operation), "%s: %d, %s", code, result.status,
              result.text);
}

Test(pocket, misuse_is_named)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_t scene = busy_scene(level, BYTES);
        must_abort(free_twice, &scene, "DOUBLE_FREE", "free");
        must_abort(free_twice_with_others, &scene, "DOUBLE_FREE", "free");
        must_abort(free_shifted_out, &scene, "DOUBLE_FREE", "free");
        must_abort(free_inside, &scene, "DOUBLE_FREE", "free");
        must_abort(realloc_freed, &scene, "DOUBLE_FREE", "realloc");
        if (level) must_abort(write_after_free, &scene, "CORRUPT", "malloc");
        if (level) must_abort(write_and_shift_out, &scene, "CORRUPT", "malloc");
    }
}

/* The check looks at what pockets name, and at its seals. */
Test(pocket, a_check_finds_what_is_wrong)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_t scene = busy_scene(level, BYTES);
        pocket_t *pocket = &scene.heap->pocket[sizeclass_of(BYTES)];
        hak_heap_free(scene.heap, scene.block[5]);
        uint64_t word = pocket_look(pocket);
        scene.block[5][BYTES - 1] ^= 1;
        cr_assert((hak_heap_check(scene.heap) != 0) == (level != 0));
        scene.block[5][BYTES - 1] ^= 1;
        cr_assert(hak_heap_check(scene.heap) == 0);
        store_relaxed(&pocket->word, word << POCKET_BITS | word);
        cr_assert(hak_heap_check(scene.heap) != 0, "one twice");
        store_relaxed(&pocket->word, word + 1);
        cr_assert(hak_heap_check(scene.heap) != 0, "no block");
        store_relaxed(&pocket->word, word);
        cr_assert(hak_heap_check(scene.heap) == 0 && hak_heap_destroy(scene.heap) == 0);
    }
}
