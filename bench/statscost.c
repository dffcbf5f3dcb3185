/*
 * What it costs to poll the figures of a heap. hakheap's alone: others have no figures of one heap.
 *
 * Threads, one on each CPU, fill one heap with blocks of 16 to `most` bytes and free all but a part
 * of them, chosen at random, so that memory is in pieces, every class is in use, and each CPU has
 * caches. Then hak_heap_stats() is called `calls` times, and each call is timed. With --busy 1 the
 * threads go on meanwhile.
 *
 *   build/bench/statscost [--blocks N] [--most N] [--threads N] [--calls N] [--busy 0|1]
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "adapter_hakheap.h"
#include "program.h"

enum { MOST_THREADS = 64, KEEP_ONE_IN = 3 };

static struct {
    size_t blocks, most, calls;
    uint32_t threads, busy;
    const char *level;
} options = {900000, 2000, 10001, 2, 0, "fast"};

static hak_heap_t *heap;
static char **block;
static pthread_barrier_t filled;
static atomic_bool over;

static char *take(harness_rng_t *rng)
{
    uint32_t size = 16 + harness_below((uint32_t)harness_draw(rng), (uint32_t)options.most - 15);
    char *at = hak_heap_malloc(heap, size);
    if (!at) harness_exit(HARNESS_FAILED, "malloc of %u bytes failed: %m", size);
    return memset(at, 1, size);
}

static void *work(void *arg)
{
    uint32_t thread = (uint32_t)(uintptr_t)arg;
    harness_rng_t rng = {thread + 1};
    size_t first = options.blocks * thread / options.threads;
    size_t end = options.blocks * (thread + 1) / options.threads;
    harness_stay_on(thread);
    for (size_t i = first; i < end; i++) block[i] = take(&rng);
    for (size_t i = first; i < end; i++) {
        if (harness_draw(&rng) % KEEP_ONE_IN == 0) continue;
        hak_heap_free(heap, block[i]);
        block[i] = NULL;
    }
    pthread_barrier_wait(&filled);
    while (options.busy && !atomic_load_explicit(&over, memory_order_relaxed)) {
        char **at = &block[first + harness_draw(&rng) % (end - first)];
        hak_heap_free(heap, *at);
        *at = take(&rng);
    }
    return NULL;
}

static void measure(void)
{
    uint64_t *ns = program_map(options.calls * sizeof *ns);
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    for (size_t i = 0; i < options.calls; i++) {
        uint64_t before = harness_now();
        if (hak_heap_stats(heap, &stats) != 0) harness_exit(HARNESS_FAILED, "no figures");
        ns[i] = harness_now() - before;
    }
    harness_sort(ns, options.calls);
    program_print_identity();
    printf(
        " level=%s threads=%u busy=%u committed_mb=%zu resident_mb=%zu live_mb=%zu median_ns=%llu "
        "p99_ns=%llu\n",
        options.level, options.threads, options.busy, stats.committed_bytes / 1000000,
        stats.resident_bytes / 1000000, stats.live_bytes / 1000000,
        (unsigned long long)ns[options.calls / 2],
        (unsigned long long)ns[options.calls * 99 / 100]);
}

static const program_option_t known[] = {
    {.name = "blocks",
     .kind = OPTION_SIZE,
     .value = &options.blocks,
     .words = "how many are allocated",
     .min = 1000,
     .max = 1e9},
    {.name = "most",
     .kind = OPTION_SIZE,
     .value = &options.most,
     .words = "bytes of the largest",
     .min = 16,
     .max = 1e6},
    {.name = "calls",
     .kind = OPTION_SIZE,
     .value = &options.calls,
     .words = "that are timed",
     .min = 1,
     .max = 1e7},
    {.name = "threads",
     .kind = OPTION_U32,
     .value = &options.threads,
     .words = "how many fill it",
     .min = 1,
     .max = MOST_THREADS},
    {.name = "busy",
     .kind = OPTION_U32,
     .value = &options.busy,
     .words = "1: the threads go on meanwhile",
     .min = 0,
     .max = 1},
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    pthread_t threads[MOST_THREADS];
    program_begin_heaps(argc, argv, "What it costs to poll the figures of a heap", known,
                        sizeof known / sizeof known[0]);
    heap = alloc_heap_create(options.level, 0);
    block = program_map(options.blocks * sizeof *block);
    pthread_barrier_init(&filled, NULL, options.threads + 1);
    for (uint32_t i = 0; i < options.threads; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i) != 0)
            harness_exit(HARNESS_FAILED, "cannot start a thread");
    pthread_barrier_wait(&filled);
    measure();
    atomic_store_explicit(&over, true, memory_order_relaxed);
    for (uint32_t i = 0; i < options.threads; i++) pthread_join(threads[i], NULL);
    alloc_heap_destroy(heap);
    return 0;
}
