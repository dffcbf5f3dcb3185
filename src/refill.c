/* hakheap level 8: ladder_refill - the ladder of an allocation miss */
#include "ladder.h"
#include "os.h"
#include "tls.h"

void refill_tag(const hak_heap_t *heap, area_t *area, int index, unsigned cls)
{
    /* While the heap is being divided some of its slabs have no home yet: to free their blocks
     * costs the slow path. */
    unsigned home = load_relaxed(&heap->divided) == DIVIDED ? registry_home(index) : HOME_NONE;
    if (!adapt_returns(area, cls)) percpu_tag(area, cls, registry_tag(home, cls));
}

/* ---- The running CPU's area ---- */

static area_t *make_area(hak_heap_t *heap, unsigned index, bool may_wait)
{
    percpu_t *percpu = &heap->percpu;
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return NULL;
    area_t *area = *percpu_idle(percpu);
    if (area) *percpu_idle(percpu) = area->next;
    else area = heap_area(heap, may_wait);
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

/* Takes a slab over that another home uses less than half of (its threads may have moved here), or
 * any with a block to give where the other home is `idle`. */
static bool adopt_slab(hak_heap_t *heap, class_state_t *state, unsigned home, bool idle)
{
    const slab_set_t *mine = heap_set_of(state, home);
    for (slab_set_t *set = &state->shared; set; set = heap_next_set(state, set)) {
        slab_t *slab = set == mine ? NULL : slab_find(set, idle ? BIN_HIGH : BIN_LOW);
        if (!slab) continue;
        if (idle && slab->home < state->homes && !heap_home_is_idle(heap, state, slab->home))
            continue;
        heap_rehome(state, slab, home);
        return true;
    }
    return false;
}

/* One CPU allocates what another frees: then both are better off with slabs of their own and chains
 * sent home. */
static void note_taker(hak_heap_t *heap, class_state_t *state, int index)
{
    state->one_way = state->taker == index ? state->one_way + 1 : 1;
    state->taker = (int16_t)index;
    if (state->one_way >= DIVIDE_ONE_WAY) heap_divide_soon(heap);
}

/* Blocks that wait in a chain for another CPU go back to their slabs, for this one to take, or to
 * take over. */
static bool drain_others(hak_heap_t *heap, class_state_t *state, int index)
{
    size_t bytes = 0;
    if (!drain_oldest(heap, state, &bytes)) return false;
    note_taker(heap, state, index);
    return true;
}

/* Where the system refuses a slab, any block will do. */
static chain_t take_anywhere(hak_heap_t *heap, class_state_t *state, size_t want, size_t most)
{
    chain_t chain = 0;
    for (slab_set_t *set = &state->shared; set && !chain; set = heap_next_set(state, set))
        chain = slab_take(set, state->cls, want, most, &heap->guard);
    return chain;
}

/* Blocks, or a slab with some, that other CPUs have given up or hardly use. */
static bool take_from_others(hak_heap_t *heap, class_state_t *state, int index, unsigned home)
{
    if (!state->homes && !state->cold) return false;
    return adopt_slab(heap, state, home, false) || drain_others(heap, state, index) ||
           adopt_slab(heap, state, home, true);
}

static chain_t take_slab(hak_heap_t *heap, class_state_t *state, int index, size_t want,
                         size_t most)
{
    if (drain_remote_list(heap, state)) counter_add(&heap->counters, refill_remote, 1);
    unsigned home = heap_home(heap, state, index, true);
    chain_t chain;
    while (!(chain = slab_take(heap_set_of(state, home), state->cls, want, most, &heap->guard)) &&
           (take_from_others(heap, state, index, home) || fresh_slab(heap, state, home))) {
    }
    if (!chain) chain = take_anywhere(heap, state, want, most);
    store_relaxed(&state->outside, load_relaxed(&state->outside) + chain_count(chain));
    if (chain) counter_add(&heap->counters, refill_slab, 1);
    return chain;
}

/* The rungs below the areas. */
static chain_t take_shared(hak_heap_t *heap, class_state_t *state, int index, size_t want,
                           size_t most)
{
    lock_acquire(&state->lock, RANK_CLASS);
    chain_t chain = state->cold ? cold_take(state->cold, (unsigned)index) : 0;
    budget_put(&heap->budget, chain_count(chain) * size_classes[state->cls].bytes);
    if (chain) counter_add(&heap->counters, refill_cold, 1);
    else chain = take_slab(heap, state, index, want, most);
    lock_release(&state->lock, RANK_CLASS);
    return chain;
}

/* The newest block of a chain is the caller's; the rest becomes the hot magazine, or wherever there
 * is room. */
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
    /* Back, where the pop missed because it was aborted, and the hot magazine is not empty. */
    if (rest && !section_install(&heap->percpu, PERCPU_HOT(cls), PERCPU_HOT(cls), rest) &&
        !section_install(&heap->percpu, PERCPU_HOT(cls), PERCPU_SPARE(cls), rest))
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
        if (area) adapt_missed(area, &area->hot[cls]);
        if (area && adapt_returns(area, cls)) adapt_wants(heap, area, index, cls);
        if (area) adapt_grow(heap, area, &area->hot[cls], state);
        size_t most = area ? hak_max(1, load_relaxed(&area->hot[cls].limit)) : 1;
        chain = take_shared(heap, state, index, area ? adapt_refill(&area->hot[cls]) : 1, most);
        if (HAK_UNLIKELY(load_relaxed(&heap->divided) == DUE)) heap_divide(heap, index);
        if (area) adapt_area(heap, area, index);
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
