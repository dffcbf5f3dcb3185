/*
 * What limits cost others. hakheap's alone: no peer has a limit of one heap.
 *
 *   neighbour  one thread asks a heap at its limit for blocks, again and again, and is refused; a
 *              thread on another CPU allocates and frees in a heap below the same parent. The first
 *              thread works in every other slice of time only, and turns in the rest without a call:
 *              the ratio of the neighbour's pairs in both kinds of slices is what it loses.
 *   usage      so many heaps below one parent have some blocks each; the figures of all are read,
 *              one heap after the other.
 *
 *   build/bench/limits --what neighbour [--seconds S]
 *   build/bench/limits --what usage [--heaps N] [--calls N]
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "adapter_hakheap.h"
#include "program.h"

enum { NEIGHBOUR, USAGE, WHATS };
static const char *const what_names[WHATS] = {"neighbour", "usage"};

static struct {
    uint64_t duration;
    size_t heaps, calls;
    uint32_t what;
    const char *level;
} options = {10000000000u, 10000, 21, NEIGHBOUR, "fast"};

static hak_heap_t *make(hak_heap_t *parent, size_t limit)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "bench";
    config.level = strcmp(options.level, "checked") == 0 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.parent = parent;
    config.live_limit = limit;
    hak_heap_t *heap = hak_heap_create(&config);
    if (!heap) harness_exit(HARNESS_FAILED, "no heap: %m");
    return heap;
}

/* ---- The neighbour ---- */

enum { SLICE_MS = 50, LIMIT = 8 << 20, BLOCKS = 1000, MOST = 1000 };

/* Relaxed: the slice that runs; each thread counts what it did for the one it saw. */
static atomic_uint slice;
static atomic_bool over;
static hak_heap_t *tenant, *neighbour;
static uint64_t pairs[2], refusals;

static size_t draw_size(harness_rng_t *rng)
{
    return 16 + harness_below((uint32_t)harness_draw(rng), MOST);
}

/* Fills its heap, then asks for more; frees a block where one in 64 was refused, and takes it
 * again. */
static void *hammer(void *arg)
{
    (void)arg;
    static void *block[LIMIT / 16];
    size_t count = 0;
    harness_rng_t rng = {1};
    harness_stay_on(0);
    while (!atomic_load_explicit(&over, memory_order_relaxed)) {
        if (atomic_load_explicit(&slice, memory_order_relaxed) % 2 == 0) continue;
        void *ptr = hak_heap_malloc(tenant, draw_size(&rng));
        if (ptr) {
            block[count++] = ptr;
        } else if (++refusals % 64 == 0) {
            hak_heap_free(tenant, block[--count]);
        }
    }
    while (count) hak_heap_free(tenant, block[--count]);
    return NULL;
}

static void *live_beside(void *arg)
{
    (void)arg;
    static void *block[BLOCKS];
    harness_rng_t rng = {2};
    harness_stay_on(1);
    for (size_t i = 0; i < BLOCKS; i++) block[i] = alloc_malloc(neighbour, draw_size(&rng));
    while (!atomic_load_explicit(&over, memory_order_relaxed)) {
        void **at = &block[harness_below((uint32_t)harness_draw(&rng), BLOCKS)];
        hak_heap_free(neighbour, *at);
        *at = hak_heap_malloc(neighbour, draw_size(&rng));
        if (!*at) harness_exit(HARNESS_FAILED, "the neighbour is refused");
        pairs[atomic_load_explicit(&slice, memory_order_relaxed) % 2]++;
    }
    for (size_t i = 0; i < BLOCKS; i++) hak_heap_free(neighbour, block[i]);
    return NULL;
}

static void measure_neighbour(void)
{
    hak_heap_t *root = make(NULL, (size_t)1 << 30);
    tenant = make(root, LIMIT);
    neighbour = make(root, HAK_NO_LIMIT);
    pthread_t threads[2];
    uint64_t slices = options.duration / 1000000 / SLICE_MS, begin = harness_now();
    if (pthread_create(&threads[0], NULL, hammer, NULL) != 0 ||
        pthread_create(&threads[1], NULL, live_beside, NULL) != 0)
        harness_exit(HARNESS_FAILED, "cannot start a thread");
    for (uint64_t i = 1; i <= slices; i++) {
        harness_sleep_until(begin + i * SLICE_MS * 1000000);
        atomic_fetch_add_explicit(&slice, 1, memory_order_relaxed);
    }
    atomic_store_explicit(&over, true, memory_order_relaxed);
    for (unsigned i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    program_print_identity();
    printf(" what=neighbour level=%s seconds=%.1f refusals=%llu pairs_alone=%llu pairs_beside=%llu "
           "ratio=%.3f\n",
           options.level, (double)options.duration / 1e9, (unsigned long long)refusals,
           (unsigned long long)pairs[0], (unsigned long long)pairs[1],
           (double)pairs[1] / (double)pairs[0]);
    hak_heap_destroy(root);
}

/* ---- Usage ---- */

static void measure_usage(void)
{
    hak_heap_t *root = make(NULL, (size_t)1 << 34);
    hak_heap_t **heaps = program_map(options.heaps * sizeof *heaps);
    uint64_t *ns = program_map(options.calls * sizeof *ns);
    size_t live = 0;
    for (size_t i = 0; i < options.heaps; i++) {
        heaps[i] = make(root, 1 << 20);
        for (size_t k = 0; k < 1 + i % 8; k++)
            if (!alloc_malloc(heaps[i], 100)) harness_exit(HARNESS_FAILED, "no block: %m");
    }
    for (size_t call = 0; call < options.calls; call++) {
        uint64_t before = harness_now();
        live = 0;
        for (size_t i = 0; i < options.heaps; i++) {
            hak_usage_t usage = {.struct_size = sizeof usage};
            if (hak_heap_usage(heaps[i], &usage) != 0) harness_exit(HARNESS_FAILED, "no figures");
            live += usage.live_bytes;
        }
        ns[call] = harness_now() - before;
    }
    harness_sort(ns, options.calls);
    program_print_identity();
    printf(" what=usage level=%s heaps=%zu live_bytes=%zu median_ms=%.3f max_ms=%.3f\n",
           options.level, options.heaps, live, (double)ns[options.calls / 2] / 1e6,
           (double)ns[options.calls - 1] / 1e6);
    hak_heap_destroy(root);
}

static const program_option_t known[] = {
    {.name = "what",
     .kind = OPTION_CHOICE,
     .value = &options.what,
     .names = what_names,
     .count = WHATS,
     .words = "neighbour: what one loses; usage: what it takes to read the figures of all heaps"},
    {.name = "seconds",
     .kind = OPTION_SECONDS,
     .value = &options.duration,
     .words = "how long, for neighbour",
     .min = 0.2,
     .max = 86400},
    {.name = "heaps",
     .kind = OPTION_SIZE,
     .value = &options.heaps,
     .words = "how many, for usage",
     .min = 1,
     .max = 1e6},
    {.name = "calls",
     .kind = OPTION_SIZE,
     .value = &options.calls,
     .words = "how often all are read",
     .min = 1,
     .max = 1e6},
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin_heaps(argc, argv, "What limits cost others", known,
                        sizeof known / sizeof known[0]);
    if (options.what == NEIGHBOUR) measure_neighbour();
    else measure_usage();
    return 0;
}
