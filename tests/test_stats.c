/* Statistics, report, counters and the whole-heap check: exact at rest, in order under load, and
 * able to find damage. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "drain.h"
#include "hakheap.h"
#include "heap.h"
#include "home.h"
#include "os.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_random.h"
#include "support_run.h"

TestSuite(stats, .timeout = 600);

/* ---- The balance, against a shadow ---- */

enum { SLOTS = 1500 };

typedef struct shadow {
    void *slots[SLOTS];
    size_t usable[SLOTS];
    size_t blocks, bytes, large_blocks, large_bytes;
    size_t in_class[CLASS_COUNT]; /* by block size */
} shadow_t;

static unsigned class_of_usable(size_t usable) { return hak_size_class_of(usable); }

static void account(shadow_t *shadow, size_t usable, int sign)
{
    size_t one = (size_t)sign;
    shadow->blocks += one;
    shadow->bytes += one * usable;
    if (usable > MID_MAX) {
        shadow->large_blocks += one;
        shadow->large_bytes += one * usable;
    }
    unsigned class = class_of_usable(usable);
    if (class < CLASS_COUNT) shadow->in_class[class] += one;
}

static void put_slot(hak_heap_t *heap, shadow_t *shadow, unsigned at, void *ptr)
{
    if (shadow->slots[at]) {
        account(shadow, shadow->usable[at], -1);
        hak_heap_free(heap, shadow->slots[at]);
    }
    shadow->slots[at] = ptr;
    if (!ptr) return;
    shadow->usable[at] = hak_usable_size(ptr);
    account(shadow, shadow->usable[at], 1);
}

static size_t some_size(randoms_t *randoms)
{
    unsigned dice = random_below(randoms, 1000);
    if (dice == 0) return HAK_MIB + random_below(randoms, 2 * HAK_MIB);
    if (dice < 20) return SMALL_MAX + 1 + random_below(randoms, 300000);
    if (dice < 200) return random_below(randoms, SMALL_MAX);
    return random_below(randoms, 600);
}

/* The figures of each class, and that their caches add up to the heap's. */
static void classes_must_agree(const hak_heap_t *heap, const hak_heap_stats_t *stats,
                               const shadow_t *shadow, size_t step)
{
    size_t hot = 0, spare = 0, cold = 0, remote = 0;
    for (unsigned class = 0; class < hak_size_class_count(); class ++) {
        hak_class_stats_t row = {.struct_size = sizeof row};
        cr_assert(hak_heap_class_stats(heap, class, &row) == 0);
        cr_assert(row.block_bytes == hak_size_class_bytes(class));
        cr_assert(row.live_blocks == shadow->in_class[class],
                  "step %zu: class %zu: %zu blocks live, %zu counted", step, row.block_bytes,
                  row.live_blocks, shadow->in_class[class]);
        hot += row.hot_blocks * row.block_bytes;
        spare += row.spare_blocks * row.block_bytes;
        cold += row.cold_blocks * row.block_bytes;
        remote += row.remote_blocks * row.block_bytes;
        size_t all = row.live_blocks + row.hot_blocks + row.spare_blocks + row.cold_blocks +
                     row.remote_blocks + row.free_blocks + row.untouched_blocks;
        cr_assert(all == contract_room(heap, class), "step %zu: class %zu: %zu blocks of %zu slabs",
                  step, row.block_bytes, all, row.slabs);
    }
    cr_assert(hot == stats->hot_bytes && spare == stats->spare_bytes && cold == stats->cold_bytes &&
                  remote == stats->remote_bytes,
              "step %zu: the classes' caches do not add up to the heap's", step);
}

static void must_agree(const hak_heap_t *heap, const shadow_t *shadow, size_t step)
{
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.live_blocks == shadow->blocks && stats.live_bytes == shadow->bytes,
              "step %zu: %zu blocks and %zu bytes live, %zu and %zu counted", step,
              stats.live_blocks, stats.live_bytes, shadow->blocks, shadow->bytes);
    cr_assert(
        stats.large_blocks == shadow->large_blocks && stats.large_bytes == shadow->large_bytes,
        "step %zu: %zu large blocks, %zu counted", step, stats.large_blocks, shadow->large_blocks);
    cr_assert(contract_sum(&stats) == stats.committed_bytes,
              "step %zu: %zu bytes by the balance, %zu committed", step, contract_sum(&stats),
              stats.committed_bytes);
    cr_assert(stats.peak_bytes >= stats.committed_bytes &&
              stats.mapped_bytes >= stats.committed_bytes);
    size_t used = stats.live_bytes + contract_cached(&stats);
    cr_assert(stats.resident_bytes <= stats.committed_bytes &&
                  stats.resident_bytes >= used + stats.metadata_bytes,
              "step %zu: %zu bytes resident, %zu committed", step, stats.resident_bytes,
              stats.committed_bytes);
    classes_must_agree(heap, &stats, shadow, step);
    int line = contract_unsound(heap, shadow->blocks);
    cr_assert(line == 0, "step %zu: support_contract.c:%d", step, line);
}

static void random_workload(int level, uint64_t seed)
{
    static shadow_t shadow;
    memset(&shadow, 0, sizeof shadow);
    randoms_t randoms = {seed};
    hak_heap_t *heap = contract_heap(level, "shadowed");
    must_agree(heap, &shadow, 0);
    for (size_t step = 1; step <= contract_work(60000); step++) {
        unsigned at = random_below(&randoms, SLOTS);
        if (random_below(&randoms, 3)) {
            put_slot(heap, &shadow, at, hak_heap_malloc(heap, some_size(&randoms)));
        } else if (shadow.slots[at]) {
            account(&shadow, shadow.usable[at], -1);
            shadow.slots[at] = hak_heap_realloc(heap, shadow.slots[at], some_size(&randoms));
            cr_assert(shadow.slots[at] != NULL);
            shadow.usable[at] = hak_usable_size(shadow.slots[at]);
            account(&shadow, shadow.usable[at], 1);
        }
        if (random_below(&randoms, 3000) == 0) (void)hak_heap_flush(heap);
        if (random_below(&randoms, 3000) == 0)
            (void)hak_heap_trim(heap, random_below(&randoms, 2) * HAK_MIB);
        if (random_below(&randoms, 6000) == 0)
            for (unsigned i = 0; i < SLOTS; i++) put_slot(heap, &shadow, i, NULL);
        if (random_below(&randoms, 500) == 0) must_agree(heap, &shadow, step);
    }
    for (unsigned i = 0; i < SLOTS; i++) put_slot(heap, &shadow, i, NULL);
    must_agree(heap, &shadow, SIZE_MAX);
    (void)hak_heap_trim(heap, 0);
    must_agree(heap, &shadow, SIZE_MAX);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(stats, agree_with_a_shadow)
{
    contract_slabs_only();
    for (uint64_t seed = 1; seed <= 4; seed++) {
        cr_log_info("seed %llu", (unsigned long long)seed);
        random_workload((int)(seed & 1), seed);
    }
}

/* ---- Under load ---- */

static hak_heap_t *common;
static _Atomic bool stop;
static _Atomic size_t common_blocks;

static void *use(void *arg)
{
    randoms_t randoms = {(uint64_t)(uintptr_t)arg};
    void *slots[200] = {NULL};
    while (!stop) {
        void **slot = &slots[random_below(&randoms, 200)];
        hak_free(*slot);
        *slot = random_below(&randoms, 3) ? hak_heap_malloc(common, some_size(&randoms)) : NULL;
    }
    size_t left = 0;
    for (int i = 0; i < 200; i++) left += slots[i] != NULL;
    atomic_fetch_add(&common_blocks, left);
    return NULL;
}

/* A class's blocks are those of its slabs, of which the first ones may be short; others lie in
 * regions. */
static void must_be_in_slabs(const hak_heap_t *heap, unsigned class)
{
    hak_class_stats_t row = {.struct_size = sizeof row};
    cr_assert(hak_heap_class_stats(heap, class, &row) == 0);
    size_t all = row.live_blocks + row.hot_blocks + row.spare_blocks + row.cold_blocks +
                 row.remote_blocks + row.free_blocks + row.untouched_blocks;
    size_t most = row.slabs * size_classes[class].blocks;
    size_t least = size_classes[class].granules > 1 ? row.slabs : most;
    cr_assert(all >= least && (all <= most || class < REGION_CLASSES),
              "class %zu: %zu blocks of %zu slabs", row.block_bytes, all, row.slabs);
}

Test(stats, in_order_while_threads_run)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    common = contract_heap(1, "common");
    for (uintptr_t i = 0; i < THREADS; i++)
        cr_assert(pthread_create(&threads[i], NULL, use, (void *)(i + 1)) == 0);
    size_t peak = 0;
    for (size_t i = 0; i < contract_work(4000); i++) {
        hak_heap_stats_t stats = contract_stats(common);
        cr_assert(stats.live_bytes <= stats.committed_bytes &&
                      stats.committed_bytes <= stats.peak_bytes,
                  "%zu live, %zu committed, %zu peak", stats.live_bytes, stats.committed_bytes,
                  stats.peak_bytes);
        cr_assert(stats.peak_bytes >= peak, "the peak fell");
        peak = stats.peak_bytes;
        cr_assert(contract_cached(&stats) <= stats.committed_bytes &&
                  stats.free_bytes <= stats.committed_bytes);
        cr_assert(stats.untouched_bytes <= stats.committed_bytes &&
                  stats.metadata_bytes <= stats.committed_bytes);
        cr_assert(stats.phantom_superslabs <= stats.superslabs);
        if (i % 50 == 0) (void)hak_heap_trim(common, 0);
        if (i % 100 == 0) cr_assert(hak_heap_check(common) == 0);
        must_be_in_slabs(common, (unsigned)(i % hak_size_class_count()));
    }
    stop = true;
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    (void)hak_heap_flush(common);
    int line = contract_unsound(common, common_blocks);
    cr_assert(line == 0, "support_contract.c:%d: %zu blocks live, %zu counted", line,
              contract_stats(common).live_blocks, (size_t)common_blocks);
    cr_assert(hak_heap_destroy(common) == 0);
}

