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
 */

/* Charges bytes. False: hak_last_error() is HAK_ERROR_LIMIT, and *full says which heap, or
 * HAK_ERROR_FENCE: the kernel refused the fence, and caches could not be emptied. Inside the gate. */
bool recall_charge(hak_heap_t *heap, size_t bytes, refused_t *refused);
/* Returns what `top`, which is this heap or above it, and all heaps below have borrowed and cached,
 * as far as it is not live. False: as above. */
bool recall_all(hak_heap_t *heap, ledger_t *top);

#endif
