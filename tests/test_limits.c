/* limits and trees, by the public calls: what is refused follows from what is live. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "pointer.h"
#include "support_contract.h"
#include "support_must.h"
#include "support_os.h"
#include "support_random.h"
#include "support_run.h"

TestSuite(limits, .timeout = 600);

static size_t region_bytes; /* of the config; 1: slabs only */

static hak_heap_t *make(hak_heap_t *parent, size_t limit, int level)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "counted";
    config.parent = parent;
    config.live_limit = limit;
    config.region_bytes = region_bytes;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    return must_create(&config);
}

static hak_usage_t usage_of(const hak_heap_t *heap)
{
    hak_usage_t usage = {.struct_size = sizeof usage};
    cr_assert(hak_heap_usage(heap, &usage) == 0);
    return usage;
}

static void require_sound(hak_heap_t *heap)
{
    cr_assert(hak_heap_check(heap) == 0);
    cr_assert(ledger_is_sound(heap->ledger));
}

static void require_refused(hak_heap_t *heap, size_t bytes, const hak_heap_t *full)
{
    errno = 0;
    cr_assert(hak_heap_malloc(heap, bytes) == NULL, "%zu bytes", bytes);
    cr_assert(errno == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT);
    cr_assert(hak_heap_refused_by(heap) == full);
}

