/*
 * What many heaps cost, with one 64-byte block each: resident memory and page tables in KiB, from the kernel's own books,
 * and the time of create and destroy. Prints one line of key=value pairs.
 *
 *   build/bench/footprint [--level fast|checked] [--heaps N]
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <stdbool.h>

#include "harness.h"

#include "adapter_hakheap.h"
#include "program.h"

static struct {
    const char *level;
    size_t heaps;
} options = {"fast", 10000};

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

static size_t cost_kib(void) { return status_kib("VmRSS:") + status_kib("VmPTE:"); }

static void measure_heaps(void)
{
    hak_heap_t **heap = program_map(options.heaps * sizeof(hak_heap_t *));
    memset(heap, 0, options.heaps * sizeof(hak_heap_t *));
    size_t before = cost_kib();
    uint64_t begin = harness_now();
    for (size_t i = 0; i < options.heaps; i++) {
        heap[i] = program_heap(options.level, (unsigned)i);
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
    static const struct option known[] = {
        {"level", required_argument, NULL, 'l'}, {"heaps", required_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    for (int code; (code = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (code == 'l') options.level = level_names[harness_choice("level", optarg, level_names, LEVELS)];
        else if (code == 'h') options.heaps = harness_number("heaps", optarg, 1, 10000000);
        else return HARNESS_USAGE;
    }
    measure_heaps();
    return 0;
}
