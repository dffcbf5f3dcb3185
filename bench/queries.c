/*
 * Queries: a heap is created, gives some blocks and is destroyed with them, again and again, so that
 * each cycle may have what the one before has left. Allocators without heaps free every block
 * instead, in the order in which it was allocated.
 *
 * Sizes are log-uniform (workload.h) and drawn beforehand. The program notes each block's address
 * and writes its first byte. A round is one reading of the clocks around as many cycles as make
 * ROUND allocations, at least one; the first round warms up. cycle_ns is the time of a cycle by the
 * clock, cpu_ns its CPU time, each the median over the rounds, with quartiles; faults are page
 * faults a cycle, in the mean. One line of key=value pairs.
 */
#define _GNU_SOURCE

#include "harness.h"

#include ADAPTER
#include "program.h"
#include "workload.h"

enum { MOST_ROUNDS = 1000, SIZES = 1 << 16, ROUND = 20000 };

static struct {
    size_t allocations;
    uint32_t rounds, min, max;
    uint64_t seed;
    const char *level;
} options = {1000, 31, 16, 1023, 1, "fast"};

static uint32_t sizes[SIZES];
static uint32_t next; /* of sizes; a query goes on where the one before has stopped */
static char **block;

static void draw_sizes(void)
{
    harness_rng_t rng = {options.seed};
    workload_law_t law = workload_law(options.min, options.max);
    for (size_t i = 0; i < SIZES; i++) sizes[i] = workload_size(&law, &rng);
}

static void query(void)
{
    alloc_heap_t *heap = program_heap(options.level, 0);
    for (size_t i = 0; i < options.allocations; i++) {
        block[i] = workload_malloc(heap, sizes[next++ % SIZES]);
        *(volatile char *)block[i] = 1;
    }
    workload_leave(heap, block, options.allocations);
}

typedef struct figures {
    double clock[MOST_ROUNDS], cpu[MOST_ROUNDS]; /* ns a cycle */
    double faults;                               /* a cycle */
} figures_t;

static void measure(figures_t *its, size_t cycles)
{
    uint64_t faults = 0;
    for (uint32_t round = 0; round <= options.rounds; round++) {
        if (round == 1) faults = workload_faults();
        uint64_t cpu = workload_cpu(), begin = harness_now();
        for (size_t i = 0; i < cycles; i++) query();
        uint64_t end = harness_now(), cpu_end = workload_cpu();
        if (!round) continue;
        its->clock[round - 1] = (double)(end - begin) / (double)cycles;
        its->cpu[round - 1] = (double)(cpu_end - cpu) / (double)cycles;
    }
    its->faults = (double)(workload_faults() - faults) / (double)cycles / options.rounds;
}

static const program_option_t known[] = {
    {.name = "allocations",
     .kind = OPTION_SIZE,
     .value = &options.allocations,
     .words = "of a query",
     .min = 1,
     .max = 1e7},
    {.name = "rounds",
     .kind = OPTION_U32,
     .value = &options.rounds,
     .words = "that count",
     .min = 1,
     .max = MOST_ROUNDS},
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
    static figures_t its;
    program_begin(argc, argv, "What a heap for each query costs", known,
                  sizeof known / sizeof known[0]);
    draw_sizes();
    block = program_map(options.allocations * sizeof *block);
    size_t cycles = options.allocations < ROUND ? ROUND / options.allocations : 1;
    measure(&its, cycles);
    workload_spread_t clock = workload_spread(its.clock, options.rounds);
    workload_spread_t cpu = workload_spread(its.cpu, options.rounds);
    program_print_identity();
    printf(" level=%s allocations=%zu rounds=%u cycles=%zu min=%u max=%u seed=%llu cycle_ns=%.1f "
           "low_ns=%.1f high_ns=%.1f cpu_ns=%.1f cpu_low_ns=%.1f cpu_high_ns=%.1f faults=%.1f\n",
           options.level, options.allocations, options.rounds, cycles, options.min, options.max,
           (unsigned long long)options.seed, clock.median, clock.low, clock.high, cpu.median,
           cpu.low, cpu.high, its.faults);
    return 0;
}
