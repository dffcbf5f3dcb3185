/* hakheap level 8: ladder_drain - the ladder of a free that found its magazine full */
#include "ladder.h"
#include "os.h"
#include "tls.h"

/* ---- Slabs ---- */

bool drain_retire(hak_heap_t *heap, class_state_t *state, slab_t *slab, bool may_wait)
{
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return false;
    run_t run = slab_run(slab);
    pages_t pages = slab_pages(slab);
    slab_remove(&state->slabs, slab);
    bool gone = heap_put_run(heap, run, size_classes[state->cls].granules, pages, may_wait);
    if (!gone) slab_restore(&state->slabs, slab);
    lock_release(&heap->lock, RANK_HEAP);
    return gone;
}

chain_t drain_to_slabs(hak_heap_t *heap, class_state_t *state, chain_t chain, size_t most)
{
    hak_assert(lock_is_held(&state->lock));
    size_t bytes = size_classes[state->cls].bytes;
    size_t moved = 0;
    while (moved < most && chain_block(chain)) {
        block_t *block = chain_block(chain);
        chain = block_next(chain, &heap->guard, "free", bytes);
        slab_t *slab = slab_of(registry_lookup(block), block);
        if (slab_put(&state->slabs, slab, block, &heap->guard) && slab_is_spare(&state->slabs, slab))
            (void)drain_retire(heap, state, slab, false);
        moved++;
    }
    counter_add(&heap->counters, ss_local, moved);
    return chain;
}

size_t drain_remote_list(hak_heap_t *heap, class_state_t *state)
{
    size_t bytes = size_classes[state->cls].bytes;
    size_t blocks = 0;
    for (chain_t chain = remote_take(&state->remote); chain_block(chain); blocks++) {
        chain_t next = block_next(chain, &heap->guard, "free", bytes);
        chain_t alone = block_push(0, chain_block(chain), heap->key);
        drain_to_slabs(heap, state, alone, 1);
        chain = next;
    }
    if (blocks) remote_taken(&state->remote, blocks);
    return blocks;
}

/* ---- Cold ---- */

static cold_t *cold_of(hak_heap_t *heap, class_state_t *state)
{
    if (state->cold || !lock_try(&heap->lock, RANK_HEAP)) return state->cold;
    state->cold = heap_record_now(heap, sizeof *state->cold);
    lock_release(&heap->lock, RANK_HEAP);
    return state->cold;
}

/* Returns what the cold level has no room for. */
static chain_t put_cold(hak_heap_t *heap, class_state_t *state, chain_t chain, int index)
{
    size_t bytes = size_classes[state->cls].bytes;
    if (!budget_take(&heap->budget, chain_count(chain) * bytes)) return chain;
    cold_t *cold = cold_of(heap, state);
    chain_t overflow = cold ? cold_put(cold, chain, (unsigned)index) : chain;
    budget_put(&heap->budget, chain_count(overflow) * bytes);
    return overflow;
}

void drain_chain(hak_heap_t *heap, class_state_t *state, chain_t chain, int index, bool may_wait)
{
    if (!lock_enter(&state->lock, RANK_CLASS, may_wait)) {
        counter_add(&heap->counters, ss_remote, chain_count(chain));
        remote_push(&state->remote, chain, &heap->guard, size_classes[state->cls].bytes);
        return;
    }
    /* A thread that may use no magazine has no CPU to keep a chain for. */
    chain_t overflow = index < 0 ? chain : put_cold(heap, state, chain, index);
    if (overflow) drain_to_slabs(heap, state, overflow, SIZE_MAX);
    lock_release(&state->lock, RANK_CLASS);
}

/* ---- The ladder ---- */

bool drain_to_spare(hak_heap_t *heap, unsigned cls, void *ptr)
{
    if (percpu_mode == PERCPU_LOCKED) return false;
    percpu_t *percpu = &heap->percpu;
    int index = percpu_index();
    area_t *area = index < 0 ? NULL : percpu_running(percpu, (unsigned)index);
    if (!area || load_relaxed(&area->spare[cls])) return false;
    size_t hot = PERCPU_HOT(cls);
    chain_t full = section_take(percpu, hot);
    if (!full) return false;
    if (!section_install(percpu, hot, PERCPU_SPARE(cls), full)) {
        /* The thread has moved, or a flush has come: nobody's magazine is owed these blocks. */
        counter_add(&heap->counters, ss_remote, chain_count(full));
        remote_push(&heap_class_made(heap, cls)->remote, full, &heap->guard, size_classes[cls].bytes);
    }
    if (!percpu_push(percpu, hot, ptr, heap->key)) return false;
    counter_add(&heap->counters, early_full, 1);
    counter_add(&heap->counters, tls_sll, 1);
    return true;
}

