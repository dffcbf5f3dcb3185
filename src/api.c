/* hakheap level 16: api - the exported functions: class lookup, pop or push, else a ladder */
#include <errno.h>

#include "drain.h"
#include "gate.h"
#include "hakheap.h"
#include "life.h"
#include "meta.h"
#include "os.h"
#include "pointer.h"
#include "process.h"
#include "recall.h"
#include "refill.h"
#include "report.h"
#include "request.h"
#include "reserve.h"
#include "resize.h"
#include "tls.h"
#include "tree.h"
#include "trim.h"
#include "validate.h"

/* ---- malloc ---- */

/* The slow twins of the pop are called last, so that the fast path needs no stack. */
static HAK_NOINLINE void *malloc_missed(hak_heap_t *heap, size_t size)
{
    size_t dirty;
    if (HAK_LIKELY(heap && size <= SMALL_MAX)) {
        void *ptr = refill_from_spare(heap, sizeclass_of(size));
        if (ptr) return ptr;
    }
    return request_malloc(heap, size, BLOCK_ALIGN, &dirty);
}

static _Noreturn HAK_COLD void malloc_corrupt(hak_heap_t *heap, const block_t *block)
{
    block_corrupt(&heap->guard, "malloc", block, hak_usable_size(block));
}

/* The pop behind every allocation of a small block of a FAST heap; NULL: a miss. */
HAK_INLINE void *pop(hak_heap_t *heap, size_t slot)
{
    chain_t link;
    block_t *block = heap_pop(&heap->percpu, slot, &link);
    if (HAK_UNLIKELY(!block)) return NULL;
    block_fetch(link);
    counter_add(&heap->counters, refill_hot, 1);
    return block;
}

/* The same of a CHECKED heap, which is known by its marked slots: proves the seal, and takes it
 * away. */
HAK_INLINE void *pop_marked(hak_heap_t *heap, size_t slot)
{
    chain_t link;
    block_t *block = heap_pop_marked(&heap->percpu, slot, &link);
    if (HAK_UNLIKELY(!block)) return NULL;
    if (HAK_UNLIKELY(!block_is_sealed(block, link, heap->key))) malloc_corrupt(heap, block);
    block_unseal(block);
    block_fetch(link);
    counter_add(&heap->counters, refill_hot, 1);
    return block;
}

HAK_INLINE void *pop_slot(hak_heap_t *heap, size_t slot)
{
    return HAK_UNLIKELY(slot & SLOT_MARK) ? pop_marked(heap, slot) : pop(heap, slot);
}

/* Where a region may still have room, in a heap that counts, or by opening a page. */
static HAK_NOINLINE void *malloc_missed_class(hak_heap_t *heap, unsigned cls)
{
    bool region = load_relaxed(&heap->regions) && !heap_class_made(heap, cls);
    void *ptr = region ? refill_from_region(heap, cls, BLOCK_ALIGN) : NULL;
    return HAK_LIKELY(ptr) ? ptr : malloc_missed(heap, size_classes[cls].bytes);
}

/* The same by the class's slot, so that the size need not be kept. */
static HAK_NOINLINE void *malloc_missed_slot(hak_heap_t *heap, size_t slot)
{
    unsigned cls = (unsigned)slot >> ENTRY_CODE_SHIFT;
    void *ptr = refill_plain(heap, cls);
    return HAK_LIKELY(ptr) ? ptr : malloc_missed_class(heap, cls);
}

static HAK_NOINLINE void *malloc_computed(hak_heap_t *heap, size_t size)
{
    if (HAK_LIKELY(heap && size <= SMALL_MAX)) {
        void *ptr =
            pop_slot(heap, PERCPU_HOT(sizeclass_of(size)) | (heap->policy.sealed ? SLOT_MARK : 0));
        return HAK_LIKELY(ptr) ? ptr : malloc_missed_class(heap, sizeclass_of(size));
    }
    return malloc_missed(heap, size);
}

