/* hakheap level 10: area - finding, making and tagging areas */
#include "area.h"

#include "stall.h"

void area_tag(const hak_heap_t *heap, area_t *area, int index, unsigned cls)
{
    /* While the heap is being divided some of its slabs have no home yet: to free their blocks
     * costs the slow path. */
    unsigned home = home_is_divided(heap) ? registry_home(index) : HOME_NONE;
    if (!area_returns(area, cls)) percpu_tag(area, cls, registry_tag(home, cls));
}

static area_t *make_area(hak_heap_t *heap, unsigned index, bool may_wait)
{
    percpu_t *percpu = &heap->percpu;
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return NULL;
    area_t *area = *percpu_idle(percpu);
    if (area) *percpu_idle(percpu) = area->next;
    else area = record_take(heap, sizeof *area, may_wait);
    lock_release(&heap->lock, RANK_HEAP);
    STALL(area_made);
    if (area) percpu_adopt(percpu, index, area);
    return area;
}

area_t *area_look(hak_heap_t *heap, int *index)
{
    *index = percpu_index();
    return *index < 0 ? NULL : percpu_running(&heap->percpu, (unsigned)*index);
}

area_t *area_get(hak_heap_t *heap, int *index, bool may_wait)
{
    area_t *area = area_look(heap, index);
    if (HAK_LIKELY(area)) return area;
    if (*index < 0) {
        counter_add(&heap->counters, early_no_rseq, 1);
        return NULL;
    }
    if (!lock_enter(&heap->areas_lock, RANK_AREAS, may_wait)) return NULL;
    area = percpu_area(&heap->percpu, (unsigned)*index);
    if (area) counter_add(&heap->counters, early_stopped, 1);
    else counter_add(&heap->counters, early_no_area, 1);
    /* A heap is tight, or closed, before its areas are taken: none is made after that. */
    if (!area && heap_may_cache(heap)) area = make_area(heap, (unsigned)*index, may_wait);
    lock_release(&heap->areas_lock, RANK_AREAS);
    return area;
}

magazine_t *area_outbox(hak_heap_t *heap, area_t *area)
{
    /* Acquire: pairs with the release below; the record is zeroed before. */
    magazine_t *outbox = load_acquire(&area->outbox);
    if (outbox || !lock_try(&heap->lock, RANK_HEAP)) return outbox;
    outbox = load_relaxed(&area->outbox);
    if (!outbox && (outbox = record_take(heap, CLASS_COUNT * sizeof *outbox, false)) != NULL) {
        STALL(outbox_made);
        store_release(&area->outbox, outbox);
    }
    lock_release(&heap->lock, RANK_HEAP);
    return outbox;
}
