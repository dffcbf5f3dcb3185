/* hakheap level 8: mapping - large blocks that leave a heap */
#include "mapping.h"

#include "os.h"
#include "tls.h"

static void forget_large(hak_heap_t *heap, large_t *large)
{
    heap_uncharge(heap, large_bytes(large));
    large_put_unused(&heap->large, large);
}

bool mapping_unmap(const large_t *large, large_t *tombstone)
{
    if (large_unmap(large_base(large), large_bytes(large), tombstone)) return true;
    hak_tls.last_error = HAK_ERROR_PURGE;
    return false;
}

bool mapping_drop(hak_heap_t *heap, large_t *large, large_t *tombstone)
{
    if (!mapping_unmap(large, tombstone)) return false;
    forget_large(heap, large);
    return true;
}

void mapping_empty(hak_heap_t *heap)
{
    large_set_t *set = &heap->large;
    for (large_t *large; (large = set->live) != NULL; large_cache(set, large))
        large_remove(set, large);
    for (large_t *large; (large = large_evict(set, 0)) != NULL;) {
        if (mapping_drop(heap, large, LARGE_DEAD)) continue;
        large_bury(large_base(large), large_bytes(large), LARGE_DEAD);
        (void)os_purge(large_base(large), large_bytes(large));
        forget_large(heap, large);
    }
    set->mids = NULL;
    set->mid_blocks = set->mid_bytes = 0;
}