HAK_HOT void *hak_heap_malloc(hak_heap_t *heap, size_t size)
{
    if (HAK_UNLIKELY(!heap || size > LOOKUP_MAX)) return malloc_computed(heap, size);
    size_t slot = sizeclass_slot(heap->lookup, size);
    void *ptr = pop_slot(heap, slot);
    if (HAK_LIKELY(ptr)) return ptr;
    return malloc_missed_slot(heap, slot);
}

void *hak_heap_calloc(hak_heap_t *heap, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return heap ? request_fail(HAK_ERROR_SIZE, ENOMEM)
                    : request_fail(HAK_ERROR_ARGUMENT, EINVAL);
    if (bytes <= SMALL_MAX) {
        void *ptr = hak_heap_malloc(heap, bytes);
        return ptr ? memset(ptr, 0, bytes) : NULL;
    }
    size_t dirty = bytes;
    void *ptr = request_malloc(heap, bytes, BLOCK_ALIGN, &dirty);
    return ptr ? memset(ptr, 0, hak_min(dirty, bytes)) : NULL;
}

/* Of a class whose blocks can all begin at multiples of the alignment: a block of a slab does. */
static void *malloc_aligned(hak_heap_t *heap, size_t size, size_t alignment)
{
    size_t dirty;
    size_t slot = PERCPU_HOT(sizeclass_of(size)) | (heap->policy.sealed ? SLOT_MARK : 0);
    void *ptr = pop_slot(heap, slot);
    if (!ptr && size <= REGION_BLOCK_MAX)
        ptr = refill_from_region(heap, sizeclass_of(size), alignment);
    return ptr ? ptr : request_malloc(heap, size, alignment, &dirty);
}

void *hak_heap_aligned_alloc(hak_heap_t *heap, size_t alignment, size_t size)
{
    if (!heap || alignment == 0 || (alignment & (alignment - 1)))
        return request_fail(HAK_ERROR_ARGUMENT, EINVAL);
    if (request_is_too_large(size) || request_is_too_large(alignment))
        return request_fail(HAK_ERROR_SIZE, ENOMEM);
    if (alignment <= BLOCK_ALIGN) return hak_heap_malloc(heap, size);
    /* Slabs start at a multiple of a granule, and a multiple of an alignment has a class that is
     * one: so each of its blocks will do. */
    if (alignment <= GRANULE && size <= SMALL_MAX)
        return malloc_aligned(heap, hak_round_up(hak_max(size, 1), alignment), alignment);
    size_t dirty;
    return request_malloc(heap, hak_max(size, 1), alignment, &dirty);
}

/* ---- free ---- */

/* False: no block of a region begins there that is this heap's. `heap` NULL: any heap's. */
HAK_INLINE bool free_in_region(hak_heap_t *heap, void *ptr)
{
    entry_t entry = registry_entry(registry_rotate(ptr));
    if (entry_code(entry) != CODE_REGION) return false;
    hak_heap_t *owner = entry_heap(entry);
    return (!heap || heap == owner) && drain_to_region(owner, entry, ptr);
}

/* Everything but the push: not a small block of this heap, or its magazine is full, stopped or not
 * yet made. */
static HAK_NOINLINE void free_slow(hak_heap_t *heap, void *ptr)
{
    if (!ptr || free_in_region(heap, ptr)) return;
    int before = errno;
    uint32_t error = hak_tls.last_error;
    block_id_t id = pointer_prove(heap, ptr, "free");
    heap = id.heap;
    if (id.kind == KIND_REGION) {
        /* Another thread was at it in between. */
        if (!free_in_region(heap, ptr)) pointer_refuse_again(&id, ptr);
        return;
    }
    if (id.kind != KIND_SMALL) {
        counter_add(&heap->counters, early_wrong_owner, 1);
        pointer_mark_freed(&id, ptr);
    }
    if (id.kind == KIND_SMALL && drain_to_spare(heap, id.entry, ptr)) {
        errno = before;
        return;
    }
    gate_entry_t entry = gate_enter(false);
    if (entry == GATE_REENTERED) counter_add(&heap->counters, early_reentered, 1);
    if (entry == GATE_CLOSED) counter_add(&heap->counters, early_gate, 1);
    if (id.kind != KIND_SMALL) drain_big(heap, ptr, entry != GATE_IN);
    else if (entry != GATE_IN) drain_remote(heap, id.cls, block_push(0, ptr, heap->key));
    else drain_block(heap, id.entry, ptr);
    if (entry == GATE_IN) gate_leave();
    /* A free reports nothing, also where the kernel refused what it gave back. */
    hak_tls.last_error = error;
    errno = before;
}

