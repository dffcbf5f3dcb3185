/* What a heap that counts keeps of the limits above it when a large block is freed: it serves the
 * next one, and nobody is refused for it. */
#include <criterion/criterion.h>

#include "heap.h"
#include "support_contract.h"
#include "support_must.h"

TestSuite(kept, .timeout = 600);

enum { ROOT = 512 * HAK_MIB, BLOCK = 4 * HAK_MIB };

static unsigned told;
static void tell(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)ctx, (void)full, (void)bytes;
    told++;
}

static hak_heap_t *make(hak_heap_t *parent, size_t live, size_t committed)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "keeper";
    config.parent = parent;
    config.live_limit = live;
    config.committed_limit = committed;
    config.on_pressure = parent ? NULL : tell;
    return must_create(&config);
}

static size_t sum_of(const hak_heap_t *heap, unsigned measure)
{
    return load_relaxed(&heap->ledger->of[measure].sum);
}

/* A child that has had a large block, and its parent with both limits. */
static hak_heap_t *root, *child;
static void keep(void)
{
    root = make(NULL, ROOT, ROOT);
    child = make(root, 0, 0);
    void *block = hak_heap_malloc(child, BLOCK);
    cr_assert(block != NULL && sum_of(root, LIVE) == BLOCK);
    hak_heap_free(child, block);
}

static void prove(void)
{
    cr_assert(ledger_is_sound(root->ledger) && hak_heap_check(child) == 0);
    cr_assert(hak_heap_destroy(root) == 0);
}

Test(kept, a_freed_block_leaves_its_charge_and_its_room)
{
    keep();
    size_t used = sum_of(root, FOOTPRINT);
    cr_assert(sum_of(root, LIVE) == BLOCK && used > BLOCK);
    hak_usage_t usage = {.struct_size = sizeof usage};
    cr_assert(hak_heap_usage(child, &usage) == 0);
    cr_expect(usage.live_bytes == 0 && usage.committed_bytes < HAK_MIB && usage.peak_bytes > BLOCK);
    for (size_t bytes = BLOCK; bytes > HAK_MIB; bytes -= 100 * HAK_PAGE) {
        void *block = hak_heap_malloc(child, bytes);
        cr_assert(block != NULL && ledger_live(child->ledger) == bytes);
        cr_assert(sum_of(root, LIVE) == BLOCK && sum_of(root, FOOTPRINT) == used);
        hak_heap_free(child, block);
    }
    prove();
}

/* To the byte: what a neighbour keeps takes nothing from anybody. */
Test(kept, a_neighbour_is_not_refused_for_it)
{
    keep();
    hak_heap_t *other = make(root, 0, HAK_NO_LIMIT);
    hak_limits_t limits = {sizeof limits, ROOT, HAK_NO_LIMIT, HAK_NO_LIMIT};
    cr_assert(hak_heap_set_limits(root, &limits) == 0 && sum_of(root, LIVE) == BLOCK);
    void *all = hak_heap_malloc(other, ROOT);
    cr_assert(all != NULL && sum_of(root, LIVE) == ROOT);
    cr_assert(hak_heap_malloc(child, 1) == NULL && hak_heap_refused_by(child) == root);
    hak_heap_free(other, all);
    prove();
}

/* The same of memory. */
Test(kept, a_neighbour_uses_the_room)
{
    keep();
    hak_heap_t *other = make(root, 0, 0);
    size_t empty = heap_footprint(root) + heap_footprint(child) + heap_footprint(other);
    size_t records = 2 * HAK_PAGE; /* of the block, at most */
    void *most = hak_heap_malloc(other, ROOT - empty - records);
    cr_assert(most != NULL && sum_of(root, FOOTPRINT) <= ROOT);
    cr_assert(sum_of(child, FOOTPRINT) == heap_footprint(child), "it was recalled");
    prove();
}

Test(kept, a_trim_returns_it)
{
    keep();
    (void)hak_heap_trim(child, 0);
    cr_assert(sum_of(root, LIVE) == 0);
    cr_assert(sum_of(root, FOOTPRINT) == heap_footprint(root) + heap_footprint(child));
    prove();
}

Test(kept, a_reset_returns_it)
{
    keep();
    cr_assert(hak_heap_malloc(child, BLOCK) != NULL && hak_heap_reset(child) == 0);
    cr_assert(sum_of(root, LIVE) == 0);
    cr_assert(sum_of(root, FOOTPRINT) == heap_footprint(root) + heap_footprint(child));
    prove();
}

/* A heap is told of a soft limit for what is live, and not for what was. */
Test(kept, a_soft_limit_is_not_passed_by_it)
{
    keep();
    hak_limits_t limits = {sizeof limits, ROOT, ROOT, BLOCK / 2};
    cr_assert(hak_heap_set_limits(root, &limits) == 0 && sum_of(root, LIVE) == 0);
    void *block = hak_heap_malloc(child, BLOCK / 4);
    cr_assert(block != NULL && told == 0);
    hak_heap_free(child, block);
    cr_assert(sum_of(root, LIVE) == 0, "and from then on nothing is kept");
    cr_assert(hak_heap_malloc(child, BLOCK) != NULL && told == 1);
    prove();
}
