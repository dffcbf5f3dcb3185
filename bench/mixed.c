/*
 * Mixed use: what a program with small and large blocks, buffers that grow and bursts asks of one
 * heap that its threads share. Each thread has a table of slots, each slot a live block. A step
 * takes a random slot:
 *
 *   10 %   reallocates its block to between half and twice the size
 *   18 %   hands its block to the next thread, which frees it, and allocates another
 *   72 %   frees its block and allocates another
 *
 * Every BURST_EVERY steps there is a burst besides: 64 to 256 blocks, freed right after in random
 * order.
 *
 * Law of sizes: octave k is the range from 8 * 2^k to 16 * 2^k bytes and is drawn with a
 * probability proportional to 0.69^k, for k from 0 to 17; within it all sizes are alike. So 89 % of
 * the blocks have at most 512 bytes, 1 % more than 32 KiB, 0.05 % more than 1 MiB, and none more
 * than 2 MiB; the mean is some 3 KiB.
 *
 * Blocks go over through a ring with one producer and one consumer; who finds it full frees what
 * others gave him and then sleeps a while, so that the share is the same wherever threads run.
 * `given` counts what went over. The first and the last word of a block hold a tag that no other
 * block has, and are proved before a free, and before and after a realloc. Of a large block one
 * word a page is written besides, in 16 pages at most: the allocator is to be timed, and not the
 * memory.
 *
 * An operation is a malloc, a free or a realloc; mops counts them by the clock, and cpu_ns is the
 * CPU time of one, which a machine with other work changes less. rss_end_kib is read while all
 * blocks are live and all threads exist, live_kib is what these blocks were asked for,
 * rss_trimmed_kib is read after everything has been freed, flushed and trimmed. One line of
 * key=value pairs.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>

#include ADAPTER
#include "program.h"

enum {
    MOST_THREADS = 64,
    LINES = 128,
    PAGE = 4096,
    TOUCHED_PAGES = 16,
    OCTAVES = 18,
    QUANTILES = 4096,
    SMALLEST = 8,
    LARGEST = SMALLEST << OCTAVES,
    RESIZED_PERCENT = 10,
    GIVEN_PERCENT = 18,
    RING = 1024,
    LOOK_EVERY = 64, /* steps from one look into the inbox to the next */
    NAP = 20000,     /* nanoseconds */
    BURST_EVERY = 4096,
    BURST_MIN = 64,
    BURST_MAX = 256,
};

static struct {
    uint32_t threads, slots;
    uint64_t duration; /* nanoseconds */
    uint64_t seed;
    const char *level;
} options = {2, 4096, 1000000000, 1, "fast"};

/* A live block. */
typedef struct item {
    char *block;
    size_t size;
    uint64_t tag; /* no other block's */
} item_t;

/* The previous thread writes `given`, the owner `taken`; an item belongs to whom the counts say. */
typedef struct inbox {
    atomic_size_t given __attribute__((aligned(LINES))); /* release; acquire by the owner */
    atomic_size_t taken
        __attribute__((aligned(LINES))); /* release; acquire by the previous thread */
    item_t items[RING] __attribute__((aligned(LINES)));
} inbox_t;

typedef struct worker {
    inbox_t inbox;
    pthread_t thread __attribute__((aligned(LINES)));
    inbox_t *next;     /* the next thread's */
    size_t next_taken; /* of `next`, as last seen */
    item_t *slots;
    harness_rng_t rng;
    uint64_t made; /* blocks */
    uint64_t operations, given;
    item_t burst[BURST_MAX];
} worker_t;

static worker_t workers[MOST_THREADS];
static uint8_t octave_of[QUANTILES]; /* constant while threads run */
static pthread_barrier_t barrier;    /* of all workers and the main thread */
static alloc_heap_t *heap;
static atomic_bool stop; /* relaxed: some steps more do no harm */

/* ---- Sizes ---- */

static void octaves_settle(void)
{
    double share[OCTAVES], sum = 0, below = 0;
    for (unsigned k = 0; k < OCTAVES; k++) sum += share[k] = k ? share[k - 1] * 0.69 : 1;
    for (unsigned i = 0, k = 0; i < QUANTILES; i++) {
        while (k < OCTAVES - 1 && (i + 0.5) / QUANTILES * sum >= below + share[k])
            below += share[k++];
        octave_of[i] = (uint8_t)k;
    }
}

static inline size_t size_of_draw(uint64_t bits)
{
    uint32_t low = (uint32_t)SMALLEST
                   << octave_of[harness_below((uint32_t)(bits >> 32), QUANTILES)];
    return low + harness_below((uint32_t)bits, low + 1);
}

/* From half to twice the size, within the law's bounds. */
static inline size_t size_near(size_t size, uint64_t bits)
{
    size_t other = size / 2 + harness_below((uint32_t)bits, (uint32_t)(size + size / 2 + 1));
    if (other < SMALLEST) return SMALLEST;
    return other > LARGEST ? LARGEST : other;
}

