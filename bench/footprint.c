/*
 * What memory hakheap costs: many small blocks in one heap, and many heaps with one block each. Prints one line of
 * key=value pairs for each question, resident memory in KiB, from the kernel's own books.
 *
 *   build/bench/footprint [--level fast|checked] [--blocks N] [--size BYTES] [--heaps N]
 *
 * idle: the same process after one allocation, its free and a trim. floor: idle + the blocks' bytes + the array of
 * pointers to them, which is the program's own. Nothing below it is possible for any allocator.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "hakheap.h"
#include "harness.h"

static struct {
    const char *level;
    size_t blocks, size, heaps;
} options = {"fast", 1000000, 16, 10000};

/* A field of /proc/self/status, in KiB. */
static size_t status_kib(const char *field)
{
    char text[4096];
    int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) close(file);
    if (length <= 0) harness_exit(HARNESS_FAILED, "cannot read /proc/self/status");
    text[length] = '\0';
    const char *at = strstr(text, field);
    if (!at) harness_exit(HARNESS_FAILED, "the kernel does not tell %s", field);
    return (size_t)strtoull(at + strlen(field), NULL, 10);
}

static hak_heap_t *make_heap(void)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "footprint";
    config.level = strcmp(options.level, "checked") == 0 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    hak_heap_t *heap = hak_heap_create(&config);
    if (!heap) harness_exit(HARNESS_FAILED, "cannot create a heap: %m");
    return heap;
}

static void *map_array(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) harness_exit(HARNESS_FAILED, "no memory for the program's own array");
    return at;
}

static void measure_blocks(void)
{
    hak_heap_t *heap = make_heap();
    void **block = map_array(options.blocks * sizeof *block);
    hak_heap_free(heap, hak_heap_malloc(heap, options.size));
    hak_heap_trim(heap, 0);
    size_t idle = harness_resident_kib();
    for (size_t i = 0; i < options.blocks; i++) {
        block[i] = hak_heap_malloc(heap, options.size);
        if (!block[i]) harness_exit(HARNESS_FAILED, "no memory for block %zu", i);
        memset(block[i], (int)i, options.size);
    }
    size_t peak = harness_resident_kib();
    for (size_t i = 0; i < options.blocks; i++) hak_heap_free(heap, block[i]);
    munmap(block, options.blocks * sizeof *block);
    size_t freed = harness_resident_kib();
    size_t flushed_bytes = hak_heap_flush(heap);
    size_t flushed = harness_resident_kib();
    size_t trimmed_bytes = hak_heap_trim(heap, 0);
    size_t trimmed = harness_resident_kib();
    size_t floor = idle + (options.blocks * (options.size + sizeof *block) + 1023) / 1024;
    printf("blocks=%zu size=%zu level=%s mode=%s idle_kib=%zu floor_kib=%zu peak_kib=%zu peak_over_floor=%.4f "
           "freed_kib=%zu flushed_kib=%zu flushed_bytes=%zu trimmed_kib=%zu trimmed_bytes=%zu "
           "trimmed_over_idle_kib=%ld\n",
           options.blocks, options.size, options.level, hak_percpu_mode(), idle, floor, peak,
           (double)peak / (double)floor, freed, flushed, flushed_bytes, trimmed, trimmed_bytes,
           (long)trimmed - (long)idle);
    hak_heap_destroy(heap);
}

static size_t cost_kib(void) { return status_kib("VmRSS:") + status_kib("VmPTE:"); }

static void measure_heaps(void)
{
    hak_heap_t **heap = map_array(options.heaps * sizeof(hak_heap_t *));
    memset(heap, 0, options.heaps * sizeof(hak_heap_t *));
    size_t before = cost_kib();
    uint64_t begin = harness_now();
    for (size_t i = 0; i < options.heaps; i++) {
        heap[i] = make_heap();
        void *block = hak_heap_malloc(heap[i], 64);
        if (!block) harness_exit(HARNESS_FAILED, "no memory in heap %zu", i);
        memset(block, 1, 64);
    }
    uint64_t made = harness_now();
    size_t live = cost_kib();
    for (size_t i = 0; i < options.heaps; i++) hak_heap_destroy(heap[i]);
    uint64_t gone = harness_now();
    size_t destroyed = cost_kib();
    hak_reserve_trim();
    size_t trimmed = cost_kib();
    printf("heaps=%zu level=%s mode=%s kib_a_heap=%.2f create_and_malloc_ns=%.0f destroy_ns=%.0f before_kib=%zu "
           "live_kib=%zu destroyed_kib=%zu reserve_trimmed_kib=%zu\n",
           options.heaps, options.level, hak_percpu_mode(), (double)(live - before) / (double)options.heaps,
           (double)(made - begin) / (double)options.heaps, (double)(gone - made) / (double)options.heaps, before,
           live, destroyed, trimmed);
    munmap(heap, options.heaps * sizeof(hak_heap_t *));
}

int main(int argc, char **argv)
{
    static const struct option known[] = {{"level", required_argument, NULL, 'l'},
                                          {"blocks", required_argument, NULL, 'b'},
                                          {"size", required_argument, NULL, 's'},
                                          {"heaps", required_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    static const char *const levels[] = {"fast", "checked"};
    for (int code; (code = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (code == 'l') options.level = levels[harness_choice("level", optarg, levels, 2)];
        else if (code == 'b') options.blocks = harness_number("blocks", optarg, 1, 1000000000);
        else if (code == 's') options.size = harness_number("size", optarg, 1, 1u << 30);
        else if (code == 'h') options.heaps = harness_number("heaps", optarg, 1, 10000000);
        else return HARNESS_USAGE;
    }
    measure_blocks();
    measure_heaps();
    return 0;
}
