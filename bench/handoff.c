/*
 * Hand-off: one thread allocates, another frees (xmalloc-test's shape). Pairs of a producer and a
 * consumer share one heap; blocks go over in batches through a ring of their own. The consumer
 * proves every block's content before it frees it. One pair is one malloc and one free. One line of
 * key=value pairs.
 *
 * What is timed is the slower of the two sides: the ring is short, and who finds it full or empty
 * yields.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include ADAPTER
#include "program.h"

enum { BATCH = 64, RING = 16, MOST_PAIRS = 64, LINES = 128 };

static struct {
    uint32_t pairs, min, max;
    uint64_t duration; /* nanoseconds */
    uint64_t seed;
    const char *level;
} options = {1, 64, 512, 1000000000, 1, "fast"};

/* One producer writes `made`, one consumer `used`; a batch belongs to whom the counts say. */
typedef struct ring {
    atomic_size_t made __attribute__((aligned(LINES))); /* release; acquire by the consumer */
    atomic_size_t used __attribute__((aligned(LINES))); /* release; acquire by the producer */
    char *batch[RING][BATCH] __attribute__((aligned(LINES)));
    atomic_bool over; /* release: the last batch is made; acquire by the consumer */
    uint64_t freed;   /* the consumer's */
    uint64_t seed;    /* constant while threads run */
} ring_t;

static ring_t rings[MOST_PAIRS];
static alloc_heap_t *heap;
static atomic_bool stop; /* relaxed: some batches more do no harm */

static uint64_t tag_of(const char *block)
{
    return (uint64_t)(uintptr_t)block ^ 0x5bd1e9955bd1e995u;
}

static void *produce(void *argument)
{
    ring_t *ring = argument;
    harness_rng_t rng = {ring->seed};
    for (size_t made = 0; !atomic_load_explicit(&stop, memory_order_relaxed);) {
        if (made - atomic_load_explicit(&ring->used, memory_order_acquire) == RING) {
            sched_yield();
            continue;
        }
        for (unsigned i = 0; i < BATCH; i++) {
            uint32_t size = options.min + harness_below((uint32_t)harness_draw(&rng),
                                                        options.max - options.min + 1);
            char *block = alloc_malloc(heap, size);
            if (!block) harness_exit(HARNESS_FAILED, "malloc of %u bytes failed: %m", size);
            uint64_t tag = tag_of(block);
            block[size - 1] = (char)size;
            memcpy(block, &tag, sizeof tag);
            ring->batch[made % RING][i] = block;
        }
        atomic_store_explicit(&ring->made, ++made, memory_order_release);
    }
    atomic_store_explicit(&ring->over, true, memory_order_release);
    alloc_thread_end();
    return NULL;
}

static void free_batch(ring_t *ring, size_t used)
{
    for (unsigned i = 0; i < BATCH; i++) {
        char *block = ring->batch[used % RING][i];
        uint64_t found;
        memcpy(&found, block, sizeof found);
        if (found != tag_of(block)) harness_exit(HARNESS_FAILED, "block %p is torn", (void *)block);
        alloc_free(heap, block);
    }
    ring->freed += BATCH;
}

static void *consume(void *argument)
{
    ring_t *ring = argument;
    for (size_t used = 0;;) {
        bool over = atomic_load_explicit(&ring->over, memory_order_acquire);
        if (atomic_load_explicit(&ring->made, memory_order_acquire) == used) {
            if (over) break;
            sched_yield();
            continue;
        }
        free_batch(ring, used);
        atomic_store_explicit(&ring->used, ++used, memory_order_release);
    }
    alloc_thread_end();
    return NULL;
}

static void start(pthread_t *thread, void *(*life)(void *), ring_t *ring)
{
    int error = pthread_create(thread, NULL, life, ring);
    if (error) harness_exit(HARNESS_FAILED, "cannot start a thread: %s", strerror(error));
}

/* Returns the seconds it took. */
static double run(void)
{
    static pthread_t producers[MOST_PAIRS], consumers[MOST_PAIRS];
    uint64_t begin = harness_now();
    for (uint32_t i = 0; i < options.pairs; i++) {
        rings[i].seed = options.seed + i;
        start(&producers[i], produce, &rings[i]);
        start(&consumers[i], consume, &rings[i]);
    }
    harness_sleep_until(begin + options.duration);
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    for (uint32_t i = 0; i < options.pairs; i++) pthread_join(producers[i], NULL);
    uint64_t end = harness_now();
    for (uint32_t i = 0; i < options.pairs; i++) pthread_join(consumers[i], NULL);
    return (double)(end - begin) / 1e9;
}

static const program_option_t known[] = {
    {.name = "pairs",
     .kind = OPTION_U32,
     .value = &options.pairs,
     .words = "producers, each with a consumer",
     .min = 1,
     .max = MOST_PAIRS},
    {.name = "min",
     .kind = OPTION_U32,
     .value = &options.min,
     .words = "smallest block in bytes",
     .min = 8,
     .max = 1 << 20},
    {.name = "max",
     .kind = OPTION_U32,
     .value = &options.max,
     .words = "largest block",
     .min = 8,
     .max = 1 << 20},
    {.name = "seconds",
     .kind = OPTION_SECONDS,
     .value = &options.duration,
     .words = "how long",
     .min = 0.01,
     .max = 86400},
    PROGRAM_SEED(&options.seed),
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin(argc, argv, "Producers allocate and consumers free", known,
                  sizeof known / sizeof known[0]);
    if (options.max < options.min)
        harness_exit(HARNESS_USAGE, "--max %u is below --min %u", options.max, options.min);
    heap = program_heap(options.level, 0);
    double seconds = run();
    uint64_t freed = 0;
    for (uint32_t i = 0; i < options.pairs; i++) freed += rings[i].freed;
    size_t rss = harness_resident_kib();
    alloc_flush(heap);
    alloc_trim(heap);
    size_t rss_trimmed = harness_resident_kib();
    alloc_heap_destroy(heap);
    program_print_identity();
    printf(" level=%s pairs=%u min=%u max=%u seed=%llu blocks=%llu seconds=%.6f mps=%.3f "
           "rss_end_kib=%zu "
           "rss_trimmed_kib=%zu\n",
           options.level, options.pairs, options.min, options.max, (unsigned long long)options.seed,
           (unsigned long long)freed, seconds, (double)freed / seconds / 1e6, rss, rss_trimmed);
    return 0;
}
