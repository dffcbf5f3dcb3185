/*
 * False sharing: how many cache lines hold live blocks of two threads, and what that costs (the
 * question of Hoard's cache-thrash and cache-scratch; Berger and others 2000). Two threads, on two
 * CPUs where there are two, share one heap. Both allocate at the same time and in step. Then, some
 * rounds long, each drops a random half of its blocks in batches and allocates as many again; every
 * second batch is freed by the other thread, so that caches hold blocks of both.
 *
 * lines and lines_shared are computed from addresses. write_ns is one write into a block of a
 * thread's own while the other thread does the same, write_alone_ns the same while the other thread
 * sleeps. Both are thread time, medians over some turns. Two more ratios are of memory of the
 * program's own, in blocks of the same size: apart_over_alone where no line is shared,
 * mixed_over_alone where each thread has every second block. They tell what this machine can show:
 * where its CPUs share a first-level cache, a shared line costs nothing. Every block's content is
 * proved before it is freed. One line of key=value pairs.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include ADAPTER
#include "program.h"

enum { WORKERS = 2, BATCH = 64, TURNS = 9, LINE = 64, LINES = 128 };

static struct {
    size_t size, blocks;
    uint32_t rounds;
    uint64_t duration; /* nanoseconds */
    uint64_t seed;
    const char *level;
} options = {16, 20000, 8, 100000000, 1, "fast"};

/* Whose memory is written. */
typedef enum place { PLACE_HEAP, PLACE_APART, PLACE_MIXED, PLACES } place_t;

/* Blocks are written over and over: what their first word holds follows from how often. */
typedef struct blocks {
    char **at; /* options.blocks of them */
    size_t count;
    uint64_t passes;
} blocks_t;

typedef struct worker {
    pthread_t thread;
    blocks_t live[PLACES];
    blocks_t given;       /* for the other worker to free; changes hands at a barrier */
    atomic_size_t filled; /* relaxed: how far this worker is, for the other to wait for */
    harness_rng_t rng;
    int cpu;         /* -1: wherever the system likes */
    double slice_ns; /* a write in the last slice */
} __attribute__((aligned(LINES))) worker_t;

static worker_t workers[WORKERS];
static pthread_barrier_t barrier;
static alloc_heap_t *heap;

/* Medians of the turns, in nanoseconds a write. */
typedef struct cost {
    double together, alone;
} cost_t;

static char *own_memory[PLACES];   /* the program's; constant while threads run */
static size_t lines, lines_shared; /* the first worker's, while threads run */
static cost_t cost[PLACES];        /* the first worker's, while threads run */

static worker_t *other_of(worker_t *worker)
{
    return worker == &workers[0] ? &workers[1] : &workers[0];
}
static bool is_first(const worker_t *worker) { return worker == &workers[0]; }

/* ---- Blocks ---- */

static uint64_t tag_of(const char *block)
{
    return (uint64_t)(uintptr_t)block ^ 0x5bd1e9955bd1e995u;
}

static void fill_block(char *block)
{
    uint64_t tag = tag_of(block);
    memset(block, (int)(tag & 0xff), options.size);
    memcpy(block, &tag, sizeof tag);
}

static void prove_block(const char *block, uint64_t passes)
{
    uint64_t found, tag = tag_of(block);
    memcpy(&found, block, sizeof found);
    bool torn = found != tag + passes;
    for (size_t i = sizeof found; i < options.size; i++) torn |= block[i] != (char)tag;
    if (torn) harness_exit(HARNESS_FAILED, "block %p is torn", (const void *)block);
}

static void free_last(blocks_t *blocks, size_t count)
{
    while (count--) {
        char *block = blocks->at[--blocks->count];
        prove_block(block, blocks->passes);
        alloc_free(heap, block);
    }
}

static void shuffle(blocks_t *blocks, harness_rng_t *rng)
{
    for (size_t i = blocks->count; i > 1; i--) {
        size_t other = harness_below((uint32_t)harness_draw(rng), (uint32_t)i);
        char *block = blocks->at[i - 1];
        blocks->at[i - 1] = blocks->at[other];
        blocks->at[other] = block;
    }
}

/* ---- Both threads at once ---- */

/* Lets no worker be more than a batch ahead. */
static void keep_step(worker_t *worker, size_t filled)
{
    atomic_store_explicit(&worker->filled, filled, memory_order_relaxed);
    while (atomic_load_explicit(&other_of(worker)->filled, memory_order_relaxed) + BATCH < filled)
        sched_yield();
}

