/* hakheap level 0: base_tls - what a call keeps per thread while it runs */
#ifndef HAK_TLS_H
#define HAK_TLS_H

#include <stdint.h>

/*
 * No heap state lives here: only how deep the running thread is inside the library, so that a
 * signal handler that interrupted it can be told EDEADLK, and the word for hak_last_error().
 * Initial-exec, so that no access allocates.
 */
typedef struct hak_tls {
    uint32_t depth;      /* ladders this thread is inside of */
    uint32_t ranks;      /* debug builds: a bit for each lock rank held */
    uint32_t last_error; /* hak_error_t */
    uint32_t
        /* forks that this thread is inside of; more than one where a handler forks in a fork */
        closing;
    uint32_t closer;     /* the outermost of them closes the gate */
    uint32_t gate_shard; /* the shard of the fork gate that the running ladder counted itself in, */
    uint32_t gate_epoch; /* and which of the two sets of shards */
} hak_tls_t;

extern _Thread_local hak_tls_t hak_tls __attribute__((tls_model("initial-exec")));

#endif
