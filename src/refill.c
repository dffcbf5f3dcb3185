/* hakheap level 13: refill - the ladder of an allocation that found its magazine empty */
#include "refill.h"

#include <errno.h>

#include "drain.h"
#include "gate.h"
#include "mapping.h"
#include "os.h"
#include "runs.h"
#include "stall.h"
#include "tls.h"

/* ---- Blocks of classes that have few ---- */

/* So often pages without blocks are looked for: what that costs is small beside as many takes. */
enum { LOOK_TAKES = 128, BUSY_LOOK_TAKES = 64 * LOOK_TAKES };

/* Blocks that find no hole go on in a region. */
static void move_tail(hak_heap_t *heap, uint32_t index)
{
    unsigned before = load_relaxed(&heap->region_tail);
    if (before == index) return;
    store_relaxed(&heap->region_tail, (uint8_t)index);
    region_leave(heap_region(heap, before));
    heap_note_hole(heap, before, region_room(heap_region(heap, before)));
}

/* Opens a page of the first region, from one on to before another, that has one to open. Where it
 * goes on with the region's tail, so do blocks that find no hole. False: none has. */
static bool open_page_of(hak_heap_t *heap, uint32_t from, uint32_t end)
{
    for (uint32_t index = from; index < end; index++) {
        region_t *region = heap_region(heap, index);
        if (!region_may_open(region) || !region_open(region, &heap->guard)) continue;
        store_relaxed(&heap->region_opens, (uint8_t)index);
        heap_note_hole(heap, index, region_room(region));
        if (region_has_tail(region)) move_tail(heap, index);
        return true;
    }
    return false;
}

/* The same of all. Those before the hint are looked at last: others may have closed a page there
 * since. */
static bool open_page(hak_heap_t *heap)
{
    uint32_t regions = load_acquire(&heap->regions); /* pairs with the release in made_region */
    uint32_t from = load_relaxed(&heap->region_opens);
    if (open_page_of(heap, from, regions)) return true;
    return open_page_of(heap, 0, (uint32_t)hak_min(from, regions));
}

/* What a hint says of a hole for so many units, at least. */
static unsigned hint_of(unsigned units) { return (unsigned)hak_min(units, REGION_ROOM); }

/* A hole in an open page: the lowest. A region that has none that is aligned may have others. */
static void *take_hole(hak_heap_t *heap, unsigned units, unsigned alignment)
{
    unsigned hint = hint_of(units);
    if (heap_has_no_hole(heap, hint)) return NULL;
    rooms_t *rooms = &heap->region_rooms;
    uint32_t regions = load_acquire(&heap->regions); /* pairs with the release in made_region */
    for (unsigned at = 0; (at = rooms_next(rooms, at, regions, hint)) < REGION_MOST; at++) {
        region_t *region = heap_region(heap, at);
        void *ptr = region_take(region, units, alignment, &heap->guard);
        if (HAK_LIKELY(ptr)) return ptr;
        rooms_lower(rooms, at, region_room(region));
    }
    store_relaxed(&heap->region_room, (uint8_t)rooms_most(rooms));
    return NULL;
}

static void *take_behind(hak_heap_t *heap, unsigned units)
{
    void *ptr = region_append(heap_tail_region(heap), units, &heap->guard);
    /* What the next page is of may be longer than what is left of this one. */
    if (HAK_UNLIKELY(!ptr) && open_page(heap))
        ptr = region_append(heap_tail_region(heap), units, &heap->guard);
    return ptr;
}
/* The same for any alignment. What was left out there is a hole. */
static void *take_at_tail(hak_heap_t *heap, unsigned units, unsigned alignment)
{
    unsigned index = load_relaxed(&heap->region_tail);
    region_t *region = heap_region(heap, index);
    void *ptr = region_append_aligned(region, units, alignment, &heap->guard);
    heap_note_hole(heap, index, region_room(region));
    return ptr;
}

