/*
 * Bulk: many blocks of one size are allocated, and then all of them are freed, in one heap: in the
 * same order, in reverse, or at random. CPU time of a malloc and of a free. One line of key=value
 * pairs, with three keys for each order: <order>_malloc_ns, <order>_free_ns and <order>_pair_ns,
 * their sum.
 *
 * Each order has a heap of its own. The program notes each block's address and writes its first
 * byte; the order is an array of numbers, made anew in each round. A round is as many bursts as make
 * ROUND blocks, at least one; the first round warms up, and figures are medians over the rounds. The
 * time of reading the clock is taken off: it is a call of the kernel.
 */
#define _GNU_SOURCE

#include "harness.h"

#include ADAPTER
#include "program.h"
#include "workload.h"

enum { MOST_ROUNDS = 1000, ROUND = 50000 };

enum bulk_order { SAME, REVERSE, RANDOM, ORDERS };
static const char *const order_names[ORDERS + 1] = {"same", "reverse", "random", "all"};

static struct {
    size_t blocks;
    uint32_t size, order, rounds;
    uint64_t seed;
    const char *level;
} options = {10000, 64, ORDERS, 9, 1, "fast"};

static char **block;
static uint32_t *turn;      /* the numbers of the blocks, in the order of their frees */
static uint64_t clock_cost; /* nanoseconds of one reading of the CPU clock */

/* The least of many, because all that disturbs adds to it. */
static void time_clock(void)
{
    clock_cost = UINT64_MAX;
    for (int i = 0; i < 1000; i++) {
        uint64_t begin = workload_cpu(), took = workload_cpu() - begin;
        if (took < clock_cost) clock_cost = took;
    }
}

static uint64_t cpu_since(uint64_t begin)
{
    uint64_t took = workload_cpu() - begin;
    return took > clock_cost ? took - clock_cost : 0;
}

static void set_order(uint32_t order, harness_rng_t *rng)
{
    size_t last = options.blocks - 1;
    for (size_t i = 0; i <= last; i++) turn[i] = (uint32_t)(order == REVERSE ? last - i : i);
    if (order != RANDOM) return;
    for (size_t i = last; i > 0; i--) {
        uint32_t other = harness_below((uint32_t)harness_draw(rng), (uint32_t)i + 1);
        uint32_t swap = turn[i];
        turn[i] = turn[other];
        turn[other] = swap;
    }
}

static uint64_t take_all(alloc_heap_t *heap)
{
    uint64_t begin = workload_cpu();
    for (size_t i = 0; i < options.blocks; i++) {
        block[i] = workload_malloc(heap, options.size);
        *(volatile char *)block[i] = 1;
    }
    return cpu_since(begin);
}

static uint64_t free_all(alloc_heap_t *heap)
{
    uint64_t begin = workload_cpu();
    for (size_t i = 0; i < options.blocks; i++) alloc_free(heap, block[turn[i]]);
    return cpu_since(begin);
}

/* Prints the three figures of an order. */
static void measure(uint32_t order)
{
    static double take_ns[MOST_ROUNDS], free_ns[MOST_ROUNDS], pair_ns[MOST_ROUNDS];
    harness_rng_t rng = {options.seed};
    alloc_heap_t *heap = program_heap(options.level, order);
    size_t bursts = options.blocks < ROUND ? ROUND / options.blocks : 1;
    double calls = (double)bursts * (double)options.blocks;
    for (uint32_t round = 0; round <= options.rounds; round++) {
        uint64_t take_sum = 0, free_sum = 0;
        set_order(order, &rng);
        for (size_t i = 0; i < bursts; i++) {
            take_sum += take_all(heap);
            free_sum += free_all(heap);
        }
        if (!round) continue;
        take_ns[round - 1] = (double)take_sum / calls;
        free_ns[round - 1] = (double)free_sum / calls;
        pair_ns[round - 1] = (double)(take_sum + free_sum) / calls;
    }
    alloc_heap_destroy(heap);
    const char *name = order_names[order];
    printf(" %s_malloc_ns=%.2f %s_free_ns=%.2f %s_pair_ns=%.2f", name,
           harness_median(take_ns, options.rounds), name, harness_median(free_ns, options.rounds),
           name, harness_median(pair_ns, options.rounds));
}

static const program_option_t known[] = {
    {.name = "blocks",
     .kind = OPTION_SIZE,
     .value = &options.blocks,
     .words = "of a burst",
     .min = 1,
     .max = 1e8},
    {.name = "size",
     .kind = OPTION_U32,
     .value = &options.size,
     .words = "bytes each",
     .min = 1,
     .max = 1 << 20},
    {.name = "order",
     .kind = OPTION_CHOICE,
     .value = &options.order,
     .words = "of the frees: same, reverse, random or all",
     .names = order_names,
     .count = ORDERS + 1},
    {.name = "rounds",
     .kind = OPTION_U32,
     .value = &options.rounds,
     .words = "that count",
     .min = 1,
     .max = MOST_ROUNDS},
    PROGRAM_SEED(&options.seed),
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin(argc, argv, "Many blocks of one size at once", known,
                  sizeof known / sizeof known[0]);
    block = program_map(options.blocks * sizeof *block);
    turn = program_map(options.blocks * sizeof *turn);
    time_clock();
    program_print_identity();
    printf(" level=%s blocks=%zu size=%u order=%s rounds=%u seed=%llu", options.level,
           options.blocks, options.size, order_names[options.order], options.rounds,
           (unsigned long long)options.seed);
    for (uint32_t order = 0; order < ORDERS; order++)
        if (options.order == order || options.order == ORDERS) measure(order);
    putchar('\n');
    return 0;
}