void drain_block(hak_heap_t *heap, unsigned cls, void *ptr)
{
    percpu_t *percpu = &heap->percpu;
    class_state_t *state = heap_class_made(heap, cls);
    size_t hot = PERCPU_HOT(cls);
    int index;
    area_t *area = refill_area(heap, &index, false);
    if (area && !load_relaxed(&area->hot[cls].limit)) refill_grow_limit(heap, area, state);
    if (percpu_push(percpu, hot, ptr, heap->key)) {
        counter_add(&heap->counters, tls_sll, 1);
        return;
    }
    counter_add(&heap->counters, early_full, 1);
    chain_t full = percpu_take(percpu, hot);
    chain_t older = 0;
    if (full && !percpu_install(percpu, cls, PERCPU_SPARE(cls), full)) {
        older = percpu_take(percpu, PERCPU_SPARE(cls));
        if (!percpu_install(percpu, cls, PERCPU_SPARE(cls), full)) drain_chain(heap, state, full, index, false);
        if (area) refill_grow_limit(heap, area, state);
    }
    if (!percpu_push(percpu, hot, ptr, heap->key))
        drain_chain(heap, state, block_push(0, ptr, heap->key), index, false);
    if (older) drain_chain(heap, state, older, index, false);
}

void drain_remote(hak_heap_t *heap, unsigned cls, void *ptr)
{
    class_state_t *state = heap_class_made(heap, cls);
    counter_add(&heap->counters, ss_remote, 1);
    remote_push(&state->remote, block_push(0, ptr, heap->key), &heap->guard, size_classes[cls].bytes);
}

/* ---- Mid and large blocks ---- */

/* Notes a block for whoever next holds the HEAP lock. Its memory is the library's, so the list runs through it. */
static void defer(hak_heap_t *heap, void *ptr)
{
    void *head = load_relaxed(&heap->deferred);
    do *(void **)ptr = head;
    while (!cas_release(&heap->deferred, &head, ptr));
}

/* Where the process's lock is busy, the block is noted again. */
static void free_mid(hak_heap_t *heap, mid_t *mid, bool may_wait)
{
    superslab_t *ss = registry_superslab(mid->start);
    run_t run = {ss, superslab_index(ss, mid->start)};
    unsigned granules = mid->granules;
    size_t bytes = mid->bytes;
    mid_remove(&heap->large, mid);
    if (heap_put_run(heap, run, granules, PAGES_ALL, may_wait)) return;
    mid_add(&heap->large, run, granules, bytes);
    defer(heap, superslab_granule(run.ss, run.first));
}

/* Unmaps what the cache has no room for. What the kernel refuses to unmap stays cached, and counted. */
static void free_large(hak_heap_t *heap, large_t *large)
{
    large_set_t *set = &heap->large;
    large_remove(set, large);
    large_cache(set, large);
    for (large_t *old; (old = large_evict(set, set->cache_limit)) != NULL;) {
        if (!large_unmap(large_base(old), large_bytes(old), LARGE_RELEASED)) {
            large_cache(set, old);
            hak_tls.last_error = HAK_ERROR_PURGE;
            return;
        }
        heap_uncharge(heap, large_bytes(old));
        old->next = set->unused;
        set->unused = old;
    }
}

static void free_big(hak_heap_t *heap, void *ptr, bool may_wait)
{
    entry_t entry = registry_lookup(ptr);
    if (entry) free_mid(heap, mid_of(entry, ptr), may_wait);
    else free_large(heap, registry_range(ptr));
}

void drain_deferred(hak_heap_t *heap, bool may_wait)
{
    hak_assert(lock_is_held(&heap->lock));
    if (HAK_LIKELY(!load_relaxed(&heap->deferred))) return;
    /* Acquire: pairs with the release in defer. */
    for (void *ptr = exchange_acquire(&heap->deferred, NULL), *next; ptr; ptr = next) {
        next = *(void **)ptr;
        free_big(heap, ptr, may_wait);
    }
}

void drain_settle(hak_heap_t *heap)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    drain_deferred(heap, true);
    lock_release(&heap->lock, RANK_HEAP);
}

void drain_big(hak_heap_t *heap, void *ptr, bool deferred)
{
    if (deferred || !lock_try(&heap->lock, RANK_HEAP)) {
        defer(heap, ptr);
        return;
    }
    drain_deferred(heap, false);
    free_big(heap, ptr, false);
    lock_release(&heap->lock, RANK_HEAP);
}
