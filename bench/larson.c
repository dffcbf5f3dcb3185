/*
 * The Larson server workload (Larson and Krishnan 1998) on instance heaps.
 *
 * Every area is an array of live blocks. A thread replaces blocks of its area in random order and
 * with random sizes, and after `blocks * rounds` replacements it ends and hands the area to a fresh
 * thread, as a server hands work over: most blocks are freed by a thread that did not allocate
 * them. `placement` says which heap a block comes from:
 *
 *   shared     one heap for all threads
 *   isolated   a heap for each area
 *   hop        each block from a random one of `heaps` heaps
 *
 * One pair is one free and one malloc. The output is one line of key=value pairs.
 *
 * ADAPTER names the header that binds an allocator at compile time, so that no call goes through a
 * pointer. Contract:
 *
 *   alloc_name()                       what the allocator is called in results, without spaces
 *   alloc_version(text, size)          the version of the library that is running
 *   alloc_symbol(), alloc_library()    a function that the workload calls, and how the file that must define it begins
 *   alloc_has_heaps()                  false: heaps are ignored, every placement is the same workload
 *   alloc_mode()                       how caches are reached, "-" where there is one way only
 *   alloc_heap_create(level, index)    heap number `index`; NULL means failure where there are heaps
 *   alloc_heap_destroy(heap)           every block has been freed before
 *   alloc_malloc(heap, size), alloc_free(heap, block)
 *   alloc_realloc(heap, block, size)   a live block of the heap, and a size above 0; NULL leaves the block as it was
 *   alloc_flush(heap)                  the caches that the calling thread can reach -> the heap
 *   alloc_trim(heap)                   the heap's free memory -> the system, by the allocator's own call
 *   alloc_thread_end()                 gives back what the adapter keeps for the calling thread
 *   alloc_measure(heap, records, cached)
 *                                      where ALLOC_MEASURES is defined: bytes of the allocator's
 *                                      own records for the heap, and of free blocks in its caches
 *
 * Memory source: mmap for everything but the blocks, so that only they are the allocator's.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>

#include ADAPTER
#include "program.h"

enum { LARSON_LINES = 128 }; /* two cache lines: the prefetcher fetches pairs */

/* One live block. */
typedef struct larson_slot {
    char *block;
    uint32_t heap; /* index of the heap it came from */
    uint32_t size;
} larson_slot_t;

/* What a thread works on. All fields but `rng` and `pairs` change only at a handover. */
typedef struct larson_area {
    larson_slot_t *slots;
    harness_rng_t rng;
    uint32_t first_heap; /* blocks come from heaps [first_heap, first_heap + heap_span) */
    uint32_t heap_span;
    uint64_t pairs;
    uint64_t lives;        /* threads that have had this area */
    pthread_t predecessor; /* not yet joined while lives > 1 */
    pthread_t last;        /* who saw the end; set before `stopped` is posted */
} __attribute__((aligned(LARSON_LINES))) larson_area_t;

enum larson_placement { PLACEMENT_SHARED, PLACEMENT_ISOLATED, PLACEMENT_HOP, PLACEMENTS };
static const char *const placement_names[PLACEMENTS] = {"shared", "isolated", "hop"};

/* The command line; constant while threads run. */
typedef struct larson_options {
    uint32_t threads, heaps, min, max, blocks, rounds;
    uint64_t duration; /* nanoseconds */
    uint64_t seed;
    uint32_t placement; /* an index of placement_names */
    const char *level;
} larson_options_t;

static larson_options_t options = {
    .threads = 2,
    .heaps = 0,
    .min = 8,
    .max = 1000,
    .blocks = 5000,
    .rounds = 100,
    .duration = 1000000000,
    .seed = 1,
    .placement = PLACEMENT_SHARED,
    .level = "fast",
};

static alloc_heap_t **heaps; /* constant while threads run */
static larson_area_t *areas; /* each belongs to the thread that has it */
static atomic_bool stop;     /* set once; relaxed, a few more pairs do no harm */
static sem_t stopped;        /* posted by each area's last thread, with its figures complete */
static sem_t released;       /* holds the last threads until resident memory has been read */

/* ---- Blocks ---- */

/* A value that no other slot writes: two slots that were given the same memory cannot both find
 * their own. */
static inline uint64_t slot_tag(const larson_slot_t *slot)
{
    return (uint64_t)(uintptr_t)slot ^ 0x5bd1e9955bd1e995u;
}

/* Touches both ends of the block. Where it is one word, the tag wins. */
static inline void slot_fill(larson_slot_t *slot, uint32_t heap, uint32_t size)
{
    char *block = alloc_malloc(heaps[heap], size);
    if (__builtin_expect(!block, 0))
        harness_exit(HARNESS_FAILED, "malloc of %u bytes failed: %m", size);
    uint64_t tag = slot_tag(slot);
    block[size - 1] = (char)size;
    memcpy(block, &tag, sizeof tag);
    *slot = (larson_slot_t){.block = block, .heap = heap, .size = size};
}

