#define _GNU_SOURCE
#include "support_contract.h"

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

hak_heap_t *contract_heap(int level, const char *name)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = name;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    return hak_heap_create(&config);
}

size_t contract_work(size_t most)
{
    bool quick = CONTRACT_SANITIZED || getenv("HAK_TEST_QUICK");
    return quick ? (most + 7) / 8 : most;
}

bool contract_is_locked(void) { return strcmp(hak_percpu_mode(), "locked") == 0; }

hak_heap_stats_t contract_stats(const hak_heap_t *heap)
{
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    /* A refusal shows as figures that no heap can have. */
    if (hak_heap_stats(heap, &stats) != 0) memset(&stats, 0xff, sizeof stats);
    return stats;
}

size_t contract_cached(const hak_heap_stats_t *stats)
{
    return stats->hot_bytes + stats->spare_bytes + stats->cold_bytes + stats->remote_bytes;
}

void contract_slabs_only(void) { setenv("HAKHEAP_REGION_BYTES", "1", 1); }

size_t contract_sum(const hak_heap_stats_t *stats)
{
    return stats->live_bytes + contract_cached(stats) + stats->free_bytes +
           +stats->untouched_bytes + stats->metadata_bytes;
}

int contract_unsound(const hak_heap_t *heap, size_t live_blocks)
{
    if (hak_heap_check(heap) != 0) return __LINE__;
    hak_heap_stats_t stats = contract_stats(heap);
    if (contract_sum(&stats) != stats.committed_bytes) return __LINE__;
    if (stats.live_blocks != live_blocks) return __LINE__;
    if (live_blocks == 0 && stats.live_bytes != 0) return __LINE__;
    if (stats.peak_bytes < stats.committed_bytes) return __LINE__;
    if (stats.resident_bytes > stats.committed_bytes) return __LINE__;
    if (stats.resident_bytes < stats.live_bytes + contract_cached(&stats)) return __LINE__;
    if (!contract_is_charged(heap)) return __LINE__;
    return 0;
}

/* ---- The process ---- */

size_t contract_resident(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "re");
    if (!file) return 0;
    char line[256];
    size_t kib = 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "Rss: %zu kB", &kib) == 1) break;
    fclose(file);
    return kib * 1024;
}

size_t contract_mappings(void)
{
    FILE *file = fopen("/proc/self/maps", "re");
    if (!file) return 0;
    size_t lines = 0;
    for (int c; (c = fgetc(file)) != EOF;) lines += c == '\n';
    fclose(file);
    return lines;
}

size_t contract_cpus(int *out, size_t most)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    size_t count = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && count < most; cpu++)
        if (CPU_ISSET((size_t)cpu, &set)) out[count++] = cpu;
    return count;
}

bool contract_move_to(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    return sched_setaffinity(0, sizeof set, &set) == 0;
}

/* ---- Content ---- */

bool contract_is_zero(const void *at, size_t bytes)
{
    const unsigned char *byte = at;
    return bytes == 0 || (byte[0] == 0 && memcmp(byte, byte + 1, bytes - 1) == 0);
}

/* Words that differ by place and by seed, so that a block that moved, or two that overlap, do not
 * look alike. */
static uint64_t word_at(size_t index, size_t bytes, unsigned seed)
{
    return ((uint64_t)seed << 32 ^ bytes) * 0x9e3779b97f4a7c15ull + index * 0xd1342543de82ef95ull;
}

void contract_fill(void *at, size_t bytes, unsigned seed)
{
    unsigned char *byte = at;
    size_t i = 0;
    for (uint64_t word; i + sizeof word <= bytes; i += sizeof word) {
        word = word_at(i, bytes, seed);
        memcpy(byte + i, &word, sizeof word);
    }
    uint64_t last = word_at(i, bytes, seed);
    memcpy(byte + i, &last, bytes - i);
}

bool contract_holds(const void *at, size_t bytes, unsigned seed)
{
    const unsigned char *byte = at;
    size_t i = 0;
    for (uint64_t word; i + sizeof word <= bytes; i += sizeof word) {
        word = word_at(i, bytes, seed);
        if (memcmp(byte + i, &word, sizeof word) != 0) return false;
    }
    uint64_t last = word_at(i, bytes, seed);
    return memcmp(byte + i, &last, bytes - i) == 0;
}
