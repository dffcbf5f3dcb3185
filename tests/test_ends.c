/* How heaps end: closed, destroyed if empty, and what runs before their blocks go. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "heap.h"
#include "support_contract.h"
#include "support_os.h"

TestSuite(ends, .timeout = 300);

static const size_t kinds[] = {16, 64, 1000, 3000, 20000, 40000, 500000, 3000000};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static hak_heap_t *make(hak_heap_t *parent, int level, size_t region_bytes)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = parent;
    config.live_limit = parent ? 0 : (size_t)1 << 30;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.region_bytes = region_bytes;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    return heap;
}

/* ---- Close ---- */

static void require_closed(hak_heap_t *heap)
{
    for (size_t k = 0; k < KINDS; k++) {
        errno = 0;
        cr_assert(hak_heap_malloc(heap, kinds[k]) == NULL, "%zu bytes", kinds[k]);
        cr_assert(errno == ESHUTDOWN && hak_last_error() == HAK_ERROR_CLOSED);
        cr_assert(hak_heap_calloc(heap, 1, kinds[k]) == NULL && errno == ESHUTDOWN);
        cr_assert(hak_heap_aligned_alloc(heap, 64, kinds[k]) == NULL && errno == ESHUTDOWN);
    }
}

static void close_one(int level, size_t region_bytes)
{
    enum { BLOCKS = 8 };
    char *blocks[KINDS][BLOCKS];
    hak_heap_t *heap = make(NULL, level, region_bytes);
    for (size_t k = 0; k < KINDS; k++)
        for (size_t i = 0; i < BLOCKS; i++) {
            cr_assert((blocks[k][i] = hak_heap_malloc(heap, kinds[k])) != NULL);
            memset(blocks[k][i], (int)(k + i), kinds[k]);
        }
    for (size_t k = 0; k < KINDS; k++) hak_heap_free(heap, blocks[k][0]);
    cr_assert(hak_heap_close(heap) == 0);
    require_closed(heap);
    for (size_t k = 0; k < KINDS; k++) {
        cr_assert(hak_heap_realloc(heap, blocks[k][1], kinds[k]) == blocks[k][1]);
        if (kinds[k] <= 20000) {
            cr_assert(hak_heap_realloc(heap, blocks[k][1], 60000) == NULL && errno == ESHUTDOWN);
            cr_assert(blocks[k][1][kinds[k] - 1] == (char)(k + 1));
        }
        for (size_t i = 2; i < BLOCKS; i++) {
            cr_assert(blocks[k][i][kinds[k] - 1] == (char)(k + i));
            if (i & 1) hak_free(blocks[k][i]);
            else hak_heap_free(heap, blocks[k][i]);
        }
    }
    require_closed(heap);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.live_blocks == KINDS && contract_cached(&stats) == 0, "%zu blocks, %zu bytes",
              stats.live_blocks, contract_cached(&stats));
    cr_assert(hak_heap_close(heap) == 0 && hak_heap_check(heap) == 0);
    cr_assert(hak_heap_reset(heap) == 0);
    require_closed(heap);
    cr_assert(hak_heap_destroy(heap) == 0 && hak_heap_close(heap) == EINVAL);
}

Test(ends, a_closed_heap_takes_and_does_not_give)
{
    for (int level = 0; level < 2; level++)
        for (size_t region_bytes = 0; region_bytes < 2; region_bytes++)
            close_one(level, region_bytes);
}

static _Atomic bool closed;
static _Atomic size_t given;

/* Until it is refused; a request that began after the close gets nothing. */
static void *take_until_closed(void *heap)
{
    for (size_t i = 0;; i++) {
        bool late = closed;
        void *block = hak_heap_malloc(heap, 16 + i * 40 % 3000);
        if (!block) return NULL;
        if (late) return heap;
        given++;
        if (i % 3) hak_heap_free(heap, block);
    }
}

Test(ends, a_heap_is_closed_while_others_use_it)
{
    for (int time = 0; time < 20; time++) {
        pthread_t threads[4];
        hak_heap_t *heap = make(NULL, time & 1, (size_t)time / 2 % 2);
        size_t before = given;
        closed = false;
        for (int i = 0; i < 4; i++)
            cr_assert(pthread_create(&threads[i], NULL, take_until_closed, heap) == 0);
        while (given < before + 2000) sched_yield();
        cr_assert(hak_heap_close(heap) == 0);
        closed = true;
        for (int i = 0; i < 4; i++) {
            void *late;
            pthread_join(threads[i], &late);
            cr_assert(late == NULL, "a block after the close");
        }
        cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
    }
}

