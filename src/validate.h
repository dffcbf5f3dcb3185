/* hakheap level 14: validate - the walk that proves a heap sound */
#ifndef HAK_VALIDATE_H
#define HAK_VALIDATE_H

#include "heap.h"

/*
 * Role: hak_heap_check. Callers: api, inside the gate. Holds every lock of the heap while it walks.
 */

/* The whole-heap check: 0, EFAULT after a line, ENOMEM, EAGAIN. */
int validate_heap(hak_heap_t *heap);

#endif
