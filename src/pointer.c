/* hakheap level 8: pointer - what a pointer is, and the end of the process where it is a bug */
#include "pointer.h"

#include "os.h"

static _Noreturn HAK_COLD void bad_pointer(const char *code, const char *operation, const void *ptr,
                                           const hak_heap_t *heap, size_t bytes, const char *words)
{
    hak_fatal(&(hak_fault_t){.code = code,
                             .operation = operation,
                             .ptr = ptr,
                             .heap = heap ? heap->guard.name : NULL,
                             .class_bytes = bytes,
                             .words = words});
}

static _Noreturn HAK_COLD void double_free(hak_heap_t *heap, const void *ptr, size_t bytes,
                                           const char *operation)
{
    bad_pointer("DOUBLE_FREE", operation, ptr, heap, bytes, "the block is free already");
}

/* The map of a region that an entry names. NULL: its heap has given the granule back meanwhile. The
 * memory of a heap that another thread destroys may be read, but what it says is followed only where
 * the entry still stood after that. */
static region_t *region_of(entry_t entry, const void *ptr)
{
    hak_heap_t *heap = entry_heap(entry);
    unsigned index = entry_back(entry);
    if (index < REGIONS_NEAR) return &heap->near_region[index];
    /* Acquire, both: pair with the releases in runs_take_region, and come before the second look. */
    far_regions_t *far = load_acquire(&heap->far_regions);
    if (registry_lookup(ptr) != entry) return NULL;
    region_t *region = load_acquire(&far->at[index - REGIONS_NEAR]);
    return registry_lookup(ptr) == entry ? region : NULL;
}

/* Whether a block of a region waits in a pocket: to the map it lives. */
static bool is_in_pocket(hak_heap_t *heap, entry_t entry, const void *start, unsigned units)
{
    uint64_t word = heap_pocket_word(heap, sizeclass_of(units * (size_t)REGION_UNIT));
    return pocket_names(word, pocket_name(entry_back(entry), start));
}

bool pointer_find(const void *ptr, block_id_t *out)
{
    entry_t entry = registry_lookup(ptr);
    unsigned code = entry_code(entry);
    *out = (block_id_t){.entry = entry, .heap = entry_heap(entry)};
    if (out->heap && code < CLASS_COUNT) {
        out->kind = KIND_SMALL;
        out->cls = code;
        out->usable = size_classes[code].bytes;
        return true;
    }
    if (out->heap && code == CODE_REGION) {
        unsigned units;
        region_t *region = region_of(entry, ptr);
        out->kind = KIND_REGION;
        out->start = region ? region_find(region, ptr, &units) : NULL;
        if (!out->start || is_in_pocket(out->heap, entry, out->start, units)) return false;
        out->usable = units * (size_t)REGION_UNIT;
        return true;
    }
    if (out->heap && code == CODE_MID) {
        out->kind = KIND_MID;
        out->usable = mid_bytes(mid_of(entry, ptr));
        return true;
    }
    out->large = entry ? NULL : large_find(ptr);
    if (!out->large) return false;
    out->kind = KIND_LARGE;
    out->heap = large_heap(out->large);
    out->usable = large_bytes(out->large);
    return true;
}

static _Noreturn HAK_COLD void foreign(const hak_heap_t *heap, const void *ptr,
                                       const char *operation)
{
    char path[256];
    bool other = os_other_copy(path, sizeof path);
    hak_fatal(&(hak_fault_t){
        .code = "FOREIGN",
        .operation = operation,
        .ptr = ptr,
        .heap = heap ? heap->guard.name : NULL,
        .other = other ? path : NULL,
        .words = other ? "no heap has this address; another copy of hakheap is loaded:"
                       : "no heap has this address"});
}

/* Whether an address lies in what a heap itself has of its cradle, which may go on before the
 * granule that is a region. */
static bool is_record(entry_t entry, const void *ptr)
{
    hak_heap_t *heap = entry_heap(entry);
    if (entry_code(entry) == CODE_REGION)
        return region_is_record(heap_region(heap, entry_back(entry)), ptr);
    return heap_is_valid(heap) && (uintptr_t)ptr / GRANULE >= (uintptr_t)heap / GRANULE &&
           (uintptr_t)ptr < (uintptr_t)load_relaxed(&heap->near_region->base);
}