/* What the header promises of figures at any time. Returns the source line of what is broken. */
static int promise_broken(const hak_heap_stats_t *s)
{
    size_t whole = s->committed_bytes;
    if (contract_sum(s) > whole) return __LINE__;
    if (s->live_bytes > whole || s->free_bytes > whole) return __LINE__;
    if (s->untouched_bytes > whole || s->metadata_bytes > whole) return __LINE__;
    if (s->large_bytes > s->live_bytes || s->large_blocks > s->live_blocks) return __LINE__;
    if (s->large_blocks > s->large_bytes || (s->large_bytes && !s->large_blocks)) return __LINE__;
    if (s->resident_bytes > whole) return __LINE__;
    if (s->peak_bytes < whole || s->mapped_bytes < whole) return __LINE__;
    if (s->phantom_superslabs > s->superslabs) return __LINE__;
    if (s->superslabs * SUPERSLAB > whole) return __LINE__;
    return 0;
}

/* A few blocks of one kind, allocated and freed together; `arg`: bytes of each. */
static void *take_and_free(void *arg)
{
    enum { BLOCKS = 8 };
    size_t bytes = (size_t)(uintptr_t)arg;
    while (!stop) {
        void *blocks[BLOCKS];
        for (int i = 0; i < BLOCKS; i++) blocks[i] = hak_heap_malloc(common, bytes);
        for (int i = 0; i < BLOCKS; i++) hak_heap_free(common, blocks[i]);
    }
    return NULL;
}

Test(stats, promises_hold_while_threads_free)
{
    enum { THREADS = 4 };
    const uintptr_t bytes[THREADS] = {3 * HAK_MIB, 2 * HAK_MIB + 4096, 200000, 3000};
    pthread_t threads[THREADS];
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 1; /* a mapping that is freed leaves what is committed at once */
    common = hak_heap_create(&config);
    for (int i = 0; i < THREADS; i++)
        cr_assert(pthread_create(&threads[i], NULL, take_and_free, (void *)bytes[i]) == 0);
    size_t samples = 0, peak = 0;
    int broken = 0;
    for (time_t end = time(NULL) + run_seconds(); time(NULL) < end && !broken; samples++) {
        hak_heap_stats_t stats = contract_stats(common);
        broken = promise_broken(&stats);
        if (stats.peak_bytes < peak) broken = __LINE__;
        peak = stats.peak_bytes;
    }
    stop = true;
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    cr_assert(broken == 0, "sample %zu: line %d is broken", samples, broken);
    cr_assert(contract_unsound(common, 0) == 0);
    cr_assert(hak_heap_destroy(common) == 0);
}

/* ---- Links that are a program's data ---- */

static int swallow(void *ctx, const char *at, size_t length)
{
    (void)ctx, (void)at, (void)length;
    return 0;
}

/* The last block of a SuperSlab, behind which nothing can be read. */
static char *last_readable(hak_heap_t *heap)
{
    for (size_t i = 0; i < 200000; i++) {
        char *block = hak_heap_malloc(heap, 64);
        if (!block) return NULL;
        if (((uintptr_t)block + 64) % SUPERSLAB == 0 && !hak_heap_of(block + 64)) return block;
    }
    return NULL;
}

/* A thread may pop a magazine's block and write to it while another reads the magazine's word. So
 * what looks like a link may be anything, here an address whose 8 bytes end where nothing is
 * readable. */
Test(stats, no_reader_follows_a_link)
{
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "linked");
        char *top = last_readable(heap), *block = hak_heap_malloc(heap, 64);
        cr_assert(top && block);
        for (int i = 0; i < 8; i++)
            ((uint64_t *)(void *)block)[i] = (uint64_t)(uintptr_t)(top + 60) << CHAIN_SHIFT | 7;
        unsigned cls = hak_size_class_of(64);
        area_t *area = percpu_running(&heap->percpu, (unsigned)percpu_index());
        cr_assert(area != NULL);
        chain_t before = load_relaxed(&area->hot[cls].word);
        store_relaxed(&area->hot[cls].word, chain_address(block) | 8);
        hak_heap_stats_t stats = contract_stats(heap);
        hak_class_stats_t row = {.struct_size = sizeof row};
        int error = hak_heap_class_stats(heap, cls, &row);
        int reported = hak_heap_report(heap, swallow, NULL);
        store_relaxed(&area->hot[cls].word, before);
        cr_assert(stats.hot_bytes == 8 * 64 && row.hot_blocks == 8 && error == 0 && reported == 0);
        cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* ---- What is resident ---- */

/* The heap's SuperSlabs by what the kernel says of each page; what the nursery and record pages
 * hold is not the heap's alone. */
static size_t resident_in_superslabs(const hak_heap_t *heap)
{
    size_t pages = 0;
    for (superslab_t *ss = heap->superslabs.all; ss; ss = ss->set_next)
        for (size_t at = 0; at < SUPERSLAB; at += HAK_PAGE)
            pages += memory_is_resident(ss->base + at);
    return pages * HAK_PAGE;
}

enum { MANY = 20000 };
static char *many[MANY];

/* Every size, every byte written; most of them freed again, so that caches, freelists, emptied
 * slabs and holes all have their part. */
static size_t fill_and_thin(hak_heap_t *heap, randoms_t *randoms, unsigned one_in)
{
    size_t left = 0;
    for (int i = 0; i < MANY; i++) {
        size_t bytes = 16 + random_below(randoms, i % 50 ? 3000 : 200000);
        cr_assert((many[i] = hak_heap_malloc(heap, bytes)) != NULL);
        memset(many[i], 1, hak_usable_size(many[i]));
    }
    for (int i = 0; i < MANY; i++) {
        if (random_below(randoms, one_in) == 0 && ++left) continue;
        hak_heap_free(heap, many[i]);
        many[i] = NULL;
    }
    return left;
}

