/* Runs of players over a world, in this process. */
#ifndef HAK_FUZZ_RUN_H
#define HAK_FUZZ_RUN_H

#include "player.h"

typedef struct fuzz_sequence {
    fuzz_header_t header;
    const fuzz_operation_t *operations;
    size_t count;
} fuzz_sequence_t;

/* For a test of the fuzzer itself: a trim after a burst is a failure. */
extern bool fuzz_trap;

/* The sequence that bytes are: what is left of 8 is cut. False: not even a header. */
bool fuzz_parse(fuzz_sequence_t *out, const void *bytes, size_t length);

/* One player does a sequence. */
void fuzz_run_sequence(const fuzz_sequence_t *sequence);
/* Players do random operations: `operations` each, or where that is 0 for so many seconds. The same
 * seed gives one player the same operations. Returns the number of calls of the library. */
uint64_t fuzz_run_random(unsigned threads, uint64_t seed, size_t operations, unsigned seconds);
/* The sequence that one player with that seed does. `operations` has room for `count`. */
void fuzz_random_sequence(fuzz_sequence_t *out, uint64_t seed, fuzz_operation_t *operations,
                          size_t count);

#endif