static void fill(worker_t *worker)
{
    blocks_t *live = &worker->live[PLACE_HEAP];
    size_t filled = atomic_load_explicit(&worker->filled, memory_order_relaxed);
    while (live->count < options.blocks) {
        char *block = alloc_malloc(heap, options.size);
        if (!block) harness_exit(HARNESS_FAILED, "malloc of %zu bytes failed: %m", options.size);
        fill_block(block);
        live->at[live->count++] = block;
        if (++filled % BATCH == 0) keep_step(worker, filled);
    }
    pthread_barrier_wait(&barrier);
}

static void give_last(worker_t *worker, size_t count)
{
    blocks_t *live = &worker->live[PLACE_HEAP], *given = &worker->given;
    while (count--) given->at[given->count++] = live->at[--live->count];
}

static void drop_half(worker_t *worker)
{
    blocks_t *live = &worker->live[PLACE_HEAP];
    shuffle(live, &worker->rng);
    for (size_t batch = 0; batch < options.blocks / 2 / BATCH; batch++) {
        if (batch % 2) give_last(worker, BATCH);
        else free_last(live, BATCH);
    }
    pthread_barrier_wait(&barrier);
    blocks_t *given = &other_of(worker)->given;
    free_last(given, given->count);
    pthread_barrier_wait(&barrier);
}

/* ---- Lines ---- */

/* Notes in an open-addressed table which workers have a block in a line: entries of address and a
 * bit for each. */
static void note_line(uint64_t *table, size_t slots, uint64_t line, unsigned worker)
{
    size_t slot = (size_t)(line * 0x9e3779b97f4a7c15u >> 20) & (slots - 1);
    while (table[slot] && table[slot] >> WORKERS != line) slot = (slot + 1) & (slots - 1);
    if (!table[slot]) lines++;
    uint64_t before = table[slot] & ((1u << WORKERS) - 1), bit = (uint64_t)1 << worker;
    if (before && before != bit && !(before & bit)) lines_shared++;
    table[slot] = line << WORKERS | before | bit;
}

static void count_lines(void)
{
    size_t most = WORKERS * options.blocks * (options.size / LINE + 2), slots = 1;
    while (slots < most * 2) slots *= 2;
    uint64_t *table = program_map(slots * sizeof *table);
    for (unsigned i = 0; i < WORKERS; i++)
        for (size_t j = 0; j < options.blocks; j++) {
            uintptr_t start = (uintptr_t)workers[i].live[PLACE_HEAP].at[j];
            for (uint64_t line = start / LINE; line <= (start + options.size - 1) / LINE; line++)
                note_line(table, slots, line, i);
        }
    munmap(table, slots * sizeof *table);
}

/* ---- Writes ---- */

/* Of the calling thread, so that a machine with other work does not count. */
static uint64_t thread_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Whole passes over the blocks, until the slice is over. */
static void write_slice(worker_t *worker, blocks_t *blocks)
{
    uint64_t end = harness_now() + options.duration / TURNS, begin = thread_now(), passes = 0;
    do {
        passes++;
        for (size_t i = 0; i < blocks->count; i++)
            *(volatile uint64_t *)(void *)blocks->at[i] =
                tag_of(blocks->at[i]) + blocks->passes + passes;
    } while (harness_now() < end);
    blocks->passes += passes;
    worker->slice_ns = (double)(thread_now() - begin) / (double)passes / (double)blocks->count;
}

static double both_slices(void) { return (workers[0].slice_ns + workers[1].slice_ns) / 2; }

static void measure(worker_t *worker, place_t place)
{
    blocks_t *blocks = &worker->live[place];
    shuffle(blocks, &worker->rng);
    double together[TURNS], alone[TURNS];
    for (int turn = 0; turn < TURNS; turn++) {
        pthread_barrier_wait(&barrier);
        write_slice(worker, blocks);
        pthread_barrier_wait(&barrier);
        together[turn] = both_slices();
        pthread_barrier_wait(&barrier);
        if (is_first(worker)) write_slice(worker, blocks);
        pthread_barrier_wait(&barrier);
        if (!is_first(worker)) write_slice(worker, blocks);
        pthread_barrier_wait(&barrier);
        alone[turn] = both_slices();
    }
    if (is_first(worker))
        cost[place] = (cost_t){harness_median(together, TURNS), harness_median(alone, TURNS)};
}

/* ---- The run ---- */

static size_t array_bytes(void) { return options.blocks * sizeof(char *); }
static size_t own_step(void) { return (options.size + 15) / 16 * 16; } /* as a heap would */
static size_t own_bytes(void) { return (options.blocks * own_step() + LINES - 1) / LINES * LINES; }

