#define _GNU_SOURCE
#include "support_stress.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "heap.h"
#include "home.h"
#include "support_contract.h"

static _Atomic bool over;

static unsigned long number_of(const char *option, const char *text)
{
    char *end = NULL;
    unsigned long value = text ? strtoul(text, &end, 0) : 0;
    if (!text || end == text || *end != '\0') {
        fprintf(stderr, "%s needs a number\n", option);
        exit(2);
    }
    return value;
}

stress_options_t stress_begin(int argc, char *argv[], unsigned threads)
{
    stress_options_t options = {.seconds = 2, .threads = threads, .seed = 1};
    for (int i = 1; i < argc; i += 2) {
        const char *text = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--seconds") == 0) {
            options.seconds = (unsigned)number_of(argv[i], text);
        } else if (strcmp(argv[i], "--threads") == 0) {
            options.threads = (unsigned)number_of(argv[i], text);
        } else if (strcmp(argv[i], "--seed") == 0) {
            options.seed = number_of(argv[i], text);
        } else {
            fprintf(stderr, "%s: options are --seconds N, --threads N and --seed N\n", argv[0]);
            exit(2);
        }
    }
    if (options.threads == 0 || options.threads > 256) {
        fprintf(stderr, "--threads: 1 to 256\n");
        exit(2);
    }
    printf("%s: %u s, %u threads, seed %llu, magazines %s\n", argv[0], options.seconds,
           options.threads, (unsigned long long)options.seed, hak_percpu_mode());
    fflush(stdout);
    return options;
}

void stress_wait(const stress_options_t *options)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)options->seconds;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
    atomic_store(&over, true);
}

bool stress_is_over(void) { return atomic_load_explicit(&over, memory_order_relaxed); }

_Noreturn void stress_fail(const char *format, ...)
{
    /* One write, so that the messages of two threads do not mix. */
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    size_t used = length < 0                         ? 0
                  : (size_t)length < sizeof line - 1 ? (size_t)length
                                                     : sizeof line - 2;
    line[used] = '\n';
    if (write(STDERR_FILENO, line, used + 1) < 0) _exit(1);
    _exit(1);
}

/* ---- Blocks ---- */

typedef struct head {
    uint32_t bytes, seed;
    uint16_t mark, check16;
    uint32_t check;
} head_t;

_Static_assert(sizeof(head_t) == STRESS_LEAST, "the head is what every block has room for");

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    return z ^ (z >> 27);
}

static head_t head_of(size_t bytes, uint32_t seed, uint16_t mark)
{
    uint64_t mixed = mix((uint64_t)seed << 32 ^ bytes ^ (uint64_t)mark << 48 ^ 0x5bd1e995);
    return (head_t){(uint32_t)bytes, seed, mark, (uint16_t)(mixed >> 48), (uint32_t)mixed};
}

void stress_write(void *block, size_t bytes, uint32_t seed, uint16_t mark)
{
    head_t head = head_of(bytes, seed, mark);
    memcpy(block, &head, sizeof head);
    unsigned char *at = (unsigned char *)block + sizeof head, *end = (unsigned char *)block + bytes;
    for (uint64_t word = head.check; at < end; at += sizeof word, word += 0x9e3779b97f4a7c15ull) {
        size_t left = (size_t)(end - at);
        if (left >= sizeof word) memcpy(at, &word, sizeof word);
        else memcpy(at, &word, left);
    }
}

size_t stress_prove(const void *block, uint16_t *mark)
{
    head_t head;
    memcpy(&head, block, sizeof head);
    head_t wanted = head_of(head.bytes, head.seed, head.mark);
    if (memcmp(&head, &wanted, sizeof head) != 0)
        stress_fail("block %p is torn: head says %u bytes, seed %u, mark %u", block, head.bytes,
                    head.seed, head.mark);
    const unsigned char *at = (const unsigned char *)block + sizeof head;
    const unsigned char *end = (const unsigned char *)block + head.bytes;
    for (uint64_t word = head.check; at < end; at += sizeof word, word += 0x9e3779b97f4a7c15ull) {
        size_t left = (size_t)(end - at);
        if (left >= sizeof word ? memcmp(at, &word, sizeof word) : memcmp(at, &word, left))
            stress_fail("block %p of %u bytes, seed %u, mark %u is torn at byte %zu", block,
                        head.bytes, head.seed, head.mark,
                        (size_t)(at - (const unsigned char *)block));
    }
    if (mark) *mark = head.mark;
    return head.bytes;
}

size_t stress_size(randoms_t *randoms)
{
    unsigned dice = random_below(randoms, 4096);
    if (dice == 0) return 1024 * 1024 + random_below(randoms, 2 * 1024 * 1024);
    if (dice < 16) return 32 * 1024 + random_below(randoms, 200 * 1024);
    if (dice < 256) return 4096 + random_below(randoms, 28 * 1024);
    if (dice < 1024) return STRESS_LEAST + random_below(randoms, 4096);
    return STRESS_LEAST + random_below(randoms, 256);
}

void stress_prove_empty(hak_heap_t *heap, const char *name)
{
    if (hak_heap_check(heap) != 0) stress_fail("%s: check fails before the flush", name);
    (void)hak_heap_flush(heap);
    if (hak_heap_check(heap) != 0) stress_fail("%s: check fails after the flush", name);
    hak_heap_stats_t stats = contract_stats(heap);
    if (stats.live_blocks || stats.live_bytes)
        stress_fail("%s: %zu blocks, %zu bytes live at the end", name, stats.live_blocks,
                    stats.live_bytes);
    if (contract_cached(&stats))
        stress_fail("%s: %zu bytes cached after the flush", name, contract_cached(&stats));
    if (stats.phantom_superslabs)
        stress_fail("%s: %zu phantoms after the flush", name, stats.phantom_superslabs);
    if (!contract_is_charged(heap)) stress_fail("%s: the budget is charged wrongly", name);
    if (contract_sum(&stats) != stats.committed_bytes)
        stress_fail("%s: %zu bytes by the balance, %zu committed", name, contract_sum(&stats),
                    stats.committed_bytes);
}

/* ---- Homes ---- */

void stress_divide(hak_heap_t *heap)
{
    enum { MID = 40000 };
    void *mids[DIVIDE_RUNS], *small;
    for (int i = 0; i < DIVIDE_RUNS; i++)
        STRESS_REQUIRE((mids[i] = hak_heap_malloc(heap, MID)) != NULL);
    STRESS_REQUIRE((small = hak_heap_malloc(heap, 30000)) != NULL); /* a miss divides */
    hak_heap_free(heap, small);
    for (int i = 0; i < DIVIDE_RUNS; i++) hak_heap_free(heap, mids[i]);
    STRESS_REQUIRE(stress_is_divided(heap));
}

bool stress_is_divided(const hak_heap_t *heap) { return load_relaxed(&heap->divided) == DIVIDED; }

uint64_t stress_posted(const hak_heap_t *heap)
{
    return load_relaxed(
        &((hak_heap_t *)(uintptr_t)heap)->counters.count[HAK_COUNTERS ? COUNTER_outbox : 0]);
}

void stress_prove_posted(uint64_t posted)
{
    int cpus[2];
    if (!HAK_COUNTERS) return;
    printf("%llu blocks freed for another CPU\n", (unsigned long long)posted);
    if (contract_cpus(cpus, 2) == 2 && !posted) stress_fail("no block went through an outbox");
}