static void must_be_resident(hak_heap_t *heap, const char *when)
{
    size_t told = contract_stats(heap).resident_bytes,
           records = contract_stats(heap).metadata_bytes;
    size_t seen = resident_in_superslabs(heap) + records;
    /* Pages of live blocks in the nursery, where the heap began. */
    size_t nursery = 0;
    for (uint32_t i = 0; i < heap->nursery_count; i++)
        nursery += heap->nursery->granules[i] * (size_t)GRANULE;
    cr_assert(told >= seen - seen / 100 && told <= seen + nursery + seen / 100,
              "%s: %zu bytes resident, %zu by the kernel, of the nursery at most %zu", when, told,
              seen, nursery);
}

Test(stats, resident_agrees_with_the_kernel)
{
    if (CONTRACT_SANITIZED) cr_skip_test("instruments hold memory of their own");
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "resident");
        randoms_t randoms = {11};
        size_t live = fill_and_thin(heap, &randoms, 4);
        must_be_resident(heap, "filled and thinned");
        cr_assert(contract_unsound(heap, live) == 0);
        (void)hak_heap_flush(heap);
        must_be_resident(heap, "flushed");
        (void)hak_heap_trim(heap, 2 * HAK_MIB);
        must_be_resident(heap, "trimmed to 2 MiB");
        (void)hak_heap_trim(heap, 0);
        must_be_resident(heap, "trimmed");
        size_t more = fill_and_thin(heap, &randoms, 2);
        must_be_resident(heap, "filled again");
        cr_assert(contract_unsound(heap, live + more) == 0);
        cr_assert(hak_heap_reset(heap) == 0);
        hak_heap_stats_t left = contract_stats(heap);
        cr_assert(left.resident_bytes >= left.metadata_bytes &&
                  left.resident_bytes <= left.metadata_bytes + contract_cradle(heap));
        cr_assert(contract_unsound(heap, 0) == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* What a trim returns, and what the figures and the kernel have less of then, is the same. */
Test(stats, a_trim_lowers_resident_by_what_it_returns)
{
    contract_slabs_only();
    if (CONTRACT_SANITIZED) cr_skip_test("instruments hold memory of their own");
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        (void)hak_reserve_trim();
        hak_heap_t *heap = contract_heap(level, "trimmed");
        randoms_t randoms = {5};
        size_t live = fill_and_thin(heap, &randoms, 30);
        hak_heap_stats_t before = contract_stats(heap);
        /* What slabs left in the nursery goes too. */
        size_t seen = contract_resident(),
               left = reserve_stats(&process_reserve).nursery_touched_bytes;
        size_t returned = hak_heap_trim(heap, 0);
        seen -= contract_resident();
        hak_heap_stats_t after = contract_stats(heap);
        /* Records of SuperSlabs go with them, and stay with the process. */
        size_t records = before.metadata_bytes - after.metadata_bytes;
        size_t told = before.resident_bytes - after.resident_bytes - records + left;
        cr_assert(told >= returned - returned / 100 && told <= returned + returned / 100,
                  "%zu bytes less by the figures, %zu returned, %zu by the kernel", told, returned,
                  seen);
        cr_assert(seen >= told - told / 100 - HAK_MIB && seen <= told + told / 100 + HAK_MIB,
                  "%zu bytes less by the figures, %zu by the kernel", told, seen);
        cr_assert(contract_unsound(heap, live) == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* Pages that were never handed out are committed and not resident; a run that comes with the pages
 * of an earlier life brings them. */
Test(stats, resident_counts_pages)
{
    contract_slabs_only();
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    (void)hak_reserve_trim();
    hak_heap_t *heap = contract_heap(0, "pages");
    void *mid = hak_heap_malloc(heap, 600000); /* from here on it has a SuperSlab of its own */
    void *other = hak_heap_malloc(heap, 2000); /* with which the records of classes come */
    size_t before = contract_stats(heap).resident_bytes;
    void *small = hak_heap_malloc(heap, 64);
    cr_assert(mid && other && small);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.resident_bytes == before + HAK_PAGE, "%zu bytes for a block of 64",
              stats.resident_bytes - before);
    cr_assert(stats.committed_bytes >= stats.resident_bytes + HAK_MIB);
    hak_heap_free(heap, mid);
    cr_assert(contract_stats(heap).resident_bytes == stats.resident_bytes, "it is still there");
    void *again = hak_heap_malloc(heap, 3000); /* a slab where the mid block was */
    cr_assert(again && contract_stats(heap).resident_bytes == stats.resident_bytes);
    void *large = hak_heap_malloc(heap, 3 * HAK_MIB);
    cr_assert(large && contract_stats(heap).resident_bytes == stats.resident_bytes + 3 * HAK_MIB);
    hak_heap_free(heap, large);
    cr_assert(contract_stats(heap).resident_bytes == stats.resident_bytes, "it is the process's");
    cr_assert(contract_stats(heap).large_cached_bytes == 3 * HAK_MIB);
    cr_assert(hak_heap_trim(heap, 0) >= 3 * HAK_MIB);
    stats = contract_stats(heap);
    cr_assert(stats.resident_bytes <= before && stats.large_cached_bytes == 0);
    cr_assert(contract_unsound(heap, 3) == 0 && hak_heap_destroy(heap) == 0);
}

/* A mid block holds its SuperSlab, also where something is cached. */
Test(stats, a_mid_block_holds_its_superslab)
{
    contract_slabs_only();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "held");
        void *mid = hak_heap_malloc(heap, HAK_MIB);
        hak_heap_free(heap, hak_heap_malloc(heap, 64));
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(mid && stats.superslabs == 1 && contract_cached(&stats) > 0);
        cr_assert(stats.phantom_superslabs == 0);
        hak_heap_free(heap, mid);
        cr_assert(contract_stats(heap).phantom_superslabs == 1, "what is cached holds none");
        cr_assert(contract_unsound(heap, 0) == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* ---- Frees that found a lock busy ---- */

static pthread_barrier_t is_held, may_go;

static void *hold_heap_lock(void *arg)
{
    hak_heap_t *heap = arg;
    lock_acquire(&heap->lock, RANK_HEAP);
    pthread_barrier_wait(&is_held);
    pthread_barrier_wait(&may_go);
    lock_release(&heap->lock, RANK_HEAP);
    return NULL;
}

static void *hold_class_lock(void *arg)
{
    class_state_t *state = arg;
    lock_acquire(&state->lock, RANK_CLASS);
    pthread_barrier_wait(&is_held);
    pthread_barrier_wait(&may_go);
    lock_release(&state->lock, RANK_CLASS);
    return NULL;
}

/* A free never waits. What it leaves for others is free in the figures at once. */
static void free_big_while_busy(bool reset)
{
    pthread_barrier_init(&is_held, NULL, 2);
    pthread_barrier_init(&may_go, NULL, 2);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "busy");
        void *mid = hak_heap_malloc(heap, 100000), *large = hak_heap_malloc(heap, 3 * HAK_MIB);
        void *stays = hak_heap_malloc(heap, 200000);
        cr_assert(mid && large && stays);
        pthread_t holder;
        cr_assert(pthread_create(&holder, NULL, hold_heap_lock, heap) == 0);
        pthread_barrier_wait(&is_held);
        hak_heap_free(heap, mid);
        hak_free(large);
        cr_assert(hak_heap_of(mid) == NULL && hak_heap_of(large) == NULL);
        pthread_barrier_wait(&may_go);
        pthread_join(holder, NULL);
        if (reset) {
            cr_assert(hak_heap_reset(heap) == 0 && contract_unsound(heap, 0) == 0);
            cr_assert(hak_heap_destroy(heap) == 0);
            continue;
        }
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(stats.live_blocks == 1 && stats.large_blocks == 0,
                  "%zu blocks live, %zu of them large", stats.live_blocks, stats.large_blocks);
        cr_assert(contract_sum(&stats) == stats.committed_bytes);
        cr_assert(contract_unsound(heap, 1) == 0);
        hak_heap_free(heap, stays);
        cr_assert(contract_unsound(heap, 0) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(stats, mid_and_large_blocks_freed_while_the_lock_is_busy) { free_big_while_busy(false); }
Test(stats, a_reset_forgets_blocks_noted_as_free) { free_big_while_busy(true); }

/* What waits serves again before the heap takes memory for more. */
Test(stats, a_miss_takes_waiting_blocks_before_memory)
{
    contract_slabs_only();
    enum { BLOCKS = 600, BYTES = 512 };
    static void *blocks[BLOCKS];
    int cpu;
    if (contract_cpus(&cpu, 1)) (void)contract_move_to(cpu);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "waiting");
        unsigned cls = hak_size_class_of(BYTES);
        /* All of its slabs are full: nothing is cached, and nothing free. */
        size_t count = 0;
        hak_class_stats_t row = {.struct_size = sizeof row};
        do {
            cr_assert(count < BLOCKS && (blocks[count++] = hak_heap_malloc(heap, BYTES)) != NULL);
            /* While it grows slabs are made before they are needed. */
            store_relaxed(&heap_class_made(heap, cls)->grown, (uint16_t)0);
            cr_assert(hak_heap_class_stats(heap, cls, &row) == 0);
        } while (row.slabs < 4 || row.live_blocks < row.slabs * size_classes[cls].blocks);
        size_t peak = contract_stats(heap).peak_bytes;
        for (size_t i = 0; i < count; i++)
            drain_remote(heap, cls, block_push(0, blocks[i], heap->key));
        for (size_t i = 0; i < count; i++)
            cr_assert((blocks[i] = hak_heap_malloc(heap, BYTES)) != NULL);
        size_t more = contract_stats(heap).peak_bytes - peak;
        /* A slab may be made ahead when the last of them are taken. */
        cr_assert(more < 2 * GRANULE, "%zu bytes more for %zu blocks that waited", more, count);
        cr_assert(contract_unsound(heap, count) == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* A remote list that is longer than its word can count. */
Test(stats, many_blocks_freed_while_the_lock_is_busy)
{
    contract_slabs_only();
    enum { BLOCKS = 3 * CHAIN_MAX / 2 };
    static void *blocks[BLOCKS];
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "busy");
        for (int i = 0; i < BLOCKS; i++) cr_assert((blocks[i] = hak_heap_malloc(heap, 16)) != NULL);
        for (int i = 0; i < BLOCKS; i++)
            drain_remote(heap, hak_size_class_of(16), block_push(0, blocks[i], heap->key));
        cr_assert(contract_stats(heap).live_blocks == 0, "%zu blocks live",
                  contract_stats(heap).live_blocks);
        cr_assert(contract_stats(heap).remote_bytes == BLOCKS * 16);
        cr_assert(contract_unsound(heap, 0) == 0);
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(hak_heap_flush(heap) == contract_cached(&stats));
        stats = contract_stats(heap);
        cr_assert(contract_cached(&stats) == 0, "%zu bytes stay", contract_cached(&stats));
        cr_assert(contract_unsound(heap, 0) == 0 && hak_heap_destroy(heap) == 0);
    }
}

static void free_small_while_busy(bool reset)
{
    enum { BLOCKS = 1000 };
    static void *blocks[BLOCKS];
    /* On another CPU than where they were allocated, blocks would wait in its outbox. */
    int cpu;
    if (contract_cpus(&cpu, 1)) (void)contract_move_to(cpu);
    pthread_barrier_init(&is_held, NULL, 2);
    pthread_barrier_init(&may_go, NULL, 2);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "busy");
        for (int i = 0; i < BLOCKS; i++)
            cr_assert((blocks[i] = hak_heap_malloc(heap, 512)) != NULL);
        class_state_t *state =
            heap_class_made(heap, hak_size_class_of(hak_usable_size(blocks[BLOCKS - 1])));
        cr_assert(state != NULL);
        pthread_t holder;
        cr_assert(pthread_create(&holder, NULL, hold_class_lock, state) == 0);
        pthread_barrier_wait(&is_held);
        for (int i = 0; i < BLOCKS; i++) hak_heap_free(heap, blocks[i]);
        pthread_barrier_wait(&may_go);
        pthread_join(holder, NULL);
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(stats.live_blocks == 0, "%zu blocks live", stats.live_blocks);
        cr_assert(stats.remote_bytes > 0, "nothing is on the remote list, so nothing is tested");
        cr_assert(contract_unsound(heap, 0) == 0);
        if (HAK_COUNTERS)
            cr_assert(load_relaxed(&heap->counters.count[COUNTER_ss_remote]) * 512 ==
                          stats.remote_bytes,
                      "%llu blocks counted",
                      (unsigned long long)load_relaxed(&heap->counters.count[COUNTER_ss_remote]));
        if (reset) cr_assert(hak_heap_reset(heap) == 0);
        else cr_assert(hak_heap_flush(heap) == contract_cached(&stats));
        cr_assert(contract_unsound(heap, 0) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(stats, small_blocks_freed_while_the_lock_is_busy) { free_small_while_busy(false); }
Test(stats, a_reset_forgets_remote_lists) { free_small_while_busy(true); }

/* ---- The report ---- */

typedef struct text {
    char text[65536];
    size_t used, writes, fail_at;
} text_t;

static int gather(void *ctx, const char *at, size_t length)
{
    text_t *into = ctx;
    if (++into->writes == into->fail_at) return -7;
    if (into->used + length >= sizeof into->text) return 1;
    memcpy(into->text + into->used, at, length);
    into->used += length;
    into->text[into->used] = '\0';
    return 0;
}

static text_t text;

static void must_say(const char *field, size_t value)
{
    char row[64];
    snprintf(row, sizeof row, "\n  %s ", field);
    const char *at = strstr(text.text, row);
    cr_assert(at != NULL, "no row %s in:\n%s", field, text.text);
    cr_assert(strtoull(at + strlen(row), NULL, 10) == value, "%s is not %zu in:\n%s", field, value,
              text.text);
}

static void must_say_figures(const hak_heap_stats_t *stats)
{
#define SAYS(field) must_say(#field, stats->field);
    SAYS(live_bytes)
    SAYS(live_blocks)
    SAYS(hot_bytes)
    SAYS(spare_bytes)
    SAYS(cold_bytes)
    SAYS(remote_bytes)
    SAYS(large_cached_bytes)
    SAYS(free_bytes)
    SAYS(untouched_bytes)
    SAYS(metadata_bytes)
    SAYS(committed_bytes)
    SAYS(peak_bytes)
    SAYS(mapped_bytes)
    SAYS(superslabs)
    SAYS(phantom_superslabs)
    SAYS(large_blocks)
    SAYS(large_bytes)
    SAYS(resident_bytes)
#undef SAYS
}

/* One line for each class in use, in slabs or regions: block bytes, slabs, live blocks. */
static void must_say_classes(const hak_heap_t *heap)
{
    for (unsigned class = 0; class < hak_size_class_count(); class ++) {
        hak_class_stats_t row = {.struct_size = sizeof row};
        cr_assert(hak_heap_class_stats(heap, class, &row) == 0);
        char line[64];
        snprintf(line, sizeof line, "\n  %8zu %8zu %10zu ", row.block_bytes, row.slabs,
                 row.live_blocks);
        cr_assert((strstr(text.text, line) != NULL) == (row.slabs || row.live_blocks),
                  "class %zu in:\n%s", row.block_bytes, text.text);
    }
}

static void must_say_counters(void)
{
    for (unsigned i = 0; i < COUNTER_COUNT; i++) {
        char line[64];
        snprintf(line, sizeof line, "\n  %-22s ", counter_rows[i].name);
        cr_assert((strstr(text.text, line) != NULL) == (HAK_COUNTERS != 0), "counter %s in:\n%s",
                  counter_rows[i].name, text.text);
    }
}

Test(stats, the_report_has_every_row)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "reported");
        for (size_t size = 0; size < 3 * HAK_MIB; size += 1 + size / 3) {
            void *ptr = hak_heap_malloc(heap, size);
            cr_assert(ptr != NULL);
            if (size % 2) hak_heap_free(heap, ptr);
        }
        hak_heap_stats_t stats = contract_stats(heap);
        memset(&text, 0, sizeof text);
        cr_assert(hak_heap_report(heap, gather, &text) == 0);
        cr_assert(strncmp(text.text, "heap \"reported\"", 15) == 0 &&
                  strstr(text.text, hak_percpu_mode()));
        must_say_figures(&stats);
        must_say_classes(heap);
        must_say_counters();
        cr_assert(text.text[text.used - 1] == '\n' && strlen(text.text) == text.used);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static hak_heap_t *noted_in;
static void *noted;

/* Runs with the gate closed, so that the free only notes its block. */
static void free_noted(void)
{
    if (noted) hak_heap_free(noted_in, noted);
    noted = NULL;
}

Test(stats, the_report_settles_what_was_freed)
{
    cr_assert(pthread_atfork(free_noted, NULL, NULL) == 0); /* before the library's own handler */
    noted_in = contract_heap(0, "noted");
    noted = hak_heap_malloc(noted_in, 200000);
    cr_assert(noted != NULL);
    pid_t child = fork();
    if (child == 0) _exit(0);
    cr_assert(child > 0 && waitpid(child, NULL, 0) == child && noted == NULL);
    cr_assert(remote_blocks(&noted_in->deferred) == 1, "the free was not noted: nothing is tested");
    memset(&text, 0, sizeof text);
    cr_assert(hak_heap_report(noted_in, gather, &text) == 0);
    must_say("live_blocks", 0);
    must_say("live_bytes", 0);
    cr_assert(contract_unsound(noted_in, 0) == 0 && hak_heap_destroy(noted_in) == 0);
}

Test(stats, a_writer_may_end_the_report)
{
    hak_heap_t *heap = contract_heap(0, "cancelled");
    void *ptr = hak_heap_malloc(heap, 10);
    cr_assert(ptr != NULL);
    memset(&text, 0, sizeof text);
    cr_assert(hak_heap_report(heap, gather, &text) == 0);
    size_t writes = text.writes;
    for (size_t k = 1; k <= writes; k++) {
        memset(&text, 0, sizeof text);
        text.fail_at = k;
        cr_assert(hak_heap_report(heap, gather, &text) == ECANCELED, "write %zu of %zu", k, writes);
        cr_assert(text.writes == k, "%zu writes after the one that ended it", text.writes - k);
    }
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* No lock is held while the writer runs: it may call everything on the heap that it is told of. */
static int writer_that_calls(void *ctx, const char *at, size_t length)
{
    (void)at, (void)length;
    hak_heap_t *heap = ctx;
    void *ptr = hak_heap_malloc(heap, 100000), *small = hak_heap_malloc(heap, 10);
    if (!ptr || !small) return 1;
    hak_heap_free(heap, ptr);
    hak_heap_free(heap, small);
    (void)hak_heap_flush(heap);
    (void)hak_heap_trim(heap, 0);
    return hak_heap_check(heap);
}

Test(stats, the_writer_may_call_the_heap)
{
    hak_heap_t *heap = contract_heap(1, "called");
    cr_assert(hak_heap_malloc(heap, 64) != NULL); /* a class has a line of its own */
    cr_assert(hak_heap_report(heap, writer_that_calls, heap) == 0);
    cr_assert(contract_unsound(heap, 1) == 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Counters ---- */

static uint64_t count_of(hak_heap_t *heap, counter_t counter)
{
    return load_relaxed(&heap->counters.count[HAK_COUNTERS ? counter : 0]);
}

#define COUNTS(name, n)                                                                           \
    cr_assert(count_of(heap, COUNTER_##name) == (uint64_t)(n), "%s is %llu, not %llu (level %d)", \
              #name, (unsigned long long)count_of(heap, COUNTER_##name), (unsigned long long)(n), \
              level)

static void count_small_blocks(hak_heap_t *heap, int level)
{
    void *ptr = hak_heap_malloc(heap, 512);
    cr_assert(ptr != NULL);
    COUNTS(refill_fresh_slab, 1);
    COUNTS(refill_slab, 1);
    COUNTS(early_empty, 1);
    COUNTS(early_no_area, 1);
    COUNTS(refill_hot, 0);
    COUNTS(refill_fresh_superslab, 0);
    hak_heap_free(heap, ptr);
    COUNTS(tls_sll, 1);
    COUNTS(ss_local, 0);
    ptr = hak_heap_malloc(heap, 512);
    COUNTS(refill_hot, 1);
    COUNTS(early_empty, 1);
    hak_heap_free(heap, ptr);
    COUNTS(tls_sll, 2);

    size_t held = contract_stats(heap).hot_bytes + contract_stats(heap).spare_bytes;
    cr_assert(hak_heap_flush(heap) == held);
    COUNTS(ss_local, held / 512);
}

static void count_big_blocks(hak_heap_t *heap, int level)
{
    void *mid = hak_heap_malloc(heap, 600000);
    COUNTS(early_mid, 1);
    COUNTS(refill_fresh_superslab, 1);
    void *large = hak_heap_malloc(heap, 3 * HAK_MIB);
    COUNTS(early_large, 1);
    COUNTS(early_wrong_owner, 0);
    hak_heap_free(heap, mid);
    hak_free(large);
    COUNTS(early_wrong_owner, 2);
    COUNTS(ss_remote, 0);
    COUNTS(early_gate, 0);
    COUNTS(early_reentered, 0);
    COUNTS(early_no_rseq, 0);
    COUNTS(refill_remote, 0);
}

/* Every malloc of a small block is answered by one stage, every free of one goes one way. */
static void count_stages(hak_heap_t *heap)
{
    enum { BLOCKS = 5000 };
    static void *blocks[BLOCKS];
    const counter_t answers[] = {COUNTER_refill_hot, COUNTER_refill_spare, COUNTER_refill_cold,
                                 COUNTER_refill_slab};
    uint64_t before = 0, after = 0;
    for (int i = 0; i < 4; i++) before += count_of(heap, answers[i]);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < BLOCKS; i++)
            cr_assert((blocks[i] = hak_heap_malloc(heap, 100)) != NULL);
        for (int i = 0; i < BLOCKS; i++) hak_heap_free(heap, blocks[i]);
    }
    for (int i = 0; i < 4; i++) after += count_of(heap, answers[i]);
    cr_assert(after - before == 3 * BLOCKS, "%llu of %d calls counted",
              (unsigned long long)(after - before), 3 * BLOCKS);
    cr_assert(count_of(heap, COUNTER_refill_spare) > 0 && count_of(heap, COUNTER_early_full) > 0);
}

Test(stats, counters_count_what_happened)
{
    contract_slabs_only();
    if (!HAK_COUNTERS) cr_skip_test("built without counters");
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        /* On one CPU, so that there is one area. */
        int cpu;
        cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
        hak_heap_t *heap = contract_heap(level, "counted");
        for (unsigned i = 0; i < COUNTER_COUNT; i++) cr_assert(count_of(heap, (counter_t)i) == 0);
        count_small_blocks(heap, level);
        count_big_blocks(heap, level);
        count_stages(heap);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- The check finds damage, and finds nothing once it is undone ---- */

typedef struct patient {
    hak_heap_t *heap;
    class_state_t *state; /* of 64 bytes */
    slab_t *slab;         /* in use, with free blocks */
    area_t *area;
    void *cached, *live, *mid, *large;
    void *other; /* a live block of another class */
} patient_t;

/* Each does one kind of damage to what a check reads, and undoes it. */

enum { SLAB_DAMAGES = 9 };
static void damage_slabs(bool damaged, const patient_t *p, unsigned how)
{
    ptrdiff_t one = damaged ? 1 : -1;
    slab_set_t *set = home_set(p->state, p->slab->home);
    switch (how) {
    case 0: set->carved += (size_t)one; break;
    case 1: set->slabs += (size_t)one; break;
    case 2: set->pages += (uint32_t)one; break;
    case 3: set->outside += (size_t)one; break;
    case 4: p->slab->carved = (uint16_t)(p->slab->carved + one); break;
    case 5: p->slab->cls ^= 1; break;
    case 6: p->slab->bin ^= 1; break;
    case 7: p->slab->pages = (uint8_t)(p->slab->pages + one); break;
    default:
        store_relaxed(&p->state->outside, load_relaxed(&p->state->outside) + (size_t)one);
        break;
    }
}

enum { HEAP_DAMAGES = 12 };
static void damage_sums(bool damaged, const patient_t *p, unsigned how)
{
    ptrdiff_t one = damaged ? 1 : -1;
    hak_heap_t *heap = p->heap;
    superslab_t *ss = heap->superslabs.all;
    size_t bytes = (size_t)(one * 16);
    switch (how) {
    case 0: store_relaxed(&heap->committed, load_relaxed(&heap->committed) + bytes); break;
    case 1: store_relaxed(&heap->metadata, load_relaxed(&heap->metadata) + bytes); break;
    case 2: heap->large.mid_blocks += (size_t)one; break;
    case 3: heap->large.live_blocks += (size_t)one; break;
    case 4: heap->superslabs.count += (size_t)one; break;
    case 5: heap->superslabs.free_granules += (size_t)one; break;
    case 6: heap->superslabs.free_touched += (size_t)one; break;
    case 7: ss->free_granules += (uint32_t)one; break;
    case 8: heap->large.mid_bytes += bytes; break;
    case 9: heap->large.live_bytes += bytes; break;
    case 10: heap->superslabs.empty += (uint32_t)one; break;
    default: ss->free_touched += (uint32_t)one; break;
    }
}

static void lose_granule(bool damaged, const patient_t *p)
{
    (void)damaged;
    p->heap->superslabs.all->free[1] ^= (uint64_t)1 << 63;
}

static void lose_entry(bool damaged, const patient_t *p)
{
    registry_set_run(p->mid, 1, damaged ? NULL : p->heap, CODE_MID);
}

static void lose_slot(bool damaged, const patient_t *p)
{
    registry_set_range(p->large, SUPERSLAB, damaged ? NULL : p->heap->large.live);
}

static void lose_owner(bool damaged, const patient_t *p)
{
    p->heap->large.live->heap = damaged ? NULL : p->heap;
}

static void count_one_too_many(bool damaged, const patient_t *p)
{
    _Atomic chain_t *word = &p->area->hot[p->state->cls].word;
    store_relaxed(word, load_relaxed(word) + (chain_t)(damaged ? 1 : -1));
}

static void lead_to_a_block_of_the_program(bool damaged, const patient_t *p)
{
    static chain_t before;
    _Atomic chain_t *word = &p->area->hot[p->state->cls].word;
    if (damaged) before = load_relaxed(word);
    chain_t theirs = (chain_t)(uintptr_t)p->mid << CHAIN_SHIFT | chain_count(before);
    store_relaxed(word, damaged ? theirs : before);
}

static void make_a_cycle(bool damaged, const patient_t *p)
{
    static block_t before;
    block_t *block = p->cached;
    if (!damaged) {
        *block = before;
        return;
    }
    before = *block;
    size_t more = chain_count(block_link(&before, p->heap->key));
    block_set_link(block, chain_address(block) | more, p->heap->key);
}

static void cache_twice(bool damaged, const patient_t *p)
{
    static chain_t before;
    _Atomic chain_t *spare = &p->area->spare[p->state->cls];
    if (damaged) before = load_relaxed(spare);
    store_relaxed(spare, damaged ? load_relaxed(&p->area->hot[p->state->cls].word) : before);
}

static void list_a_live_block(bool damaged, const patient_t *p)
{
    static chain_t before;
    static block_t held_by_program;
    block_t *live = p->live;
    if (damaged) {
        before = p->slab->free;
        held_by_program = *live;
        p->slab->free = block_push(before, live, p->heap->key);
    } else {
        p->slab->free = before;
        *live = held_by_program;
    }
}

static void count_one_too_few(bool damaged, const patient_t *p)
{
    p->slab->free -= (chain_t)(damaged ? 1 : -1);
}

static void lead_into_a_block(bool damaged, const patient_t *p)
{
    static chain_t before;
    if (damaged) before = p->slab->free;
    p->slab->free = damaged ? before + ((chain_t)16 << CHAIN_SHIFT) : before;
}

static void lengthen_a_link(bool damaged, const patient_t *p)
{
    block_t *block = p->cached;
    chain_t link = block_link(block, p->heap->key);
    block_set_link(block, link + (chain_t)(damaged ? 1 : -1), p->heap->key);
}

static void claim_a_run_of_the_nursery(bool damaged, const patient_t *p)
{
    static nursery_t none; /* the patient has a SuperSlab of its own */
    hak_heap_t *heap = p->heap;
    if (!heap->nursery) heap->nursery = &none;
    heap->nursery->granules[heap->nursery_count] = 1;
    heap->nursery_count = (uint16_t)(heap->nursery_count + (damaged ? 1 : -1));
}

static void move_home(bool damaged, const patient_t *p)
{
    registry_set_home(p->slab->start, 1, damaged ? 3 : p->slab->home);
}

static void take_granules_for_no_slab(bool damaged, const patient_t *p)
{
    static run_t run;
    if (damaged) run = superslab_take(&p->heap->superslabs, 1, 1);
    else superslab_put(&p->heap->superslabs, run, 1, 0);
}

static void lose_second_slot(bool damaged, const patient_t *p)
{
    registry_set_range((char *)p->large + SUPERSLAB, SUPERSLAB,
                       damaged ? NULL : p->heap->large.live);
}

static void lengthen_the_remote_list(bool damaged, const patient_t *p)
{
    static block_t held_by_program;
    block_t *live = p->live;
    if (damaged) {
        held_by_program = *live;
        store_relaxed(&p->state->remote.head, block_push(0, live, p->heap->key) + 1);
    } else {
        store_relaxed(&p->state->remote.head, 0);
        *live = held_by_program;
    }
}

/* The link stays. Without seals it is the first word, and counts one block more then. */
static void break_a_seal(bool damaged, const patient_t *p)
{
    block_t *block = p->cached;
    block->word[0] += damaged ? 1 : (uint64_t)-1;
}

/* Whatever lies there has a seal, a link and a count that are right. */
static void lead_to_what_looks_like_a_block(bool damaged, const patient_t *p)
{
    static chain_t before;
    static block_t held_by_program;
    uint64_t key = p->heap->key;
    if (damaged) before = p->slab->free;
    block_t *inside = chain_block(before) + 1;
    if (damaged) {
        held_by_program = *inside;
        p->slab->free = block_push(block_link(chain_block(before), key), inside, key);
    } else {
        *inside = held_by_program;
        p->slab->free = before;
    }
}

static void lead_to_another_class(bool damaged, const patient_t *p)
{
    static chain_t before;
    _Atomic chain_t *word = &p->area->hot[p->state->cls].word;
    if (damaged) before = load_relaxed(word);
    store_relaxed(word, damaged ? block_push(before, p->other, p->heap->key) : before);
}

static void (*const surgeries[])(bool damaged, const patient_t *p) = {
    break_a_seal,
    lead_to_what_looks_like_a_block,
    lead_to_another_class,
    lose_granule,
    lose_entry,
    lose_slot,
    lose_owner,
    count_one_too_many,
    lead_to_a_block_of_the_program,
    make_a_cycle,
    cache_twice,
    list_a_live_block,
    count_one_too_few,
    lead_into_a_block,
    lengthen_a_link,
    claim_a_run_of_the_nursery,
    move_home,
    take_granules_for_no_slab,
    lose_second_slot,
    lengthen_the_remote_list,
};

/* False: there are no more kinds. */
static bool operate(bool damaged, const patient_t *p, unsigned how)
{
    if (how < SLAB_DAMAGES) {
        damage_slabs(damaged, p, how);
        return true;
    }
    how -= SLAB_DAMAGES;
    if (how < HEAP_DAMAGES) {
        damage_sums(damaged, p, how);
        return true;
    }
    how -= HEAP_DAMAGES;
    if (how >= CONTRACT_LENGTH(surgeries)) return false;
    surgeries[how](damaged, p);
    return true;
}

/* A heap with something of everything. */
static patient_t admit(int level)
{
    patient_t p = {.heap = contract_heap(level, "patient")};
    enum { BLOCKS = 400 };
    static void *blocks[BLOCKS];
    p.mid = hak_heap_malloc(p.heap, 600000);
    p.large = hak_heap_malloc(p.heap, 3 * HAK_MIB);
    p.other = hak_heap_malloc(p.heap, 2048);
    for (int i = 0; i < BLOCKS; i++) cr_assert((blocks[i] = hak_heap_malloc(p.heap, 64)) != NULL);
    /* Half of a slab free and half in use, with nothing cached, then a few blocks cached. */
    for (int i = 0; i < BLOCKS; i += 2) hak_heap_free(p.heap, blocks[i]);
    (void)hak_heap_flush(p.heap);
    p.state = heap_class_made(p.heap, hak_size_class_of(64));
    p.live = blocks[1];
    p.slab = slab_of(registry_lookup(p.live), p.live);
    for (int i = 3; i < 9; i += 2) hak_heap_free(p.heap, p.cached = blocks[i]);
    int index = percpu_index();
    cr_assert(index >= 0);
    p.area = percpu_area(&p.heap->percpu, (unsigned)index);
    cr_assert(p.area != NULL &&
              chain_block(load_relaxed(&p.area->hot[p.state->cls].word)) == p.cached);
    cr_assert(slab_outside(p.slab) > 0 && chain_count(p.slab->free) > 1);
    return p;
}

Test(stats, check_can_fail)
{
    contract_slabs_only();
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    /* What the check says is tested elsewhere; here it is noise. */
    int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC), stderr_before = dup(STDERR_FILENO);
    unsigned missed = 0, how = 0;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        patient_t p = admit(level);
        cr_assert(hak_heap_check(p.heap) == 0);
        for (how = 0; operate(true, &p, how); how++) {
            dup2(quiet, STDERR_FILENO);
            int found = hak_heap_check(p.heap);
            dup2(stderr_before, STDERR_FILENO);
            (void)operate(false, &p, how);
            if (found != EFAULT) {
                missed++;
                cr_log_error("level %d: check gave %d for damage %u", level, found, how);
            }
            cr_assert(hak_heap_check(p.heap) == 0, "level %d: damage %u was undone, and is found",
                      level, how);
        }
        cr_assert(hak_heap_destroy(p.heap) == 0);
    }
    close(quiet);
    close(stderr_before);
    cr_assert(how > 20 && missed == 0, "%u of %u kinds of damage were not found", missed, how);
}

/* What the check says of the patient. */
static int check_quietly(const patient_t *p)
{
    int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC), stderr_before = dup(STDERR_FILENO);
    dup2(quiet, STDERR_FILENO);
    int error = hak_heap_check(p->heap);
    dup2(stderr_before, STDERR_FILENO);
    close(quiet);
    close(stderr_before);
    return error;
}

static const struct {
    void (*damage)(bool damaged, const patient_t *p);
    const char *words, *checked; /* in the line; of a CHECKED heap where that says another */
} findings[] = {
    {lead_to_another_class, "a chain leads out of its class", NULL},
    {lead_to_what_looks_like_a_block, "leads to an address that is no block", NULL},
    {cache_twice, "a free block was found twice", NULL},
    {break_a_seal, "does not have as many blocks", "a free block was written to"},
    {count_one_too_many, "a chain does not have as many blocks as it counts", NULL},
    {lengthen_the_remote_list, "a remote list does not have as many", NULL},
    {lose_entry, "the granule table disagrees", NULL},
    {move_home, "the granule table disagrees", NULL},
    {lose_slot, "the range table disagrees", NULL},
    {lose_second_slot, "the range table disagrees", NULL},
    {lose_owner, "a large block's record is damaged", NULL},
    {take_granules_for_no_slab, "granules in use are in no slab", NULL},
    {claim_a_run_of_the_nursery, "granules of the nursery are in no slab", NULL},
};

/* The sum at the end is off, too: the line is about what was found first. */
Test(stats, check_names_what_it_finds_first)
{
    contract_slabs_only();
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        patient_t p = admit(level);
        for (size_t i = 0; i < CONTRACT_LENGTH(findings); i++) {
            const char *checked = level ? findings[i].checked : NULL;
            findings[i].damage(true, &p);
            damage_sums(true, &p, 0);
            int error = check_quietly(&p);
            damage_sums(false, &p, 0);
            findings[i].damage(false, &p);
            cr_assert(error == EFAULT &&
                          strstr(hak_fatal_line, checked ? checked : findings[i].words),
                      "level %d, row %zu: %d: %s", level, i, error, hak_fatal_line);
        }
        cr_assert(hak_heap_check(p.heap) == 0 && hak_heap_destroy(p.heap) == 0);
    }
}

/* Whatever was found before: a list without an end is followed once around. */
Test(stats, check_ends_on_a_cycle_after_other_damage, .timeout = 60)
{
    contract_slabs_only();
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        patient_t p = admit(level);
        block_t held_by_program = *(block_t *)p.live;
        block_set_link(p.live, chain_address(p.live) | 1, p.heap->key);
        store_relaxed(&p.state->remote.head, chain_address(p.live) | 1);
        damage_slabs(true, &p, 1);
        cr_assert(check_quietly(&p) == EFAULT);
        damage_slabs(false, &p, 1);
        store_relaxed(&p.state->remote.head, 0);
        *(block_t *)p.live = held_by_program;
        cr_assert(hak_heap_check(p.heap) == 0 && hak_heap_destroy(p.heap) == 0);
    }
}

/* ---- The check beside other threads ---- */

typedef struct checker {
    pthread_t thread;
    hak_heap_t *heap;
    int error;
    _Atomic bool done;
} checker_t;

static void *check_once(void *arg)
{
    checker_t *checker = arg;
    checker->error = hak_heap_check(checker->heap);
    store_release(&checker->done, true);
    return NULL;
}

/* Until a thread waits for the lock, or has nothing to wait for. */
static bool wait_until_wanted(hak_lock_t *lock, _Atomic bool *done)
{
    enum { STEPS = 120000, STEP_US = 500 };
    for (unsigned step = 0; step < STEPS; step++, usleep(STEP_US))
        if (lock_is_wanted(lock) || load_acquire(done)) return true;
    return false;
}

/* A class that is made after the check has looked for it is looked at under its lock, too: here one
 * whose counts are on the move. */
Test(stats, a_check_takes_the_lock_of_a_class_that_is_made_meanwhile)
{
    contract_slabs_only();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        checker_t checker = {.heap = contract_heap(level, "made")};
        void *block = hak_heap_malloc(checker.heap, 512);
        class_state_t *last = heap_class_made(checker.heap, hak_size_class_of(512));
        cr_assert(block && last && !heap_class_made(checker.heap, 0));
        lock_acquire(&last->lock, RANK_CLASS);
        cr_assert(pthread_create(&checker.thread, NULL, check_once, &checker) == 0);
        cr_assert(wait_until_wanted(&last->lock, &checker.done));
        class_state_t *made = record_class(checker.heap, 0);
        cr_assert(made != NULL && !load_relaxed(&checker.done));
        lock_acquire_next(&made->lock, RANK_CLASS);
        store_relaxed(&made->outside, 1);
        lock_release_next(&last->lock);
        cr_assert(wait_until_wanted(&made->lock, &checker.done));
        store_relaxed(&made->outside, 0);
        lock_release(&made->lock, RANK_CLASS);
        pthread_join(checker.thread, NULL);
        cr_assert(checker.error == 0, "%d: %s", checker.error, hak_fatal_line);
        cr_assert(contract_unsound(checker.heap, 1) == 0 && hak_heap_destroy(checker.heap) == 0);
    }
}

