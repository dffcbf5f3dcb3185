/* hakheap level 14: recall - room for a request in a tree of heaps that is full */
#ifndef HAK_RECALL_H
#define HAK_RECALL_H

#include "heap.h"

/*
 * Role: charges a metered heap for a request, and where its chain has no room recalls what the heaps
 * below the full one have borrowed and cached. Callers: api, tree. Lock: SQUEEZE, one recall of the
 * process at a time, with no other lock held; a fork is let go first between two steps.
 *
 *   credit of the heap --> borrowed from its chain --> refused
 *                                                        | nothing was freed since the last refusal: fail
 *                                                        v
 *     recall of all below the full heap, LEDGER_AT_ONCE heaps a step: tight, one fence, caches to slabs,
 *     credits to the chain; then once more from the start; refused by the same heap again: fail
 *
 * So a request fails only where live and charge are more than a limit of the chain, as long as no
 * other thread allocates or frees meanwhile.
 *
 * Where the ladder below meets the limit of a footprint, the same is recalled, and memory that the
 * heaps have in use without need goes, too; then the ladder is tried once more (recall_room).
 */

typedef enum charged { CHARGE_REFUSED, CHARGED, CHARGED_DUE } charged_t;

/* Charges bytes; CHARGED_DUE: and a soft limit is to be told. CHARGE_REFUSED: hak_last_error() is
 * HAK_ERROR_LIMIT, and *refused says which heap, or HAK_ERROR_FENCE: the kernel refused the fence,
 * and caches could not be emptied. Inside the gate. */
charged_t recall_charge(hak_heap_t *heap, size_t bytes, refused_t *refused);

/* What a request has tried so far; all zeros at first, but where `least` says how many bytes more than
 * a page it needs, if it needs any. */
typedef struct tried {
    size_t least;
    const ledger_t *full;
    uint64_t epoch;
    unsigned rounds;
} tried_t;

/* Makes room for what has just refused to let the heap's footprint grow. False: there is none, as
 * above. Inside the gate. */
bool recall_room(hak_heap_t *heap, tried_t *tried, refused_t *refused);
/* Returns what `top`, which is this heap or above it, and all heaps below have borrowed and cached,
 * as far as it is not live, and for the sake of the footprint what they have in use without need.
 * False: hak_last_error() is HAK_ERROR_FENCE. */
bool recall_all(hak_heap_t *heap, ledger_t *top, unsigned measure);
/* Whether a frame lies inside of a callback, as tls_is_pressed, or in a handler on a stack of its
 * own that may have interrupted one: there frames say nothing. Any time. */
bool recall_is_pressed(uint32_t frame);

#endif
