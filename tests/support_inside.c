/* What tests ask of a heap that only its inside can tell. */
#include "support_contract.h"

#include "walk.h"

size_t contract_cradle(const hak_heap_t *heap)
{
    const region_t *cradle = &heap->near_region[0];
    return GRANULE - (size_t)(cradle->record_end - cradle->record) * REGION_UNIT;
}

size_t contract_room(const hak_heap_t *heap, unsigned cls)
{
    class_state_t *state = heap_class_made(heap, cls);
    size_t blocks = 0;
    if (!state) return 0;
    lock_acquire(&state->lock, RANK_CLASS);
    blocks = walk_sums(state).blocks;
    lock_release(&state->lock, RANK_CLASS);
    return blocks;
}

static size_t charged_in_area(hak_heap_t *heap, area_at_t at)
{
    size_t bytes = 0;
    FOR_CLASSES (cls, &heap->made)
        FOR_WORDS (kind, at)
            bytes += load_relaxed(&area_magazine(at, cls, kind)->limit) * size_classes[cls].bytes;
    return bytes;
}

/* Limits of all areas, those without a CPU too, what lies in cold chains, and what was left on
 * remote lists in the gate: what the heap's budget has been charged for, see adapt.h. */
static size_t charged(hak_heap_t *heap)
{
    size_t bytes = 0;
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    FOR_AREAS (at, &heap->percpu) bytes += charged_in_area(heap, at);
    for (area_t *area = *percpu_idle(&heap->percpu); area; area = area->next)
        bytes += charged_in_area(heap, area_at(area, 0));
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        size_t blocks[WALK_PLACES];
        lock_acquire(&state->lock, RANK_CLASS);
        walk_count(heap, state, blocks);
        lock_release(&state->lock, RANK_CLASS);
        bytes +=
            (blocks[WALK_COLD] + load_relaxed(&state->remote_charged)) * size_classes[cls].bytes;
    }
    lock_release(&heap->areas_lock, RANK_AREAS);
    if (load_relaxed(&heap->busy) == BUSY_POCKETS)
        for (unsigned cls = 0; cls < POCKET_CLASSES; cls++)
            bytes += pocket_most(size_classes[cls].bytes / REGION_UNIT) * size_classes[cls].bytes;
    return bytes;
}

bool contract_is_charged(const hak_heap_t *heap)
{
    hak_heap_t *at = (hak_heap_t *)(uintptr_t)heap;
    return load_relaxed(&at->budget.room) + (int64_t)charged(at) ==
           (int64_t)heap->settings.cache_bytes;
}
