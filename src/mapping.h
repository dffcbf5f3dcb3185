/* hakheap level 8: mapping - large blocks that come to a heap and leave it */
#ifndef HAK_MAPPING_H
#define HAK_MAPPING_H

#include "heap.h"

/*
 * Role: where the pages of large blocks come from, and where they go: the process's reserve and the
 * kernel. Callers: refill, drain, life. Lock: HEAP, except where a call says so.
 */

/* Pages for a large block, whose record is in no list: of the reserve, else fresh. NULL, and
 * hak_last_error(): refused. What may not read as zero is the first *dirty bytes. No lock needed. */
char *mapping_take(large_t *record, size_t bytes, size_t alignment, size_t *dirty);
/* Gives a freed block to the reserve. False: may not wait, and the reserve is busy or full; nothing
 * has changed. */
bool mapping_give(hak_heap_t *heap, large_t *large, large_t *tombstone, bool may_wait);
/* The same of all of them. Where the reserve is full and the kernel refuses to unmap, the pages go
 * and the address space stays. */
void mapping_empty(hak_heap_t *heap);

#endif
