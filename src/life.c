/* hakheap level 13: life - a heap is created, emptied and destroyed */
#include "life.h"

#include <errno.h>

#include "drain.h"
#include "home.h"
#include "mapping.h"
#include "record.h"
#include "runs.h"
#include "tls.h"

/* A heap with its tables. */
static size_t heap_bytes(void)
{
    return hak_round_up(offsetof(hak_heap_t, percpu) + percpu_bytes(), HAK_LINE);
}
/* One, but for machines of many CPUs. */
static size_t heap_pages(void) { return (heap_bytes() + HAK_PAGE - 1) / HAK_PAGE; }
/* How many places there are for it. */
static size_t heap_colours(void)
{
    return hak_min((heap_pages() * HAK_PAGE - heap_bytes()) / HAK_LINE + 1, HEAP_COLOURS);
}

/* The first area is zeroed when it is first used: most of the record is that, and many a heap lives
 * without. */
static hak_heap_t *place(char *page)
{
    size_t colour = ((uintptr_t)page >> HAK_PAGE_SHIFT) % heap_colours();
    hak_heap_t *heap = (hak_heap_t *)(void *)(page + colour * HAK_LINE);
    memset(heap, 0, offsetof(hak_heap_t, first_area));
    memset(&heap->owner, 0, offsetof(hak_heap_t, percpu) - offsetof(hak_heap_t, owner));
    heap->room[0] = page;
    heap->room_end[0] = (char *)heap;
    heap->room[1] = (char *)heap + heap_bytes();
    heap->room_end[1] = page + heap_pages() * HAK_PAGE;
    return heap;
}

hak_heap_t *life_create(const hak_heap_config_t *config, int *error)
{
    settings_t settings;
    if ((*error = options_read(config, &settings)) != 0) {
        hak_tls.last_error = HAK_ERROR_ARGUMENT;
        return NULL;
    }
    char *page = record_pages(heap_pages());
    if (!page) {
        *error = ENOMEM;
        return NULL;
    }
    hak_heap_t *heap = place(page);
    heap->settings = settings;
    heap->guard.name = heap->settings.name;
    heap->policy = heap_policies[settings.level];
    if (heap->policy.sealed) heap->guard.key = block_next_key();
    heap->key = heap->guard.key;
    heap->owner = entry_owner_bits(heap);
    runs_set_lookup(heap, CLASSES_COARSE);
    heap->large.cache_limit = settings.large_cache_bytes;
    store_relaxed(&heap->budget.room, (int64_t)settings.cache_bytes);
    percpu_init(&heap->percpu);
    heap_charge_records(heap, heap_pages() * HAK_PAGE);
    /* Release: pairs with the acquire in heap_is_valid. */
    store_release(&heap->magic, HEAP_MAGIC ^ (uintptr_t)heap);
    return heap;
}

/* ---- Everything at once ---- */

static void empty_area(area_at_t at)
{
    memset(at.area, 0, offsetof(area_t, outbox));
    if (at.outbox) memset(at.outbox, 0, CLASS_COUNT * sizeof *at.outbox);
}

static void empty_caches(hak_heap_t *heap)
{
    FOR_AREAS (at, &heap->percpu) empty_area(at);
    for (area_t *area = *percpu_idle(&heap->percpu); area; area = area->next)
        empty_area(area_at(area, 0));
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        FOR_SETS (set, state) *set = (slab_set_t){0};
        store_relaxed(&state->outside, 0);
        store_relaxed(&state->remote.head, 0);
        store_relaxed(&state->remote.taken, 0);
        store_relaxed(&state->remote_charged, 0u);
        if (state->cold) state->cold->count = state->cold->blocks = 0;
    }
    store_relaxed(&heap->deferred.head, 0);
    store_relaxed(&heap->deferred.taken, 0);
    store_relaxed(&heap->budget.room, (int64_t)heap->settings.cache_bytes);
}

void life_reset(hak_heap_t *heap)
{
    drain_settle(heap);
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    lock_acquire(&heap->lock, RANK_HEAP);
    runs_empty(heap);
    mapping_empty(heap);
    empty_caches(heap);
    lock_release(&heap->lock, RANK_HEAP);
    lock_release(&heap->areas_lock, RANK_AREAS);
}

void life_destroy(hak_heap_t *heap)
{
    drain_settle(heap);
    percpu_close(&heap->percpu);
    lock_acquire(&heap->lock, RANK_HEAP);
    runs_empty(heap);
    mapping_empty(heap);
    lock_release(&heap->lock, RANK_HEAP);
    for (meta_page_t *page = heap->pages; page;) {
        meta_page_t *next = page->next;
        meta_put(page, page->pages);
        page = next;
    }
    meta_put((void *)((uintptr_t)heap & ~(uintptr_t)(HAK_PAGE - 1)), heap_pages());
}