/* The same where the entry is at hand, xor the owner bits of the heap. */
static HAK_NOINLINE void free_missed(hak_heap_t *heap, void *ptr, entry_t mine)
{
    bool region = entry_is_owned(mine) && entry_code(mine) == CODE_REGION;
    if (HAK_UNLIKELY(!region || !drain_to_region(heap, mine, ptr))) free_slow(heap, ptr);
}

/* The push behind every free of a small block of a FAST heap. PUSH_MISSED: the slow path has to
 * look. */
HAK_INLINE push_t push(hak_heap_t *heap, entry_t mine, uint64_t rotated, void *ptr)
{
    /* chain_address(ptr), from what is at hand. */
    uint64_t shifted = registry_unrotate(rotated) << CHAIN_SHIFT;
    return heap_push_home(&heap->percpu, entry_slot(mine), ptr, shifted, entry_tag(mine));
}

/* The same in a CHECKED heap, after three tests: that the block is the heap's, that the address is
 * a block's start, and that the block does not carry the seal of a free one. */
HAK_INLINE push_t push_checked(hak_heap_t *heap, entry_t mine, uint64_t rotated, void *ptr)
{
    const block_t *block = ptr;
    uint64_t unlinked = heap->key ^ (uintptr_t)ptr;
    /* No branch for the first granule of a slab, which needs less: of blocks of some KiB every
     * other free would guess it wrong. */
    if (HAK_UNLIKELY(!entry_is_owned(mine) || !entry_divides(mine, rotated))) return PUSH_MISSED;
    uint64_t mark = block->word[0] ^ block->word[1];
    if (HAK_UNLIKELY(mark == unlinked)) return PUSH_MISSED; /* free already */
    push_t result = heap_push_home_sealed(&heap->percpu, entry_slot(mine), ptr, chain_address(ptr),
                                          entry_tag(mine), unlinked);
    /* A section that was aborted may have sealed the block before. What is no small block was never
     * pushed, and may be the inside of one. */
    if (HAK_UNLIKELY(result != PUSH_DONE) && entry_code(mine) < CLASS_COUNT) block_unseal(ptr);
    return result;
}

/* The same of a block whose home is another CPU, into this one's outbox: the tests are done. A
 * magazine that knows of no home yet turns its own blocks away, too: those are for the slow
 * path. */
static HAK_NOINLINE void free_away(hak_heap_t *heap, void *ptr, entry_t mine)
{
    if (entry_code(mine) == CODE_REGION || !drain_is_away(heap, mine)) {
        free_missed(heap, ptr, mine);
        return;
    }
    percpu_t *percpu = &heap->percpu;
    size_t hot = entry_slot(mine);
    push_t result;
    if (!entry_is_fast(mine)) {
        result = section_post_sealed(percpu, hot, ptr, chain_address(ptr), 0,
                                     heap->key ^ (uintptr_t)ptr);
        if (HAK_UNLIKELY(result != PUSH_DONE)) block_unseal(ptr);
    } else {
        result = section_post(percpu, hot, ptr, chain_address(ptr), 0);
    }
    if (HAK_UNLIKELY(result != PUSH_DONE)) free_slow(heap, ptr);
    else counter_add(&heap->counters, outbox, 1);
}

static HAK_COLD void free_without_heap(const void *ptr)
{
    if (ptr)
        hak_fatal(&(hak_fault_t){
            .code = "HEAP", .operation = "free", .ptr = ptr, .words = "the heap is NULL"});
}

