/* hakheap level 14: resize - the ladder of a block that grows or shrinks */
#include "resize.h"

#include "gate.h"
#include "runs.h"
#include "tls.h"
#include "trim.h"

bool resize_is_charged(const block_id_t *id, size_t size)
{
    size_t charge = id->kind == KIND_LARGE ? hak_round_up(size, HAK_PAGE) : pointer_charge(size, 1);
    return charge == id->usable;
}

/* A mid block where it is. */
static void *resize_mid(const block_id_t *id, void *ptr, size_t size)
{
    hak_heap_t *heap = id->heap;
    if (size <= SMALL_MAX || size > MID_MAX || gate_enter(true) != GATE_IN) return NULL;
    mid_t *mid = mid_of(id->entry, ptr);
    superslab_t *ss = registry_superslab(ptr);
    unsigned wanted = (unsigned)((size + GRANULE - 1) / GRANULE);
    lock_acquire(&heap->lock, RANK_HEAP);
    /* Another thread's free may have come in between: the copy's free will name it. */
    bool done = entry_code(registry_lookup(ptr)) == CODE_MID &&
                runs_resize(heap, (run_t){ss, superslab_index(ss, ptr)}, mid->granules, wanted);
    if (done) mid_resize(&heap->large, mid, wanted);
    lock_release(&heap->lock, RANK_HEAP);
    gate_leave();
    return done ? ptr : NULL;
}

static bool remap(hak_heap_t *heap, large_t *large, size_t bytes)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    size_t held = large_bytes(large);
    bool done = load_relaxed(&large->state) == LARGE_LIVE &&
                heap_admit(heap, bytes > held ? bytes - held : 0, true) &&
                large_remap(&heap->large, large, bytes);
    if (done && bytes > held) heap_charge(heap, bytes - held);
    if (done && bytes < held) heap_uncharge(heap, held - bytes);
    heap_settle(heap, true);
    if (done) reserve_note_large(&process_reserve, bytes, held);
    lock_release(&heap->lock, RANK_HEAP);
    return done;
}

/* A large block, by its pages. */
static void *resize_large(const block_id_t *id, size_t size)
{
    hak_heap_t *heap = id->heap;
    if (size <= MID_MAX || gate_enter(true) != GATE_IN) return NULL;
    size_t bytes = hak_round_up(size, HAK_PAGE);
    if (!large_may_remap(id->large, bytes)) {
        gate_leave();
        return NULL;
    }
    uint32_t before = hak_tls.last_error;
    hak_tls.last_error = HAK_ERROR_NONE;
    bool done = remap(heap, id->large, bytes);
    /* What the process keeps is no heap's: it is no room where a limit refuses. */
    if (!done && hak_tls.last_error != HAK_ERROR_LIMIT)
        done = trim_make_room() && remap(heap, id->large, bytes);
    hak_tls.last_error = before;
    gate_leave();
    return done ? large_base(id->large) : NULL;
}

/* A block of a region, which has as many units as a fresh one of that size would have. */
static void *resize_in_region(const block_id_t *id, void *ptr, size_t size)
{
    hak_heap_t *heap = id->heap;
    if (size > REGION_BLOCK_MAX) return NULL;
    unsigned units = (unsigned)(id->usable / REGION_UNIT);
    unsigned wanted = size_classes[sizeclass_of(size)].bytes / REGION_UNIT;
    if (wanted == units) return ptr;
    region_t *region = heap_region(heap, entry_back(id->entry));
    if (!region_resize(region, ptr, units, wanted, &heap->guard)) return NULL;
    if (wanted < units) heap_note_hole(heap, entry_back(id->entry), REGION_ROOM);
    heap_note_freed(heap, units);
    heap_note_taken(heap, sizeclass_of(size));
    return ptr;
}

void *resize_other(const block_id_t *id, void *ptr, size_t size)
{
    if (id->kind == KIND_REGION) return resize_in_region(id, ptr, size);
    void *at = resize_holds(id, size) ? ptr : NULL;
    if (!at && id->kind == KIND_MID) at = resize_mid(id, ptr, size);
    if (!at && id->kind == KIND_LARGE) at = resize_large(id, size);
    asked_t *asked = at ? pointer_asked(id, at) : NULL;
    if (asked) asked->size = size;
    return at;
}
