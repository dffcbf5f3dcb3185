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

#include <getopt.h>
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

static void usage(void)
{
    printf("Usage: %s [option...]\n"
           "Resident memory of many live blocks under %s. Prints one line of key=value pairs.\n"
           "  --blocks N   how many (1000000)\n"
           "  --size N     bytes each, from 1 to 1048576 (16)\n"
           "  --level L    fast or checked; for hakheap (fast)\n"
           "  --info       print name, version, library file and mode, and run nothing\n",
           program_invocation_short_name, alloc_name());
}

static void options_parse(int argc, char **argv)
{
    enum { BLOCKS = 1, SIZE, LEVEL, INFO, HELP };
    static const struct option known[] = {
        {"blocks", required_argument, NULL, BLOCKS}, {"size", required_argument, NULL, SIZE},
        {"level", required_argument, NULL, LEVEL},   {"info", no_argument, NULL, INFO},
        {"help", no_argument, NULL, HELP},           {NULL, 0, NULL, 0}};
    int code, at = 0;
    while ((code = getopt_long(argc, argv, "", known, &at)) != -1) {
        const char *name = known[at].name;
        switch (code) {
        case BLOCKS: options.blocks = harness_number(name, optarg, 1, 1000000000); break;
        case SIZE: options.size = harness_number(name, optarg, 1, 1u << 20); break;
        case LEVEL: options.level = level_names[harness_choice(name, optarg, level_names, LEVELS)]; break;
        case INFO: program_print_info(options.level); exit(0);
        case HELP: usage(); exit(0);
        default: usage(); exit(HARNESS_USAGE);
        }
    }
    if (optind < argc) harness_exit(HARNESS_USAGE, "'%s' is not an option; --help lists them", argv[optind]);
}

int main(int argc, char **argv)
{
    program_prove_library();
    options_parse(argc, argv);
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
