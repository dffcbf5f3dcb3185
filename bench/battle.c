/*
 * The memory battle: N blocks of one size, all live at once, in one heap. Resident memory idle, at
 * the peak, after everything is freed, after a flush and after a trim, in KiB, from the kernel's
 * own books, at that moment and not at its maximum. One line of key=value pairs.
 *
 * idle: the same process after one allocation, its free and a trim. floor: idle + the blocks' bytes
 * + the array of pointers to them, which is the program's own. Nothing below it is possible for any
 * allocator.
 *
 * The array is given back with the blocks, so that what stays is the allocator's. Every block is
 * written whole.
 *
 * Where the rest of the peak is: metadata, the allocator's own records for the heap, and cached,
 * free blocks in its caches, both in its own words (- where it has none); page_tables, VmPTE above
 * idle, which is no part of resident memory; arrays, the program's array of pointers.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <stdbool.h>

#include ADAPTER
#include "program.h"

static struct {
    size_t blocks, size;
    const char *level;
} options = {1000000, 16, "fast"};

typedef struct battle {
    size_t idle, peak, freed, flushed, trimmed; /* KiB */
    size_t page_tables;                         /* KiB at the peak, above idle */
    size_t records, cached;                     /* bytes at the peak */
} battle_t;

/* ---- What an allocator says of itself ---- */

#ifdef ALLOC_MEASURES
enum { MEASURES = true };
#else
enum { MEASURES = false };
static void alloc_measure(alloc_heap_t *heap, size_t *records, size_t *cached)
{
    (void)heap;
    *records = *cached = 0;
}
#endif

static size_t kib(size_t bytes) { return (bytes + 1023) / 1024; }

/* "-" where the allocator does not say. */
static void print_own(const char *key, size_t bytes)
{
    if (MEASURES) printf(" %s=%zu", key, kib(bytes));
    else printf(" %s=-", key);
}

/* ---- The battle ---- */

static void fill(alloc_heap_t *heap, char **block)
{
    for (size_t i = 0; i < options.blocks; i++) {
        block[i] = alloc_malloc(heap, options.size);
        if (!block[i]) harness_exit(HARNESS_FAILED, "no memory for block %zu", i);
        memset(block[i], (int)i, options.size);
    }
}

static void empty(alloc_heap_t *heap, char **block)
{
    for (size_t i = 0; i < options.blocks; i++) {
        if (block[i][options.size - 1] != (char)i)
            harness_exit(HARNESS_FAILED, "block %zu was overwritten", i);
        alloc_free(heap, block[i]);
    }
}

static battle_t fight(alloc_heap_t *heap)
{
    battle_t battle;
    char **block = program_map(options.blocks * sizeof *block);
    alloc_free(heap, alloc_malloc(heap, options.size));
    alloc_flush(heap);
    alloc_trim(heap);
    battle.idle = harness_resident_kib();
    size_t idle_tables = harness_status_kib("VmPTE:");
    fill(heap, block);
    battle.peak = harness_resident_kib();
    battle.page_tables = harness_status_kib("VmPTE:") - idle_tables;
    alloc_measure(heap, &battle.records, &battle.cached);
    empty(heap, block);
    munmap(block, options.blocks * sizeof *block);
    battle.freed = harness_resident_kib();
    alloc_flush(heap);
    battle.flushed = harness_resident_kib();
    alloc_trim(heap);
    battle.trimmed = harness_resident_kib();
    return battle;
}

static const program_option_t known[] = {
    {.name = "blocks",
     .kind = OPTION_SIZE,
     .value = &options.blocks,
     .words = "how many",
     .min = 1,
     .max = 1e9},
    {.name = "size",
     .kind = OPTION_SIZE,
     .value = &options.size,
     .words = "bytes each",
     .min = 1,
     .max = 1 << 20},
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin(argc, argv, "Resident memory of many live blocks", known,
                  sizeof known / sizeof known[0]);
    alloc_heap_t *heap = program_heap(options.level, 0);
    battle_t battle = fight(heap);
    alloc_heap_destroy(heap);
    alloc_thread_end();
    size_t floor = battle.idle + kib(options.blocks * (options.size + sizeof(char *)));
    program_print_identity();
    printf(" level=%s blocks=%zu size=%zu idle_kib=%zu floor_kib=%zu peak_kib=%zu "
           "peak_over_floor=%.4f freed_kib=%zu "
           "flushed_kib=%zu trimmed_kib=%zu trimmed_over_idle_kib=%ld page_tables_kib=%zu "
           "arrays_kib=%zu",
           options.level, options.blocks, options.size, battle.idle, floor, battle.peak,
           (double)battle.peak / (double)floor, battle.freed, battle.flushed, battle.trimmed,
           (long)battle.trimmed - (long)battle.idle, battle.page_tables,
           kib(options.blocks * sizeof(char *)));
    print_own("metadata_kib", battle.records);
    print_own("cached_kib", battle.cached);
    putchar('\n');
    return 0;
}