__attribute__((noreturn, cold, noinline)) static void slot_torn(const larson_slot_t *slot,
                                                                uint64_t found)
{
    fprintf(
        stderr,
        "%s: TORN BLOCK under %s: block %p of %u bytes, heap %u, reads %#llx instead of %#llx\n",
        program_invocation_short_name, alloc_name(), (void *)slot->block, slot->size, slot->heap,
        (unsigned long long)found, (unsigned long long)slot_tag(slot));
    abort();
}

static inline void slot_empty(const larson_slot_t *slot)
{
    uint64_t found;
    memcpy(&found, slot->block, sizeof found);
    if (__builtin_expect(found != slot_tag(slot), 0)) slot_torn(slot, found);
    alloc_free(heaps[slot->heap], slot->block);
}

/* ---- One area ---- */

/* Where the area's next block comes from, and how large it is. Allocators without heaps draw
 * alike. */
static inline void area_fill(larson_area_t *area, larson_slot_t *slot, uint32_t size_bits)
{
    uint32_t heap = area->first_heap;
    if (area->heap_span > 1)
        heap += harness_below((uint32_t)harness_draw(&area->rng), area->heap_span);
    slot_fill(slot, heap, options.min + harness_below(size_bits, options.max - options.min));
}

static inline void area_replace(larson_area_t *area)
{
    uint64_t bits = harness_draw(&area->rng);
    larson_slot_t *slot = &area->slots[harness_below((uint32_t)(bits >> 32), options.blocks)];
    slot_empty(slot);
    area_fill(area, slot, (uint32_t)bits);
}

/* A thread's share of an area. True when the run is over, false when the area is due for a
 * handover. */
static bool area_work(larson_area_t *area)
{
    uint64_t due = (uint64_t)options.blocks * options.rounds;
    uint64_t pairs = 0;
    while (pairs < due && !atomic_load_explicit(&stop, memory_order_relaxed)) {
        area_replace(area);
        pairs++;
    }
    area->pairs += pairs;
    return pairs < due;
}

static void *area_life(void *argument);

static void area_start(larson_area_t *area)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, area_life, area);
    if (error) harness_exit(HARNESS_FAILED, "cannot start a thread: %s", strerror(error));
}

/* The run is over: stays alive, with all that the allocator keeps for a thread, until the memory
 * has been read. */
static void area_park(larson_area_t *area)
{
    area->last = pthread_self();
    sem_post(&stopped);
    while (sem_wait(&released) != 0) continue;
    alloc_thread_end();
}

/*
 * One thread's life. The predecessor is joined late, so that its end and its successor's work
 * overlap as they do in a server; that every thread is joined at all lets the program know when the
 * last cache is gone.
 */
static void *area_life(void *argument)
{
    larson_area_t *area = argument;
    area->lives++;
    bool over = area_work(area);
    if (area->lives > 1) pthread_join(area->predecessor, NULL);
    if (over) {
        area_park(area);
        return NULL;
    }
    alloc_thread_end();
    area->predecessor = pthread_self();
    area_start(area);
    return NULL;
}

/* ---- The run ---- */

static size_t slots_bytes(void) { return options.blocks * sizeof(larson_slot_t); }

static void heaps_create(void)
{
    heaps = program_map(options.heaps * sizeof *heaps);
    for (uint32_t i = 0; i < options.heaps; i++) heaps[i] = program_heap(options.level, i);
}

static void areas_create(harness_rng_t *seeds)
{
    areas = program_map(options.threads * sizeof *areas);
    for (uint32_t i = 0; i < options.threads; i++)
        areas[i] = (larson_area_t){
            .slots = program_map(slots_bytes()),
            .rng = {harness_draw(seeds)},
            .first_heap = options.placement == PLACEMENT_ISOLATED ? i : 0,
            .heap_span = options.placement == PLACEMENT_HOP ? options.heaps : 1,
        };
}

/*
 * The original's warm-up: the main thread allocates every block, in an order that scatters
 * neighbours in memory over all areas, and then replaces four times as many.
 */
