/*
 * A long run: one thread keeps the same number of bytes live while the sizes it asks for change
 * from phase to phase, and what counts is the memory that stays resident. Each phase takes another
 * mix of sizes and replaces all blocks of the phase before, in random order and little by little:
 * random ones are freed until there is room, then one is allocated. The first phase only fills. At
 * the end a random tenth of the blocks stays live.
 *
 * All figures of resident memory are in KiB, from the kernel's own books at that moment, and
 * without the array of blocks, which is the program's own; its pages are known. idle is after one
 * allocation, its free and a trim.
 *
 *   phase_kib           after each phase; peak_kib is the largest of them, live_kib what the blocks were asked for
 *   end_freed_kib       after nine blocks of ten have been freed; end_live_kib is what the others were asked for
 *   end_trimmed_kib     after a flush and a trim
 *   page_kib            idle + 4 KiB for each page that holds a byte of a live block: as blocks do not move, nothing below it
 *                       is possible then
 *   trimmed_over_pages  (end_trimmed - page) / page
 *
 * The requests follow from the seed alone, so that every allocator sees the same. Every page of a
 * block is touched; the first word is a tag that no other block has, and is proved before the free.
 * One line of key=value pairs.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <stdbool.h>
#include <sys/mman.h>

#include ADAPTER
#include "program.h"

enum {
    PAGE = 4096,
    SMALLEST = 16,
    LARGEST = 8192,
    SPAN = LARGEST / PAGE + 1,
    STAYS = 10,
    MOST_PHASES = 1000
};

static struct {
    uint32_t phases, live_mib;
    uint64_t seed;
    const char *level;
} options = {12, 32, 1, "fast"};

/* ---- Sizes ---- */

enum { RANGES = 4 };
static const struct {
    uint32_t min, max;
} ranges[RANGES] = {{SMALLEST, 64}, {64, 256}, {256, 1024}, {1024, LARGEST}};

/* How many blocks of a hundred are of which range. */
static const uint32_t mixes[][RANGES] = {
    {95, 5, 0, 0},    /* mostly 16 to 64 bytes */
    {5, 90, 5, 0},    /* mostly 64 to 256 */
    {0, 5, 90, 5},    /* mostly 256 to 1024 */
    {0, 0, 5, 95},    /* mostly 1 to 8 KiB */
    {60, 25, 10, 5},  /* the larger, the fewer */
    {25, 25, 25, 25}, /* as many of each */
    {90, 0, 0, 10},   /* the two ends */
};
enum { MIXES = sizeof mixes / sizeof mixes[0] };

static uint32_t draw_size(harness_rng_t *rng, const uint32_t *mix)
{
    uint64_t bits = harness_draw(rng);
    uint32_t dice = harness_below((uint32_t)(bits >> 32), 100);
    unsigned i = 0;
    while (dice >= mix[i]) dice -= mix[i++];
    return ranges[i].min + harness_below((uint32_t)bits, ranges[i].max - ranges[i].min + 1);
}

/* ---- Blocks ---- */

typedef struct item {
    char *block;
    uint32_t size;
    uint32_t serial;
} item_t;

/* The blocks of earlier phases stand before those of this phase: items [0, old) and [old,
 * count). */
static struct {
    item_t *items;
    size_t old, count,
        most;     /* most: items that were ever in use at once, so that their pages are resident */
    size_t bytes; /* of all live blocks, as they were asked for */
    uint32_t made;
    harness_rng_t rng;
} live;

static alloc_heap_t *heap;

static size_t live_target(void) { return (size_t)options.live_mib << 20; }
static size_t items_bytes(void) { return live_target() / SMALLEST * sizeof(item_t); }
static uint64_t tag_of(const item_t *item)
{
    return ((uint64_t)item->serial << 32 | item->size) ^ 0x5bd1e9955bd1e995u;
}

/* The first byte, the middle and the last byte are nowhere further apart than a page. */
static void live_add(uint32_t size)
{
    char *block = alloc_malloc(heap, size);
    if (!block) harness_exit(HARNESS_FAILED, "malloc of %u bytes failed: %m", size);
    item_t *item = &live.items[live.count++];
    *item = (item_t){block, size, live.made++};
    uint64_t tag = tag_of(item);
    block[size - 1] = (char)size;
    block[size / 2] = (char)size;
    memcpy(block, &tag, sizeof tag);
    live.bytes += size;
    if (live.count > live.most) live.most = live.count;
}

/* Frees a random block of the old ones, and closes the gap. */
static void live_drop_old(void)
{
    item_t *items = live.items,
           *item = &items[harness_below((uint32_t)harness_draw(&live.rng), (uint32_t)live.old)];
    uint64_t found;
    memcpy(&found, item->block, sizeof found);
    if (found != tag_of(item))
        harness_exit(HARNESS_FAILED, "block %p of %u bytes is torn", (void *)item->block,
                     item->size);
    alloc_free(heap, item->block);
    live.bytes -= item->size;
    *item = items[--live.old];
    items[live.old] = items[--live.count];
}