/* After the push: done, or on to the code that can tell why not. */
HAK_INLINE void free_end(hak_heap_t *heap, void *ptr, entry_t mine, push_t result)
{
    if (HAK_LIKELY(result == PUSH_DONE)) counter_add(&heap->counters, tls_sll, 1);
    else if (result == PUSH_AWAY) free_away(heap, ptr, mine);
    else free_missed(heap, ptr, mine);
}

HAK_INLINE void free_checked(hak_heap_t *heap, void *ptr, entry_t mine, uint64_t rotated)
{
    free_end(heap, ptr, mine, push_checked(heap, mine, rotated, ptr));
}

/* `mine`: the pointer's entry xor the owner bits of the heap. */
HAK_INLINE void free_mine(hak_heap_t *heap, void *ptr, entry_t mine, uint64_t rotated)
{
    if (HAK_UNLIKELY(!entry_is_fast(mine))) return free_checked(heap, ptr, mine, rotated);
    free_end(heap, ptr, mine, push(heap, mine, rotated, ptr));
}

HAK_HOT void hak_heap_free(hak_heap_t *heap, void *ptr)
{
    uint64_t rotated = registry_rotate(ptr);
    if (HAK_UNLIKELY(!heap)) return free_without_heap(ptr);
    free_mine(heap, ptr, registry_entry(rotated) ^ heap->owner, rotated);
}

/* A function of its own because clang 14 does not come to an end with it inside hak_free (-O1). */
static HAK_HOT HAK_NOINLINE void free_found(hak_heap_t *heap, void *ptr, entry_t mine,
                                            uint64_t rotated)
{
    free_mine(heap, ptr, mine, rotated);
}

HAK_HOT void hak_free(void *ptr)
{
    uint64_t rotated = registry_rotate(ptr);
    entry_t entry = registry_entry(rotated);
    hak_heap_t *heap = entry_heap(entry);
    if (HAK_UNLIKELY(!heap || entry_code(entry) >= CLASS_COUNT)) return free_slow(NULL, ptr);
    free_found(heap, ptr, entry ^ heap->owner, rotated);
}

/* Whether a block may have been asked for with this size: a small one by its class, and down to
 * half of it, because realloc leaves it there; a big one exactly, or rounded up to its
 * alignment. */
static bool size_is_possible(const block_id_t *id, const void *ptr, size_t size)
{
    const asked_t *asked = pointer_asked(id, ptr);
    if (asked) return size >= asked->size && size <= hak_round_up(asked->size, asked->alignment);
    return size <= id->usable && (size >= id->usable / 2 || hak_good_size(size) == id->usable);
}

void hak_heap_free_sized(hak_heap_t *heap, void *ptr, size_t size)
{
    if (ptr && heap && heap->policy.sizes) {
        block_id_t id = pointer_prove(heap, ptr, "free_sized");
        if (!size_is_possible(&id, ptr, size))
            hak_fatal(&(hak_fault_t){.code = "SIZE",
                                     .operation = "free_sized",
                                     .ptr = ptr,
                                     .heap = heap->guard.name,
                                     .class_bytes = id.usable,
                                     .words = "no block of the given size lies here"});
    }
    hak_heap_free(heap, ptr);
}

/* ---- realloc ---- */

void *hak_heap_realloc(hak_heap_t *heap, void *ptr, size_t size)
{
    if (!ptr) return hak_heap_malloc(heap, size);
    if (!heap || !heap_is_valid(heap)) return request_fail(HAK_ERROR_ARGUMENT, EINVAL);
    block_id_t id = pointer_prove(heap, ptr, "realloc");
    if (request_is_too_large(size)) return request_fail(HAK_ERROR_SIZE, ENOMEM);
    if (HAK_UNLIKELY(heap->ledger != NULL)) return request_realloc(&id, ptr, size);
    void *same = resize_block(&id, ptr, size);
    if (same) return same;
    void *fresh = hak_heap_malloc(heap, size);
    if (!fresh) return NULL;
    memcpy(fresh, ptr, hak_min(size, id.usable));
    hak_heap_free(heap, ptr);
    return fresh;
}

/* ---- What a pointer is ---- */

size_t hak_usable_size(const void *ptr)
{
    block_id_t id;
    return ptr && pointer_find(ptr, &id) ? id.usable : 0;
}

