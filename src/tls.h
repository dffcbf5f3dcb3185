/* hakheap level 0: base_tls - what a call keeps per thread while it runs */
#ifndef HAK_TLS_H
#define HAK_TLS_H

#include "base.h"
#include <stddef.h>

/*
 * No heap state lives here: only how deep the running thread is inside the library, so that a
 * signal handler that interrupted it can be told EDEADLK, and the word for hak_last_error().
 *
 * The record is small because of where it lies. With glibc its model is initial-exec, so that no
 * access allocates; such records of plugins share some 1.6 KiB that a process sets aside for all of
 * them. Each plugin may bring its own copy of the library. Other C libraries set nothing aside, and
 * none of them allocates at an access: there the compiler chooses the model.
 *
 * Only the thread itself writes here, and signal handlers that run on it. A handler leaves all but
 * last_error and gate_place as it found it, so that what shares a byte may be written in two steps.
 */
#ifdef __GLIBC__
#define HAK_TLS_MODEL __attribute__((tls_model("initial-exec")))
#else
#define HAK_TLS_MODEL
#endif

typedef struct hak_tls {
    uint32_t last_error; /* hak_error_t */
    uint8_t gate_place;  /* where in the fork gate the running ladder counted itself in */
    uint8_t depth : 1;   /* ladders this thread is inside of */
    uint8_t closer : 1;  /* the outermost fork that this thread is inside of closes the gate */
    uint8_t
        holds_gate : 1;   /* that fork has the gate's lock; until then it waits for another fork */
    uint8_t resizing : 1; /* a realloc has charged what its block does not have yet, or still */
    uint8_t starting : 1; /* it is starting the process, or waits for another thread that does */
    /* Forks that this thread is inside of; more than one where a handler forks in a fork. Each
     * takes a signal's frame of the stack, so that no stack holds as many as would wrap. */
    uint16_t closing;
    uint64_t section;  /* what sections of locked mode arm: no kernel knows of it */
    uint32_t pressing; /* a frame of the call whose callback runs (press in request.c), or 0 */
    uint32_t ranks[HAK_DEBUG]; /* a bit for each lock rank held */
} hak_tls_t;

_Static_assert(offsetof(hak_tls_t, ranks) == 20, "plugins share little room");

extern _Thread_local hak_tls_t hak_tls HAK_TLS_MODEL;

/* Where the stack is, in units of its alignment: a number that fits the thread-local record. */
HAK_INLINE uint32_t tls_frame(const void *frame) { return (uint32_t)((uintptr_t)frame >> 4) | 1; }
/* Whether a frame lies inside of a callback. One that was left by longjmp, whose frame is no longer
 * above this one, is known by that, and forgotten: stacks grow downwards. */
HAK_INLINE bool tls_is_pressed(uint32_t frame)
{
    if (hak_tls.pressing && (int32_t)(frame - hak_tls.pressing) < 0) return true;
    hak_tls.pressing = 0;
    return false;
}

#endif