/* Ends when no block of an earlier phase is left and the next one drawn would be too many. */
static void live_replace(const uint32_t *mix)
{
    for (live.old = live.count;;) {
        uint32_t size = draw_size(&live.rng, mix);
        while (live.old && live.bytes + size > live_target()) live_drop_old();
        if (live.bytes + size > live_target()) return;
        live_add(size);
    }
}

static void live_drop_to(size_t count)
{
    for (live.old = live.count; live.count > count;) live_drop_old();
}

/* ---- Memory ---- */

/* Without the pages of the array of blocks. */
static size_t resident_kib(void)
{
    size_t own = (live.most * sizeof(item_t) + PAGE - 1) / PAGE * (PAGE / 1024);
    return harness_resident_kib() - own;
}

/* How many different pages hold a byte of a live block. */
static size_t count_pages(void)
{
    size_t count = 0, pages = 0, room = (live.count * SPAN + 1) * sizeof(uint64_t);
    uint64_t *numbers = program_map(room);
    for (size_t i = 0; i < live.count; i++) {
        uintptr_t start = (uintptr_t)live.items[i].block, last = start + live.items[i].size - 1;
        for (uint64_t page = start / PAGE; page <= last / PAGE; page++) numbers[count++] = page;
    }
    harness_sort(numbers, count);
    for (size_t i = 0; i < count; i++) pages += i == 0 || numbers[i] != numbers[i - 1];
    munmap(numbers, room);
    return pages;
}

/* ---- The run ---- */

typedef struct result {
    size_t idle, phase[MOST_PHASES], peak, live;   /* KiB */
    size_t end_live, end_freed, end_trimmed, page; /* KiB */
    uint64_t duration;                             /* of the phases, nanoseconds */
} result_t;

static void run_phases(result_t *result)
{
    uint32_t mix = 0;
    for (uint32_t i = 0; i < options.phases; i++) {
        uint64_t begin = harness_now();
        live_replace(mixes[mix]);
        result->duration += harness_now() - begin;
        result->phase[i] = resident_kib();
        if (result->phase[i] > result->peak) result->peak = result->phase[i];
        mix = (mix + 1 + harness_below((uint32_t)harness_draw(&live.rng), MIXES - 1)) % MIXES;
    }
    result->live = live.bytes / 1024;
}

static void run_end(result_t *result)
{
    live_drop_to(live.count / STAYS);
    result->end_live = live.bytes / 1024;
    result->end_freed = resident_kib();
    alloc_flush(heap);
    alloc_trim(heap);
    result->end_trimmed = resident_kib();
    result->page = result->idle + count_pages() * (PAGE / 1024);
    live_drop_to(0);
}

static void run(result_t *result)
{
    live.items = program_map(items_bytes());
    live.rng.state = options.seed;
    /* With huge pages, more of it would be resident than is in use. A kernel without them refuses,
     * and all is well. */
    (void)madvise(live.items, items_bytes(), MADV_NOHUGEPAGE);
    alloc_free(heap, alloc_malloc(heap, SMALLEST));
    alloc_flush(heap);
    alloc_trim(heap);
    result->idle = resident_kib();
    run_phases(result);
    run_end(result);
    munmap(live.items, items_bytes());
}

static void print_result(const result_t *result)
{
    printf(" level=%s phases=%u live_mib=%u seed=%llu blocks=%u seconds=%.6f idle_kib=%zu "
           "live_kib=%zu phase_kib=",
           options.level, options.phases, options.live_mib, (unsigned long long)options.seed,
           live.made, (double)result->duration / 1e9, result->idle, result->live);
    for (uint32_t i = 0; i < options.phases; i++) printf(i ? ",%zu" : "%zu", result->phase[i]);
    printf(" peak_kib=%zu end_live_kib=%zu end_freed_kib=%zu end_trimmed_kib=%zu page_kib=%zu "
           "trimmed_over_pages=%.4f\n",
           result->peak, result->end_live, result->end_freed, result->end_trimmed, result->page,
           ((double)result->end_trimmed - (double)result->page) / (double)result->page);
}

static const program_option_t known[] = {
    {.name = "phases",
     .kind = OPTION_U32,
     .value = &options.phases,
     .words = "each with another mix of sizes",
     .min = 1,
     .max = MOST_PHASES},
    {.name = "live-mib",
     .kind = OPTION_U32,
     .value = &options.live_mib,
     .words = "MiB that are live all the time",
     .min = 1,
     .max = 4096},
    PROGRAM_SEED(&options.seed),
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    static result_t result;
    program_begin(argc, argv, "Resident memory of a long run with changing sizes", known,
                  sizeof known / sizeof known[0]);
    heap = program_heap(options.level, 0);
    run(&result);
    alloc_heap_destroy(heap);
    alloc_thread_end();
    program_print_identity();
    print_result(&result);
    return 0;
}
