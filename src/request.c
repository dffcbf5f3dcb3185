/* hakheap level 15: request - the order in which ladders, limits and callbacks are asked */
#include "request.h"

#include <errno.h>

#include "drain.h"
#include "gate.h"
#include "recall.h"
#include "refill.h"
#include "resize.h"
#include "trim.h"

/* ---- The ladders ---- */

/* `charged`, in a heap that counts: the block is charged already. Else it is charged to what the
 * heap has borrowed, where no cache has it. */
HAK_INLINE void *allocate_once(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty,
                               bool charged)
{
    switch (pointer_place(size, alignment)) {
    case PLACE_SMALL: return refill_block(heap, sizeclass_of(size), alignment, charged);
    case PLACE_MID: return refill_mid(heap, size, alignment, dirty, charged);
    case PLACE_LARGE: break;
    }
    return refill_large(heap, size, alignment, dirty, charged);
}

/* Refused: what the process keeps may be all that is in the way. It is no heap's. */
static HAK_COLD void *allocate_again(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty,
                                     bool charged)
{
    uint32_t why = hak_tls.last_error;
    if (charged && why == HAK_ERROR_LIMIT) return NULL;
    bool room = trim_make_room();
    hak_tls.last_error = why;
    return room ? allocate_once(heap, size, alignment, dirty, charged) : NULL;
}

/* ---- A heap that counts ---- */

/* A request, and what has become of it. */
typedef struct request {
    size_t size, alignment;
    size_t *dirty;
    refused_t refused;
    bool due; /* a soft limit is to be told */
} request_t;

/* The block is charged. What a rung says of limits is this request's. */
static void *allocate_charged(hak_heap_t *heap, const request_t *request)
{
    hak_tls.last_error = HAK_ERROR_NONE;
    void *ptr = allocate_once(heap, request->size, request->alignment, request->dirty, true);
    return ptr ? ptr
               : allocate_again(heap, request->size, request->alignment, request->dirty, true);
}

/* As long as room can be made for what the ladder needs. */
static void *allocate_bounded(hak_heap_t *heap, request_t *request)
{
    bool large = pointer_place(request->size, request->alignment) == PLACE_LARGE;
    tried_t tried = {.least = large ? request->size : 0};
    void *ptr;
    do ptr = allocate_charged(heap, request);
    while (!ptr && hak_tls.last_error == HAK_ERROR_LIMIT &&
           recall_room(heap, &tried, &request->refused));
    return ptr;
}

/* Asks the chain, then the ladders. Inside the gate. */
static void *allocate_asked(hak_heap_t *heap, request_t *request)
{
    size_t bytes = pointer_charge(request->size, request->alignment);
    charged_t charged = recall_charge(heap, bytes, &request->refused);
    if (HAK_UNLIKELY(charged == CHARGE_REFUSED)) return NULL;
    request->due = charged == CHARGED_DUE;
    void *ptr = allocate_bounded(heap, request);
    if (HAK_UNLIKELY(!ptr)) ledger_uncharge(heap->ledger, bytes);
    return ptr;
}

/* ---- Requests that fail ---- */

void *request_fail(hak_error_t why, int error)
{
    hak_tls.last_error = why;
    errno = error;
    return NULL;
}

/* Why a request of a heap that counts has failed. */
static HAK_COLD void count_failed(hak_heap_t *heap)
{
    unsigned why = hak_tls.last_error == HAK_ERROR_LIMIT ? FAILED_HERE : FAILED_SYSTEM;
    if (gate_enter(true) != GATE_IN) return;
    ledger_count_failed(heap->ledger, why);
    gate_leave();
}

static HAK_COLD void *turn_away(hak_heap_t *heap, hak_error_t why, int error)
{
    if (heap->ledger) ledger_count_failed(heap->ledger, FAILED_TURNED);
    return request_fail(why, error);
}

static HAK_COLD void *reenter(hak_heap_t *heap)
{
    counter_add(&heap->counters, early_reentered, 1);
    return turn_away(heap, HAK_ERROR_REENTERED, EDEADLK);
}

/* ---- Callbacks ---- */

/*
 * Whether a request that a limit refused shall be tried again: the full heap's callback has run,
 * outside of the gate and with nothing locked. What is refused inside of a callback calls none. The
 * request has not failed then, as far as hak_last_error() tells.
 */
