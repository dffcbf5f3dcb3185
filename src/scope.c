/* hakheap level 17: scope - a thread's current heap, for callers that can name none */
#include <errno.h>

#include "heap.h"
#include "tls.h"

/*
 * Role: finds the heap of a call that has no argument for one. All else is done by the calls that
 * name a heap. Memory: a pointer a thread, and one of the process. No lock.
 */

static _Thread_local hak_heap_t *current HAK_TLS_MODEL;
/* Any thread. A pointer to a heap that its creator hands over: release pairs with acquire. */
static _Atomic(hak_heap_t *) of_process;

hak_heap_t *hak_scope_enter(hak_heap_t *heap)
{
    hak_heap_t *outer = current;
    current = heap;
    return outer;
}

void hak_scope_leave(hak_heap_t *outer) { current = outer; }

hak_heap_t *hak_scope_heap(void) { return current ? current : load_acquire(&of_process); }

int hak_scope_set_default(hak_heap_t *heap)
{
    if (heap && !heap_is_valid(heap)) {
        hak_tls.last_error = HAK_ERROR_ARGUMENT;
        return EINVAL;
    }
    store_release(&of_process, heap);
    return 0;
}

void *hak_scope_malloc(size_t size) { return hak_heap_malloc(hak_scope_heap(), size); }

void *hak_scope_calloc(size_t count, size_t size)
{
    return hak_heap_calloc(hak_scope_heap(), count, size);
}

void *hak_scope_realloc(void *ptr, size_t size)
{
    hak_heap_t *owner = ptr ? hak_heap_of(ptr) : NULL;
    return hak_heap_realloc(owner ? owner : hak_scope_heap(), ptr, size);
}