/* Sizes of each kind: regions, slabs, mid, large. */
static const size_t kinds[] = {16, 64, 1000, 3000, 20000, 40000, 500000, 3000000};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static void fill_to_the_byte(int level)
{
    for (size_t k = 0; k < KINDS; k++) {
        enum { BLOCKS = 100 };
        size_t charge = hak_good_size(kinds[k]);
        hak_heap_t *heap = make(NULL, BLOCKS * charge + 16, level);
        void *blocks[BLOCKS];
        for (size_t i = 0; i < BLOCKS; i++) {
            blocks[i] = hak_heap_malloc(heap, kinds[k]);
            cr_assert(blocks[i] != NULL, "%zu bytes, block %zu", kinds[k], i);
            memset(blocks[i], (int)i, kinds[k]);
        }
        void *last = kinds[k] > 16 ? hak_heap_malloc(heap, 16) : NULL;
        require_refused(heap, kinds[k] > 16 ? 1 : 17, heap);
        require_refused(heap, kinds[k] > 16 ? kinds[k] : 17, heap);
        hak_heap_free(heap, blocks[0]);
        blocks[0] = hak_heap_malloc(heap, kinds[k]);
        cr_assert(blocks[0] != NULL, "%zu bytes", kinds[k]);
        require_refused(heap, kinds[k] > 16 ? kinds[k] : 17, heap);
        cr_assert(usage_of(heap).tree_bytes == contract_stats(heap).live_bytes);
        for (size_t i = 0; i < BLOCKS; i++) {
            if (i) cr_assert(((unsigned char *)blocks[i])[kinds[k] - 1] == i);
            hak_heap_free(heap, blocks[i]);
        }
        hak_heap_free(heap, last);
        (void)hak_heap_flush(heap);
        require_sound(heap);
        cr_assert(usage_of(heap).live_bytes == 0, "%zu", usage_of(heap).live_bytes);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(limits, a_heap_is_refused_at_the_byte)
{
    for (region_bytes = 0; region_bytes < 2; region_bytes++)
        for (int level = 0; level < 2; level++) fill_to_the_byte(level);
}

Test(limits, the_full_heap_of_a_chain_is_named)
{
    const size_t charge = hak_good_size(30000);
    hak_heap_t *root = make(NULL, 3 * charge + 100, 0), *left = make(root, 2 * charge - 1, 0),
               *right = make(root, HAK_NO_LIMIT, 1), *leaf = make(left, 0, 0);
    cr_assert(hak_heap_malloc(leaf, 30000) != NULL);
    require_refused(leaf, 30000, left);
    cr_assert(hak_heap_malloc(right, 30000) != NULL && hak_heap_malloc(right, 30000) != NULL);
    require_refused(right, 30000, root);
    require_refused(leaf, 200, root);
    cr_assert(usage_of(root).refusals == 2 && usage_of(left).refusals == 1);
    cr_assert(usage_of(root).tree_bytes == 3 * charge);
    cr_assert(hak_heap_destroy(left) == 0);
    cr_assert(usage_of(root).tree_bytes == 2 * charge && hak_heap_malloc(right, 30000) != NULL);
    cr_assert(hak_heap_reset(root) == 0, "right is destroyed");
    cr_assert(usage_of(root).tree_bytes == 0 && ledger_is_sound(root->ledger));
    cr_assert(hak_heap_destroy(root) == 0);
}

/* ---- Refusals follow from sizes alone ---- */

enum { OPERATIONS = 3000, HELD = 200, LIMIT = 2 << 20 };

typedef struct item {
    char *block;
    size_t size, charge;
    unsigned char mark;
} item_t;

static size_t charged; /* by arithmetic alone: what the items of a sequence add up to */

static size_t charge_of(size_t size, size_t alignment)
{
    bool rounded = alignment > BLOCK_ALIGN && size <= SMALL_MAX;
    return pointer_charge(rounded ? hak_round_up(size, alignment) : size, alignment);
}

static size_t random_size(randoms_t *randoms)
{
    size_t top = (size_t)1 << (4 + random_below(randoms, 17));
    return top / 2 + random_below(randoms, (unsigned)top);
}

/* NULL is what a heap answers where the limit has no room for the charge, and there only. */
static void require_answer(item_t *item, const void *block, size_t charge)
{
    size_t had = item->block ? item->charge : 0;
    bool fits = charged - had + charge <= LIMIT || charge <= had;
    cr_assert((block != NULL) == fits, "%zu bytes are charged; %zu more, %zu less", charged, charge,
              had);
    if (!block) return;
    charged += charge - had;
    item->charge = charge;
}

static void write_item(item_t *item, void *block, size_t size)
{
    item->block = block;
    item->size = size;
    memset(block, item->mark, size);
}

static void prove_item(const item_t *item, size_t size)
{
    for (size_t i = 0; i < size; i += size < 64 ? 1 : size / 64)
        cr_assert((unsigned char)item->block[i] == item->mark);
}

/* One operation; true: it was refused. */
static bool operate(hak_heap_t *heap, randoms_t *randoms, item_t *items)
{
    item_t *item = &items[random_below(randoms, HELD)];
    size_t size = random_size(randoms);
    unsigned what = random_below(randoms, 8);
    unsigned char mark = (unsigned char)random_below(randoms, 256);
    void *block = NULL;
    if (item->block && what < 4) {
        prove_item(item, item->size);
        if (what & 1) hak_free(item->block);
        else hak_heap_free(heap, item->block);
        item->block = NULL;
        charged -= item->charge;
        return false;
    }
    if (item->block) {
        prove_item(item, item->size);
        block = hak_heap_realloc(heap, item->block, size);
        require_answer(item, block, charge_of(size, BLOCK_ALIGN));
        if (!block) return true;
        item->block = block;
        prove_item(item, hak_min(size, item->size));
    } else if (what == 7) {
        size_t alignment = (size_t)16 << mark % 10;
        block = hak_heap_aligned_alloc(heap, alignment, size);
        require_answer(item, block, charge_of(size, alignment));
    } else {
        block = what == 6 ? hak_heap_calloc(heap, 1, size) : hak_heap_malloc(heap, size);
        require_answer(item, block, charge_of(size, BLOCK_ALIGN));
    }
    if (!block) return true;
    item->mark = mark;
    write_item(item, block, size);
    return false;
}

/* Which operations of a sequence are refused; everything is freed at the end. */
static void run_sequence(hak_heap_t *heap, uint64_t seed, bool refused[OPERATIONS])
{
    randoms_t randoms = {seed};
    item_t items[HELD] = {{0}};
    charged = 0;
    for (size_t i = 0; i < OPERATIONS; i++) refused[i] = operate(heap, &randoms, items);
    for (size_t i = 0; i < HELD; i++) hak_heap_free(heap, items[i].block);
    (void)hak_heap_flush(heap);
    cr_assert(usage_of(heap).live_bytes == 0, "%zu bytes stay charged", usage_of(heap).live_bytes);
}

static void *warm(void *arg)
{
    randoms_t randoms = {(uintptr_t)&randoms};
    void *blocks[64] = {NULL};
    for (unsigned i = 0; i < 5000; i++) {
        unsigned at = random_below(&randoms, 64);
        hak_heap_free(arg, blocks[at]);
        blocks[at] = hak_heap_malloc(arg, 16 + random_below(&randoms, 500));
    }
    for (unsigned at = 0; at < 64; at++) hak_heap_free(arg, blocks[at]);
    return NULL;
}

static void warm_by(hak_heap_t *heap, unsigned threads)
{
    pthread_t thread[8];
    for (unsigned i = 0; i < threads; i++)
        cr_assert(pthread_create(&thread[i], NULL, warm, heap) == 0);
    for (unsigned i = 0; i < threads; i++) pthread_join(thread[i], NULL);
}

/* Until freed blocks of its regions wait in pockets. */
static void make_busy(hak_heap_t *heap)
{
    randoms_t randoms = {3};
    void *blocks[40] = {NULL};
    for (unsigned i = 0; i < 100000 && load_relaxed(&heap->busy) != BUSY_POCKETS; i++) {
        unsigned at = random_below(&randoms, 40);
        hak_heap_free(heap, blocks[at]);
        blocks[at] = hak_heap_malloc(heap, 16 + random_below(&randoms, 1000));
    }
    cr_assert(load_relaxed(&heap->busy) == BUSY_POCKETS);
    for (unsigned at = 0; at < 40; at++) hak_heap_free(heap, blocks[at]);
}

static void require_same(const bool *expected, const bool *refused, uint64_t seed,
                         const char *where)
{
    for (size_t i = 0; i < OPERATIONS; i++)
        cr_assert(expected[i] == refused[i], "seed %lu: operation %zu, %s", (unsigned long)seed, i,
                  where);
}

static void run_same(hak_heap_t *heap, uint64_t seed, const bool *expected, const char *where)
{
    static bool refused[OPERATIONS];
    run_sequence(heap, seed, refused);
    require_same(expected, refused, seed, where);
}

/* Returns how many were refused. */
static size_t compare(uint64_t seed)
{
    static bool expected[OPERATIONS];
    size_t refusals = 0;
    hak_heap_t *heap = make(NULL, LIMIT, 0), *checked = make(NULL, LIMIT, 1);
    run_sequence(heap, seed, expected);
    run_same(heap, seed, expected, "caches of the same");
    warm_by(heap, 1 + 7 * (seed & 1));
    run_same(heap, seed, expected, "caches of threads");
    cr_assert(hak_heap_reset(heap) == 0);
    run_same(heap, seed, expected, "after a reset");
    run_same(checked, seed, expected, "checked");
    hak_heap_t *busy = make(NULL, LIMIT, (int)seed & 1);
    make_busy(busy);
    run_same(busy, seed, expected, "with pockets");
    cr_assert(hak_heap_destroy(busy) == 0);
    region_bytes = 1;
    hak_heap_t *slabs = make(NULL, LIMIT, (int)seed & 1);
    region_bytes = 0;
    run_same(slabs, seed, expected, "without regions");
    cr_assert(hak_heap_destroy(slabs) == 0);
    hak_heap_t *parent = make(NULL, LIMIT, 0), *child = make(parent, 0, 1),
               *sibling = make(parent, HAK_NO_LIMIT, 0);
    warm_by(sibling, 2);
    run_same(child, seed, expected, "the parent's limit");
    require_sound(heap);
    require_sound(child);
    require_sound(sibling);
    cr_assert(usage_of(parent).tree_peak_bytes <= LIMIT);
    cr_assert(hak_heap_destroy(parent) == 0 && hak_heap_destroy(heap) == 0);
    cr_assert(hak_heap_destroy(checked) == 0);
    for (size_t i = 0; i < OPERATIONS; i++) refusals += expected[i];
    return refusals;
}

/* `make workloads` runs a thousand. */
Test(limits, refusals_follow_from_sizes_alone)
{
    size_t refusals = 0, workloads = run_number("HAK_TEST_WORKLOADS", 30);
    for (uint64_t seed = 1; seed <= workloads; seed++) refusals += compare(seed);
    cr_log_info("%zu workloads of %d operations, %zu of which are refused", workloads, OPERATIONS,
                refusals);
    cr_assert(refusals > 20 * workloads && refusals < OPERATIONS / 2 * workloads, "%zu", refusals);
}

/* ---- Caches ---- */

/* Blocks go through every cache, and are charged once. */
Test(limits, what_is_cached_is_charged_once)
{
    /* At first so few that the heap is not divided: its chains go to the cold level. */
    enum { BLOCKS = 60000, TIMES = 22 };
    static void *blocks[BLOCKS];
    region_bytes = 1;
    for (int level = 0; level < 2; level++) {
        hak_heap_t *heap = make(NULL, HAK_NO_LIMIT, level);
        for (unsigned time = 0; time < TIMES; time++) {
            size_t count = time < 20 ? 1000 + 30 * time : BLOCKS;
            for (size_t i = 0; i < count; i++)
                cr_assert((blocks[i] = hak_heap_malloc(heap, 64)) != NULL);
            for (size_t i = 0; i < count; i++) hak_heap_free(heap, blocks[i]);
        }
        (void)hak_heap_flush(heap);
        cr_assert(ledger_live(heap->ledger) == 0, "%zu", ledger_live(heap->ledger));
        require_sound(heap);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static void require_exact(hak_heap_t *heap)
{
    (void)hak_heap_flush(heap);
    cr_assert(ledger_live(heap->ledger) == contract_stats(heap).live_bytes);
    require_sound(heap);
}

/* A block that moves is charged before it looks for a place: what is cached was charged twice then. */
Test(limits, what_a_realloc_finds_cached_is_charged_once)
{
    enum { BLOCKS = 3000, SMALL = 256, WIDE = 512 };
    static void *blocks[BLOCKS];
    region_bytes = 1;
    hak_heap_t *heap = make(NULL, HAK_NO_LIMIT, 0);
    for (size_t count = 500; count <= BLOCKS; count += 500) {
        for (int time = 0; time < 4; time++) {
            for (size_t i = 0; i < count; i++)
                cr_assert((blocks[i] = hak_heap_malloc(heap, WIDE)) != NULL);
            for (size_t i = 0; i < count; i++) hak_heap_free(heap, blocks[i]);
        }
        for (size_t i = 0; i < count; i++)
            cr_assert((blocks[i] = hak_heap_malloc(heap, SMALL)) != NULL);
        for (size_t i = 0; i < count; i++)
            cr_assert((blocks[i] = hak_heap_realloc(heap, blocks[i], WIDE)) != NULL);
        require_exact(heap);
        for (size_t i = 0; i < count; i++) hak_heap_free(heap, blocks[i]);
    }
    require_exact(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Tight ---- */

static uint64_t frozen;
static uint64_t frozen_clock(void) { return frozen; }

static bool caches(const hak_heap_t *heap) { return area_at_from(&heap->percpu, 0).area != NULL; }

/* A heap that was refused has no caches for a tenth of a second, and then some again. */
Test(limits, a_heap_is_tight_for_a_while)
{
    static os_table_t table;
    table = *os;
    table.milliseconds = frozen_clock;
    os = &table;
    region_bytes = 1;
    enum { BLOCKS = 100 };
    void *blocks[BLOCKS];
    hak_heap_t *heap = make(NULL, BLOCKS * 1024, 0);
    for (size_t i = 0; i < BLOCKS; i++)
        cr_assert((blocks[i] = hak_heap_malloc(heap, 1024)) != NULL);
    require_refused(heap, 1, heap);
    for (int time = 0; time < 3; time++) {
        hak_heap_free(heap, blocks[0]);
        cr_assert((blocks[0] = hak_heap_malloc(heap, 1024)) != NULL);
        cr_assert(heap_is_tight(heap) && !caches(heap));
    }
    for (size_t i = 0; i < BLOCKS / 2; i++) hak_heap_free(heap, blocks[i]);
    frozen += LEDGER_TIGHT_MS;
    for (size_t i = 0; i < BLOCKS / 2; i++)
        cr_assert((blocks[i] = hak_heap_malloc(heap, 1024)) != NULL);
    cr_assert(!heap_is_tight(heap) && caches(heap));
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- The callback ---- */

typedef struct pressed {
    hak_heap_t *heap;
    void *blocks[4];
    unsigned count, calls;
    size_t bytes;
    bool again; /* asks the full heap itself */
} pressed_t;

static void free_one(void *ctx, hak_heap_t *full, size_t bytes)
{
    pressed_t *pressed = ctx;
    pressed->calls++;
    pressed->bytes = bytes;
    pressed->heap = full;
    if (pressed->again) cr_assert(hak_heap_malloc(full, bytes) == NULL);
    if (pressed->count) hak_free(pressed->blocks[--pressed->count]);
}

Test(limits, a_full_heap_tells_once_before_it_refuses)
{
    pressed_t pressed = {.again = true};
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.live_limit = 4 * 4096;
    config.on_pressure = free_one;
    config.pressure_ctx = &pressed;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    for (; pressed.count < 4; pressed.count++)
        cr_assert((pressed.blocks[pressed.count] = hak_heap_malloc(heap, 4096)) != NULL);
    cr_assert(pressed.calls == 0);
    void *block = hak_heap_malloc(heap, 4000);
    cr_assert(block != NULL && pressed.calls == 1 && pressed.bytes == hak_good_size(4000));
    cr_assert(pressed.heap == heap && pressed.count == 3);
    pressed.count = 0;
    require_refused(heap, 4000, heap);
    cr_assert(pressed.calls == 2);
    cr_assert(hak_heap_realloc(heap, block, 9000) == NULL && pressed.calls == 3);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- What is freed while others hold a lock ---- */

static hak_lock_t *held;
static lock_rank_t held_rank;
static _Atomic bool is_held, let_go;

static void *hold_lock(void *arg)
{
    (void)arg;
    lock_acquire(held, held_rank);
    is_held = true;
    while (!let_go) sched_yield();
    lock_release(held, held_rank);
    return NULL;
}

static void free_beside(hak_lock_t *lock, lock_rank_t rank, void *block)
{
    pthread_t thread;
    held = lock, held_rank = rank, is_held = let_go = false;
    cr_assert(pthread_create(&thread, NULL, hold_lock, NULL) == 0);
    while (!is_held) sched_yield();
    hak_free(block);
    let_go = true;
    pthread_join(thread, NULL);
}

/* The block waits on a list; a heap that was refused before finds it. */
static void require_found(size_t size, bool big)
{
    enum { BLOCKS = 8 };
    void *blocks[BLOCKS];
    hak_heap_t *heap = make(NULL, BLOCKS * hak_good_size(size), 0);
    for (size_t i = 0; i < BLOCKS; i++)
        cr_assert((blocks[i] = hak_heap_malloc(heap, size)) != NULL);
    for (int i = 0; i < 3; i++) require_refused(heap, size, heap);
    hak_lock_t *lock = &heap->lock;
    if (!big) lock = &heap_class_made(heap, sizeclass_of(size))->lock;
    free_beside(lock, big ? RANK_HEAP : RANK_CLASS, blocks[0]);
    cr_assert((blocks[0] = hak_heap_malloc(heap, size)) != NULL, "%zu bytes", size);
    for (size_t i = 0; i < BLOCKS; i++) hak_heap_free(heap, blocks[i]);
    (void)hak_heap_trim(heap, 0);
    cr_assert(usage_of(heap).live_bytes == 0, "%zu", usage_of(heap).live_bytes);
    require_sound(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(limits, what_waits_for_a_lock_is_found)
{
    region_bytes = 1;
    require_found(1000, false);
    require_found(100000, true);
    require_found(3000000, true);
}

/* ---- The system refuses ---- */

static void refuse_memory(void)
{
    fake_os_refuse(FAKE_RESERVE, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_COMMIT, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_MAP, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_RESIZE, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_MOVE, 1, FAKE_FOREVER);
}

static void allow_memory(void)
{
    for (int call = 0; call < FAKE_CALLS; call++) fake_os_allow((fake_call_t)call);
}

/* What the system refuses is not charged. */
Test(limits, what_the_system_refuses_is_not_charged)
{
    enum { BIG = 5 << 20 };
    fake_os_use();
    for (int level = 0; level < 2; level++) {
        hak_heap_t *heap = make(NULL, 64 << 20, level);
        char *block = hak_heap_malloc(heap, BIG);
        cr_assert(block != NULL);
        block[BIG - 1] = 7;
        size_t before = ledger_live(heap->ledger);
        refuse_memory();
        errno = 0;
        cr_assert(hak_heap_malloc(heap, 2 * BIG) == NULL && errno == ENOMEM);
        cr_assert(hak_last_error() != HAK_ERROR_LIMIT);
        cr_assert(hak_heap_realloc(heap, block, 3 * BIG) == NULL && errno == ENOMEM);
        cr_assert(hak_heap_realloc(heap, block, 600000) == NULL, "no run to copy to");
        allow_memory();
        cr_assert(ledger_live(heap->ledger) == before && block[BIG - 1] == 7);
        require_sound(heap);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
    fake_os_restore();
}

/* Nor is what a limit of the memory in use refuses, wherever the block would have come from. */
Test(limits, what_a_footprint_refuses_is_not_charged)
{
    static const struct {
        size_t size, region_bytes, limit;
    } cases[] = {{100, 0, 2 << 20},  {100, 1, 2 << 20},    {100, 1 << 20, 200 << 10},
                 {3000, 0, 2 << 20}, {100000, 0, 2 << 20}, {1100000, 0, 4 << 20}};
    for (size_t at = 0; at < sizeof cases / sizeof cases[0]; at++) {
        size_t size = cases[at].size;
        region_bytes = cases[at].region_bytes;
        hak_heap_t *heap = make(NULL, HAK_NO_LIMIT, 0);
        hak_limits_t limits = {.struct_size = sizeof limits, .committed_limit = cases[at].limit};
        cr_assert(hak_heap_set_limits(heap, &limits) == 0);
        void *block = NULL;
        for (void *next; (next = hak_heap_malloc(heap, size)) != NULL;) block = next;
        cr_assert(block != NULL && hak_last_error() == HAK_ERROR_LIMIT);
        for (int time = 0; time < 3; time++) require_refused(heap, size, heap);
        cr_assert(ledger_live(heap->ledger) == contract_stats(heap).live_bytes, "%zu bytes", size);
        hak_heap_free(heap, block);
        (void)hak_heap_flush(heap);
        cr_assert(ledger_live(heap->ledger) == contract_stats(heap).live_bytes, "%zu bytes", size);
        require_sound(heap);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* What the heap has borrowed would do for the block, but there is no room for its pages. */
static void require_not_admitted(size_t size)
{
    enum { BLOCKS = 12000 };
    static void *blocks[BLOCKS];
    region_bytes = 1;
    hak_heap_t *heap = make(NULL, HAK_NO_LIMIT, 0);
    for (size_t i = 0; i < BLOCKS; i++)
        cr_assert((blocks[i] = hak_heap_malloc(heap, 1000)) != NULL);
    /* No page becomes free. */
    for (size_t i = 0; load_relaxed(&heap->ledger->credit) < hak_good_size(size); i += 3) {
        cr_assert(i < BLOCKS, "it is not lent");
        hak_heap_free(heap, blocks[i]);
        (void)hak_heap_flush(heap);
    }
    hak_limits_t limits = {.struct_size = sizeof limits,
                           .committed_limit = usage_of(heap).committed_bytes + HAK_PAGE};
    cr_assert(hak_heap_set_limits(heap, &limits) == 0);
    require_refused(heap, size, heap);
    require_exact(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(limits, what_is_lent_and_not_admitted_is_not_charged)
{
    require_not_admitted(MID_MAX / 2);
    require_not_admitted(MID_MAX + 1);
}

/* A request that cannot know whether caches are in the way is refused, and says so. */
Test(limits, a_refused_fence_is_told)
{
    if (strcmp(hak_percpu_mode(), "locked") == 0) cr_skip_test("no fence");
    region_bytes = 1;
    fake_os_use();
    hak_heap_t *heap = make(NULL, 65536 + 60000, 0);
    void *block = hak_heap_malloc(heap, 60000), *small[64];
    cr_assert(block != NULL);
    for (int i = 0; i < 64; i++) cr_assert((small[i] = hak_heap_malloc(heap, 64)) != NULL);
    for (int i = 0; i < 64; i++) hak_heap_free(heap, small[i]);
    fake_os_refuse(FAKE_FENCE, 1, FAKE_FOREVER);
    errno = 0;
    cr_assert(hak_heap_malloc(heap, 60000) == NULL && errno == ENOMEM);
    cr_assert(hak_last_error() == HAK_ERROR_FENCE);
    fake_os_allow(FAKE_FENCE);
    cr_assert(hak_heap_malloc(heap, 60000) == NULL && hak_last_error() == HAK_ERROR_LIMIT);
    hak_heap_free(heap, block);
    cr_assert(hak_heap_malloc(heap, 60000) != NULL);
    require_sound(heap);
    cr_assert(hak_heap_destroy(heap) == 0);
    fake_os_restore();
}

/* ---- Arguments ---- */

Test(limits, calls_that_make_no_sense_are_refused)
{
    hak_heap_t *plain = hak_heap_create(NULL), *counted = make(NULL, 1000, 0);
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = plain;
    cr_assert(hak_heap_create(&config) == NULL && errno == EINVAL, "the parent does not count");
    hak_usage_t usage = {.struct_size = sizeof usage};
    hak_limits_t limits = {.struct_size = sizeof limits, .live_limit = 2000};
    cr_assert(hak_heap_usage(plain, &usage) == EINVAL && hak_heap_usage(NULL, &usage) == EINVAL);
    cr_assert(hak_heap_usage(counted, NULL) == EINVAL);
    cr_assert(hak_heap_refused_by(plain) == NULL && hak_heap_refused_by(counted) == NULL);
    cr_assert(hak_heap_set_limits(plain, &limits) == EINVAL);
    cr_assert(hak_heap_set_limits(counted, NULL) == EINVAL);
    limits.struct_size = 3;
    cr_assert(hak_heap_set_limits(counted, &limits) == EINVAL);
    limits.struct_size = sizeof limits;
    cr_assert(hak_heap_set_limits(counted, &limits) == 0 && usage_of(counted).live_limit == 2000);
    void *block = hak_heap_malloc(counted, 1900);
    cr_assert(block != NULL);
    limits.live_limit = 1000;
    cr_assert(hak_heap_set_limits(counted, &limits) == EBUSY);
    cr_assert(usage_of(counted).live_limit == 2000);
    hak_heap_free(counted, block);
    cr_assert(hak_heap_set_limits(counted, &limits) == 0, "caches give way");
    limits.live_limit = 0;
    cr_assert(hak_heap_set_limits(counted, &limits) == 0);
    cr_assert(usage_of(counted).live_limit == HAK_NO_LIMIT);
    cr_assert(hak_heap_move(plain, counted) == EINVAL && hak_heap_move(counted, plain) == EINVAL);
    cr_assert(hak_heap_move(counted, counted) == EINVAL);
    cr_assert(hak_heap_destroy(plain) == 0 && hak_heap_destroy(counted) == 0);
}

Test(limits, a_tree_has_a_bound_and_leaves_nothing_where_it_is_met)
{
    hak_heap_t *root = make(NULL, HAK_NO_LIMIT, 0), *heap = root;
    for (int i = 1; i < LEDGER_DEPTH; i++) heap = make(heap, 0, i & 1);
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = heap;
    cr_assert(hak_heap_create(&config) == NULL && errno == E2BIG);
    cr_assert(hak_last_error() == HAK_ERROR_DEPTH);
    cr_assert(ledger_is_sound(root->ledger));
    cr_assert(hak_heap_destroy(root) == 0 && hak_heap_destroy(heap) == EINVAL);
}

Test(limits, a_move_takes_what_is_live)
{
    hak_heap_t *a = make(NULL, 1 << 20, 0), *b = make(NULL, 1 << 20, 0), *child = make(a, 0, 0),
               *other = make(b, 0, 1);
    void *block = hak_heap_malloc(child, 500000);
    void *rest = hak_heap_malloc(other, 600000);
    cr_assert(block != NULL && rest != NULL);
    cr_assert(hak_heap_move(child, b) == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT);
    cr_assert(usage_of(a).tree_bytes >= 500000);
    hak_heap_free(other, rest);
    warm_by(other, 2);
    cr_assert(hak_heap_move(child, b) == 0);
    cr_assert(usage_of(a).tree_bytes == 0 && usage_of(b).tree_bytes >= 500000);
    cr_assert(hak_heap_destroy(a) == 0);
    require_refused(child, 600000, b);
    hak_heap_free(child, block);
    cr_assert(hak_heap_malloc(child, 600000) != NULL);
    cr_assert(hak_heap_move(child, NULL) == 0 && hak_heap_destroy(b) == 0);
    require_sound(child);
    cr_assert(hak_heap_destroy(child) == 0);
}