static void *take_from_open(hak_heap_t *heap, unsigned units, unsigned alignment)
{
    void *ptr = take_hole(heap, units, alignment);
    return ptr ? ptr : take_at_tail(heap, units, alignment);
}

/* The same, else the first of a page that is opened. */
static void *take_from_regions(hak_heap_t *heap, unsigned cls, unsigned alignment)
{
    unsigned units = size_classes[cls].bytes / REGION_UNIT;
    void *ptr = take_from_open(heap, units, alignment);
    while (HAK_UNLIKELY(!ptr) && open_page(heap)) ptr = take_from_open(heap, units, alignment);
    return ptr;
}

static void *note_taken(hak_heap_t *heap, unsigned cls, void *ptr)
{
    if (!ptr) return NULL;
    heap_note_taken(heap, cls);
    counter_add(&heap->counters, refill_region, 1);
    return ptr;
}

static unsigned units_of(size_t alignment) { return (unsigned)hak_max(1, alignment / REGION_UNIT); }

/* A heap that breathes leaves pages without blocks behind, which no trim may ever come for. */
static void give_pages_back(hak_heap_t *heap)
{
    size_t keep = 0;
    uint32_t regions = load_acquire(&heap->regions); /* pairs with the release in made_region */
    for (uint32_t at = 0; at < regions; at++) {
        (void)region_release(heap_region(heap, at), false, &keep, os_purge);
        heap_note_hole(heap, at, region_room(heap_region(heap, at)));
    }
}

/* ---- Busy heaps ---- */

enum {
    BUSY_TURNS = 64,                         /* takes for each block that lives */
    BUSY_BYTES = HAK_PAGE,                   /* of a class, which slabs then serve as well; */
    BUSY_HEAP = POCKET_CLASSES * BUSY_BYTES, /* or of the heap: a page for each class adds little */
};

static size_t blocks_in_regions(hak_heap_t *heap)
{
    size_t blocks = 0;
    for (unsigned cls = 0; cls < REGION_CLASSES; cls++)
        blocks += load_relaxed(&heap->region_blocks[cls]);
    return blocks;
}

/* Bytes of a class that are not many: a page, but none where no pocket makes it quick. */
static size_t most_of(unsigned cls) { return cls < POCKET_CLASSES ? BUSY_BYTES : 0; }

/* Classes that have many blocks at each of several looks move to slabs. One that only has them at
 * times would leave slabs behind that are nearly empty. */
static void look_for_many(hak_heap_t *heap)
{
    uint64_t many = 0;
    for (unsigned cls = 0; cls < REGION_CLASSES; cls++) {
        size_t bytes = (size_t)load_relaxed(&heap->region_blocks[cls]) * size_classes[cls].bytes;
        if (bytes > most_of(cls)) many |= (uint64_t)1 << cls;
    }
    /* Relaxed: about. */
    if (load_relaxed(&heap->committed) > BUSY_HEAP) many = UINT64_MAX;
    uint64_t leaves = many;
    for (unsigned i = 0; i < LOOKS_BEFORE; i++) {
        uint64_t before = load_relaxed(&heap->region_many[i]);
        store_relaxed(&heap->region_many[i], many);
        leaves &= many = before;
    }
    store_relaxed(&heap->region_leaves, load_relaxed(&heap->region_leaves) | leaves);
}

/* The most that pockets hold is charged once, so that no put or take has to. */
static size_t most_in_pockets(void)
{
    size_t bytes = 0;
    for (unsigned cls = 0; cls < POCKET_CLASSES; cls++)
        bytes +=
            pocket_most(size_classes[cls].bytes / REGION_UNIT) * (size_t)size_classes[cls].bytes;
    return bytes;
}

/* In the gate, so that a fork sees all of it or nothing. Where that is closed, and in a signal
 * handler, another look does it. */
