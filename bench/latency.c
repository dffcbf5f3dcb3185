/*
 * Latency: how long single calls take, at worst above all. Threads share one heap; each replaces
 * random blocks of an array of its own by blocks of random size, as larson does, and every malloc
 * and every free is timed by itself. With --flush-ms another thread flushes and trims the heap in
 * between, by the allocator's own calls, as far as it has such.
 *
 * A time goes into a bucket of a thread's own; a bucket is at most 1/32 wide, and what is printed
 * is its upper end, at most the highest time seen. All figures are of malloc and free together, but
 * for malloc_... and free_.... They hold the time of reading the clock, which is the same for every
 * allocator and which clock_ns tells: the median of no call at all. What the system takes from a
 * thread in a call counts as well: on a machine with other work the far end is the system's. Every
 * block is proved before it is freed. One line of key=value pairs.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include ADAPTER
#include "program.h"

enum {
    MOST_THREADS = 64,
    LINES = 128,
    FINE_BITS = 5,
    FINE = 1 << FINE_BITS, /* buckets for each power of two */
    BUCKETS = (64 - FINE_BITS + 1) * FINE,
    CLOCK_TRIES = 10000,
};

static struct {
    uint32_t threads, min, max, blocks, flush_ms;
    uint64_t duration; /* nanoseconds */
    uint64_t seed;
    const char *level;
} options = {2, 8, 1000, 5000, 0, 1000000000, 1, "fast"};

/* ---- Ticks: of a counter that runs evenly. Nothing else of the thread runs between a begin and
 * its end. ---- */

#if defined(__x86_64__)
static inline uint64_t tick_begin(void)
{
    _mm_lfence();
    uint64_t now = __rdtsc();
    _mm_lfence();
    return now;
}

static inline uint64_t tick_end(void)
{
    unsigned cpu;
    uint64_t now = __rdtscp(&cpu);
    _mm_lfence();
    return now;
}
#else
static inline uint64_t tick_begin(void) { return harness_now(); }
static inline uint64_t tick_end(void) { return harness_now(); }
#endif

/* ---- Buckets ---- */

typedef struct histogram {
    uint64_t count[BUCKETS];
    uint64_t most; /* ticks */
} histogram_t;

/* The first 2 * FINE values have a bucket each; then FINE buckets share a power of two. */
static inline unsigned bucket_of(uint64_t ticks)
{
    if (ticks < FINE) return (unsigned)ticks;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ticks) - FINE_BITS;
    return shift * FINE + (unsigned)(ticks >> shift);
}

/* The highest value that bucket_of maps there. */
static uint64_t bucket_end(unsigned bucket)
{
    if (bucket < 2 * FINE) return bucket;
    unsigned shift = bucket / FINE - 1;
    return ((uint64_t)(bucket % FINE + FINE + 1) << shift) - 1;
}

static inline void histogram_note(histogram_t *histogram, uint64_t ticks)
{
    histogram->count[bucket_of(ticks)]++;
    if (__builtin_expect(ticks > histogram->most, 0)) histogram->most = ticks;
}

static void histogram_add(histogram_t *sum, const histogram_t *part)
{
    for (unsigned i = 0; i < BUCKETS; i++) sum->count[i] += part->count[i];
    if (part->most > sum->most) sum->most = part->most;
}

static uint64_t histogram_total(const histogram_t *histogram)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < BUCKETS; i++) total += histogram->count[i];
    return total;
}

/* In ticks: what all but one in `rarity` are not above. */
static uint64_t histogram_tail(const histogram_t *histogram, uint64_t rarity)
{
    uint64_t total = histogram_total(histogram), wanted = total - total / rarity, seen = 0;
    unsigned i = 0;
    while (i < BUCKETS && (seen += histogram->count[i]) < wanted) i++;
    uint64_t end = bucket_end(i);
    return end < histogram->most ? end : histogram->most;
}

/* ---- Threads ---- */

typedef struct slot {
    char *block;
    size_t size;
} slot_t;

typedef struct worker {
    pthread_t thread;
    slot_t *slots;
    harness_rng_t rng;
    histogram_t malloced, freed;
} __attribute__((aligned(LINES))) worker_t;

static worker_t workers[MOST_THREADS];
static pthread_barrier_t barrier; /* of all workers and the main thread */
static alloc_heap_t *heap;
static atomic_bool stop; /* relaxed: some calls more do no harm */
static uint64_t flushes; /* the flusher's, while threads run */

static uint64_t tag_of(const slot_t *slot)
{
    return (uint64_t)(uintptr_t)slot ^ 0x5bd1e9955bd1e995u;
}

/* Returns the ticks that malloc took. Touches both ends of the block; where it is one word, the tag
 * wins. */
static inline uint64_t slot_fill(slot_t *slot, uint32_t size)
{
    uint64_t begin = tick_begin();
    char *block = alloc_malloc(heap, size);
    uint64_t end = tick_end();
    if (!block) harness_exit(HARNESS_FAILED, "malloc of %u bytes failed: %m", size);
    uint64_t tag = tag_of(slot);
    block[size - 1] = (char)size;
    memcpy(block, &tag, sizeof tag);
    *slot = (slot_t){block, size};
    return end - begin;
}

/* Returns the ticks that free took. */
static inline uint64_t slot_empty(slot_t *slot)
{
    uint64_t found;
    memcpy(&found, slot->block, sizeof found);
    bool torn = found != tag_of(slot) ||
                (slot->size > sizeof found && slot->block[slot->size - 1] != (char)slot->size);
    if (torn) harness_exit(HARNESS_FAILED, "block %p is torn", (void *)slot->block);
    uint64_t begin = tick_begin();
    alloc_free(heap, slot->block);
    return tick_end() - begin;
}