/* What is known of a pointer that is in no live block. */
static _Noreturn HAK_COLD void not_a_block(hak_heap_t *heap, const void *ptr, const char *operation)
{
    if (heap && !heap_is_valid(heap)) heap = NULL;
    entry_t entry = registry_lookup(ptr);
    if (is_record(entry, ptr)) foreign(heap, ptr, operation);
    if (entry_code(entry) == CODE_REGION) double_free(entry_heap(entry), ptr, 0, operation);
    large_t *range = registry_range(ptr);
    bool aligned = (uintptr_t)ptr % SUPERSLAB == 0; /* what a large block began at */
    bool was_large =
        large_is_record(range) ? large_base(range) == ptr : range == LARGE_RELEASED && aligned;
    if (was_large || entry_code(entry) == CODE_RELEASED)
        bad_pointer("DOUBLE_FREE", operation, ptr, heap, 0,
                    "the block was freed and its memory given back");
    if (entry_code(entry) == CODE_DEAD || (range == LARGE_DEAD && aligned))
        bad_pointer("DESTROYED", operation, ptr, heap, 0,
                    "the heap of this block was reset or destroyed");
    foreign(heap, ptr, operation);
}

static bool is_start(const block_id_t *id, const void *ptr)
{
    if ((uintptr_t)ptr % BLOCK_ALIGN) return false;
    if (id->kind == KIND_REGION) return ptr == id->start;
    if (id->kind == KIND_LARGE) return ptr == large_base(id->large);
    if (id->kind == KIND_MID) return ptr == entry_run_start(id->entry, ptr);
    if (!id->heap->policy.starts) return true;
    return entry_divides(id->entry, registry_rotate(ptr));
}

block_id_t pointer_prove(hak_heap_t *heap, const void *ptr, const char *operation)
{
    block_id_t id;
    if (!pointer_find(ptr, &id)) not_a_block(heap, ptr, operation);
    if (heap && id.heap != heap)
        hak_fatal(&(hak_fault_t){.code = "WRONG_HEAP",
                                 .operation = operation,
                                 .ptr = ptr,
                                 .heap = heap_is_valid(heap) ? heap->guard.name : NULL,
                                 .other = id.heap->guard.name,
                                 .class_bytes = id.usable,
                                 .words = "the block belongs to heap"});
    if (!is_start(&id, ptr))
        bad_pointer("INTERIOR", operation, ptr, id.heap, id.usable,
                    "the address is not the start of a block");
    const block_t *block = ptr;
    if (id.kind != KIND_SMALL || !id.heap->policy.sealed) return id;
    /* A page that is the kernel's, or never was the program's, reads as zero. */
    bool look = entry_home(id.entry) == HOME_LOOK || !(block->word[0] | block->word[1]);
    if (block_is_sealed(block, block_link(block, id.heap->key), id.heap->key) ||
        (look && slab_forgot(ptr)))
        double_free(id.heap, ptr, id.usable, operation);
    return id;
}

void pointer_refuse_again(const block_id_t *id, const void *ptr)
{
    double_free(id->heap, ptr, id->usable, "free");
}

void pointer_mark_freed(const block_id_t *id, void *ptr)
{
    uint32_t live = LARGE_LIVE;
    bool first = id->kind == KIND_MID
                     ? registry_release(ptr)
                     : cas_acquire(&id->large->state, &live, (uint32_t)LARGE_FREED);
    if (!first) double_free(id->heap, ptr, id->usable, "free");
}

asked_t *pointer_asked(const block_id_t *id, const void *ptr)
{
    if (id->kind < KIND_MID) return NULL;
    return id->kind == KIND_MID ? &mid_of(id->entry, ptr)->asked : &id->large->asked;
}

size_t pointer_charge(size_t size, size_t alignment)
{
    switch (pointer_place(size, alignment)) {
    case PLACE_SMALL: return size_classes[sizeclass_of(size)].bytes;
    case PLACE_MID: return hak_round_up(size, GRANULE);
    case PLACE_LARGE: break;
    }
    return hak_round_up(size, HAK_PAGE);
}
