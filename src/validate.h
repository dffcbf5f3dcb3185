/* hakheap level 8: validate - pointer checks, and the walk that proves a heap sound */
#ifndef HAK_VALIDATE_H
#define HAK_VALIDATE_H

#include "heap.h"

/*
 * Role: decides what a pointer is that the fast path could not place, and ends the process where it
 * is a caller's bug. Reads the registry and the library's records, never the memory at a foreign
 * pointer.
 */
typedef enum block_kind { KIND_SMALL, KIND_MID, KIND_LARGE } block_kind_t;

typedef struct block_id {
    block_kind_t kind;
    hak_heap_t *heap;
    entry_t entry;  /* small and mid */
    unsigned cls;   /* small */
    large_t *large; /* large */
    size_t usable;
} block_id_t;

/* What a live block is. `heap` NULL: of any heap. Aborts where ptr is no live block of it, as far
 * as its level can tell. */
block_id_t validate_block(hak_heap_t *heap, const void *ptr, const char *operation);
/* validate_block without the abort: false where ptr is in no heap. For hak_usable_size. */
bool validate_find(const void *ptr, block_id_t *out);
/* Marks a mid or large block freed; aborts where it is already. */
void validate_free_big(const block_id_t *id, void *ptr);

/* The whole-heap check: 0, EFAULT after a line, ENOMEM, EAGAIN. */
int validate_heap(hak_heap_t *heap);

#endif
