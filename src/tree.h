/* hakheap level 14: tree - heaps that go with the heap above them */
#ifndef HAK_TREE_H
#define HAK_TREE_H

#include "heap.h"

/*
 * Role: destroys a heap, and empties one, with all heaps below it, deepest first. Callers: api,
 * inside the gate, which is left while callbacks run, and for a moment between two heaps where a
 * fork waits.
 */

/* To be run before the heap's blocks go; any thread, no lock. */
void tree_on_destroy(hak_heap_t *heap, hak_on_destroy_t *node);
/* False: it is destroyed already. */
bool tree_destroy(hak_heap_t *heap);
void tree_reset(hak_heap_t *heap);

#endif
