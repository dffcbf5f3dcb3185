/* hakheap level 8: mapping - large blocks that come to a heap and leave it */
#include "mapping.h"

#include "os.h"
#include "stall.h"
#include "tls.h"

char *mapping_take(large_t *record, size_t bytes, size_t alignment, size_t *dirty)
{
    size_t aligned = hak_max(alignment, SUPERSLAB);
    char *base = reserve_take_pieces(&process_reserve, bytes, aligned, &record->parts, dirty);
    if (base) return base;
    record->parts.count = 0;
    *dirty = 0;
    base = large_map(bytes, alignment);
    if (base) return base;
    reserve_note_large(&process_reserve, 0, bytes);
    hak_tls.last_error = HAK_ERROR_COMMIT;
    return NULL;
}

static void forget_large(hak_heap_t *heap, large_t *large, bool may_wait)
{
    size_t bytes = large_bytes(large);
    large_remove(&heap->large, large);
    large_put_unused(&heap->large, large);
    heap_uncharge(heap, bytes);
    if (HAK_LIKELY(!heap->ledger)) return;
    if (large->charge_moved || !ledger_keep_freed(heap->ledger, bytes)) heap_settle(heap, may_wait);
}

/* The tombstone first: once it is a piece, the block's address may be another's at once. */
bool mapping_give(hak_heap_t *heap, large_t *large, large_t *tombstone, bool may_wait)
{
    piece_t block = {.base = large_base(large), .bytes = large_bytes(large), .giver = heap};
    size_t limit = heap->settings.large_cache_bytes;
    large_bury(block.base, block.bytes, tombstone);
    STALL(large_buried);
    if (reserve_put_pieces(&process_reserve, block, &large->parts, limit, may_wait)) {
        forget_large(heap, large, may_wait);
        return true;
    }
    registry_set_range(block.base, block.bytes, large);
    return false;
}

/* The reserve has no room for more before its next step. */
static void unmap(hak_heap_t *heap, large_t *large)
{
    char *base = large_base(large);
    size_t bytes = large_bytes(large);
    if (!large_unmap(base, bytes, LARGE_DEAD)) {
        hak_tls.last_error = HAK_ERROR_PURGE;
        large_bury(base, bytes, LARGE_DEAD);
        (void)os_purge(base, bytes);
    }
    reserve_note_large(&process_reserve, 0, bytes);
    forget_large(heap, large, true);
}

void mapping_empty(hak_heap_t *heap)
{
    large_set_t *set = &heap->large;
    for (large_t *large; (large = set->live) != NULL;)
        if (!mapping_give(heap, large, LARGE_DEAD, true)) unmap(heap, large);
    set->mids = NULL;
    set->mid_blocks = set->mid_bytes = 0;
}
