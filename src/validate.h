/* hakheap level 14: validate - the walk that proves a heap sound */
#ifndef HAK_VALIDATE_H
#define HAK_VALIDATE_H

#include "heap.h"

/*
 * Role: hak_heap_check. Callers: api, inside the gate. Holds every lock of the heap while it walks,
 * and passes them on: a malloc that misses waits for one check, whatever number goes on.
 */

/* The whole-heap check: 0, ENOMEM, EAGAIN; EFAULT: *fault says what is wrong first of all. The
 * caller prints it, outside of the gate: a write may take any time. */
int validate_heap(hak_heap_t *heap, hak_fault_t *fault);

#endif