hak_heap_t *hak_heap_of(const void *ptr)
{
    block_id_t id;
    return pointer_find(ptr, &id) ? id.heap : NULL;
}

size_t hak_good_size(size_t size)
{
    if (size <= SMALL_MAX) return size_classes[sizeclass_of(size)].bytes;
    if (size <= MID_MAX) return hak_round_up(size, GRANULE);
    return request_is_too_large(size) ? size : hak_round_up(size, HAK_PAGE);
}

unsigned hak_size_class_count(void) { return CLASS_COUNT; }
size_t hak_size_class_bytes(unsigned size_class)
{
    return size_class < CLASS_COUNT ? size_classes[size_class].bytes : 0;
}
unsigned hak_size_class_of(size_t size)
{
    return size <= SMALL_MAX ? sizeclass_of(size) : CLASS_COUNT;
}

/* ---- Control ---- */

static int bad_argument(void)
{
    hak_tls.last_error = HAK_ERROR_ARGUMENT;
    return EINVAL;
}

/* 0, or EDEADLK in a handler that interrupted a slow path. */
static int process_enter(void)
{
    if (gate_enter(true) == GATE_IN) return 0;
    hak_tls.last_error = HAK_ERROR_REENTERED;
    return EDEADLK;
}

/* Enters for a control call: the same, or EINVAL. */
static int control_enter(const hak_heap_t *heap)
{
    return heap && heap_is_valid(heap) ? process_enter() : bad_argument();
}

hak_heap_t *hak_heap_create(const hak_heap_config_t *config)
{
    int before = errno;
    /* Before the gate: a fork must not find a thread inside that waits for the process to start. */
    int error = process_start();
    if (error) {
        errno = error;
        return NULL;
    }
    if (gate_enter(true) != GATE_IN) return request_fail(HAK_ERROR_REENTERED, EDEADLK);
    hak_heap_t *heap;
    tried_t tried = {0};
    refused_t refused;
    do heap = life_create(config, &error);
    while (!heap && hak_tls.last_error == HAK_ERROR_LIMIT &&
           recall_room(config->parent, &tried, &refused));
    gate_leave();
    errno = heap ? before : error;
    return heap;
}

int hak_heap_destroy(hak_heap_t *heap)
{
    int before = errno;
    int error = control_enter(heap);
    if (!error) {
        if (!tree_destroy(heap)) error = bad_argument();
        gate_leave();
    }
    errno = before;
    return error;
}

int hak_heap_reset(hak_heap_t *heap)
{
    int before = errno;
    int error = control_enter(heap);
    if (!error) {
        tree_reset(heap);
        gate_leave();
    }
    errno = before;
    return error;
}

static size_t flush_classes(hak_heap_t *heap, unsigned first, unsigned end)
{
    int before = errno;
    size_t bytes = 0;
    if (control_enter(heap) == 0) {
        trim_flush(heap, first, end, &bytes);
        gate_leave();
    }
    errno = before;
    return bytes;
}

size_t hak_heap_flush(hak_heap_t *heap) { return flush_classes(heap, 0, CLASS_COUNT); }

size_t hak_heap_flush_class(hak_heap_t *heap, unsigned size_class)
{
    return size_class < CLASS_COUNT ? flush_classes(heap, size_class, size_class + 1) : 0;
}

size_t hak_heap_trim(hak_heap_t *heap, size_t keep_bytes)
{
    int before = errno;
    size_t bytes = 0;
    if (control_enter(heap) == 0) {
        trim_heap(heap, keep_bytes, &bytes);
        gate_leave();
    }
    errno = before;
    return bytes;
}

size_t hak_reserve_trim(void)
{
    int before = errno;
    size_t bytes = 0;
    if (process_enter() == 0) {
        bytes = reserve_trim(&process_reserve, NULL) + nursery_trim(&process_reserve) + meta_trim();
        gate_leave();
    }
    errno = before;
    return bytes;
}

int hak_reserve_set_limit(size_t bytes)
{
    int before = errno;
    int error = process_start();
    if (!error) error = process_enter();
    if (!error) {
        reserve_set_limit(&process_reserve, bytes);
        gate_leave();
    }
    errno = before;
    return error;
}

