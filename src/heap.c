/* hakheap level 7: heap - what is a heap, what its level asks for */
#include "heap.h"

const policy_t heap_policies[] = {
    [HAK_LEVEL_FAST] = {.name = "fast"},
    [HAK_LEVEL_CHECKED] = {.name = "checked", .sealed = true, .starts = true, .sizes = true},
};

bool heap_is_valid(const hak_heap_t *heap)
{
    if ((uintptr_t)heap % HAK_LINE || entry_code(registry_lookup(heap)) != CODE_META) return false;
    hak_heap_t *at = (hak_heap_t *)(uintptr_t)heap;
    return (uintptr_t)heap % HAK_PAGE < HEAP_COLOURS * HAK_LINE &&
           load_acquire(&at->magic) == (HEAP_MAGIC ^ (uintptr_t)heap);
}