static HAK_NOINLINE bool press(const refused_t *refused, size_t bytes, uint32_t error)
{
    uint32_t here = tls_frame(__builtin_frame_address(0));
    if (!refused->heap || !refused->on_pressure || recall_is_pressed(here)) return false;
    hak_tls.pressing = here;
    hak_tls.last_error = error;
    refused->on_pressure(refused->ctx, refused->heap, bytes);
    hak_tls.pressing = 0;
    return true;
}

/* After a request that has passed soft limits: each is told, in the same way. Inside of a callback
 * they wait for another request. */
static HAK_COLD void tell(const hak_heap_t *heap)
{
    uint32_t here = tls_frame(__builtin_frame_address(0));
    refused_t soft;
    told_t told;
    told.count = 0;
    for (bool due = !recall_is_pressed(here); due;) {
        if (gate_enter(true) != GATE_IN) return;
        due = ledger_take_due(heap->ledger, &told, &soft);
        gate_leave();
        if (!due) return;
        hak_tls.pressing = here;
        soft.on_pressure(soft.ctx, soft.heap, 0);
        hak_tls.pressing = 0;
    }
}

/* A request that has failed once, for a callback to make room; or for good. */
static HAK_COLD void *malloc_pressed(hak_heap_t *heap, request_t *request, uint32_t error)
{
    void *ptr = NULL;
    if (press(&request->refused, pointer_charge(request->size, request->alignment), error)) {
        if (heap_is_closed(heap)) return turn_away(heap, HAK_ERROR_CLOSED, ESHUTDOWN);
        (void)gate_enter(true);
        ptr = allocate_asked(heap, request);
        gate_leave();
    }
    if (ptr) return ptr;
    count_failed(heap);
    errno = ENOMEM;
    return NULL;
}

/* ---- malloc ---- */

/* A heap that counts has borrowed too little, or has no memory; inside the gate, which is left. */
static void *malloc_asked(hak_heap_t *heap, request_t *request, uint32_t error)
{
    void *ptr = allocate_asked(heap, request);
    gate_leave();
    if (HAK_UNLIKELY(!ptr)) ptr = malloc_pressed(heap, request, error);
    if (HAK_LIKELY(ptr)) hak_tls.last_error = error;
    if (HAK_UNLIKELY(request->due) && ptr) tell(heap);
    return ptr;
}

/* After a first try; the same of a heap that does not count. */
static HAK_NOINLINE void *malloc_again(hak_heap_t *heap, size_t size, size_t alignment,
                                       size_t *dirty, uint32_t error)
{
    if (heap->ledger) {
        request_t request = {.size = size, .alignment = alignment, .dirty = dirty};
        return malloc_asked(heap, &request, error);
    }
    void *ptr = allocate_again(heap, size, alignment, dirty, false);
    gate_leave();
    if (ptr) hak_tls.last_error = error;
    else errno = ENOMEM;
    return ptr;
}

void *request_malloc(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty)
{
    if (!heap || !heap_is_valid(heap)) return request_fail(HAK_ERROR_ARGUMENT, EINVAL);
    if (request_is_too_large(size)) return request_fail(HAK_ERROR_SIZE, ENOMEM);
    if (HAK_UNLIKELY(heap_is_closed(heap))) return turn_away(heap, HAK_ERROR_CLOSED, ESHUTDOWN);
    int before = errno;
    uint32_t error = hak_tls.last_error;
    if (gate_enter(true) != GATE_IN) return reenter(heap);
    void *ptr = allocate_once(heap, size, alignment, dirty, false);
    if (HAK_LIKELY(ptr)) {
        /* One rung may be refused and the next one answer: that is no error. */
        hak_tls.last_error = error;
        errno = before;
        gate_leave();
        return ptr;
    }
    ptr = malloc_again(heap, size, alignment, dirty, error);
    if (ptr) errno = before;
    return ptr;
}

/* ---- realloc ---- */

/* Charges a heap that counts, outside of the gate. */
static charged_t charge(hak_heap_t *heap, size_t bytes, refused_t *refused)
{
    if (heap_lends(heap, bytes)) return CHARGED;
    if (gate_enter(true) != GATE_IN) return (charged_t)(reenter(heap) != NULL);
    charged_t charged = recall_charge(heap, bytes, refused);
    gate_leave();
    return charged;
}

