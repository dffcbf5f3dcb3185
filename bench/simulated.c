/*
 * What live heaps cost on a machine of many CPUs, of which this machine has fewer: hakheap alone,
 * compiled with its sources, whose private symbols let one thread pretend to be each CPU in turn.
 * Each heap has one 64-byte block; then each of `cpus` CPUs allocates and frees a block in each
 * heap, which gives it an area and a magazine there. Memory is VmRSS and VmPTE a heap: with all
 * magazines filled, after a flush of every heap, and after a trim. One line of key=value pairs.
 *
 * Sections read the CPU's index from the thread's own memory, so a thread can be any CPU, as long
 * as it is the only one of that index (tests/test_home.c does the same). The locked twin asks the
 * kernel and cannot be fooled.
 *
 *   build/bench/simulated [--heaps N] [--machine N] [--cpus N] [--level fast|checked]
 */
#define _GNU_SOURCE

#include "harness.h"

#include "adapter_hakheap.h"
#include "heap.h"
#include "process.h"
#include "program.h"

enum { BLOCK = 64 };

static struct {
    size_t heaps;
    uint32_t machine, cpus;
    const char *level;
} options = {1000, 128, 128, "fast"};

static _Thread_local uint32_t pretended __attribute__((tls_model("initial-exec")));

/* Heaps that are created from now on have a slot for each CPU of the simulated machine. */
static void simulate_machine(void)
{
    if (process_start() != 0) harness_exit(HARNESS_FAILED, "the library does not start");
    if (percpu_mode == PERCPU_LOCKED)
        harness_exit(HARNESS_USAGE, "mode locked asks the kernel for the CPU");
    percpu_slots = options.machine;
    percpu_index_offset = (char *)&pretended - (char *)__builtin_thread_pointer();
}

static void run_on(uint32_t cpu) { __atomic_store_n(&pretended, cpu, __ATOMIC_RELAXED); }

static void *must_malloc(hak_heap_t *heap)
{
    void *block = hak_heap_malloc(heap, BLOCK);
    if (!block) harness_exit(HARNESS_FAILED, "malloc failed: %m");
    return memset(block, 1, BLOCK);
}

static void touch_all(hak_heap_t **heap)
{
    for (size_t i = 0; i < options.heaps; i++) {
        heap[i] = program_heap(options.level, (unsigned)i);
        must_malloc(heap[i]);
    }
    for (uint32_t cpu = 0; cpu < options.cpus; cpu++) {
        run_on(cpu);
        for (size_t i = 0; i < options.heaps; i++) hak_heap_free(heap[i], must_malloc(heap[i]));
    }
}

/* KiB a heap above what there was before. */
static double each_kib(size_t before)
{
    return ((double)harness_cost_kib() - (double)before) / (double)options.heaps;
}

static void measure(void)
{
    hak_heap_t **heap = program_map(options.heaps * sizeof(hak_heap_t *));
    memset(heap, 0, options.heaps * sizeof(hak_heap_t *));
    size_t before = harness_cost_kib();
    touch_all(heap);
    double live = each_kib(before);
    for (size_t i = 0; i < options.heaps; i++) hak_heap_flush(heap[i]);
    double flushed = each_kib(before);
    for (size_t i = 0; i < options.heaps; i++) hak_heap_trim(heap[i], 0);
    double trimmed = each_kib(before);
    program_print_identity();
    printf(" level=%s heaps=%zu machine=%u cpus=%u kib_a_heap=%.2f flushed_kib_a_heap=%.2f "
           "trimmed_kib_a_heap=%.2f "
           "area_bytes=%zu\n",
           options.level, options.heaps, options.machine, options.cpus, live, flushed, trimmed,
           sizeof(area_t));
    for (size_t i = 0; i < options.heaps; i++) hak_heap_destroy(heap[i]);
}

static const program_option_t known[] = {
    {.name = "heaps",
     .kind = OPTION_SIZE,
     .value = &options.heaps,
     .words = "how many",
     .min = 1,
     .max = 1e7},
    {.name = "machine",
     .kind = OPTION_U32,
     .value = &options.machine,
     .words = "CPUs of the simulated machine",
     .min = PERCPU_FEWEST,
     .max = 4096},
    {.name = "cpus",
     .kind = OPTION_U32,
     .value = &options.cpus,
     .words = "how many of them touch every heap",
     .min = 1,
     .max = 4096},
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    snprintf(program_library, sizeof program_library, "src");
    program_read_options(argc, argv, "Live heaps on a machine of many CPUs", known,
                         sizeof known / sizeof known[0]);
    if (options.cpus > options.machine)
        harness_exit(HARNESS_USAGE, "--cpus %u is above --machine %u", options.cpus,
                     options.machine);
    simulate_machine();
    measure();
    return 0;
}