static void areas_warm_up(harness_rng_t *rng)
{
    uint32_t total = options.threads * options.blocks;
    uint32_t *order = program_map(total * sizeof *order);
    for (uint32_t i = 0; i < total; i++) {
        uint32_t other = harness_below((uint32_t)harness_draw(rng), i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    for (uint32_t i = 0; i < total; i++) {
        larson_area_t *area = &areas[order[i] / options.blocks];
        area_fill(area, &area->slots[order[i] % options.blocks], (uint32_t)harness_draw(rng));
    }
    for (uint64_t i = 0; i < (uint64_t)total * 4; i++)
        area_replace(&areas[harness_below((uint32_t)harness_draw(rng), options.threads)]);
    munmap(order, total * sizeof *order);
}

/* Lets all areas run for the time asked for. Returns the seconds it took. */
static double areas_run(void)
{
    uint64_t begin = harness_now();
    for (uint32_t i = 0; i < options.threads; i++) area_start(&areas[i]);
    harness_sleep_until(begin + options.duration);
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    uint64_t end = harness_now();
    for (uint32_t i = 0; i < options.threads; i++)
        while (sem_wait(&stopped) != 0) continue;
    return (double)(end - begin) / 1e9;
}

static void areas_end(void)
{
    for (uint32_t i = 0; i < options.threads; i++) sem_post(&released);
    for (uint32_t i = 0; i < options.threads; i++) pthread_join(areas[i].last, NULL);
}

static void areas_empty(void)
{
    for (uint32_t i = 0; i < options.threads; i++) {
        for (uint32_t j = 0; j < options.blocks; j++) slot_empty(&areas[i].slots[j]);
        munmap(areas[i].slots, slots_bytes());
    }
}

static void heaps_flush_and_trim(void)
{
    uint32_t count = alloc_has_heaps() ? options.heaps : 1;
    for (uint32_t i = 0; i < count; i++) alloc_flush(heaps[i]);
    for (uint32_t i = 0; i < count; i++) alloc_trim(heaps[i]);
}

/* ---- Command line and output ---- */

/* Fills in what follows from other options, and refuses what does not go together. */
static void options_settle(void)
{
    if (options.max < options.min)
        harness_exit(HARNESS_USAGE, "--max %u is below --min %u", options.max, options.min);
    uint32_t implied = options.placement == PLACEMENT_SHARED ? 1 : options.threads;
    if (options.placement == PLACEMENT_HOP) implied = options.heaps ? options.heaps : 16;
    if (options.heaps && options.heaps != implied)
        harness_exit(HARNESS_USAGE, "--heaps %u does not go with --placement %s, which has %u",
                     options.heaps, placement_names[options.placement], implied);
    options.heaps = implied;
}

#define NUMBER(text, field, low, high, about)                                          \
    {                                                                                  \
        .name = (text), .kind = OPTION_U32, .value = &options.field, .words = (about), \
        .min = (low), .max = (high)                                                    \
    }

static const program_option_t known[] = {
    NUMBER("threads", threads, 1, 1024, "areas, each with one thread at a time"),
    {.name = "placement",
     .kind = OPTION_CHOICE,
     .value = &options.placement,
     .names = placement_names,
     .count = PLACEMENTS,
     .words = "shared: one heap; isolated: one per area; hop: each block from a random one"},
    NUMBER("heaps", heaps, 0, 1 << 16,
           "how many heaps there are to hop over; 0: as the placement says, hop 16"),
    NUMBER("min", min, sizeof(uint64_t), 1 << 30, "smallest block in bytes"),
    NUMBER("max", max, sizeof(uint64_t), 1 << 30,
           "one more than the largest; equal to min: one size"),
    NUMBER("blocks", blocks, 1, 1 << 20, "live blocks per area"),
    NUMBER("rounds", rounds, 1, 1 << 20, "a thread lives for blocks * rounds replacements"),
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
    program_begin(argc, argv, "The Larson server workload", known, sizeof known / sizeof known[0]);
    options_settle();
    sem_init(&stopped, 0, 0);
    sem_init(&released, 0, 0);
    harness_rng_t rng = {options.seed};

    size_t rss_start = harness_resident_kib();
    heaps_create();
    areas_create(&rng);
    areas_warm_up(&rng);
    double seconds = areas_run();
    size_t rss_peak = harness_resident_kib();
    areas_end();

    uint64_t pairs = 0, lives = 0;
    for (uint32_t i = 0; i < options.threads; i++) {
        pairs += areas[i].pairs;
        lives += areas[i].lives;
    }
    areas_empty();
    heaps_flush_and_trim();
    size_t rss_trimmed = harness_resident_kib();
    for (uint32_t i = 0; i < options.heaps; i++) alloc_heap_destroy(heaps[i]);

    program_print_identity();
    printf(" level=%s placement=%s heaps=%u threads=%u min=%u max=%u blocks=%u rounds=%u seed=%llu",
           options.level, placement_names[options.placement], options.heaps, options.threads,
           options.min, options.max, options.blocks, options.rounds,
           (unsigned long long)options.seed);
    printf(" lives=%llu pairs=%llu seconds=%.6f mps=%.3f rss_start_kib=%zu rss_peak_kib=%zu "
           "rss_trimmed_kib=%zu\n",
           (unsigned long long)lives, (unsigned long long)pairs, seconds,
           (double)pairs / seconds / 1e6, rss_start, rss_peak, rss_trimmed);
    return 0;
}
