/* hakheap level 8: ladder_refill - the ladder of an allocation miss */
#include "ladder.h"
#include "os.h"
#include "tls.h"

/*
 * Magazine sizes. A class starts with a handful of blocks and doubles at each miss that reached a lock, up to MOST_BYTES
 * or MOST_BLOCKS, as long as the heap's budget has room; the budget is charged for hot and spare alike. Where it has
 * none, another class of the same area gives up half of what it has (the "stealing" of tcmalloc's thread caches).
 */
enum { MOST_BYTES = 256 * 1024, MOST_BLOCKS = 256, LEAST_BLOCKS = 2, FIRST_BLOCKS = 32, SHARE = 2, STEAL_TRIES = 8 };

static uint32_t most_blocks(const class_state_t *state)
{
    size_t fits = hak_min(MOST_BYTES / size_classes[state->cls].bytes, MOST_BLOCKS);
    /* Relaxed: a guess at how many blocks the program uses; what is cached shall stay a fraction of it. */
    size_t share = load_relaxed(&state->outside) / SHARE;
    return (uint32_t)hak_max(hak_min(fits, share), hak_min(hak_max(fits, LEAST_BLOCKS), FIRST_BLOCKS));
}

/* Relaxed: a limit orders nothing; a section reads the one or the other. */
static bool set_limit(magazine_t *magazine, uint32_t from, uint32_t to)
{
    return atomic_compare_exchange_strong_explicit(&magazine->limit, &from, to, memory_order_relaxed,
                                                   memory_order_relaxed);
}

/* What a magazine holds beyond a lowered limit would be outside of the budget: then all of it goes to the slabs. */
static void empty_above(hak_heap_t *heap, area_t *area, unsigned cls, uint32_t limit)
{
    const size_t words[] = {PERCPU_HOT(cls), PERCPU_SPARE(cls)};
    const chain_t held[] = {load_relaxed(&area->hot[cls].word), load_relaxed(&area->spare[cls])};
    for (int i = 0; i < 2; i++) {
        /* The thread may have moved: then another CPU's magazine is emptied, which does no harm. */
        chain_t chain = chain_count(held[i]) > limit ? percpu_take(&heap->percpu, words[i]) : 0;
        if (chain) drain_chain(heap, heap_class_made(heap, cls), chain, PERCPU_NONE, false);
    }
}

static chain_t take_cold(hak_heap_t *heap, const class_state_t *state, chain_t chain)
{
    if (chain) budget_put(&heap->budget, chain_count(chain) * size_classes[state->cls].bytes);
    return chain;
}

/* Returns the oldest cold chain to its slabs; false: there is none. Lock: CLASS. */
static bool drain_oldest(hak_heap_t *heap, class_state_t *state)
{
    chain_t chain = state->cold ? take_cold(heap, state, cold_steal(state->cold)) : 0;
    drain_to_slabs(heap, state, chain, SIZE_MAX);
    return chain != 0;
}

/* A cold chain of a class that may have no use for it. */
static void steal_cold(hak_heap_t *heap, unsigned cls)
{
    class_state_t *state = heap_class_made(heap, cls);
    if (!state || !lock_try(&state->lock, RANK_CLASS)) return;
    (void)drain_oldest(heap, state);
    lock_release(&state->lock, RANK_CLASS);
}

static void steal_limits(hak_heap_t *heap, area_t *area, const magazine_t *for_magazine)
{
    for (int tries = 0; tries < STEAL_TRIES; tries++) {
        unsigned cls = add_relaxed(&area->victim, 1u) % CLASS_COUNT;
        magazine_t *victim = &area->hot[cls];
        if (victim != for_magazine) steal_cold(heap, cls);
        uint32_t limit = load_relaxed(&victim->limit);
        if (victim == for_magazine || limit <= LEAST_BLOCKS || !set_limit(victim, limit, limit / 2)) continue;
        budget_put(&heap->budget, percpu_limit_bytes(area, victim, cls, limit - limit / 2));
        empty_above(heap, area, cls, limit / 2);
    }
}