static void become_busy(hak_heap_t *heap)
{
    uint32_t calm = CALM;
    if (gate_enter(false) != GATE_IN) return;
    if (cas_once_relaxed(&heap->busy, &calm, (uint32_t)BUSY_BARE)) {
        if (budget_take(&heap->budget, most_in_pockets()))
            store_relaxed(&heap->busy, (uint32_t)BUSY_POCKETS);
    }
    gate_leave();
}

/* A heap whose blocks are all in regions has no other slow path. Where the gate is closed, and in a
 * signal handler, another look does it. */
static void tick(void)
{
    if (gate_enter(false) != GATE_IN) return;
    reserve_tick(&process_reserve);
    gate_leave();
}

/* Each so many takes. */
static void look_after(hak_heap_t *heap, uint32_t takes)
{
    /* In a busy heap a page without blocks is soon wanted again. */
    bool calm = load_relaxed(&heap->busy) == CALM;
    if (calm || takes % BUSY_LOOK_TAKES == 0) give_pages_back(heap);
    if (!calm) look_for_many(heap);
    else if (takes / BUSY_TURNS > blocks_in_regions(heap)) become_busy(heap);
}

static HAK_NOINLINE void look(hak_heap_t *heap, uint32_t takes)
{
    int before = errno;
    uint32_t error = hak_tls.last_error;
    if (takes % LOOK_TAKES == 0) look_after(heap, takes);
    tick();
    hak_tls.last_error = error;
    errno = before;
}

/* Of takes that look for a hole. */
HAK_INLINE void count_take(hak_heap_t *heap)
{
    uint32_t takes = load_relaxed(&heap->region_takes) + 1;
    store_relaxed(&heap->region_takes, takes);
    bool due = load_relaxed(&process_reserve.due); /* what is known to be kept too long goes */
    if (HAK_UNLIKELY(due || takes % LOOK_TAKES == 0)) look(heap, takes);
}

void *refill_hole(hak_heap_t *heap, unsigned cls, size_t alignment)
{
    unsigned units = size_classes[cls].bytes / REGION_UNIT;
    bool behind = alignment <= REGION_UNIT && heap_has_no_hole(heap, hint_of(units));
    if (!behind) count_take(heap);
    void *ptr = behind ? take_behind(heap, units) : take_hole(heap, units, units_of(alignment));
    if (HAK_UNLIKELY(!ptr)) ptr = take_from_regions(heap, cls, units_of(alignment));
    return note_taken(heap, cls, ptr);
}

bool refill_charge(const hak_heap_t *heap, unsigned cls)
{
    return heap_lends(heap, size_classes[cls].bytes);
}

static HAK_NOINLINE void *refill_behind_pocket(hak_heap_t *heap, unsigned cls, size_t alignment)
{
    if (HAK_UNLIKELY(!load_relaxed(&heap->regions)) || !heap_in_regions(heap, cls)) return NULL;
    if (HAK_UNLIKELY(heap->ledger != NULL) && !refill_charge(heap, cls)) return NULL;
    void *ptr = refill_hole(heap, cls, alignment);
    if (HAK_UNLIKELY(!ptr)) heap_refund(heap, size_classes[cls].bytes);
    return ptr;
}

/* A block of a pocket, which the region has noted as taken all the time, and which is charged. */
void *refill_pocketed(hak_heap_t *heap, unsigned cls, uint64_t word)
{
    void *ptr = heap_pocketed(heap, word);
    if (HAK_UNLIKELY(key_seals(heap->key)))
        region_unseal(ptr, size_classes[cls].bytes / REGION_UNIT, &heap->guard);
    counter_add(&heap->counters, refill_region, 1);
    return ptr;
}

/* A heap that is gone has neither pockets nor regions, and nothing else is read of it. */
void *refill_from_region(hak_heap_t *heap, unsigned cls, size_t alignment)
{
    if (HAK_UNLIKELY(cls >= REGION_CLASSES || heap_is_closed(heap))) return NULL;
    bool may = alignment <= REGION_UNIT && cls < POCKET_CLASSES;
    uint64_t word = may ? pocket_take(&heap->pocket[cls]) : 0;
    if (word) return refill_pocketed(heap, cls, word);
    return refill_behind_pocket(heap, cls, alignment);
}

