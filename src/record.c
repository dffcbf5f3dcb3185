/* hakheap level 8: record - memory for a heap's own records */
#include "record.h"

#include "stall.h"
#include "tls.h"

char *record_pages(size_t pages)
{
    uint32_t error = HAK_ERROR_COMMIT;
    char *page = meta_take(pages, &error);
    if (!page) hak_tls.last_error = error;
    return page;
}

static void *from_room(hak_heap_t *heap, size_t bytes)
{
    for (int i = 0; i < 2; i++) {
        char *at = heap->room[i];
        if ((size_t)(heap->room_end[i] - at) < bytes) continue;
        heap->room[i] = at + bytes;
        return memset(at, 0, bytes);
    }
    return NULL;
}

void *record_take(hak_heap_t *heap, size_t bytes, bool may_wait)
{
    hak_assert(lock_is_held(&heap->lock));
    bytes = hak_round_up(bytes, HAK_LINE);
    void *at = from_room(heap, bytes);
    if (at) return at;
    size_t pages = (bytes + HAK_LINE + HAK_PAGE - 1) / HAK_PAGE;
    char *page = may_wait ? record_pages(pages) : meta_take_now(pages);
    if (!page) return NULL;
    heap_charge_records(heap, pages * HAK_PAGE);
    meta_page_t *header = (meta_page_t *)(void *)page;
    *header = (meta_page_t){heap->pages, pages};
    heap->pages = header;
    int smaller = heap->room_end[0] - heap->room[0] > heap->room_end[1] - heap->room[1];
    /* The same records of many heaps must not all fall in the same cache sets: see place(). */
    size_t spare = pages * HAK_PAGE - HAK_LINE - bytes;
    size_t colour = ((uintptr_t)page >> HAK_PAGE_SHIFT) %
                    (hak_min(spare, HEAP_COLOURS * HAK_LINE) / HAK_LINE + 1);
    heap->room[smaller] = page + HAK_LINE + colour * HAK_LINE;
    heap->room_end[smaller] = page + pages * HAK_PAGE;
    return from_room(heap, bytes);
}

area_t *record_area(hak_heap_t *heap, bool may_wait)
{
    if (heap->first_area_used) return record_take(heap, sizeof(area_t), may_wait);
    heap->first_area_used = true;
    return memset(&heap->first_area, 0, sizeof heap->first_area);
}

class_state_t *record_class(hak_heap_t *heap, unsigned cls)
{
    class_state_t *state = heap_class_made(heap, cls);
    if (HAK_LIKELY(state)) return state;
    STALL(class_missed);
    lock_acquire(&heap->lock, RANK_HEAP);
    state = load_relaxed(&heap->classes[cls]);
    if (!state && (state = record_take(heap, sizeof *state, true)) != NULL) {
        state->cls = (uint16_t)cls;
        /* Release: pairs with the acquire in heap_class_made. */
        store_release(&heap->classes[cls], state);
        class_bits_add(&heap->made, cls);
    }
    lock_release(&heap->lock, RANK_HEAP);
    return state;
}