void refill_grow_limit(hak_heap_t *heap, area_t *area, magazine_t *magazine, const class_state_t *state)
{
    uint32_t limit = load_relaxed(&magazine->limit);
    uint32_t most = most_blocks(state);
    uint32_t wanted = limit ? limit * 2 : FIRST_BLOCKS;
    if (wanted > most) wanted = most;
    if (wanted <= limit) return;
    size_t bytes = percpu_limit_bytes(area, magazine, state->cls, wanted - limit);
    if (!budget_take(&heap->budget, bytes)) {
        steal_limits(heap, area, magazine);
        if (!budget_take(&heap->budget, bytes)) return;
    }
    if (!set_limit(magazine, limit, wanted)) budget_put(&heap->budget, bytes);
}

void refill_tag(const hak_heap_t *heap, area_t *area, int index, unsigned cls)
{
    /* While the heap is being divided some of its slabs have no home yet: to free their blocks costs the slow path. */
    unsigned home = load_relaxed(&heap->divided) == DIVIDED ? registry_home(index) : HOME_NONE;
    percpu_tag(area, cls, registry_tag(home, cls));
}

/* ---- The running CPU's area ---- */

static area_t *make_area(hak_heap_t *heap, unsigned index, bool may_wait)
{
    percpu_t *percpu = &heap->percpu;
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return NULL;
    area_t *area = *percpu_idle(percpu);
    if (area) *percpu_idle(percpu) = area->next;
    else area = may_wait ? heap_record(heap, sizeof *area) : heap_record_now(heap, sizeof *area);
    lock_release(&heap->lock, RANK_HEAP);
    if (area) percpu_adopt(percpu, index, area);
    return area;
}

area_t *refill_area(hak_heap_t *heap, int *index, bool may_wait)
{
    *index = percpu_index();
    if (*index < 0) {
        counter_add(&heap->counters, early_no_rseq, 1);
        return NULL;
    }
    area_t *area = percpu_running(&heap->percpu, (unsigned)*index);
    if (HAK_LIKELY(area)) return area;
    if (!lock_enter(&heap->areas_lock, RANK_AREAS, may_wait)) return NULL;
    area = percpu_area(&heap->percpu, (unsigned)*index);
    if (area) counter_add(&heap->counters, early_stopped, 1);
    else counter_add(&heap->counters, early_no_area, 1);
    if (!area) area = make_area(heap, (unsigned)*index, may_wait);
    lock_release(&heap->areas_lock, RANK_AREAS);
    return area;
}

/* ---- Small blocks ---- */

static bool fresh_slab(hak_heap_t *heap, class_state_t *state, unsigned home)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    drain_deferred(heap, true);
    run_t run = heap_take_run(heap, size_classes[state->cls].granules, 1, state->cls);
    lock_release(&heap->lock, RANK_HEAP);
    if (!run.ss) return false;
    counter_add(&heap->counters, refill_fresh_slab, 1);
    slab_t *slab = slab_add(&state->shared, run, state->cls);
    if (home != HOME_NONE) heap_rehome(state, slab, home);
    else if (state->shared.slabs >= DIVIDE_SLABS) heap_divide_soon(heap);
    return true;
}

/* Takes a slab over that another home uses less than half of (its threads may have moved here), or any with a block to give
 * where the other home is `idle`. */
static bool adopt_slab(hak_heap_t *heap, class_state_t *state, unsigned home, bool idle)
{
    const slab_set_t *mine = heap_set_of(state, home);
    for (slab_set_t *set = &state->shared; set; set = heap_next_set(state, set)) {
        slab_t *slab = set == mine ? NULL : slab_find(set, idle ? BIN_HIGH : BIN_LOW);
        if (!slab) continue;
        if (idle && slab->home < state->homes && !heap_home_is_idle(heap, state, slab->home)) continue;
        heap_rehome(state, slab, home);
        return true;
    }
    return false;
}