/* What the hints hide is looked at before a class moves to slabs because all regions are full: once
 * for each number of them, because it takes as long as some hundred blocks. Lock: HEAP. */
static void *take_hidden(hak_heap_t *heap, unsigned cls, unsigned alignment)
{
    uint32_t regions = load_relaxed(&heap->regions);
    if (heap->regions_looked == regions) return NULL;
    heap->regions_looked = regions;
    for (uint32_t index = 0; index < regions; index++) heap_look_again(heap, index);
    return take_from_regions(heap, cls, alignment);
}

/* The same, with one more region where that has to be. Lock: HEAP. */
static void *take_or_grow(hak_heap_t *heap, unsigned cls, unsigned alignment)
{
    void *ptr = take_from_regions(heap, cls, alignment);
    while (!ptr && runs_take_region(heap)) ptr = take_from_regions(heap, cls, alignment);
    return ptr ? ptr : take_hidden(heap, cls, alignment);
}

static HAK_NOINLINE void *grow_regions(hak_heap_t *heap, unsigned cls, size_t alignment)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    void *ptr = take_or_grow(heap, cls, units_of(alignment));
    lock_release(&heap->lock, RANK_HEAP);
    return note_taken(heap, cls, ptr);
}

/* ---- Small blocks ---- */

/* Lock: HEAP. */
static run_t take_run(hak_heap_t *heap, unsigned granules, unsigned alignment, unsigned code)
{
    (void)drain_deferred(heap, true);
    run_t run = runs_take(heap, granules, alignment, code);
    if (heap->runs >= DIVIDE_RUNS) home_divide_soon(heap);
    return run;
}

/* Granules of the next slab: room for as many blocks as the class has outside, so that a class with
 * few has few granules. Not in a CHECKED heap: that a block would lie behind a slab's last one is
 * known there by its class alone, at each free. */
static unsigned slab_length(const hak_heap_t *heap, const class_state_t *state)
{
    const size_class_t *sizes = &size_classes[state->cls];
    class_state_t *at = (class_state_t *)(uintptr_t)state;
    /* Relaxed: written under the lock, which is held. */
    size_t blocks = hak_max(load_relaxed(&at->outside), 1);
    if (heap->policy.starts || blocks >= sizes->blocks) return sizes->granules;
    return (unsigned)hak_min((blocks * sizes->bytes + GRANULE - 1) / GRANULE, sizes->granules);
}

/* Makes slabs for so many blocks, at least one; false: memory is refused, and there is none. */
static bool fresh_slabs(hak_heap_t *heap, class_state_t *state, unsigned home, size_t wanted)
{
    size_t made = 0;
    do {
        lock_acquire(&heap->lock, RANK_HEAP);
        unsigned granules = slab_length(heap, state);
        run_t run = take_run(heap, granules, 1, state->cls);
        lock_release(&heap->lock, RANK_HEAP);
        if (!run.ss) break;
        counter_add(&heap->counters, refill_fresh_slab, 1);
        slab_t *slab = slab_add(&state->shared, run, granules, state->cls);
        store_relaxed(&state->slabs, load_relaxed(&state->slabs) + 1);
        if (home != HOME_NONE) home_move(state, slab, home);
        else if (state->shared.blocks >= DIVIDE_SLABS * (size_t)size_classes[state->cls].blocks)
            home_divide_soon(heap);
        made += slab->blocks;
    } while (made < wanted);
    return made != 0;
}

/* Of a class that grows: room for what is wanted, as far as it may be carved ahead. */
static void provide(hak_heap_t *heap, class_state_t *state, unsigned home,
                    const slab_wanted_t *wanted)
{
    size_t room = slab_room(home_set(state, home));
    size_t want = hak_min(wanted->ahead, wanted->blocks);
    if (room < want) (void)fresh_slabs(heap, state, home, want - room);
}

