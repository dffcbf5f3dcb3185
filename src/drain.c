/* hakheap level 8: ladder_drain - the ladder of a free that found its magazine full */
#include "ladder.h"
#include "os.h"
#include "tls.h"

/* ---- Slabs ---- */

bool drain_retire(hak_heap_t *heap, class_state_t *state, slab_t *slab, bool may_wait)
{
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return false;
    run_t run = slab_run(slab);
    slab_set_t *set = heap_set_of(state, slab->home);
    slab_remove(set, slab);
    bool gone = heap_put_run(heap, run, size_classes[state->cls].granules, 0, may_wait);
    if (!gone) slab_restore(set, slab);
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
        slab_set_t *set = heap_set_of(state, slab->home);
        if (slab_put(set, slab, block, &heap->guard) && slab_is_spare(set, slab))
            (void)drain_retire(heap, state, slab, false);
        moved++;
    }
    store_relaxed(&state->outside, load_relaxed(&state->outside) - moved);
    counter_add(&heap->counters, ss_local, moved);
    return chain;
}

size_t drain_cold(hak_heap_t *heap, class_state_t *state, chain_t chain)
{
    size_t bytes = chain_count(chain) * size_classes[state->cls].bytes;
    budget_put(&heap->budget, bytes);
    drain_to_slabs(heap, state, chain, SIZE_MAX);
    return bytes;
}

bool drain_oldest(hak_heap_t *heap, class_state_t *state, size_t *bytes)
{
    chain_t chain = state->cold ? cold_steal(state->cold) : 0;
    *bytes += drain_cold(heap, state, chain);
    return chain != 0;
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

/* For whoever next holds the class's lock, which is busy, or may not be tried. */
static void put_remote(hak_heap_t *heap, class_state_t *state, chain_t chain)
{
    counter_add(&heap->counters, ss_remote, chain_count(chain));
    remote_push(&state->remote, chain, &heap->guard, size_classes[state->cls].bytes);
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
        put_remote(heap, state, chain);
        return;
    }
    /* A thread that may use no magazine has no CPU to keep a chain for. Chains of a divided heap go
     * to their slabs at once, see adapt.c; but for blocks of more than a page, which pin little
     * more than themselves and whose slabs are dear to make. */
    bool wide = size_classes[state->cls].bytes > HAK_PAGE;
    bool to_slabs = index < 0 || (load_relaxed(&heap->divided) == DIVIDED && !wide);
    chain_t overflow = to_slabs ? chain : put_cold(heap, state, chain, index);
    if (overflow) drain_to_slabs(heap, state, overflow, SIZE_MAX);
    lock_release(&state->lock, RANK_CLASS);
}

/* ---- Blocks whose home is another CPU ---- */

/* Whether a block goes to the outbox: its home is another CPU, or its class returns what is
 * freed. */
static bool is_away(entry_t entry, int index, const area_t *area)
{
    if (entry_home(entry) >= HOME_LOOK) return false;
    return entry_home(entry) != registry_home(index) ||
           (area && adapt_returns(area, entry_code(entry)));
}

/* What all blocks of an outbox have in common, with one more. */
static void note_home(magazine_t *outbox, entry_t entry)
{
    uint16_t tag = load_relaxed(&outbox->tag), one = entry_tag(entry) | TAG_KNOWN;
    if (HAK_LIKELY(tag == one)) return;
    store_relaxed(&outbox->tag, tag ? registry_tag(HOME_LOOK, entry_code(entry)) | TAG_KNOWN : one);
}

bool drain_is_away(hak_heap_t *heap, entry_t entry)
{
    int index = percpu_index();
    area_t *area = index < 0 ? NULL : percpu_running(&heap->percpu, (unsigned)index);
    if (!is_away(entry, index, area)) return false;
    magazine_t *outbox = area ? load_acquire(&area->outbox) : NULL; /* pairs with outbox_of */
    if (outbox) note_home(&outbox[entry_code(entry)], entry);
    return true;
}

/* Splits the blocks of `home` off a chain. Returns the others. */
static chain_t split(const hak_heap_t *heap, const class_state_t *state, chain_t chain,
                     unsigned home, chain_t *same)
{
    chain_t others = 0;
    for (*same = 0; chain;) {
        block_t *block = chain_block(chain);
        chain = block_next(chain, &heap->guard, "free", size_classes[state->cls].bytes);
        chain_t *to = entry_home(registry_lookup(block)) == home ? same : &others;
        *to = block_push(*to, block, heap->key);
    }
    return others;
}

/* Sends the blocks of one home there; lock: CLASS. Where the home's CPU is idle, the one that frees
 * takes all it has over: a thread has moved, or another goes on with its blocks. */