/* One CPU allocates what another frees: then both are better off with slabs of their own and chains sent home. */
static void note_taker(hak_heap_t *heap, class_state_t *state, int index)
{
    state->one_way = state->taker == index ? state->one_way + 1 : 1;
    state->taker = index;
    if (state->one_way >= DIVIDE_ONE_WAY) heap_divide_soon(heap);
}

/* Blocks that wait in a chain for another CPU go back to their slabs, for this one to take, or to take over. */
static bool drain_others(hak_heap_t *heap, class_state_t *state, int index)
{
    if (!drain_oldest(heap, state)) return false;
    note_taker(heap, state, index);
    return true;
}

/* Where the system refuses a slab, any block will do. */
static chain_t take_anywhere(hak_heap_t *heap, class_state_t *state, size_t want)
{
    chain_t chain = 0;
    for (slab_set_t *set = &state->shared; set && !chain; set = heap_next_set(state, set))
        chain = slab_take(set, state->cls, want, &heap->guard);
    return chain;
}

static chain_t take_slab(hak_heap_t *heap, class_state_t *state, int index, size_t want)
{
    if (drain_remote_list(heap, state)) counter_add(&heap->counters, refill_remote, 1);
    unsigned home = heap_home(heap, state, index, true);
    chain_t chain;
    while (!(chain = slab_take(heap_set_of(state, home), state->cls, want, &heap->guard)) &&
           (adopt_slab(heap, state, home, false) || drain_others(heap, state, index) ||
            adopt_slab(heap, state, home, true) || fresh_slab(heap, state, home))) {
    }
    if (!chain) chain = take_anywhere(heap, state, want);
    store_relaxed(&state->outside, load_relaxed(&state->outside) + chain_count(chain));
    if (chain) counter_add(&heap->counters, refill_slab, 1);
    return chain;
}

/* The rungs below the areas. */
static chain_t take_shared(hak_heap_t *heap, class_state_t *state, int index, size_t want)
{
    lock_acquire(&state->lock, RANK_CLASS);
    chain_t chain = state->cold ? take_cold(heap, state, cold_take(state->cold, (unsigned)index)) : 0;
    if (chain) counter_add(&heap->counters, refill_cold, 1);
    else chain = take_slab(heap, state, index, want);
    lock_release(&state->lock, RANK_CLASS);
    return chain;
}

/* The newest block of a chain is the caller's; the rest becomes the hot magazine, or wherever there is room. */
static void *hand_out(hak_heap_t *heap, class_state_t *state, chain_t chain, int index)
{
    unsigned cls = state->cls;
    block_t *block = chain_block(chain);
    chain_t rest = block_next(chain, &heap->guard, "malloc", size_classes[cls].bytes);
    if (heap->key) block_unseal(block);
    if (rest && !percpu_install(&heap->percpu, cls, PERCPU_HOT(cls), rest) &&
        !percpu_install(&heap->percpu, cls, PERCPU_SPARE(cls), rest))
        drain_chain(heap, state, rest, index, true);
    return block;
}

/* What a fork catches in these registers is lost to the child, like every chain in transit. */
void *refill_from_spare(hak_heap_t *heap, unsigned cls)
{
    if (percpu_mode == PERCPU_LOCKED) return NULL;
    chain_t chain = section_take(&heap->percpu, PERCPU_SPARE(cls));
    if (!chain) return NULL;
    size_t bytes = size_classes[cls].bytes;
    block_t *block = chain_block(chain);
    chain_t rest = block_next(chain, &heap->guard, "malloc", bytes);
    if (heap->key) block_unseal(block);
    counter_add(&heap->counters, early_empty, 1);
    counter_add(&heap->counters, refill_spare, 1);
    if (rest && !section_install(&heap->percpu, PERCPU_HOT(cls), PERCPU_HOT(cls), rest))
        remote_push(&heap_class_made(heap, cls)->remote, rest, &heap->guard, bytes);
    return block;
}

