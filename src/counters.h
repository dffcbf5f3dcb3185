/* hakheap level 1: counters - debug counters, one table row each; compiled in by COUNTERS=1 */
#ifndef HAK_COUNTERS_H
#define HAK_COUNTERS_H

#include "base.h"

/*
 * Role: how often each way through the heap was taken. Callers: api and the ladders. Counts are
 * relaxed atomics of the heap; they order nothing and stop nothing.
 *
 * X(name, group, what it counts)
 */
#define COUNTERS(X)                                                                       \
    X(refill_hot, "refill stage", "answered by the hot magazine")                         \
    X(refill_spare, "refill stage", "answered by the spare magazine")                     \
    X(refill_cold, "refill stage", "answered by a cold chain")                            \
    X(refill_remote, "refill stage", "blocks came back from the remote list")             \
    X(refill_slab, "refill stage", "answered by a slab")                                  \
    X(refill_fresh_slab, "refill stage", "a slab was made")                               \
    X(refill_region, "refill stage", "answered by a region")                              \
    X(refill_fresh_superslab, "refill stage", "a SuperSlab was taken")                    \
    X(tls_sll, "free pipeline", "pushed on the hot magazine")                             \
    X(outbox, "free pipeline", "pushed on the outbox, for another CPU")                   \
    X(region, "free pipeline", "returned to a region")                                    \
    X(kept_coarse, "free pipeline", "a CPU gave back all that it kept of coarse classes") \
    X(ss_local, "free pipeline", "returned to slabs under the lock (blocks)")             \
    X(ss_remote, "free pipeline", "put on a remote list (blocks)")                        \
    X(early_empty, "early return", "malloc: the hot magazine was empty")                  \
    X(early_full, "early return", "free: the hot magazine was full")                      \
    X(early_stopped, "early return", "the area was stopped for a flush")                  \
    X(early_no_area, "early return", "the CPU had no area yet")                           \
    X(early_no_rseq, "early return", "the thread can use no magazine")                    \
    X(early_wrong_owner, "early return", "free: not a small block of this heap")          \
    X(early_mid, "early return", "a mid block")                                           \
    X(early_large, "early return", "a large block")                                       \
    X(early_reentered, "early return", "a signal handler interrupted a slow path")        \
    X(early_gate, "early return", "free while the process forks")

typedef enum counter {
#define ENUM(name, group, text) COUNTER_##name,
    COUNTERS(ENUM)
#undef ENUM
        COUNTER_COUNT
} counter_t;

typedef struct counters {
    _Atomic uint64_t count[HAK_COUNTERS ? COUNTER_COUNT : 1];
} counters_t;

typedef struct counter_row {
    const char *name, *group, *text;
} counter_row_t;
extern const counter_row_t counter_rows[COUNTER_COUNT];

#define counter_add(counters, name, n)                                                         \
    do {                                                                                       \
        if (HAK_COUNTERS)                                                                      \
            add_relaxed(&(counters)->count[HAK_COUNTERS ? COUNTER_##name : 0], (uint64_t)(n)); \
    } while (0)

#endif
