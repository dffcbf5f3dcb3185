/*
 * Sessions: many heaps alive at once, each with the few blocks of one session or tenant. What a
 * heap takes, and how long its life does. One line of key=value pairs.
 *
 * fill: one heap after the other is created and given its blocks, of log-uniform sizes (workload.h),
 * each written whole. Memory is fresh from the kernel.
 *
 * churn: as many rounds as --churn says. A round visits all heaps in turn and replaces as many
 * random blocks of each as it has, so a block is replaced --churn times in the mean. Then the heaps
 * are destroyed with their blocks, the newest first, because mimalloc looks for a heap in a list
 * that begins with the newest. Allocators without heaps free every block instead.
 *
 * live_kib and churned_live_kib are what the program has asked for, filled_kib and churned_kib are
 * VmRSS and VmPTE above what the process had before the first heap; all four are KiB a heap.
 * malloc_ns is a block of the filling, the heap's creation shared among its blocks; pair_ns is a
 * free and a malloc of the churn. The program's writes are in both. fill_us and destroy_us are of a
 * heap, life_us is both together. Times are CPU time; keys of the churn are "-" without one.
 */
#define _GNU_SOURCE

#include "harness.h"

#include ADAPTER
#include "program.h"
#include "workload.h"

static struct {
    size_t heaps, blocks;
    uint32_t churn, min, max;
    uint64_t seed;
    const char *level;
} options = {10000, 30, 0, 16, 1023, 1, "fast"};

/* The program's own; block k of heap i is number i * blocks + k. */
static struct {
    alloc_heap_t **heap;
    char **block;
    uint32_t *size;
    size_t live; /* bytes, as asked */
    workload_law_t law;
    harness_rng_t rng;
} all;

typedef struct figures {
    uint64_t fill, churn, destroy;             /* ns in sum */
    size_t before, filled, churned, destroyed; /* KiB of the process */
    size_t filled_live, churned_live;          /* bytes */
} figures_t;

/* Touched, so that no page of it is charged to the allocator. */
static void *own(size_t bytes) { return memset(program_map(bytes), 0, bytes); }

static void prepare(void)
{
    all.law = workload_law(options.min, options.max);
    all.rng.state = options.seed;
    all.heap = own(options.heaps * sizeof *all.heap);
    all.block = own(options.heaps * options.blocks * sizeof *all.block);
    all.size = own(options.heaps * options.blocks * sizeof *all.size);
}

static void make(size_t heap, size_t number)
{
    uint32_t size = workload_size(&all.law, &all.rng);
    all.size[number] = size;
    all.block[number] = workload_malloc(all.heap[heap], size);
    all.live += size;
    memset(all.block[number], 1, size);
}

static void fill(void)
{
    for (size_t i = 0; i < options.heaps; i++) {
        all.heap[i] = program_heap(options.level, (unsigned)i);
        for (size_t k = 0; k < options.blocks; k++) make(i, i * options.blocks + k);
    }
}

static void replace(size_t heap)
{
    size_t number = heap * options.blocks +
                    harness_below((uint32_t)harness_draw(&all.rng), (uint32_t)options.blocks);
    alloc_free(all.heap[heap], all.block[number]);
    all.live -= all.size[number];
    make(heap, number);
}

static void churn(void)
{
    for (uint32_t round = 0; round < options.churn; round++)
        for (size_t i = 0; i < options.heaps; i++)
            for (size_t k = 0; k < options.blocks; k++) replace(i);
}

static void destroy(void)
{
    for (size_t i = options.heaps; i-- > 0;)
        workload_leave(all.heap[i], &all.block[i * options.blocks], options.blocks);
}

static uint64_t timed(void (*act)(void))
{
    uint64_t begin = workload_cpu();
    act();
    return workload_cpu() - begin;
}

static figures_t measure(void)
{
    figures_t its = {.before = harness_cost_kib()};
    its.fill = timed(fill);
    its.filled = harness_cost_kib();
    its.filled_live = all.live;
    its.churn = timed(churn);
    its.churned = harness_cost_kib();
    its.churned_live = all.live;
    its.destroy = timed(destroy);
    its.destroyed = harness_cost_kib();
    return its;
}

/* ---- The line ---- */

/* KiB a heap above the start; pages that others of the process give back can make it negative. */
static double above(size_t kib, const figures_t *its)
{
    return ((double)kib - (double)its->before) / (double)options.heaps;
}

static double kib_a_heap(size_t bytes) { return (double)bytes / 1024 / (double)options.heaps; }

static double us_a_heap(uint64_t ns) { return (double)ns / 1e3 / (double)options.heaps; }

static void print_churn(const figures_t *its, double blocks)
{
    if (!options.churn) {
        printf(" churned_live_kib=- churned_kib=- pair_ns=-");
        return;
    }
    printf(" churned_live_kib=%.2f churned_kib=%.2f pair_ns=%.1f", kib_a_heap(its->churned_live),
           above(its->churned, its), (double)its->churn / options.churn / blocks);
}

static void print_line(const figures_t *its)
{
    double blocks = (double)options.heaps * (double)options.blocks;
    program_print_identity();
    printf(" level=%s heaps=%zu blocks=%zu churn=%u min=%u max=%u seed=%llu live_kib=%.2f "
           "filled_kib=%.2f malloc_ns=%.1f",
           options.level, options.heaps, options.blocks, options.churn, options.min, options.max,
           (unsigned long long)options.seed, kib_a_heap(its->filled_live), above(its->filled, its),
           (double)its->fill / blocks);
    print_churn(its, blocks);
    printf(" fill_us=%.3f destroy_us=%.3f life_us=%.3f destroyed_over_kib=%ld\n",
           us_a_heap(its->fill), us_a_heap(its->destroy), us_a_heap(its->fill + its->destroy),
           (long)its->destroyed - (long)its->before);
}

static const program_option_t known[] = {
    {.name = "heaps",
     .kind = OPTION_SIZE,
     .value = &options.heaps,
     .words = "alive at once",
     .min = 1,
     .max = 1e6},
    {.name = "blocks",
     .kind = OPTION_SIZE,
     .value = &options.blocks,
     .words = "of a heap",
     .min = 1,
     .max = 1e6},
    {.name = "churn",
     .kind = OPTION_U32,
     .value = &options.churn,
     .words = "times that each block is replaced, in the mean",
     .max = 1e6},
    {.name = "min",
     .kind = OPTION_U32,
     .value = &options.min,
     .words = "bytes of the smallest block",
     .min = 1,
     .max = 1 << 20},
    {.name = "max",
     .kind = OPTION_U32,
     .value = &options.max,
     .words = "bytes of the largest block",
     .min = 1,
     .max = 1 << 20},
    PROGRAM_SEED(&options.seed),
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin(argc, argv, "What many small heaps cost", known, sizeof known / sizeof known[0]);
    if (options.churn && WORKLOAD_KEEPS_BLOCKS)
        harness_exit(HARNESS_USAGE, "%s frees no single block, which --churn asks for",
                     alloc_name());
    prepare();
    figures_t its = measure();
    print_line(&its);
    return 0;
}
