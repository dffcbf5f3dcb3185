/* hakheap level 14: tree - destroying from below */
#include "tree.h"

#include "gate.h"
#include "life.h"

void tree_on_destroy(hak_heap_t *heap, hak_on_destroy_t *node)
{
    hak_on_destroy_t *head = load_relaxed(&heap->on_destroy);
    do node->next = head;
    /* Release: pairs with the acquire in run_nodes. */
    while (!cas_release(&heap->on_destroy, &head, node));
}

/* Each once, the newest first; with nothing locked. What one of them adds is run, too. */
static void run_nodes(hak_heap_t *heap)
{
    if (HAK_LIKELY(!load_relaxed(&heap->on_destroy))) return;
    gate_leave();
    /* Acquire: pairs with the release in tree_on_destroy. */
    for (hak_on_destroy_t *node; (node = exchange_acquire(&heap->on_destroy, NULL)) != NULL;)
        for (hak_on_destroy_t *next; node; node = next) {
            next = node->next;
            node->run(node->ctx, heap);
        }
    (void)gate_enter(true);
}

/* Of two threads that destroy the same heap, one wins the word. */
static bool end_one(hak_heap_t *heap)
{
    run_nodes(heap);
    uint64_t alive = HEAP_MAGIC ^ (uintptr_t)heap;
    if (!cas_acquire(&heap->magic, &alive, 0)) return false;
    life_destroy(heap);
    return true;
}

/* A heap without heaps below it, below one that has some. */
static hak_heap_t *deepest(hak_heap_t *heap)
{
    ledger_t *at = heap->ledger;
    for (ledger_t *child; (child = ledger_child(at)) != NULL;) at = child;
    return at->own.heap;
}

static void end_below(hak_heap_t *heap)
{
    while (heap->ledger && ledger_child(heap->ledger)) {
        (void)end_one(deepest(heap));
        if (HAK_UNLIKELY(gate_is_closed())) gate_pass();
    }
}

bool tree_destroy(hak_heap_t *heap)
{
    end_below(heap);
    return end_one(heap);
}

void tree_reset(hak_heap_t *heap)
{
    end_below(heap);
    run_nodes(heap);
    life_reset(heap);
}
