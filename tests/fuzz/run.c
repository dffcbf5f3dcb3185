#define _GNU_SOURCE
#include "run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Players never run in the process's first thread: they move to CPUs, and threads inherit that. */
typedef struct stint {
    pthread_t thread;
    player_t player;
    randoms_t randoms;
    const fuzz_sequence_t *sequence; /* NULL: random operations */
    size_t operations;               /* 0: until the time is over */
    struct timespec until;
} stint_t;

static bool is_over(const stint_t *stint, size_t done)
{
    if (stint->sequence) return done >= stint->sequence->count;
    if (stint->operations) return done >= stint->operations;
    if (done % 64) return false;
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec >= stint->until.tv_sec;
}

bool fuzz_trap;

static void spring_trap(bool *armed, const fuzz_operation_t *operation)
{
    if (*armed && fuzz_verb(operation) == FUZZ_TRIM) fuzz_fail("the trap");
    if (fuzz_verb(operation) == FUZZ_BURST) *armed = true;
}

static void *play(void *arg)
{
    stint_t *stint = arg;
    bool armed = false;
    for (size_t done = 0; !is_over(stint, done); done++) {
        fuzz_operation_t operation = stint->sequence ? stint->sequence->operations[done]
                                                     : fuzz_random_operation(&stint->randoms);
        if (progress) atomic_fetch_add_explicit(&progress->number, 1, memory_order_relaxed);
        player_do(&stint->player, &operation);
        if (fuzz_trap) spring_trap(&armed, &operation);
    }
    player_end(&stint->player);
    return NULL;
}

static void run(stint_t *stints, unsigned count, const fuzz_header_t *header)
{
    world_begin(header, count > 1);
    for (unsigned i = 0; i < count; i++) {
        player_begin(&stints[i].player, i << 28);
        FUZZ_REQUIRE(pthread_create(&stints[i].thread, NULL, play, &stints[i]) == 0);
    }
    for (unsigned i = 0; i < count; i++) pthread_join(stints[i].thread, NULL);
    world_end(count);
}

bool fuzz_parse(fuzz_sequence_t *out, const void *bytes, size_t length)
{
    if (length < sizeof out->header) return false;
    memcpy(&out->header, bytes, sizeof out->header);
    out->operations = (const void *)((const char *)bytes + sizeof out->header);
    out->count = length / sizeof *out->operations - 1;
    return true;
}

void fuzz_run_sequence(const fuzz_sequence_t *sequence)
{
    stint_t stint = {.sequence = sequence};
    run(&stint, 1, &sequence->header);
}

void fuzz_random_sequence(fuzz_sequence_t *out, uint64_t seed, fuzz_operation_t *operations,
                          size_t count)
{
    randoms_t randoms = {seed};
    out->header = fuzz_random_header(&randoms);
    for (size_t i = 0; i < count; i++) operations[i] = fuzz_random_operation(&randoms);
    out->operations = operations;
    out->count = count;
}

uint64_t fuzz_run_random(unsigned threads, uint64_t seed, size_t operations, unsigned seconds)
{
    stint_t *stints = calloc(threads, sizeof *stints);
    FUZZ_REQUIRE(stints != NULL);
    randoms_t randoms = {seed};
    fuzz_header_t header = fuzz_random_header(&randoms);
    for (unsigned i = 0; i < threads; i++) {
        stints[i].randoms.state = randoms.state + ((uint64_t)i << 56);
        stints[i].operations = operations;
        clock_gettime(CLOCK_MONOTONIC, &stints[i].until);
        stints[i].until.tv_sec += seconds;
    }
    run(stints, threads, &header);
    free(stints);
    return world.calls;
}
