/* The limit of what heaps use: at no moment is more in use, and what was refused passes after frees. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

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
    cr_assert(usage.tree_committed_peak_bytes <= usage.committed_limit);
    return usage;
}

static size_t used(const hak_heap_t *heap) { return usage_of(heap).tree_committed_bytes; }

/* What the heap says of itself, by figures of its own. */
static void prove(hak_heap_t *heap)
{
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    cr_assert(hak_heap_check(heap) == 0 && ledger_is_sound(heap->ledger));
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
