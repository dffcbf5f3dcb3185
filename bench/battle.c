/*
 * The memory battle: N blocks of one size, all live at once, in one heap. Resident memory idle, at the peak, after
 * everything is freed, after a flush and after a trim, in KiB, from the kernel's own books, at that moment and not at its
 * maximum. One line of key=value pairs.
 *
 * idle: the same process after one allocation, its free and a trim. floor: idle + the blocks' bytes + the array of pointers
 * to them, which is the program's own. Nothing below it is possible for any allocator.
 *
 * The array is given back with the blocks, so that what stays is the allocator's. Every block is written whole.
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
} battle_t;

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
        if (block[i][options.size - 1] != (char)i) harness_exit(HARNESS_FAILED, "block %zu was overwritten", i);
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
    fill(heap, block);
    battle.peak = harness_resident_kib();
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
    {.name = "blocks", .kind = OPTION_SIZE, .value = &options.blocks, .words = "how many", .min = 1, .max = 1e9},
    {.name = "size", .kind = OPTION_SIZE, .value = &options.size, .words = "bytes each", .min = 1, .max = 1 << 20},
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    program_begin(argc, argv, "Resident memory of many live blocks", known, sizeof known / sizeof known[0]);
    alloc_heap_t *heap = program_heap(options.level, 0);
    battle_t battle = fight(heap);
    alloc_heap_destroy(heap);
    alloc_thread_end();
    size_t floor = battle.idle + (options.blocks * (options.size + sizeof(char *)) + 1023) / 1024;
    program_print_identity();
    printf(" level=%s blocks=%zu size=%zu idle_kib=%zu floor_kib=%zu peak_kib=%zu peak_over_floor=%.4f freed_kib=%zu "
           "flushed_kib=%zu trimmed_kib=%zu trimmed_over_idle_kib=%ld\n",
           options.level, options.blocks, options.size, battle.idle, floor, battle.peak,
           (double)battle.peak / (double)floor, battle.freed, battle.flushed, battle.trimmed,
           (long)battle.trimmed - (long)battle.idle);
    return 0;
}