/* ---- Items ---- */

/* The first word wins where the last one overlaps it. */
static inline void item_mark(const item_t *item)
{
    size_t end = item->size < PAGE * TOUCHED_PAGES ? item->size : PAGE * TOUCHED_PAGES;
    for (size_t at = PAGE; at + sizeof item->tag <= end; at += PAGE)
        memcpy(item->block + at, &item->tag, sizeof item->tag);
    memcpy(item->block + item->size - sizeof item->tag, &item->tag, sizeof item->tag);
    memcpy(item->block, &item->tag, sizeof item->tag);
}

static inline void item_prove(const item_t *item)
{
    uint64_t first, last;
    memcpy(&first, item->block, sizeof first);
    memcpy(&last, item->block + item->size - sizeof last, sizeof last);
    bool torn = first != item->tag || (last != item->tag && item->size >= 2 * sizeof last);
    if (__builtin_expect(torn, 0))
        harness_exit(HARNESS_FAILED, "block %p of %zu bytes is torn", (void *)item->block,
                     item->size);
}

static inline void item_fill(worker_t *worker, item_t *item, size_t size)
{
    char *block = alloc_malloc(heap, size);
    if (__builtin_expect(!block, 0))
        harness_exit(HARNESS_FAILED, "malloc of %zu bytes failed: %m", size);
    uint64_t serial = worker->made++ * MOST_THREADS + (uint64_t)(worker - workers);
    *item = (item_t){block, size, serial ^ 0x5bd1e9955bd1e995u};
    item_mark(item);
    worker->operations++;
}

static inline void item_free(worker_t *worker, const item_t *item)
{
    item_prove(item);
    alloc_free(heap, item->block);
    worker->operations++;
}

/* What realloc has to keep is proved: of a block that shrinks, only the first word is known. */
static inline void item_resize(worker_t *worker, item_t *item, size_t size)
{
    item_prove(item);
    item->block = alloc_realloc(heap, item->block, size);
    if (__builtin_expect(!item->block, 0))
        harness_exit(HARNESS_FAILED, "realloc to %zu bytes failed: %m", size);
    if (size < item->size) item->size = sizeof item->tag;
    item_prove(item);
    item->size = size;
    item_mark(item);
    worker->operations++;
}

/* ---- From thread to thread ---- */

static void free_given(worker_t *worker)
{
    inbox_t *inbox = &worker->inbox;
    size_t given = atomic_load_explicit(&inbox->given, memory_order_acquire);
    size_t taken = atomic_load_explicit(&inbox->taken, memory_order_relaxed);
    while (taken != given) item_free(worker, &inbox->items[taken++ % RING]);
    atomic_store_explicit(&inbox->taken, taken, memory_order_release);
}

static bool next_is_full(worker_t *worker, size_t given)
{
    if (given - worker->next_taken < RING) return false;
    worker->next_taken = atomic_load_explicit(&worker->next->taken, memory_order_acquire);
    return given - worker->next_taken == RING;
}

/* Threads in a circle that all wait go on emptying their inboxes. False when the run is over before
 * there is room. */
static bool give(worker_t *worker, const item_t *item)
{
    inbox_t *next = worker->next;
    size_t given = atomic_load_explicit(&next->given, memory_order_relaxed);
    while (next_is_full(worker, given)) {
        if (atomic_load_explicit(&stop, memory_order_relaxed)) return false;
        free_given(worker);
        if (next_is_full(worker, given)) harness_sleep_until(harness_now() + NAP);
    }
    next->items[given % RING] = *item;
    atomic_store_explicit(&next->given, given + 1, memory_order_release);
    worker->given++;
    return true;
}

/* ---- Steps ---- */

static inline void step(worker_t *worker)
{
    uint64_t bits = harness_draw(&worker->rng), size_bits = harness_draw(&worker->rng);
    item_t *slot = &worker->slots[harness_below((uint32_t)(bits >> 32), options.slots)];
    uint32_t dice = harness_below((uint32_t)bits, 100);
    if (dice < RESIZED_PERCENT) {
        item_resize(worker, slot, size_near(slot->size, size_bits));
        return;
    }
    if (dice >= RESIZED_PERCENT + GIVEN_PERCENT || !give(worker, slot)) item_free(worker, slot);
    item_fill(worker, slot, size_of_draw(size_bits));
}

static void burst(worker_t *worker)
{
    uint32_t count =
        BURST_MIN + harness_below((uint32_t)harness_draw(&worker->rng), BURST_MAX - BURST_MIN + 1);
    for (uint32_t i = 0; i < count; i++)
        item_fill(worker, &worker->burst[i], size_of_draw(harness_draw(&worker->rng)));
    for (; count; count--) {
        item_t *item = &worker->burst[harness_below((uint32_t)harness_draw(&worker->rng), count)];
        item_free(worker, item);
        *item = worker->burst[count - 1];
    }
}

