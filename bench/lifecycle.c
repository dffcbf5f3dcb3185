/*
 * What a heap costs over its life, of allocators that have heaps. One line of key=value pairs.
 * `what` says of what:
 *
 *   empty     create and destroy, nothing between: ns a cycle
 *   hundred   create, 100 allocations of 16, 24, ... 808 bytes, destroy: ns a cycle
 *   live      many heaps alive at once, each with one 64-byte block: time, memory, mappings, and a fork beside them
 *
 * empty and hundred are medians over batches of cycles; a batch is one reading of the clock. Heaps
 * are destroyed with the blocks in them, which is what heaps are for: that goes beyond the
 * adapters' contract in larson.c, and is asked of those with heaps only.
 *
 * live: memory is VmRSS and VmPTE, from the kernel's own books, above what the program had before
 * the first heap. fork_ms is the time until fork returns in the parent, as the median of a few; the
 * child ends at once. The newest heap is destroyed first, because mimalloc looks for it in a list
 * that begins with the newest.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <stdbool.h>
#include <sys/wait.h>

#include ADAPTER
#include "program.h"

enum { MOST_ROUNDS = 1000, BLOCKS = 100, LEAST = 16, STEP = 8, BLOCK = 64, FORKS = 5 };

enum lifecycle_what { WHAT_EMPTY, WHAT_HUNDRED, WHAT_LIVE, WHATS };
static const char *const what_names[WHATS] = {"empty", "hundred", "live"};

static struct {
    uint32_t what; /* an index of what_names */
    uint32_t rounds, batch;
    size_t heaps;
    const char *level;
} options = {WHAT_EMPTY, 51, 1000, 10000, "fast"};

static void *must_malloc(alloc_heap_t *heap, size_t size)
{
    void *block = alloc_malloc(heap, size);
    if (!block) harness_exit(HARNESS_FAILED, "malloc of %zu bytes failed: %m", size);
    return block;
}

/* ---- empty, hundred ---- */

static void cycle(unsigned blocks)
{
    alloc_heap_t *heap = program_heap(options.level, 0);
    for (unsigned i = 0; i < blocks; i++) {
        char *block = must_malloc(heap, LEAST + (size_t)i * STEP);
        *(volatile char *)block = 1;
    }
    alloc_heap_destroy(heap);
}

/* Nanoseconds a cycle. The first batch warms up. */
static void measure_cycles(unsigned blocks)
{
    static double cost[MOST_ROUNDS];
    for (uint32_t round = 0; round <= options.rounds; round++) {
        uint64_t begin = harness_now();
        for (uint32_t i = 0; i < options.batch; i++) cycle(blocks);
        uint64_t end = harness_now();
        if (round) cost[round - 1] = (double)(end - begin) / options.batch;
    }
    double median = harness_median(cost, options.rounds);
    program_print_identity();
    printf(" what=%s level=%s rounds=%u batch=%u cycle_ns=%.1f least_ns=%.1f most_ns=%.1f\n",
           what_names[options.what], options.level, options.rounds, options.batch, median, cost[0],
           cost[options.rounds - 1]);
}

/* ---- live ---- */

typedef struct live {
    double create_ns, block_ns, destroy_ns; /* a heap */
    double fork_ms;
    size_t before, live, destroyed; /* KiB */
    size_t mappings_before, mappings;
} live_t;

/* Lines of /proc/self/maps. */
static size_t count_mappings(void)
{
    static char text[1 << 16];
    int file = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (file < 0) harness_exit(HARNESS_FAILED, "cannot read /proc/self/maps: %m");
    size_t lines = 0;
    for (ssize_t length; (length = read(file, text, sizeof text)) > 0;)
        for (ssize_t i = 0; i < length; i++) lines += text[i] == '\n';
    close(file);
    return lines;
}

static double fork_once(void)
{
    uint64_t begin = harness_now();
    pid_t child = fork();
    if (child == 0) _exit(0);
    uint64_t end = harness_now();
    if (child < 0) harness_exit(HARNESS_FAILED, "cannot fork: %m");
    waitpid(child, NULL, 0);
    return (double)(end - begin) / 1e6;
}

static double fork_ms(void)
{
    double cost[FORKS];
    for (int i = 0; i < FORKS; i++) cost[i] = fork_once();
    return harness_median(cost, FORKS);
}

static double since(uint64_t begin)
{
    return (double)(harness_now() - begin) / (double)options.heaps;
}

static void fill(live_t *live, alloc_heap_t **heap)
{
    uint64_t begin = harness_now();
    for (size_t i = 0; i < options.heaps; i++) heap[i] = program_heap(options.level, (unsigned)i);
    live->create_ns = since(begin);
    begin = harness_now();
    for (size_t i = 0; i < options.heaps; i++) memset(must_malloc(heap[i], BLOCK), 1, BLOCK);
    live->block_ns = since(begin);
}

static live_t measure_live(void)
{
    live_t live;
    alloc_heap_t **heap = program_map(options.heaps * sizeof(alloc_heap_t *));
    memset(heap, 0, options.heaps * sizeof(alloc_heap_t *));
    live.mappings_before = count_mappings();
    live.before = harness_cost_kib();
    fill(&live, heap);
    live.live = harness_cost_kib();
    live.mappings = count_mappings();
    live.fork_ms = fork_ms();
    uint64_t begin = harness_now();
    for (size_t i = options.heaps; i-- > 0;) alloc_heap_destroy(heap[i]);
    live.destroy_ns = since(begin);
    live.destroyed = harness_cost_kib();
    munmap(heap, options.heaps * sizeof(alloc_heap_t *));
    return live;
}

static void print_live(const live_t *live)
{
    program_print_identity();
    printf(" what=live level=%s heaps=%zu kib_a_heap=%.2f create_ns=%.0f block_ns=%.0f "
           "destroy_ns=%.0f fork_ms=%.2f "
           "mappings=%ld mappings_total=%zu before_kib=%zu live_kib=%zu destroyed_kib=%zu\n",
           options.level, options.heaps,
           ((double)live->live - (double)live->before) / (double)options.heaps, live->create_ns,
           live->block_ns, live->destroy_ns, live->fork_ms,
           (long)live->mappings - (long)live->mappings_before, live->mappings, live->before,
           live->live, live->destroyed);
}

static const program_option_t known[] = {
    {.name = "what",
     .kind = OPTION_CHOICE,
     .value = &options.what,
     .words = "what is measured: empty, hundred or live",
     .names = what_names,
     .count = WHATS},
    {.name = "rounds",
     .kind = OPTION_U32,
     .value = &options.rounds,
     .words = "empty, hundred: batches that count",
     .min = 1,
     .max = MOST_ROUNDS},
    {.name = "batch",
     .kind = OPTION_U32,
     .value = &options.batch,
     .words = "empty, hundred: cycles a batch",
     .min = 1,
     .max = 1e6},
    {.name = "heaps",
     .kind = OPTION_SIZE,
     .value = &options.heaps,
     .words = "live: how many",
     .min = 1,
     .max = 1e7},
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin_heaps(argc, argv, "What heaps cost over their lives", known,
                        sizeof known / sizeof known[0]);
    if (options.what == WHAT_LIVE) {
        live_t live = measure_live();
        print_live(&live);
    } else {
        measure_cycles(options.what == WHAT_HUNDRED ? BLOCKS : 0);
    }
    return 0;
}