void *refill_block(hak_heap_t *heap, unsigned cls)
{
    class_state_t *state = heap_class(heap, cls);
    if (!state) return NULL;
    int index;
    area_t *area = refill_area(heap, &index, true);
    if (area) refill_tag(heap, area, index, cls);
    chain_t link;
    block_t *block = percpu_pop(&heap->percpu, PERCPU_HOT(cls), heap->key, &link);
    if (block) {
        counter_add(&heap->counters, refill_hot, 1);
        if (heap->key) {
            if (!block_is_sealed(block, link, heap->key))
                block_corrupt(&heap->guard, "malloc", block, size_classes[cls].bytes);
            block_unseal(block);
        }
        return block;
    }
    counter_add(&heap->counters, early_empty, 1);
    chain_t chain = percpu_take(&heap->percpu, PERCPU_SPARE(cls));
    if (chain) {
        counter_add(&heap->counters, refill_spare, 1);
    } else {
        if (area) refill_grow_limit(heap, area, &area->hot[cls], state);
        uint32_t limit = area ? load_relaxed(&area->hot[cls].limit) : 0;
        chain = take_shared(heap, state, index, hak_max(1, limit <= FIRST_BLOCKS ? limit : limit / 2));
        if (HAK_UNLIKELY(load_relaxed(&heap->divided) == DUE)) heap_divide(heap, index);
    }
    return chain ? hand_out(heap, state, chain, index) : NULL;
}

/* ---- Mid and large blocks ---- */

void *refill_mid(hak_heap_t *heap, size_t size, size_t alignment, bool *zeroed)
{
    counter_add(&heap->counters, early_mid, 1);
    unsigned granules = (unsigned)((size + GRANULE - 1) / GRANULE);
    unsigned places = (unsigned)hak_max(1, alignment / GRANULE);
    lock_acquire(&heap->lock, RANK_HEAP);
    drain_deferred(heap, true);
    run_t run = heap_take_run(heap, granules, places, CODE_MID);
    if (run.ss) {
        *zeroed = superslab_run_is_clean(run, granules);
        mid_t *mid = mid_add(&heap->large, run, granules, (size_t)granules * GRANULE);
        mid->asked = (asked_t){size, alignment};
    }
    lock_release(&heap->lock, RANK_HEAP);
    return run.ss ? superslab_granule(run.ss, run.first) : NULL;
}

static large_t *take_record(hak_heap_t *heap)
{
    large_t *large = heap->large.unused;
    if (large) heap->large.unused = large->next;
    else large = heap_record(heap, sizeof *large);
    return large;
}

void *refill_large(hak_heap_t *heap, size_t size, size_t alignment, bool *zeroed)
{
    counter_add(&heap->counters, early_large, 1);
    size_t bytes = hak_round_up(size, HAK_PAGE);
    lock_acquire(&heap->lock, RANK_HEAP);
    drain_deferred(heap, true);
    large_t *large = large_reuse(&heap->large, bytes, hak_max(alignment, SUPERSLAB));
    large_t *record = large ? NULL : take_record(heap);
    lock_release(&heap->lock, RANK_HEAP);
    *zeroed = !large;
    if (large) {
        large->asked = (asked_t){size, alignment};
        return large_base(large);
    }
    if (!record) return NULL;
    char *base = large_map(bytes, alignment);
    if (!base) hak_tls.last_error = HAK_ERROR_COMMIT;
    lock_acquire(&heap->lock, RANK_HEAP);
    if (base) {
        record->asked = (asked_t){size, alignment};
        large_add(&heap->large, record, heap, base, bytes);
        heap_charge(heap, bytes);
    } else {
        record->next = heap->large.unused;
        heap->large.unused = record;
    }
    lock_release(&heap->lock, RANK_HEAP);
    return base;
}