static uint32_t size_of_draw(uint64_t bits)
{
    return options.min + harness_below((uint32_t)bits, options.max - options.min + 1);
}

static void *work(void *argument)
{
    worker_t *worker = argument;
    for (uint32_t i = 0; i < options.blocks; i++)
        slot_fill(&worker->slots[i], size_of_draw(harness_draw(&worker->rng)));
    pthread_barrier_wait(&barrier);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint64_t bits = harness_draw(&worker->rng);
        slot_t *slot = &worker->slots[harness_below((uint32_t)(bits >> 32), options.blocks)];
        histogram_note(&worker->freed, slot_empty(slot));
        histogram_note(&worker->malloced, slot_fill(slot, size_of_draw(bits)));
    }
    for (uint32_t i = 0; i < options.blocks; i++) slot_empty(&worker->slots[i]);
    alloc_thread_end();
    return NULL;
}

static void *flush(void *argument)
{
    uint64_t next = *(const uint64_t *)argument, step = (uint64_t)options.flush_ms * 1000000u;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        alloc_flush(heap);
        alloc_trim(heap);
        flushes++;
        /* Turns that a slow flush has missed are not made up for. */
        do next += step;
        while (next < harness_now());
        harness_sleep_until(next);
    }
    alloc_thread_end();
    return NULL;
}

static void start(pthread_t *thread, void *(*life)(void *), void *argument)
{
    int error = pthread_create(thread, NULL, life, argument);
    if (error) harness_exit(HARNESS_FAILED, "cannot start a thread: %s", strerror(error));
}

/* A run and its length by both clocks. */
typedef struct span {
    uint64_t ns, ticks;
} span_t;

static span_t run(void)
{
    pthread_barrier_init(&barrier, NULL, options.threads + 1);
    for (uint32_t i = 0; i < options.threads; i++) {
        workers[i].slots = program_map(options.blocks * sizeof(slot_t));
        workers[i].rng.state = options.seed + i;
        start(&workers[i].thread, work, &workers[i]);
    }
    pthread_barrier_wait(&barrier);
    uint64_t begin = harness_now(), begin_ticks = tick_begin();
    pthread_t flusher;
    if (options.flush_ms) start(&flusher, flush, &begin);
    harness_sleep_until(begin + options.duration);
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    span_t span = {harness_now() - begin, tick_end() - begin_ticks};
    for (uint32_t i = 0; i < options.threads; i++) pthread_join(workers[i].thread, NULL);
    if (options.flush_ms) pthread_join(flusher, NULL);
    return span;
}

/* ---- Output ---- */

static histogram_t malloced, freed, both, nothing;

static void print_tail(const char *name, const histogram_t *histogram, uint64_t rarity, double ns)
{
    printf(" %s_ns=%.0f", name, (double)histogram_tail(histogram, rarity) * ns);
}

/* What the clock itself costs, by the same clock. */
static void measure_clock(void)
{
    for (int i = 0; i < CLOCK_TRIES; i++) {
        uint64_t begin = tick_begin();
        histogram_note(&nothing, tick_end() - begin);
    }
}

static void print_times(span_t span)
{
    double ns = (double)span.ns / (double)span.ticks; /* a tick */
    for (uint32_t i = 0; i < options.threads; i++) {
        histogram_add(&malloced, &workers[i].malloced);
        histogram_add(&freed, &workers[i].freed);
    }
    histogram_add(&both, &malloced);
    histogram_add(&both, &freed);
    printf(" calls=%llu", (unsigned long long)histogram_total(&both));
    print_tail("clock", &nothing, 2, ns);
    print_tail("p50", &both, 2, ns);
    print_tail("p99", &both, 100, ns);
    print_tail("p999", &both, 1000, ns);
    print_tail("p9999", &both, 10000, ns);
    printf(" max_ns=%.0f", (double)both.most * ns);
    print_tail("malloc_p999", &malloced, 1000, ns);
    print_tail("malloc_p9999", &malloced, 10000, ns);
    print_tail("free_p999", &freed, 1000, ns);
    print_tail("free_p9999", &freed, 10000, ns);
    printf(" mops=%.3f\n", (double)histogram_total(&both) / (double)span.ns * 1e3);
}

static const program_option_t known[] = {
    {.name = "threads",
     .kind = OPTION_U32,
     .value = &options.threads,
     .words = "that allocate and free",
     .min = 1,
     .max = MOST_THREADS},
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
    {.name = "blocks",
     .kind = OPTION_U32,
     .value = &options.blocks,
     .words = "live blocks a thread",
     .min = 1,
     .max = 1 << 20},
    {.name = "flush-ms",
     .kind = OPTION_U32,
     .value = &options.flush_ms,
     .words = "another thread flushes and trims so often; 0: never",
     .max = 1000000},
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
    program_begin(argc, argv, "How long single calls take", known, sizeof known / sizeof known[0]);
    if (options.max < options.min)
        harness_exit(HARNESS_USAGE, "--max %u is below --min %u", options.max, options.min);
    heap = program_heap(options.level, 0);
    measure_clock();
    span_t span = run();
    alloc_heap_destroy(heap);
    program_print_identity();
    printf(" level=%s threads=%u min=%u max=%u blocks=%u flush_ms=%u seed=%llu flushes=%llu "
           "seconds=%.6f",
           options.level, options.threads, options.min, options.max, options.blocks,
           options.flush_ms, (unsigned long long)options.seed, (unsigned long long)flushes,
           (double)span.ns / 1e9);
    print_times(span);
    return 0;
}