static void send_home(hak_heap_t *heap, class_state_t *state, chain_t chain, unsigned home,
                      int index)
{
    unsigned here = heap_home(heap, state, index, false);
    if (home != here && here != HOME_NONE && home < state->homes &&
        heap_home_is_idle(heap, state, home)) {
        heap_take_over(state, home, here);
        home = here;
    }
    chain_t overflow =
        home >= HOME_LOOK || home == here ? chain : put_cold(heap, state, chain, (int)home);
    if (overflow) drain_to_slabs(heap, state, overflow, SIZE_MAX);
}

/* Sends a chain home: all of it to one `home`, or, HOME_LOOK, the blocks of each home together. */
static void drain_home(hak_heap_t *heap, class_state_t *state, chain_t chain, unsigned home,
                       int index)
{
    if (!chain) return;
    if (!lock_enter(&state->lock, RANK_CLASS, false)) {
        put_remote(heap, state, chain);
        return;
    }
    if (home < HOME_LOOK) {
        send_home(heap, state, chain, home, index);
        chain = 0;
    }
    while (chain) {
        chain_t same;
        home = entry_home(registry_lookup(chain_block(chain)));
        chain = split(heap, state, chain, home, &same);
        send_home(heap, state, same, home, index);
    }
    lock_release(&state->lock, RANK_CLASS);
}

void drain_outbox(hak_heap_t *heap, class_state_t *state, magazine_t *outbox, int index)
{
    /* Its tag first: a block that comes in between is taken for one of the same home at worst. */
    uint16_t tag = load_relaxed(&outbox->tag);
    store_relaxed(&outbox->tag, (uint16_t)0);
    chain_t chain = percpu_take_outbox(&heap->percpu, PERCPU_HOT(state->cls));
    drain_home(heap, state, chain, tag ? tag >> ENTRY_HOME_SHIFT : HOME_LOOK, index);
}

/* An area's outbox, made when it is first wanted. */
static magazine_t *outbox_of(hak_heap_t *heap, area_t *area)
{
    /* Acquire: pairs with the release below; the record is zeroed before. */
    magazine_t *outbox = load_acquire(&area->outbox);
    if (outbox || !lock_try(&heap->lock, RANK_HEAP)) return outbox;
    outbox = load_relaxed(&area->outbox);
    if (!outbox && (outbox = heap_record_now(heap, CLASS_COUNT * sizeof *outbox)) != NULL)
        store_release(&area->outbox, outbox);
    lock_release(&heap->lock, RANK_HEAP);
    return outbox;
}

static void drain_away(hak_heap_t *heap, class_state_t *state, area_t *area, int index,
                       entry_t entry, void *ptr)
{
    percpu_t *percpu = &heap->percpu;
    unsigned cls = state->cls;
    size_t hot = PERCPU_HOT(cls);
    magazine_t *outbox = outbox_of(heap, area);
    if (outbox) note_home(&outbox[cls], entry);
    if (outbox && !load_relaxed(&outbox[cls].limit)) adapt_grow(heap, area, &outbox[cls], state);
    if (percpu_post(percpu, hot, ptr, heap->key)) {
        counter_add(&heap->counters, outbox, 1);
        return;
    }
    counter_add(&heap->counters, early_full, 1);
    if (outbox) {
        adapt_missed(area, &outbox[cls]);
        adapt_grow(heap, area, &outbox[cls], state);
        drain_outbox(heap, state, &outbox[cls], index);
        note_home(&outbox[cls], entry);
    }
    /* There is no outbox, or the thread has moved. */
    if (!percpu_post(percpu, hot, ptr, heap->key))
        drain_home(heap, state, block_push(0, ptr, heap->key), HOME_LOOK, index);
    adapt_area(heap, area, index);
}

/* ---- The ladder ---- */

bool drain_to_spare(hak_heap_t *heap, entry_t entry, void *ptr)
{
    if (percpu_mode == PERCPU_LOCKED) return false;
    percpu_t *percpu = &heap->percpu;
    unsigned cls = entry_code(entry);
    int index = percpu_index();
    area_t *area = index < 0 ? NULL : percpu_running(percpu, (unsigned)index);
    if (!area || is_away(entry, index, area)) return false;
    size_t hot = PERCPU_HOT(cls);
    refill_tag(heap, area, index, cls);
    /* The tag was behind, or the block's slab wants to be looked at; by now it has been. */
    if (percpu_push(percpu, hot, ptr, heap->key)) {
        counter_add(&heap->counters, tls_sll, 1);
        return true;
    }
    if (load_relaxed(&area->spare[cls])) return false;
    chain_t full = section_take(percpu, hot);
    if (!full) return false;
    if (!section_install(percpu, hot, PERCPU_SPARE(cls), full)) {
        /* The thread has moved, or a flush has come: nobody's magazine is owed these blocks. */
        put_remote(heap, heap_class_made(heap, cls), full);
    }
    if (!percpu_push(percpu, hot, ptr, heap->key)) return false;
    counter_add(&heap->counters, early_full, 1);
    counter_add(&heap->counters, tls_sll, 1);
    return true;
}

