/* What the stress programs share: options, the clock, the end by a message, and blocks that know
 * their own content. */
#ifndef HAK_SUPPORT_STRESS_H
#define HAK_SUPPORT_STRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hakheap.h"
#include "support_random.h"

typedef struct stress_options {
    unsigned seconds, threads;
    uint64_t seed;
} stress_options_t;

/* --seconds N, --threads N, --seed N; prints what is run. Exits 2 on anything else. */
stress_options_t stress_begin(int argc, char *argv[], unsigned threads);

/* Sleeps until the time is over, then makes stress_is_over() true. */
void stress_wait(const stress_options_t *options);
bool stress_is_over(void);

/* Writes a message and ends the process with status 1, from any thread. */
_Noreturn void stress_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define STRESS_REQUIRE(x)                                                     \
    do {                                                                      \
        if (!(x)) stress_fail("%s:%d: not true: %s", __FILE__, __LINE__, #x); \
    } while (0)

/*
 * A block whose first 16 bytes say how long it is and whose it is, and whose other bytes follow
 * from them: whoever holds the pointer can prove every byte, whichever thread wrote it.
 */
enum { STRESS_LEAST = 16 };
/* Writes all `bytes` of a block, at least STRESS_LEAST. `mark`: 16 bits for the caller. */
void stress_write(void *block, size_t bytes, uint32_t seed, uint16_t mark);
/* Proves all bytes, or fails. Returns how many, and the mark where `mark` is not NULL. */
size_t stress_prove(const void *block, uint16_t *mark);

/* A size of a server's mix: mostly small; some up to 32 KiB; one in 256 mid; one in 4096 large. */
size_t stress_size(randoms_t *randoms);

/* The end of a heap that nobody uses: all blocks are free, everything balances, flush leaves
 * nothing cached. */
void stress_prove_empty(hak_heap_t *heap, const char *name);

/*
 * A heap that has homes (heap.h). Divide lets it take as many runs as that needs, and gives them
 * back: it stays divided. Posted says how many blocks its CPUs have freed for each other, 0 where
 * counters are not compiled in; prove_posted fails where they are, and there is more than one CPU,
 * and it is 0.
 */
void stress_divide(hak_heap_t *heap);
bool stress_is_divided(const hak_heap_t *heap);
uint64_t stress_posted(const hak_heap_t *heap);
void stress_prove_posted(uint64_t posted);

#endif