static size_t slots_bytes(void) { return options.slots * sizeof(item_t); }

static void *work(void *argument)
{
    worker_t *worker = argument;
    for (uint32_t i = 0; i < options.slots; i++)
        item_fill(worker, &worker->slots[i], size_of_draw(harness_draw(&worker->rng)));
    worker->operations = 0;
    pthread_barrier_wait(&barrier);
    for (uint64_t steps = 1; !atomic_load_explicit(&stop, memory_order_relaxed); steps++) {
        step(worker);
        if (steps % LOOK_EVERY == 0) free_given(worker);
        if (steps % BURST_EVERY == 0) burst(worker);
    }
    uint64_t operations = worker->operations;
    pthread_barrier_wait(&barrier); /* nobody gives any more */
    pthread_barrier_wait(&barrier); /* memory has been read */
    free_given(worker);
    for (uint32_t i = 0; i < options.slots; i++) item_free(worker, &worker->slots[i]);
    munmap(worker->slots, slots_bytes());
    worker->operations = operations;
    alloc_thread_end();
    return NULL;
}

/* ---- The run ---- */

typedef struct result {
    double seconds, cpu_seconds;
    size_t live, end, trimmed; /* KiB */
} result_t;

static void start(void)
{
    pthread_barrier_init(&barrier, NULL, options.threads + 1);
    for (uint32_t i = 0; i < options.threads; i++) {
        workers[i].next = &workers[(i + 1) % options.threads].inbox;
        workers[i].slots = program_map(slots_bytes());
        workers[i].rng.state = options.seed + i;
        int error = pthread_create(&workers[i].thread, NULL, work, &workers[i]);
        if (error) harness_exit(HARNESS_FAILED, "cannot start a thread: %s", strerror(error));
    }
}

/* While no thread runs: slots and inboxes. */
static size_t live_kib(void)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < options.threads; i++) {
        inbox_t *inbox = &workers[i].inbox;
        size_t given = atomic_load_explicit(&inbox->given, memory_order_acquire);
        size_t taken = atomic_load_explicit(&inbox->taken, memory_order_acquire);
        for (; taken != given; taken++) bytes += inbox->items[taken % RING].size;
        for (uint32_t j = 0; j < options.slots; j++) bytes += workers[i].slots[j].size;
    }
    return bytes / 1024;
}

/* CPU time of all threads, in nanoseconds. */
static uint64_t cpu_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static result_t run(void)
{
    result_t result;
    start();
    pthread_barrier_wait(&barrier);
    uint64_t begin = harness_now(), cpu_begin = cpu_now();
    harness_sleep_until(begin + options.duration);
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    result.seconds = (double)(harness_now() - begin) / 1e9;
    result.cpu_seconds = (double)(cpu_now() - cpu_begin) / 1e9;
    pthread_barrier_wait(&barrier);
    result.end = harness_resident_kib();
    result.live = live_kib();
    pthread_barrier_wait(&barrier);
    for (uint32_t i = 0; i < options.threads; i++) pthread_join(workers[i].thread, NULL);
    alloc_flush(heap);
    alloc_trim(heap);
    result.trimmed = harness_resident_kib();
    return result;
}

static const program_option_t known[] = {
    {.name = "threads",
     .kind = OPTION_U32,
     .value = &options.threads,
     .words = "that share the heap",
     .min = 1,
     .max = MOST_THREADS},
    {.name = "slots",
     .kind = OPTION_U32,
     .value = &options.slots,
     .words = "live blocks a thread",
     .min = 1,
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
    program_begin(argc, argv, "Blocks of all sizes, reallocated, handed over and in bursts", known,
                  sizeof known / sizeof known[0]);
    octaves_settle();
    heap = program_heap(options.level, 0);
    result_t result = run();
    uint64_t operations = 0, given = 0;
    for (uint32_t i = 0; i < options.threads; i++) {
        operations += workers[i].operations;
        given += workers[i].given;
    }
    alloc_heap_destroy(heap);
    program_print_identity();
    printf(" level=%s threads=%u slots=%u seed=%llu operations=%llu given=%llu seconds=%.6f "
           "mops=%.3f cpu_ns=%.2f "
           "live_kib=%zu "
           "rss_end_kib=%zu rss_trimmed_kib=%zu\n",
           options.level, options.threads, options.slots, (unsigned long long)options.seed,
           (unsigned long long)operations, (unsigned long long)given, result.seconds,
           (double)operations / result.seconds / 1e6, result.cpu_seconds * 1e9 / (double)operations,
           result.live, result.end, result.trimmed);
    return 0;
}
