/*
 * Regions: a few heaps whose small blocks all lie side by side in regions. Threads allocate, fill,
 * grow, shrink, pass over and free them, while others flush, trim, check and ask for figures. Every
 * block's content is proved before it changes hands.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "heap.h"
#include "support_contract.h"
#include "support_stress.h"

enum { HEAPS = 4, HELD = 160, MAILBOXES = 64, MOST = REGION_BLOCK_MAX, BUSY = 1000 };

static hak_heap_t *heaps[HEAPS];
static _Atomic(void *) mailboxes[MAILBOXES];
static _Atomic size_t proved, in_place, moved, checks;
static stress_options_t options;

static hak_heap_t *create(int at)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = at & 1 ? "checked" : "fast";
    config.level = at & 1 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.region_bytes = 1024 * 1024;
    hak_heap_t *heap = hak_heap_create(&config);
    if (!heap) stress_fail("no heap: %s", hak_error_text(hak_last_error()));
    return heap;
}

/* Mostly of one word, and often of two or three. */
static size_t some_bytes(randoms_t *randoms)
{
    return STRESS_LEAST + random_below(randoms, random_below(randoms, 2) ? 200 : MOST - 15);
}

static void *obtain(randoms_t *randoms)
{
    unsigned at = random_below(randoms, HEAPS);
    size_t bytes = some_bytes(randoms);
    bool aligned = random_below(randoms, 8) == 0;
    size_t alignment = (size_t)16 << random_below(randoms, 5);
    void *block = aligned ? hak_heap_aligned_alloc(heaps[at], alignment, bytes)
                          : hak_heap_malloc(heaps[at], bytes);
    if (!block) stress_fail("no memory: %s", hak_error_text(hak_last_error()));
    if (aligned && (uintptr_t)block % alignment) stress_fail("%p is not aligned", block);
    STRESS_REQUIRE(hak_usable_size(block) >= bytes);
    stress_write(block, bytes, (uint32_t)random_next(randoms), (uint16_t)at);
    return block;
}

static void prove(const void *block)
{
    uint16_t mark;
    size_t bytes = stress_prove(block, &mark);
    if (mark >= HEAPS || hak_heap_of(block) != heaps[mark] || hak_usable_size(block) < bytes)
        stress_fail("block %p of heap %u, %zu bytes: %zu can be used", block, mark, bytes,
                    hak_usable_size(block));
    atomic_fetch_add_explicit(&proved, 1, memory_order_relaxed);
}

static void release(randoms_t *randoms, void *block)
{
    prove(block);
    uint16_t mark;
    (void)stress_prove(block, &mark);
    if (random_below(randoms, 2)) hak_free(block);
    else hak_heap_free(heaps[mark], block);
}

/* Longer or shorter, with what both have of the content. */
static void *change(randoms_t *randoms, void *block)
{
    static const uint32_t seed = 7;
    uint16_t mark;
    size_t before = stress_prove(block, &mark), bytes = some_bytes(randoms);
    unsigned char kept[MOST], shown[MOST];
    memcpy(kept, block, before);
    uintptr_t was = (uintptr_t)block;
    void *at = hak_heap_realloc(heaps[mark], block, bytes);
    if (!at) stress_fail("no memory: %s", hak_error_text(hak_last_error()));
    size_t both = bytes < before ? bytes : before;
    memcpy(shown, at, both);
    if (memcmp(kept, shown, both) != 0) stress_fail("realloc of %p lost content", at);
    atomic_fetch_add_explicit((uintptr_t)at == was ? &in_place : &moved, 1, memory_order_relaxed);
    stress_write(at, bytes, seed + (uint32_t)random_next(randoms), mark);
    return at;
}

static void *work(void *arg)
{
    randoms_t randoms = {(uint64_t)(uintptr_t)arg};
    void *held[HELD] = {NULL};
    for (size_t step = 0; !stress_is_over(); step++) {
        void **slot = &held[random_below(&randoms, HELD)];
        unsigned what = random_below(&randoms, 8);
        /* All goes now and then, so that pages and regions are empty. */
        if (step % (64 * BUSY) == 0)
            for (unsigned i = 0; i < HELD; i++)
                if (held[i]) release(&randoms, held[i]), held[i] = NULL;
        if (!*slot) {
            *slot = obtain(&randoms);
        } else if (what < 2) {
            *slot = change(&randoms, *slot);
        } else if (what < 4) {
            *slot = atomic_exchange(&mailboxes[random_below(&randoms, MAILBOXES)], *slot);
            if (*slot) prove(*slot);
        } else {
            release(&randoms, *slot);
            *slot = NULL;
        }
    }
    for (unsigned i = 0; i < HELD; i++)
        if (held[i]) release(&randoms, held[i]);
    return NULL;
}

static void look(hak_heap_t *heap)
{
    hak_heap_stats_t stats = contract_stats(heap);
    if (contract_sum(&stats) > stats.committed_bytes) stress_fail("more in parts than in all");
    hak_class_stats_t figures = {.struct_size = sizeof figures};
    STRESS_REQUIRE(hak_heap_class_stats(heap, 3, &figures) == 0 && figures.block_bytes == 64);
}

static void *disturb(void *arg)
{
    randoms_t randoms = {(uint64_t)(uintptr_t)arg};
    while (!stress_is_over()) {
        hak_heap_t *heap = heaps[random_below(&randoms, HEAPS)];
        switch (random_below(&randoms, 5)) {
        case 0: (void)hak_heap_flush(heap); break;
        case 1: (void)hak_heap_trim(heap, 0); break;
        case 2: (void)hak_heap_trim(heap, 30000); break;
        case 3: look(heap); break;
        default:
            if (hak_heap_check(heap) != 0) stress_fail("a heap fails its check");
            atomic_fetch_add(&checks, 1);
        }
    }
    return NULL;
}

static pthread_t start(void *(*run)(void *), uint64_t seed)
{
    pthread_t thread;
    STRESS_REQUIRE(pthread_create(&thread, NULL, run, (void *)(uintptr_t)seed) == 0);
    return thread;
}

int main(int argc, char *argv[])
{
    options = stress_begin(argc, argv, 4);
    for (int i = 0; i < HEAPS; i++) heaps[i] = create(i);
    pthread_t threads[256], others[2];
    for (unsigned i = 0; i < options.threads; i++) threads[i] = start(work, options.seed * 100 + i);
    for (unsigned i = 0; i < 2; i++) others[i] = start(disturb, options.seed * 1000 + i);
    stress_wait(&options);
    for (unsigned i = 0; i < options.threads; i++) pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < 2; i++) pthread_join(others[i], NULL);
    randoms_t randoms = {options.seed};
    for (unsigned i = 0; i < MAILBOXES; i++) {
        void *block = atomic_exchange(&mailboxes[i], NULL);
        if (block) release(&randoms, block);
    }
    for (int i = 0; i < HEAPS; i++) {
        stress_prove_empty(heaps[i], i & 1 ? "checked" : "fast");
        (void)hak_heap_trim(heaps[i], 0);
        stress_prove_empty(heaps[i], i & 1 ? "checked" : "fast");
        STRESS_REQUIRE(hak_heap_destroy(heaps[i]) == 0);
    }
    printf("%zu blocks proved, %zu resized in place, %zu moved, %zu checks\n", (size_t)proved,
           (size_t)in_place, (size_t)moved, (size_t)checks);
    return 0;
}