/* Takes a slab over that another home uses less than half of (its threads may have moved here), or
 * any with a block to give where the other home is `idle`. */
static bool adopt_slab(hak_heap_t *heap, class_state_t *state, unsigned home, bool idle)
{
    const slab_set_t *mine = home_set(state, home);
    FOR_SETS (set, state) {
        slab_t *slab = set == mine ? NULL : slab_find(set, idle ? BIN_HIGH : BIN_LOW);
        if (!slab) continue;
        if (idle && slab->home < state->homes && !home_is_idle(heap, state, slab->home)) continue;
        home_move(state, slab, home);
        return true;
    }
    return false;
}

/* Blocks that wait in a chain for another CPU go back to their slabs, for this one to take, or to
 * take over. */
static bool drain_others(hak_heap_t *heap, class_state_t *state, int index)
{
    size_t bytes = 0;
    if (!drain_oldest(heap, state, &bytes)) return false;
    home_note_taker(heap, state, index);
    return true;
}

/* Where the system refuses a slab, any block will do. */
static chain_t take_anywhere(hak_heap_t *heap, class_state_t *state, const slab_wanted_t *wanted)
{
    chain_t chain = 0;
    for (slab_set_t *set = &state->shared; set && !chain; set = home_next_set(state, set))
        chain = slab_take(set, state->cls, wanted, &heap->guard);
    return chain;
}

/* Blocks, or a slab with some, that other CPUs have given up or hardly use. */
static bool take_from_others(hak_heap_t *heap, class_state_t *state, int index, unsigned home)
{
    if (!state->homes && !state->cold) return false;
    return adopt_slab(heap, state, home, false) || drain_others(heap, state, index) ||
           adopt_slab(heap, state, home, true);
}

/* Some of the blocks that found the lock busy when they were freed. */
HAK_INLINE size_t take_waiting(hak_heap_t *heap, class_state_t *state)
{
    if (HAK_LIKELY(!remote_blocks(&state->remote))) return 0;
    counter_add(&heap->counters, refill_remote, 1);
    return drain_waiting(heap, state, DRAIN_AT_ONCE);
}

/* ---- Of a heap that counts ----
 *
 * `charged`: one block was charged before the ladder, and is the caller's. Else what is in no cache
 * is charged where slabs give it, to what the heap has borrowed; where that is too little the
 * ladder has nothing. */

/* What is cached is charged already. */
HAK_INLINE void refund_cached(hak_heap_t *heap, const class_state_t *state)
{
    ledger_refund(heap->ledger, size_classes[state->cls].bytes);
}

static chain_t take_slabs(hak_heap_t *heap, class_state_t *state, int index,
                          const slab_wanted_t *wanted)
{
    enum { WAITING_STEPS = 4 }; /* so often waiting blocks are returned before memory is taken */
    int steps = take_waiting(heap, state) ? 1 : WAITING_STEPS;
    unsigned home = home_of(heap, state, index, true);
    chain_t chain;
    if (adapt_is_growing(state)) provide(heap, state, home, wanted);
    while (!(chain = slab_take(home_set(state, home), state->cls, wanted, &heap->guard)) &&
           (take_from_others(heap, state, index, home) ||
            (steps++ < WAITING_STEPS && take_waiting(heap, state)) ||
            fresh_slabs(heap, state, home, 1))) {
    }
    if (!chain) chain = take_anywhere(heap, state, wanted);
    store_relaxed(&state->outside, load_relaxed(&state->outside) + chain_count(chain));
    store_relaxed(&state->grown,
                  (uint16_t)hak_min(load_relaxed(&state->grown) + chain_count(chain), UINT16_MAX));
    if (chain) counter_add(&heap->counters, refill_slab, 1);
    return chain;
}

/* How many blocks the heap may take: of those that are wanted as many as it has borrowed for, else
 * as the chain lends. `charged`: one of them is. */
