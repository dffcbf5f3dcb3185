/* hakheap level 8: record - memory for a heap's own records */
#include "record.h"

#include "stall.h"
#include "tls.h"

static char *record_pages(size_t pages)
{
    uint32_t error = HAK_ERROR_COMMIT;
    char *page = meta_take(pages, &error);
    if (!page) hak_tls.last_error = error;
    return page;
}

char *record_cradle(size_t granules) { return record_pages(granules * GRANULE_PAGES); }

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
    if (!heap_admit(heap, pages * HAK_PAGE, may_wait)) return NULL;
    char *page = may_wait ? record_pages(pages) : meta_take_now(pages);
    if (!page) {
        heap_settle(heap, may_wait);
        return NULL;
    }
    heap_charge_records(heap, pages * HAK_PAGE);
    if (pages >= GRANULE_PAGES) meta_note(page, pages);
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

/* Lock: HEAP. NULL where memory is refused. */
static classes_t *made_classes(hak_heap_t *heap)
{
    classes_t *classes = load_relaxed(&heap->classes);
    if (classes != &heap_no_classes) return classes;
    classes = record_take(heap, sizeof *classes, true);
    /* Release: pairs with the acquire in heap_class_made. */
    if (classes) store_release(&heap->classes, classes);
    return classes;
}

class_state_t *record_class(hak_heap_t *heap, unsigned cls)
{
    class_state_t *state = heap_class_made(heap, cls);
    if (HAK_LIKELY(state)) return state;
    STALL(class_missed);
    lock_acquire(&heap->lock, RANK_HEAP);
    classes_t *classes = made_classes(heap);
    state = classes ? load_relaxed(&classes->at[cls]) : NULL;
    if (classes && !state && (state = record_take(heap, sizeof *state, true)) != NULL) {
        state->cls = (uint8_t)cls;
        /* Release: pairs with the acquire in heap_class_made. */
        store_release(&classes->at[cls], state);
        class_bits_add(&heap->made, cls);
    }
    lock_release(&heap->lock, RANK_HEAP);
    return state;
}
