/*
 * Waves: the live bytes of one heap go up to --mib and down to nothing, again and again. Blocks
 * have log-uniform sizes from --min to --max (workload.h), of which the program writes one byte a
 * page, and are freed in the order in which they were allocated. One line of key=value pairs.
 *
 * The first wave warms up; wave_ms is a wave by the clock and cpu_ms its CPU time, each the median
 * over the waves that follow, with quartiles; faults are page faults a wave. One wave more reads
 * resident memory: peak_kib at its top, freed_kib at its end, and later_kib after --seconds of other
 * work, all of them above the start, which has the program's arrays. The other work: a burst of
 * small blocks in another heap about once a millisecond, more than caches hold, so that what an
 * allocator does in its own calls as time passes is done. Without heaps it comes from the same.
 *
 * --large N takes the place of the waves: N times a random one of SLOTS blocks is replaced by one of
 * 5 to 25 MiB, all sizes alike, which is written whole and allocated before the other is freed. That
 * is how malloc-large of mimalloc-bench goes. cpu_ms and faults are of all N, resident_kib is read
 * at the end, with all blocks alive, above the start; live_kib is what these were asked for.
 */
#define _GNU_SOURCE

#include "harness.h"

#include ADAPTER
#include "program.h"
#include "workload.h"

enum {
    MOST_WAVES = 1000,
    SLOTS = 20,
    LARGE_MIN = 5 << 20,
    LARGE_MAX = 25 << 20,
    BURST = 500,
    PAUSE = 1000000 /* nanoseconds */
};

static struct {
    size_t mib;
    uint32_t min, max, waves, large;
    uint64_t later; /* nanoseconds */
    uint64_t seed;
    const char *level;
} options = {64, 256, 256, 9, 0, 2000000000, 1, "fast"};

static size_t above(size_t start)
{
    size_t resident = harness_resident_kib();
    return resident > start ? resident - start : 0;
}

/* ---- Waves ---- */

typedef struct sea {
    alloc_heap_t *heap, *other;
    char **block; /* of the wave */
    size_t count; /* of them */
    workload_law_t law;
    harness_rng_t rng;
} sea_t;

typedef struct figures {
    double clock[MOST_WAVES], cpu[MOST_WAVES]; /* ms a wave */
    double faults;                             /* a wave */
    size_t peak, freed, later;                 /* KiB above the start */
} figures_t;

static void rise(sea_t *sea)
{
    sea->count = 0;
    for (size_t live = 0; live < options.mib << 20;) {
        uint32_t size = workload_size(&sea->law, &sea->rng);
        char *block = workload_malloc(sea->heap, size);
        workload_touch(block, size);
        sea->block[sea->count++] = block;
        live += size;
    }
}

static void fall(sea_t *sea)
{
    for (size_t i = 0; i < sea->count; i++) alloc_free(sea->heap, sea->block[i]);
}

static void measure_waves(sea_t *sea, figures_t *its)
{
    uint64_t faults = 0;
    for (uint32_t wave = 0; wave <= options.waves; wave++) {
        if (wave == 1) faults = workload_faults();
        uint64_t cpu = workload_cpu(), begin = harness_now();
        rise(sea);
        fall(sea);
        uint64_t end = harness_now(), cpu_end = workload_cpu();
        if (!wave) continue;
        its->clock[wave - 1] = (double)(end - begin) / 1e6;
        its->cpu[wave - 1] = (double)(cpu_end - cpu) / 1e6;
    }
    its->faults = (double)(workload_faults() - faults) / options.waves;
}

static void work_elsewhere(sea_t *sea)
{
    char *block[BURST];
    workload_law_t law = workload_law(16, 1023);
    uint64_t now = harness_now(), end = now + options.later;
    for (; now < end; now = harness_now()) {
        for (int i = 0; i < BURST; i++)
            block[i] = workload_malloc(sea->other, workload_size(&law, &sea->rng));
        for (int i = 0; i < BURST; i++) alloc_free(sea->other, block[i]);
        harness_sleep_until(now + PAUSE);
    }
}

static void read_memory(sea_t *sea, figures_t *its, size_t start)
{
    rise(sea);
    its->peak = above(start);
    fall(sea);
    its->freed = above(start);
    work_elsewhere(sea);
    its->later = above(start);
}