static void take_own(worker_t *worker, place_t place)
{
    blocks_t *live = &worker->live[place];
    size_t which = (size_t)(worker - workers);
    for (; live->count < options.blocks; live->count++) {
        size_t apart = which * own_bytes() + live->count * own_step();
        size_t mixed = (live->count * WORKERS + which) * own_step();
        live->at[live->count] = own_memory[place] + (place == PLACE_MIXED ? mixed : apart);
        fill_block(live->at[live->count]);
    }
}

static void pin(int cpu)
{
    cpu_set_t set;
    if (cpu < 0) return;
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        harness_exit(HARNESS_FAILED, "cannot run on CPU %d: %m", cpu);
}

static void *life(void *argument)
{
    worker_t *worker = argument;
    pin(worker->cpu);
    take_own(worker, PLACE_APART);
    take_own(worker, PLACE_MIXED);
    fill(worker);
    for (uint32_t round = 0; round < options.rounds; round++) {
        drop_half(worker);
        fill(worker);
    }
    if (is_first(worker)) count_lines();
    for (int place = 0; place < PLACES; place++) measure(worker, (place_t)place);
    free_last(&worker->live[PLACE_HEAP], worker->live[PLACE_HEAP].count);
    alloc_thread_end();
    return NULL;
}

/* The first CPUs that the process may use; fewer than workers: none is bound to one. Returns
 * whether they are. */
static bool choose_cpus(void)
{
    cpu_set_t set;
    unsigned found = 0;
    for (unsigned i = 0; i < WORKERS; i++) workers[i].cpu = -1;
    if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) < WORKERS) return false;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE && found < WORKERS; cpu++)
        if (CPU_ISSET(cpu, &set)) workers[found++].cpu = (int)cpu;
    return true;
}

static void run(void)
{
    pthread_barrier_init(&barrier, NULL, WORKERS);
    own_memory[PLACE_APART] = program_map(WORKERS * own_bytes());
    own_memory[PLACE_MIXED] = program_map(WORKERS * own_bytes());
    for (unsigned i = 0; i < WORKERS; i++) {
        worker_t *worker = &workers[i];
        worker->rng.state = options.seed + i;
        worker->given.at = program_map(array_bytes());
        for (int place = 0; place < PLACES; place++)
            worker->live[place].at = program_map(array_bytes());
        int error = pthread_create(&worker->thread, NULL, life, worker);
        if (error) harness_exit(HARNESS_FAILED, "cannot start a thread: %s", strerror(error));
    }
    for (unsigned i = 0; i < WORKERS; i++) pthread_join(workers[i].thread, NULL);
}

static double over_alone(place_t place) { return cost[place].together / cost[place].alone; }

static const program_option_t known[] = {
    {.name = "size",
     .kind = OPTION_SIZE,
     .value = &options.size,
     .words = "bytes each",
     .min = sizeof(uint64_t),
     .max = 1 << 16},
    {.name = "blocks",
     .kind = OPTION_SIZE,
     .value = &options.blocks,
     .words = "live blocks a thread",
     .min = 1,
     .max = 1e7},
    {.name = "rounds",
     .kind = OPTION_U32,
     .value = &options.rounds,
     .words = "how often half of them are replaced",
     .max = 1000000},
    {.name = "seconds",
     .kind = OPTION_SECONDS,
     .value = &options.duration,
     .words = "how long each kind of writes is measured",
     .min = 0.01,
     .max = 86400},
    PROGRAM_SEED(&options.seed),
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin(argc, argv, "Cache lines that two threads share", known,
                  sizeof known / sizeof known[0]);
    heap = program_heap(options.level, 0);
    bool pinned = choose_cpus();
    run();
    alloc_heap_destroy(heap);
    program_print_identity();
    printf(" level=%s size=%zu blocks=%zu rounds=%u seed=%llu pinned=%d lines=%zu lines_shared=%zu "
           "shared_percent=%.2f "
           "write_ns=%.3f write_alone_ns=%.3f write_over_alone=%.3f apart_over_alone=%.3f "
           "mixed_over_alone=%.3f\n",
           options.level, options.size, options.blocks, options.rounds,
           (unsigned long long)options.seed, pinned, lines, lines_shared,
           100.0 * (double)lines_shared / (double)lines, cost[PLACE_HEAP].together,
           cost[PLACE_HEAP].alone, over_alone(PLACE_HEAP), over_alone(PLACE_APART),
           over_alone(PLACE_MIXED));
    return 0;
}