static size_t take_charges(hak_heap_t *heap, size_t bytes, size_t most, bool charged)
{
    if (HAK_LIKELY(most == 1)) return charged || ledger_take(heap->ledger, bytes);
    size_t granted = charged + ledger_grab(heap->ledger, bytes, most - charged);
    if (!granted && ledger_lend(heap->ledger, bytes))
        granted = 1 + ledger_grab(heap->ledger, bytes, most - 1);
    return granted;
}

/* No more than so many. */
static slab_wanted_t wanted_of(const slab_wanted_t *wanted, uint32_t most)
{
    slab_wanted_t less = *wanted;
    less.bound = most;
    if (HAK_LIKELY(most == wanted->most)) return less;
    less.most = most;
    less.blocks = (uint32_t)hak_min(less.blocks, most);
    less.ahead = (uint32_t)hak_min(less.ahead, most);
    return less;
}

/* No more than the heap has borrowed. */
static chain_t take_charged(hak_heap_t *heap, class_state_t *state, int index,
                            const slab_wanted_t *wanted, bool charged)
{
    size_t bytes = size_classes[state->cls].bytes;
    size_t granted = take_charges(heap, bytes, wanted->most, charged);
    if (HAK_UNLIKELY(!granted)) return 0;
    slab_wanted_t less = wanted_of(wanted, (uint32_t)granted);
    chain_t chain = take_slabs(heap, state, index, &less);
    /* What was charged before stays so where there is none: the caller takes it back. */
    size_t used = hak_max(chain_count(chain), charged);
    if (HAK_UNLIKELY(used < granted)) ledger_refund(heap->ledger, (granted - used) * bytes);
    return chain;
}

static chain_t take_slab(hak_heap_t *heap, class_state_t *state, int index,
                         const slab_wanted_t *wanted, bool charged)
{
    if (HAK_LIKELY(!heap->ledger)) return take_slabs(heap, state, index, wanted);
    return take_charged(heap, state, index, wanted, charged);
}

/* The rungs below the areas. */
static chain_t take_shared(hak_heap_t *heap, class_state_t *state, int index,
                           const slab_wanted_t *wanted, bool charged)
{
    lock_acquire(&state->lock, RANK_CLASS);
    chain_t chain = state->cold ? cold_take(state->cold, (unsigned)index) : 0;
    budget_put(&heap->budget, chain_count(chain) * size_classes[state->cls].bytes);
    if (chain && charged) refund_cached(heap, state);
    if (chain) counter_add(&heap->counters, refill_cold, 1);
    else chain = take_slab(heap, state, index, wanted, charged);
    drain_leave(heap, state);
    return chain;
}

/* The newest block of a chain is the caller's, proved and without its seal; *rest: the others. */
static block_t *split(const hak_heap_t *heap, unsigned cls, chain_t chain, chain_t *rest)
{
    block_t *block = chain_block(chain);
    *rest = block_link(block, heap->key);
    if (heap->policy.sealed) block_hand_out(block, *rest, &heap->guard, size_classes[cls].bytes);
    return block;
}

/* The rest of a chain becomes the hot magazine, or goes wherever there is room. */
static void *hand_out(hak_heap_t *heap, class_state_t *state, chain_t chain, int index)
{
    unsigned cls = state->cls;
    chain_t rest;
    block_t *block = split(heap, cls, chain, &rest);
    STALL(refill_in_hand);
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
    chain_t rest;
    block_t *block = split(heap, cls, chain, &rest);
    counter_add(&heap->counters, early_empty, 1);
    counter_add(&heap->counters, refill_spare, 1);
    /* Back, where the pop missed because it was aborted, and the hot magazine is not empty. */
    if (rest && !section_install(&heap->percpu, PERCPU_HOT(cls), PERCPU_HOT(cls), rest) &&
        !section_install(&heap->percpu, PERCPU_HOT(cls), PERCPU_SPARE(cls), rest))
        drain_remote(heap, cls, rest);
    return block;
}