/* Puts a block's content in a fresh one, whose charge is the old one's and the caller's. */
static void *move_charged(hak_heap_t *heap, const block_id_t *id, void *ptr, size_t size)
{
    size_t dirty;
    if (heap_is_closed(heap)) return turn_away(heap, HAK_ERROR_CLOSED, ESHUTDOWN);
    if (gate_enter(true) != GATE_IN) return reenter(heap);
    request_t request = {.size = size, .alignment = BLOCK_ALIGN, .dirty = &dirty};
    void *fresh = allocate_charged(heap, &request);
    if (fresh) {
        memcpy(fresh, ptr, hak_min(size, id->usable));
        if (id->kind >= KIND_MID) pointer_mark_freed(id, ptr);
        drain_charged(id, ptr);
    }
    gate_leave();
    return fresh ? fresh : request_fail((hak_error_t)hak_tls.last_error, ENOMEM);
}

/* Room for what a move has lacked. */
static bool make_room(hak_heap_t *heap, tried_t *tried, refused_t *refused)
{
    if (hak_tls.last_error != HAK_ERROR_LIMIT || gate_enter(true) != GATE_IN) return false;
    bool done = recall_room(heap, tried, refused);
    gate_leave();
    return done;
}

/* The block is charged already. It may grow in its place where there is no room for a second one:
 * then what refuses that has the last word, because another heap may be what refuses a second
 * one. */
static void *resize_bounded(const block_id_t *id, void *ptr, size_t size, refused_t *refused)
{
    tried_t tried = {0};
    void *at;
    do {
        hak_tls.last_error = HAK_ERROR_NONE;
        at = resize_block(id, ptr, size);
        if (!at) at = move_charged(id->heap, id, ptr, size);
        if (HAK_UNLIKELY(!at) && hak_tls.last_error == HAK_ERROR_LIMIT)
            at = resize_block(id, ptr, size);
    } while (HAK_UNLIKELY(!at) && make_room(id->heap, &tried, refused));
    return at;
}

/* What a block is charged with another size. A large one that stays is charged by the page, also
 * where it was made large by its alignment. */
static size_t charge_after(const block_id_t *id, size_t size)
{
    return resize_holds(id, size) ? id->usable : pointer_charge(size, BLOCK_ALIGN);
}

/* Charges the difference, whether or not the block stays where it is. */
static void *charge_and_resize(const block_id_t *id, void *ptr, size_t size, request_t *request)
{
    hak_heap_t *heap = id->heap;
    size_t had = id->usable, wants = charge_after(id, size);
    if (wants > had) {
        charged_t charged = charge(heap, wants - had, &request->refused);
        if (charged == CHARGE_REFUSED) return NULL;
        request->due = charged == CHARGED_DUE;
    }
    void *at = resize_bounded(id, ptr, size, &request->refused);
    if (!at && wants > had) ledger_uncharge(heap->ledger, wants - had);
    if (at && wants < had) heap_refund(heap, had - wants);
    return at;
}

/* For a check in a signal handler: parts of this are outside of the gate. */
static void *realloc_charged(const block_id_t *id, void *ptr, size_t size, request_t *request)
{
    uint8_t before = hak_tls.resizing;
    hak_tls.resizing = 1;
    void *at = charge_and_resize(id, ptr, size, request);
    hak_tls.resizing = before ? 1 : 0;
    return at;
}

void *request_realloc(const block_id_t *id, void *ptr, size_t size)
{
    hak_heap_t *heap = id->heap;
    int before = errno;
    uint32_t error = hak_tls.last_error;
    request_t request = {.size = size};
    void *at = realloc_charged(id, ptr, size, &request);
    size_t wants = at ? 0 : charge_after(id, size);
    if (!at && press(&request.refused, wants - hak_min(wants, id->usable), error))
        at = realloc_charged(id, ptr, size, &request);
    if (at) {
        hak_tls.last_error = error;
        if (HAK_UNLIKELY(request.due)) tell(heap);
        errno = before;
        return at;
    }
    if (hak_tls.last_error == HAK_ERROR_CLOSED || hak_tls.last_error == HAK_ERROR_REENTERED)
        return NULL;
    count_failed(heap);
    errno = ENOMEM;
    return NULL;
}