static struct {
    os_table_t os;
    class_state_t *state;
    pthread_t waiter;
    bool waited;
    long slept; /* how often the check's thread had slept, when its walk was over */
    _Atomic bool done;
} rest;

static void *take_class_lock(void *unused)
{
    (void)unused;
    lock_acquire(&rest.state->lock, RANK_CLASS);
    lock_release(&rest.state->lock, RANK_CLASS);
    store_release(&rest.done, true);
    return NULL;
}

static long times_slept(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

/* The check maps its bits once it holds every lock. */
static void *map_while_wanted(size_t bytes, size_t alignment)
{
    if (pthread_create(&rest.waiter, NULL, take_class_lock, NULL) == 0)
        rest.waited = wait_until_wanted(&rest.state->lock, &rest.done) && !load_relaxed(&rest.done);
    return os_kernel.map(bytes, alignment);
}

static bool note_and_unmap(void *at, size_t bytes)
{
    bool done = os_kernel.unmap(at, bytes);
    rest.slept = times_slept();
    return done;
}

/* Who waited for a class is to get its lock before this thread asks for it again. */
Test(stats, a_check_rests_where_a_thread_waited)
{
    contract_slabs_only();
    hak_heap_t *heap = contract_heap(0, "waited for");
    cr_assert(hak_heap_malloc(heap, 64) != NULL);
    rest.state = heap_class_made(heap, hak_size_class_of(64));
    rest.os = os_kernel;
    rest.os.map = map_while_wanted;
    rest.os.unmap = note_and_unmap;
    os = &rest.os;
    int error = hak_heap_check(heap);
    long slept = times_slept() - rest.slept;
    os = &os_kernel;
    cr_assert(error == 0 && rest.waited, "no thread waited, so nothing is tested");
    pthread_join(rest.waiter, NULL);
    cr_assert(slept > 0, "the check goes on at once");
    cr_assert(contract_unsound(heap, 1) == 0 && hak_heap_destroy(heap) == 0);
}

static void *check_while_cancelled(void *arg)
{
    pthread_cancel(pthread_self()); /* pending until the next place where a thread may end */
    (void)hak_heap_check(arg);
    return NULL;
}

/* A thread that ends where the check writes its line must not take the heap's locks, or its place
 * in the gate, along. */
Test(stats, a_check_may_be_cancelled_where_it_writes, .timeout = 30)
{
    hak_heap_t *heap = contract_heap(1, "cancelled");
    char *freed = hak_heap_malloc(heap, 64);
    cr_assert(freed != NULL);
    hak_heap_free(heap, freed);
    block_t before = *(block_t *)(void *)freed;
    memset(freed, 0x5a, 16); /* for the check to find */
    int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC), stderr_before = dup(STDERR_FILENO);
    dup2(quiet, STDERR_FILENO);
    pthread_t checker;
    cr_assert(pthread_create(&checker, NULL, check_while_cancelled, heap) == 0);
    pthread_join(checker, NULL);
    dup2(stderr_before, STDERR_FILENO);
    close(quiet);
    close(stderr_before);
    cr_assert(strstr(hak_fatal_line, "CORRUPT: check") != NULL, "nothing was written");
    *(block_t *)(void *)freed = before;
    for (int i = 0; i < 100; i++) cr_assert(hak_heap_malloc(heap, 20000) != NULL);
    pid_t child = fork();
    if (child == 0) _exit(hak_heap_check(heap));
    int status = -1;
    cr_assert(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    cr_assert(contract_unsound(heap, 100) == 0 && hak_heap_destroy(heap) == 0);
}

static _Atomic size_t checks;
static _Atomic bool unsound;

static void *check_on_and_on(void *arg)
{
    for (; !stop; checks++)
        if (hak_heap_check(arg) != 0) unsound = stop = true;
    return NULL;
}

/* A heap of little memory whose check takes long: it visits every free block of its slabs. */
static hak_heap_t *heap_of_many_free_blocks(void)
{
    enum { BLOCKS = 600000, LIVE_ONE_IN = 512 };
    hak_heap_t *heap = contract_heap(0, "checked on and on");
    void **blocks = malloc(BLOCKS * sizeof *blocks);
    cr_assert(heap && blocks);
    for (int i = 0; i < BLOCKS; i++) cr_assert((blocks[i] = hak_heap_malloc(heap, 16)) != NULL);
    for (int i = 0; i < BLOCKS; i++)
        if (i % LIVE_ONE_IN) hak_heap_free(heap, blocks[i]);
    free(blocks);
    cr_assert(hak_heap_flush(heap) > 0);
    return heap;
}

/* The most checks that come to an end during one allocation, while so many are made. */
static size_t most_checks_waited(hak_heap_t *heap, void **blocks, size_t count, size_t most)
{
    static randoms_t randoms = {3};
    size_t worst = 0, end = checks + most;
    while (checks < end && !unsound) {
        void **block = &blocks[random_below(&randoms, (unsigned)count)];
        hak_heap_free(heap, *block);
        size_t before = checks;
        cr_assert((*block = hak_heap_malloc(heap, 16 + random_below(&randoms, 3000))) != NULL);
        size_t waited = checks - before;
        if (waited > worst) worst = waited;
    }
    return worst;
}

/*
 * An allocation that misses waits for a check at each lock that it asks for, and not for as long as
 * others follow. Counted in checks that come to an end during one allocation, because time depends
 * on the machine; and a check takes longer than a thread waits for a CPU. Where other programs have
 * that CPU a thread waits longer, so that one of several turns has to be good: where nobody is let
 * go first, none is.
 */
Test(stats, checks_let_others_go_first)
{
    enum { CHECKERS = 12, SLOTS_IN_USE = 5000, CHECKS = 60, MOST_CHECKS = 8, TURNS = 6 };
    static void *blocks[SLOTS_IN_USE];
    hak_heap_t *heap = heap_of_many_free_blocks();
    size_t live = contract_stats(heap).live_blocks, worst = SIZE_MAX;
    for (int i = 0; i < SLOTS_IN_USE; i++) blocks[i] = hak_heap_malloc(heap, 100);
    pthread_t threads[CHECKERS];
    for (int i = 0; i < CHECKERS; i++)
        cr_assert(pthread_create(&threads[i], NULL, check_on_and_on, heap) == 0);
    for (int turn = 0; turn < TURNS && worst > MOST_CHECKS; turn++)
        worst = most_checks_waited(heap, blocks, SLOTS_IN_USE, CHECKS);
    stop = true;
    for (int i = 0; i < CHECKERS; i++) pthread_join(threads[i], NULL);
    cr_assert(!unsound);
    cr_assert(worst <= MOST_CHECKS, "%zu checks came to an end during one allocation", worst);
    cr_assert(contract_unsound(heap, live + SLOTS_IN_USE) == 0 && hak_heap_destroy(heap) == 0);
}