/* The hot magazine once more: the thread may have moved to another CPU. */
HAK_INLINE block_t *pop_again(hak_heap_t *heap, unsigned cls)
{
    chain_t link;
    block_t *block = percpu_pop(&heap->percpu, PERCPU_HOT(cls), heap->key, &link);
    if (!block) return NULL;
    counter_add(&heap->counters, refill_hot, 1);
    if (heap->policy.sealed) block_hand_out(block, link, &heap->guard, size_classes[cls].bytes);
    return block;
}

/* A chain from below the areas, and what that says of the magazine. */
static chain_t take_below(hak_heap_t *heap, class_state_t *state, area_t *area, int index,
                          bool charged)
{
    magazine_t *hot = area ? &area->hot[state->cls] : NULL;
    if (hot) {
        adapt_missed(area, hot);
        if (area_returns(area, state->cls)) adapt_wants(heap, area, index, state->cls);
        adapt_grow(heap, area, hot, state);
    }
    slab_wanted_t wanted = hot ? adapt_wanted(state, hot) : (slab_wanted_t){1, 1, 0, 0};
    chain_t chain = take_shared(heap, state, index, &wanted, charged);
    home_divide(heap, index);
    if (area) drain_period(heap, area, index);
    if (area) drain_coarse(heap, area, index, state->cls);
    enum { TICK_MISSES = 8 }; /* a look at the clock costs as much as half a miss */
    uint32_t missed = load_relaxed(&heap->missed) + 1;
    store_relaxed(&heap->missed, missed);
    /* What is known to be kept too long goes at each, so that few of them suffice. */
    bool due = load_relaxed(&process_reserve.due);
    if (HAK_UNLIKELY(due || missed % TICK_MISSES == 0)) reserve_tick(&process_reserve);
    return chain;
}

HAK_INLINE void *refill_class(hak_heap_t *heap, unsigned cls, bool charged)
{
    class_state_t *state = record_class(heap, cls);
    if (!state) return NULL;
    int index;
    area_t *area = area_get(heap, &index, true);
    if (area) area_tag(heap, area, index, cls);
    block_t *block = pop_again(heap, cls);
    if (block) {
        if (charged) refund_cached(heap, state);
        return block;
    }
    counter_add(&heap->counters, early_empty, 1);
    chain_t chain = percpu_take(&heap->percpu, PERCPU_SPARE(cls));
    if (chain && charged) refund_cached(heap, state);
    if (chain) counter_add(&heap->counters, refill_spare, 1);
    else if (charged || heap_may_charge(heap))
        chain = take_below(heap, state, area, index, charged);
    return chain ? hand_out(heap, state, chain, index) : NULL;
}

/* Whether a limit has refused another region. Then the class stays where it is: slabs would need no
 * less, and what is freed in the regions would be lost to it for ever. */
static HAK_NOINLINE bool is_bounded(hak_heap_t *heap, unsigned cls)
{
    return hak_tls.last_error == HAK_ERROR_LIMIT && heap_in_regions(heap, cls);
}

/* A region that grows needs the charge first. */
static HAK_NOINLINE void *grow_counted(hak_heap_t *heap, unsigned cls, size_t alignment)
{
    size_t bytes = size_classes[cls].bytes;
    if (!ledger_is_free(heap->ledger) || !ledger_take(heap->ledger, bytes)) return NULL;
    void *ptr = grow_regions(heap, cls, alignment);
    if (!ptr) ledger_uncharge(heap->ledger, bytes);
    return ptr;
}

/* What a class that has moved to slabs has left in regions is room for its blocks, where slabs have
 * none. */
static HAK_NOINLINE void *refill_left(hak_heap_t *heap, unsigned cls, size_t alignment)
{
    return note_taken(heap, cls, take_from_regions(heap, cls, units_of(alignment)));
}

