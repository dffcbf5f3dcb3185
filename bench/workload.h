/*
 * What the workloads of heaps that come, breathe and go share (sessions.c, queries.c, waves.c,
 * bulk.c): the law of sizes, CPU time, page faults, and how a heap goes with the blocks in it.
 *
 * Included once, after ADAPTER, whose contract is in larson.c. Two of these workloads destroy heaps
 * with live blocks in them, which goes beyond that contract and is asked of those with heaps only;
 * an allocator without heaps frees block by block. Where ALLOC_KEEPS_BLOCKS is defined, alloc_free
 * does nothing and a block goes with its heap; such an adapter has neither alloc_realloc,
 * alloc_flush nor alloc_trim. Thread-safety: as harness.h.
 */
#ifndef HAK_BENCH_WORKLOAD_H
#define HAK_BENCH_WORKLOAD_H

#include "harness.h"

#include <stdbool.h>
#include <sys/resource.h>

#ifdef ALLOC_KEEPS_BLOCKS
enum { WORKLOAD_KEEPS_BLOCKS = true };
#else
enum { WORKLOAD_KEEPS_BLOCKS = false };
#endif

enum { WORKLOAD_PAGE = 4096 };

/* ---- What a process has used ---- */

/* Nanoseconds of CPU time of all threads, in the program and in the kernel. */
static inline uint64_t workload_cpu(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

static inline uint64_t workload_faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

/* ---- Sizes: log-uniform. Octave k is the range from min * 2^k to twice that, less one; all
 * octaves up to `max` are alike, and so are the sizes within one. `max` cuts the last short. ---- */

typedef struct workload_law {
    uint32_t min, max, octaves;
} workload_law_t;

static inline workload_law_t workload_law(uint32_t min, uint32_t max)
{
    if (min > max)
        harness_exit(HARNESS_USAGE, "--min %u is more than --max %u", (unsigned)min, (unsigned)max);
    workload_law_t law = {min, max, 1};
    while ((uint64_t)min << law.octaves <= max) law.octaves++;
    return law;
}

static inline uint32_t workload_size(const workload_law_t *law, harness_rng_t *rng)
{
    uint64_t bits = harness_draw(rng);
    uint32_t low = law->min << harness_below((uint32_t)(bits >> 32), law->octaves);
    uint32_t high = law->max - low < low ? law->max : 2 * low - 1;
    return low + harness_below((uint32_t)bits, high - low + 1);
}

/* ---- Blocks ---- */

static inline char *workload_malloc(alloc_heap_t *heap, size_t size)
{
    char *block = alloc_malloc(heap, size);
    if (!block) harness_exit(HARNESS_FAILED, "malloc of %zu bytes failed: %m", size);
    return block;
}

/* One byte of each page, so that the allocator is timed and not the memory. */
static inline void workload_touch(char *block, size_t size)
{
    for (size_t at = 0; at < size; at += WORKLOAD_PAGE) *(volatile char *)(block + at) = 1;
}

/* A heap is gone with the blocks in it. */
static inline void workload_leave(alloc_heap_t *heap, char *const *block, size_t count)
{
    if (alloc_has_heaps()) {
        alloc_heap_destroy(heap);
        return;
    }
    for (size_t i = 0; i < count; i++) alloc_free(heap, block[i]);
}

/* ---- Figures of several rounds ---- */

typedef struct workload_spread {
    double low, median, high; /* quartiles */
} workload_spread_t;

static inline workload_spread_t workload_spread(double *values, size_t count)
{
    double median = harness_median(values, count); /* sorts */
    return (workload_spread_t){values[(count - 1) / 4], median, values[(count - 1) * 3 / 4]};
}

#endif