void drain_block(hak_heap_t *heap, entry_t entry, void *ptr)
{
    percpu_t *percpu = &heap->percpu;
    unsigned cls = entry_code(entry);
    class_state_t *state = heap_class_made(heap, cls);
    size_t hot = PERCPU_HOT(cls);
    int index;
    area_t *area = refill_area(heap, &index, false);
    if (area && is_away(entry, index, area)) {
        drain_away(heap, state, area, index, entry, ptr);
        return;
    }
    if (area) refill_tag(heap, area, index, cls);
    if (area && !load_relaxed(&area->hot[cls].limit))
        adapt_grow(heap, area, &area->hot[cls], state);
    if (percpu_push(percpu, hot, ptr, heap->key)) {
        counter_add(&heap->counters, tls_sll, 1);
        return;
    }
    counter_add(&heap->counters, early_full, 1);
    chain_t full = percpu_take(percpu, hot);
    bool kept = full && percpu_install(percpu, cls, PERCPU_SPARE(cls), full);
    bool returns = false;
    if (!kept && area) {
        magazine_t *outbox = outbox_of(heap, area);
        returns = outbox && adapt_overflowed(heap, area, &outbox[cls], cls, chain_count(full));
        if (!returns) adapt_grow(heap, area, &area->hot[cls], state);
    }
    if (!percpu_push(percpu, hot, ptr, heap->key))
        drain_chain(heap, state, block_push(0, ptr, heap->key), index, false);
    /* Not the spare chain: this one's blocks are still in the nearest cache, and each of them is
     * visited. */
    if (full && !kept) drain_chain(heap, state, full, index, false);
    chain_t spare = returns ? percpu_take(percpu, PERCPU_SPARE(cls)) : 0;
    if (spare) drain_chain(heap, state, spare, index, false);
    if (area) adapt_area(heap, area, index);
}

void drain_remote(hak_heap_t *heap, unsigned cls, void *ptr)
{
    put_remote(heap, heap_class_made(heap, cls), block_push(0, ptr, heap->key));
}

/* ---- Mid and large blocks ---- */

/* Notes a block for whoever next holds the HEAP lock. Its memory is the library's, so the list runs
 * through it. */
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
    size_t bytes = mid_bytes(mid);
    mid_remove(&heap->large, mid);
    if (heap_put_run(heap, run, granules, PAGES_ALL, may_wait)) return;
    mid_add(&heap->large, run, granules, bytes);
    defer(heap, superslab_granule(run.ss, run.first));
}

/* Unmaps what the cache has no room for; a block too big for all of it does not drive out the
 * others. What the kernel refuses to unmap stays cached, and counted. */
static void free_large(hak_heap_t *heap, large_t *large)
{
    large_set_t *set = &heap->large;
    large_remove(set, large);
    if (large_bytes(large) > set->cache_limit && heap_drop_large(heap, large, LARGE_RELEASED))
        return;
    large_cache(set, large);
    for (large_t *old; (old = large_evict(set, set->cache_limit)) != NULL;) {
        if (heap_drop_large(heap, old, LARGE_RELEASED)) continue;
        large_cache(set, old);
        return;
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
    /* Relaxed: a free that came before this call, by whatever order the program gave them, has
     * noted its block. */
    if (!load_relaxed(&heap->deferred)) return;
    lock_acquire(&heap->lock, RANK_HEAP);
    drain_deferred(heap, true);
    lock_release(&heap->lock, RANK_HEAP);
}

/* What is too big for the cache will be unmapped under the lock. Its pages, which take the kernel
 * long, go before. */
static void purge_uncacheable(const hak_heap_t *heap, const void *ptr)
{
    large_t *large = registry_lookup(ptr) ? NULL : registry_range(ptr);
    if (large && large_bytes(large) > heap->large.cache_limit)
        (void)os->purge(large_base(large), large_bytes(large));
}

void drain_big(hak_heap_t *heap, void *ptr, bool deferred)
{
    if (!deferred) purge_uncacheable(heap, ptr);
    if (deferred || !lock_try(&heap->lock, RANK_HEAP)) {
        defer(heap, ptr);
        return;
    }
    drain_deferred(heap, false);
    free_big(heap, ptr, false);
    lock_release(&heap->lock, RANK_HEAP);
}
