/* hakheap level 8: mapping - large blocks that leave a heap */
#ifndef HAK_MAPPING_H
#define HAK_MAPPING_H

#include "heap.h"

/*
 * Role: unmaps large blocks and takes them off what the heap has committed. Callers: drain, trim,
 * life. Lock: HEAP, except where a call says so.
 */

/* Unmaps a block that is in no list. False, and hak_last_error(), where the kernel refuses: nothing
 * has changed. No lock needed: the kernel takes long over a mapping that was used. */
bool mapping_unmap(const large_t *large, large_t *tombstone);

/* Unmaps a large block that large_evict took out. False, and hak_last_error(), where the kernel
 * refuses: nothing has changed, and it is in no list. */
bool mapping_drop(hak_heap_t *heap, large_t *large, large_t *tombstone);
/* All of them, live and cached. Where the kernel refuses to unmap, the pages go and the address
 * space stays. */
void mapping_empty(hak_heap_t *heap);

#endif