/* The library changes nothing that a caller of these can see; what it locks is not part of the
 * heap's value. */
static hak_heap_t *writable(const hak_heap_t *heap) { return (hak_heap_t *)(uintptr_t)heap; }

int hak_heap_stats(const hak_heap_t *heap, hak_heap_stats_t *out)
{
    if (!out || out->struct_size < sizeof out->struct_size) return bad_argument();
    int before = errno;
    int error = control_enter(heap);
    if (!error) {
        hak_heap_stats_t stats;
        drain_settle(writable(heap));
        report_stats(writable(heap), &stats);
        stats.struct_size = out->struct_size;
        memcpy(out, &stats, hak_min(out->struct_size, sizeof stats));
        gate_leave();
    }
    errno = before;
    return error;
}

int hak_heap_class_stats(const hak_heap_t *heap, unsigned size_class, hak_class_stats_t *out)
{
    if (!out || out->struct_size < sizeof out->struct_size || size_class >= CLASS_COUNT)
        return bad_argument();
    int before = errno;
    int error = control_enter(heap);
    if (!error) {
        hak_class_stats_t stats;
        report_class(writable(heap), size_class, &stats);
        stats.struct_size = out->struct_size;
        memcpy(out, &stats, hak_min(out->struct_size, sizeof stats));
        gate_leave();
    }
    errno = before;
    return error;
}

int hak_heap_check(const hak_heap_t *heap)
{
    int before = errno;
    int error = control_enter(heap);
    if (!error) {
        drain_settle(writable(heap));
        hak_fault_t fault;
        error = validate_heap(writable(heap), &fault);
        gate_leave();
        /* By now no lock is held and the gate is left: a write may take any time. */
        if (error == EFAULT) hak_complain(&fault);
    }
    errno = before;
    return error;
}

int hak_heap_report(const hak_heap_t *heap, hak_write_fn write, void *ctx)
{
    if (!heap || !heap_is_valid(heap) || !write) return bad_argument();
    int before = errno;
    int error = report_write(heap, write, ctx);
    if (error == EDEADLK) hak_tls.last_error = HAK_ERROR_REENTERED;
    errno = before;
    return error;
}

/* ---- Words ---- */

hak_error_t hak_last_error(void) { return (hak_error_t)hak_tls.last_error; }

const char *hak_error_text(hak_error_t error)
{
    switch (error) {
    case HAK_ERROR_NONE: return "nothing has failed";
    case HAK_ERROR_ARGUMENT: return "a NULL or destroyed heap, or an argument out of its range";
    case HAK_ERROR_SIZE: return "a size, product or alignment beyond the address space";
    case HAK_ERROR_RESERVE: return "the system refused address space";
    case HAK_ERROR_COMMIT: return "the system refused memory";
    case HAK_ERROR_PURGE: return "the system refused to take memory back";
    case HAK_ERROR_FENCE:
        return "the system refused membarrier; other CPUs' caches were not flushed";
    case HAK_ERROR_REENTERED: return "a signal handler interrupted the library and called it";
    case HAK_ERROR_PAGES: return "the system's pages are not of 4096 bytes";
    case HAK_ERROR_LIMIT: return "the limit of a heap refuses";
    case HAK_ERROR_CLOSED: return "the heap is closed";
    case HAK_ERROR_LIVE: return "the heap has live blocks, or heaps below it";
    case HAK_ERROR_DEPTH: return "a tree of heaps would have more than 32 levels";
    case HAK_ERROR_UNHEARD: return "a soft limit needs a callback that is told";
    case HAK_ERROR_SOFT_LIMIT: return "a soft limit is not below the other limits";
    case HAK_ERROR_COMMITTED_LIMIT: return "a committed limit is below what an empty heap uses";
    }
    return "unknown error";
}

int hak_version(void) { return HAK_VERSION; }
const char *hak_percpu_mode(void)
{
    return process_start() == EDEADLK ? "starting" : percpu_mode_name(percpu_mode);
}