void *refill_block(hak_heap_t *heap, unsigned cls, size_t alignment, bool charged)
{
    /* A tight heap has nothing cached, and is lent no block at once. */
    if (!charged && HAK_UNLIKELY(heap_is_tight(heap))) return NULL;
    if (heap_in_regions(heap, cls)) {
        bool lent = heap->ledger && !charged;
        void *ptr = lent ? grow_counted(heap, cls, alignment) : grow_regions(heap, cls, alignment);
        if (ptr || lent || (charged && is_bounded(heap, cls))) return ptr;
    }
    void *ptr = refill_class(heap, cls, charged);
    bool refused = !ptr && cls < REGION_CLASSES && (charged || !heap->ledger);
    return HAK_UNLIKELY(refused) ? refill_left(heap, cls, alignment) : ptr;
}

/* ---- Mid and large blocks ---- */

void *refill_mid(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty, bool charged)
{
    unsigned granules = (unsigned)((size + GRANULE - 1) / GRANULE);
    size_t bytes = granules * (size_t)GRANULE;
    if (!heap_take_charge(heap, bytes, charged)) return NULL;
    counter_add(&heap->counters, early_mid, 1);
    unsigned places = (unsigned)hak_max(1, alignment / GRANULE);
    lock_acquire(&heap->lock, RANK_HEAP);
    run_t run = take_run(heap, granules, places, CODE_MID);
    if (run.ss) {
        *dirty = superslab_run_is_clean(run, granules) ? 0 : size;
        mid_t *mid = mid_add(&heap->large, run, granules, bytes);
        mid->asked = (asked_t){size, alignment};
    }
    lock_release(&heap->lock, RANK_HEAP);
    if (HAK_LIKELY(run.ss)) return superslab_granule(run.ss, run.first);
    heap_put_charge(heap, bytes, charged);
    return NULL;
}

static large_t *take_record(hak_heap_t *heap)
{
    large_t *large = large_take_unused(&heap->large);
    return large ? large : record_take(heap, sizeof *large, true);
}

/* The chain's room for a large block that comes; its charge, unless that is there. Lock: HEAP. */
static bool admit_large(hak_heap_t *heap, size_t bytes, bool charged)
{
    if (HAK_LIKELY(!heap->ledger)) return true;
    if (!charged && ledger_take_kept(heap->ledger, bytes)) return true;
    if (!charged && !ledger_grab_one(heap->ledger, bytes))
        return ledger_lend_both(heap->ledger, bytes, heap_footprint(heap));
    bool admitted = heap_admit(heap, 0, true);
    if (!admitted) heap_put_charge(heap, bytes, charged);
    return admitted;
}

void *refill_large(hak_heap_t *heap, size_t size, size_t alignment, size_t *dirty, bool charged)
{
    counter_add(&heap->counters, early_large, 1);
    size_t bytes = hak_round_up(size, HAK_PAGE);
    lock_acquire(&heap->lock, RANK_HEAP);
    (void)drain_deferred(heap, true);
    heap->coming += bytes;
    bool admitted = admit_large(heap, bytes, charged);
    large_t *record = admitted ? take_record(heap) : NULL;
    if (!record) {
        heap->coming -= bytes;
        heap_settle(heap, true);
    }
    lock_release(&heap->lock, RANK_HEAP);
    if (!record) {
        if (admitted) heap_put_charge(heap, bytes, charged);
        return NULL;
    }
    char *base = mapping_take(record, bytes, alignment, dirty);
    lock_acquire(&heap->lock, RANK_HEAP);
    heap->coming -= bytes;
    if (base) {
        record->asked = (asked_t){size, alignment};
        large_add(&heap->large, record, heap, base, bytes);
        heap_charge(heap, bytes);
    } else {
        large_put_unused(&heap->large, record);
        heap_settle(heap, true);
    }
    lock_release(&heap->lock, RANK_HEAP);
    if (!base) heap_put_charge(heap, bytes, charged);
    reserve_tick(&process_reserve);
    return base;
}
