/* hakheap level 7: heap - what is a heap, what its level asks for */
#include "heap.h"

const policy_t heap_policies[] = {
    [HAK_LEVEL_FAST] = {.name = "fast"},
    [HAK_LEVEL_CHECKED] = {.name = "checked", .sealed = true, .starts = true, .sizes = true},
};

classes_t heap_no_classes;

bool heap_is_valid(const hak_heap_t *heap)
{
    /* Only a heap's own address is the owner of the granule that it lies in. */
    if ((uintptr_t)heap % HAK_LINE || entry_heap(registry_lookup(heap)) != heap || !heap)
        return false;
    hak_heap_t *at = (hak_heap_t *)(uintptr_t)heap;
    return load_acquire(&at->magic) == (HEAP_MAGIC ^ (uintptr_t)heap);
}