Test(ends, a_close_that_is_refused_leaves_the_heap_open)
{
    if (strcmp(hak_percpu_mode(), "locked") == 0) cr_skip_test("no fence");
    fake_os_use();
    hak_heap_t *heap = make(NULL, 0, 1);
    hak_heap_free(heap, hak_heap_malloc(heap, 100));
    fake_os_refuse(FAKE_FENCE, 1, FAKE_FOREVER);
    cr_assert(hak_heap_close(heap) == EAGAIN && hak_last_error() == HAK_ERROR_FENCE);
    cr_assert(hak_heap_malloc(heap, 100) != NULL && hak_heap_malloc(heap, 5000) != NULL);
    fake_os_allow(FAKE_FENCE);
    cr_assert(hak_heap_close(heap) == 0 && hak_heap_malloc(heap, 100) == NULL);
    cr_assert(hak_heap_destroy(heap) == 0);
    fake_os_restore();
}

/* ---- If empty ---- */

Test(ends, only_an_empty_heap_is_destroyed)
{
    for (int level = 0; level < 2; level++) {
        size_t blocks = 77;
        hak_heap_t *heap = make(NULL, level, 0), *child = make(heap, level, 0);
        void *one = hak_heap_malloc(heap, 100), *two = hak_heap_malloc(heap, 100000);
        cr_assert(hak_heap_destroy_if_empty(heap, &blocks) == EBUSY && blocks == 2);
        cr_assert(hak_last_error() == HAK_ERROR_LIVE);
        hak_heap_free(heap, one);
        cr_assert(hak_heap_destroy_if_empty(heap, NULL) == EBUSY);
        hak_heap_free(heap, two);
        cr_assert(hak_heap_destroy_if_empty(heap, &blocks) == EBUSY && blocks == 0, "a child");
        cr_assert(hak_heap_destroy_if_empty(child, &blocks) == 0 && blocks == 0);
        cr_assert(hak_heap_destroy_if_empty(heap, &blocks) == 0);
        cr_assert(hak_heap_destroy_if_empty(heap, &blocks) == EINVAL);
        cr_assert(hak_heap_destroy_if_empty(NULL, NULL) == EINVAL);
    }
}

/* ---- Before the blocks go ---- */

static char order[64];

typedef struct noted {
    hak_on_destroy_t node;
    char name;
    char *block;
} noted_t;

static void note(void *ctx, hak_heap_t *heap)
{
    noted_t *noted = ctx;
    size_t length = strlen(order);
    order[length] = noted->name;
    order[length + 1] = '\0';
    if (!noted->block) return;
    cr_assert(strcmp(noted->block, "still here") == 0 && hak_heap_of(noted->block) == heap);
    hak_heap_free(heap, noted->block);
    cr_assert(hak_heap_malloc(heap, 500) != NULL);
}

static noted_t *add(hak_heap_t *heap, char name)
{
    noted_t *noted = hak_heap_calloc(heap, 1, sizeof *noted);
    cr_assert(noted != NULL);
    noted->node.run = note;
    noted->node.ctx = noted;
    noted->name = name;
    noted->block = hak_heap_malloc(heap, 32);
    strcpy(noted->block, "still here");
    cr_assert(hak_heap_on_destroy(heap, &noted->node) == 0);
    return noted;
}

Test(ends, callbacks_run_before_the_blocks_go)
{
    hak_heap_t *root = make(NULL, 0, 0), *child = make(root, 1, 0), *below = make(child, 0, 0);
    add(root, 'a'), add(root, 'b'), add(child, 'c'), add(below, 'd'), add(below, 'e');
    cr_assert(hak_heap_reset(child) == 0);
    cr_assert(strcmp(order, "edc") == 0, "%s", order);
    add(child, 'f');
    cr_assert(hak_heap_destroy(root) == 0);
    cr_assert(strcmp(order, "edcfba") == 0, "%s", order);
    cr_assert(hak_heap_destroy(child) == EINVAL);
}

static noted_t late = {.node = {NULL, note, &late}, .name = 'z'};
static void add_late(void *ctx, hak_heap_t *heap)
{
    (void)ctx;
    cr_assert(hak_heap_on_destroy(heap, &late.node) == 0);
}

Test(ends, what_a_callback_adds_runs_too)
{
    hak_heap_t *heap = make(NULL, 0, 0);
    hak_on_destroy_t node = {NULL, add_late, NULL};
    cr_assert(hak_heap_on_destroy(heap, &node) == 0);
    cr_assert(hak_heap_destroy(heap) == 0 && strcmp(order, "z") == 0, "%s", order);
}

Test(ends, a_node_without_a_callback_is_refused)
{
    hak_heap_t *heap = hak_heap_create(NULL);
    hak_on_destroy_t node = {NULL, NULL, NULL};
    cr_assert(hak_heap_on_destroy(heap, &node) == EINVAL && hak_last_error() == HAK_ERROR_ARGUMENT);
    cr_assert(hak_heap_on_destroy(heap, NULL) == EINVAL);
    cr_assert(hak_heap_on_destroy(NULL, &node) == EINVAL);
    cr_assert(hak_heap_destroy(heap) == 0);
    node.run = note;
    cr_assert(hak_heap_on_destroy(heap, &node) == EINVAL);
}