static void print_waves(figures_t *its)
{
    workload_spread_t clock = workload_spread(its->clock, options.waves);
    workload_spread_t cpu = workload_spread(its->cpu, options.waves);
    program_print_identity();
    printf(" level=%s mib=%zu min=%u max=%u waves=%u seed=%llu wave_ms=%.3f low_ms=%.3f "
           "high_ms=%.3f cpu_ms=%.3f faults=%.0f peak_kib=%zu freed_kib=%zu later_kib=%zu\n",
           options.level, options.mib, options.min, options.max, options.waves,
           (unsigned long long)options.seed, clock.median, clock.low, clock.high, cpu.median,
           its->faults, its->peak, its->freed, its->later);
}

static void run_waves(void)
{
    static figures_t its;
    sea_t sea = {.law = workload_law(options.min, options.max), .rng = {options.seed}};
    size_t bytes = ((options.mib << 20) / options.min + 1) * sizeof *sea.block;
    sea.block = memset(program_map(bytes), 0, bytes);
    size_t start = harness_resident_kib();
    sea.heap = program_heap(options.level, 0);
    sea.other = program_heap(options.level, 1);
    measure_waves(&sea, &its);
    read_memory(&sea, &its, start);
    alloc_heap_destroy(sea.other);
    alloc_heap_destroy(sea.heap);
    print_waves(&its);
}

/* ---- Large blocks in turn ---- */

typedef struct large {
    char *block;
    uint32_t size;
} large_t;

static void replace_large(alloc_heap_t *heap, large_t *slots, harness_rng_t *rng)
{
    uint64_t bits = harness_draw(rng);
    large_t *slot = &slots[harness_below((uint32_t)(bits >> 32), SLOTS)];
    large_t fresh = {.size = LARGE_MIN + harness_below((uint32_t)bits, LARGE_MAX - LARGE_MIN + 1)};
    fresh.block = workload_malloc(heap, fresh.size);
    memset(fresh.block, 1, fresh.size);
    if (slot->block) alloc_free(heap, slot->block);
    *slot = fresh;
}

static void run_large(void)
{
    large_t slots[SLOTS] = {{0}};
    harness_rng_t rng = {options.seed};
    size_t start = harness_resident_kib(), live = 0;
    alloc_heap_t *heap = program_heap(options.level, 0);
    uint64_t faults = workload_faults(), cpu = workload_cpu();
    for (uint32_t i = 0; i < options.large; i++) replace_large(heap, slots, &rng);
    double cpu_ms = (double)(workload_cpu() - cpu) / 1e6;
    faults = workload_faults() - faults;
    size_t resident = above(start);
    for (int i = 0; i < SLOTS; i++) {
        if (!slots[i].block) continue;
        live += slots[i].size;
        alloc_free(heap, slots[i].block);
    }
    alloc_heap_destroy(heap);
    program_print_identity();
    printf(" level=%s large=%u seed=%llu cpu_ms=%.1f faults=%llu resident_kib=%zu live_kib=%zu\n",
           options.level, options.large, (unsigned long long)options.seed, cpu_ms,
           (unsigned long long)faults, resident, live / 1024);
}

static const program_option_t known[] = {
    {.name = "mib",
     .kind = OPTION_SIZE,
     .value = &options.mib,
     .words = "live at the top of a wave",
     .min = 1,
     .max = 1 << 20},
    {.name = "min",
     .kind = OPTION_U32,
     .value = &options.min,
     .words = "bytes of the smallest block",
     .min = 16,
     .max = 1 << 20},
    {.name = "max",
     .kind = OPTION_U32,
     .value = &options.max,
     .words = "bytes of the largest block",
     .min = 16,
     .max = 1 << 20},
    {.name = "waves",
     .kind = OPTION_U32,
     .value = &options.waves,
     .words = "that count",
     .min = 1,
     .max = MOST_WAVES},
    {.name = "seconds",
     .kind = OPTION_SECONDS,
     .value = &options.later,
     .words = "of other work after the waves",
     .max = 3600},
    {.name = "large",
     .kind = OPTION_U32,
     .value = &options.large,
     .words = "instead of waves, so many blocks of 5 to 25 MiB in turn",
     .max = 1e6},
    PROGRAM_SEED(&options.seed),
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin(argc, argv, "Live bytes that rise and fall", known,
                  sizeof known / sizeof known[0]);
    if (options.large) run_large();
    else run_waves();
    return 0;
}
