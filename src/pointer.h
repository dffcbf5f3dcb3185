/* hakheap level 8: pointer - what a pointer is, and the end of the process where it is a bug */
#ifndef HAK_POINTER_H
#define HAK_POINTER_H

#include "heap.h"

/*
 * Role: decides what a pointer is that the fast path could not place, and ends the process where it
 * is a caller's bug. Callers: api, resize. No lock; any thread. Reads the registry and the
 * library's records, never the memory at a foreign pointer.
 */
typedef enum block_kind { KIND_SMALL, KIND_REGION, KIND_MID, KIND_LARGE } block_kind_t;

typedef struct block_id {
    block_kind_t kind;
    hak_heap_t *heap;
    entry_t entry;  /* small and mid */
    unsigned cls;   /* small */
    large_t *large; /* large */
    char *start;    /* in a region */
    size_t usable;
} block_id_t;

/* What a live block is. `heap` NULL: of any heap. Aborts where ptr is no live block of it, as far
 * as its level can tell. */
block_id_t pointer_prove(hak_heap_t *heap, const void *ptr, const char *operation);
/* pointer_prove without the abort: false where ptr is in no heap. For hak_usable_size. */
bool pointer_find(const void *ptr, block_id_t *out);
/* Ends the process: of two threads that free a block of a region at once, this is the second. */
_Noreturn void pointer_refuse_again(const block_id_t *id, const void *ptr);
/* Marks a mid or large block freed; aborts where it is already. */
void pointer_mark_freed(const block_id_t *id, void *ptr);
/* What a mid or large block was asked for with; NULL for others. */
asked_t *pointer_asked(const block_id_t *id, const void *ptr);

/* What serves a request. */
typedef enum block_place { PLACE_SMALL, PLACE_MID, PLACE_LARGE } block_place_t;

/* Whether the blocks of the size's class can all begin at multiples of the alignment. */
HAK_INLINE bool pointer_is_class_aligned(size_t size, size_t alignment)
{
    return alignment <= BLOCK_ALIGN ||
           (alignment <= GRANULE && size_classes[sizeclass_of(size)].bytes % alignment == 0);
}
HAK_INLINE block_place_t pointer_place(size_t size, size_t alignment)
{
    if (size <= SMALL_MAX && pointer_is_class_aligned(size, alignment)) return PLACE_SMALL;
    return alignment <= MID_MAX && size <= MID_MAX ? PLACE_MID : PLACE_LARGE;
}
/* What a request is charged in a heap that counts: what is usable of the block. */
size_t pointer_charge(size_t size, size_t alignment);

#endif
