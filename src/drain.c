/* hakheap level 12: drain - the ladder of a free that found its magazine full */
#include "drain.h"

#include "mapping.h"
#include "runs.h"
#include "stall.h"

/* ---- Slabs ---- */

bool drain_retire(hak_heap_t *heap, class_state_t *state, slab_t *slab, bool may_wait)
{
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return false;
    run_t run = slab_run(slab);
    slab_set_t *set = home_set(state, slab->home);
    slab_remove(set, slab);
    STALL(slab_retiring);
    bool gone = runs_put(heap, run, slab->granules, 0, may_wait);
    if (gone) store_relaxed(&state->slabs, load_relaxed(&state->slabs) - 1);
    else slab_restore(set, slab);
    lock_release(&heap->lock, RANK_HEAP);
    return gone;
}

/* Lock: CLASS. */
HAK_INLINE void put_block(hak_heap_t *heap, class_state_t *state, block_t *block)
{
    slab_t *slab = slab_of(registry_lookup(block), block);
    slab_set_t *set = home_set(state, slab->home);
    if (slab_put(set, slab, block, &heap->guard) && slab_is_spare(set, slab))
        (void)drain_retire(heap, state, slab, false);
}

static void note_returned(hak_heap_t *heap, class_state_t *state, size_t blocks)
{
    store_relaxed(&state->outside, load_relaxed(&state->outside) - blocks);
    heap_refund_inside(heap, blocks * size_classes[state->cls].bytes);
    store_relaxed(&state->grown, (uint16_t)0);
    counter_add(&heap->counters, ss_local, blocks);
}

/* As many blocks of a chain as one look at a home's slabs may return; lock: CLASS. Returns what is
 * left. */
static chain_t put_chain(hak_heap_t *heap, class_state_t *state, chain_t chain, size_t most)
{
    const block_t *block = chain_block(chain);
    slab_t *empty;
    slab_set_t *set = home_set(state, slab_of(registry_lookup(block), block)->home);
    chain = slab_put_chain(set, chain, most, state->cls, &heap->guard, &empty);
    if (empty && slab_is_spare(set, empty)) (void)drain_retire(heap, state, empty, false);
    return chain;
}

chain_t drain_to_slabs(hak_heap_t *heap, class_state_t *state, chain_t chain, size_t most)
{
    hak_assert(lock_is_held(&state->lock));
    size_t all = chain_count(chain);
    size_t left = all - hak_min(all, most);
    while (chain_count(chain) > left)
        chain = put_chain(heap, state, chain, chain_count(chain) - left);
    note_returned(heap, state, all - left);
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

/* ---- Blocks that wait for the class's lock ---- */

/* Blocks have left the list. Which of them the budget was charged for does not matter; only the
 * holder of the class's lock lowers the number. */
static void uncharge_remote(hak_heap_t *heap, class_state_t *state, size_t blocks)
{
    size_t charged = hak_min(blocks, load_relaxed(&state->remote_charged));
    if (!charged) return;
    sub_relaxed(&state->remote_charged, (uint32_t)charged);
    budget_put(&heap->budget, charged * size_classes[state->cls].bytes);
}

size_t drain_waiting(hak_heap_t *heap, class_state_t *state, size_t most)
{
    hak_assert(lock_is_held(&state->lock));
    size_t bytes = size_classes[state->cls].bytes;
    size_t moved = 0;
    for (block_t *block; moved < most; moved++) {
        block = remote_next(&state->remote, &heap->guard, bytes);
        if (!block) break;
        put_block(heap, state, block);
    }
    if (moved) note_returned(heap, state, moved);
    uncharge_remote(heap, state, moved);
    return moved;
}

void drain_leave(hak_heap_t *heap, class_state_t *state)
{
    if (HAK_UNLIKELY(remote_blocks(&state->remote)))
        (void)drain_waiting(heap, state, DRAIN_AT_ONCE);
    lock_release(&state->lock, RANK_CLASS);
}

/* The budget is not charged: outside of the gate a fork may come between two steps, and the push is
 * all that its child sees or does not see. */
void drain_remote(hak_heap_t *heap, unsigned cls, chain_t chain)
{
    counter_add(&heap->counters, ss_remote, chain_count(chain));
    remote_push(&heap_class_made(heap, cls)->remote, chain, &heap->guard, size_classes[cls].bytes);
    heap_note_waiting(heap);
    STALL(remote_pushed);
}

/* Whether a chain may wait: as far as the list can count it, and the budget has room. */
static bool may_leave(hak_heap_t *heap, class_state_t *state, chain_t chain)
{
    size_t blocks = chain_count(chain);
    if (remote_blocks(&state->remote) + blocks >= CHAIN_MAX) return false;
    /* It has no budget. */
    if (!heap_may_cache(heap)) return true;
    if (!heap_budget_take(heap, blocks * size_classes[state->cls].bytes)) return false;
    add_relaxed(&state->remote_charged, (uint32_t)blocks);
    return true;
}

/* Takes the class's lock, or leaves the chain to the thread that has it and returns false. What
 * waits so is part of what is cached: where there is no room for it, this thread waits, for a step
 * of the other. */
static bool lock_or_leave(hak_heap_t *heap, class_state_t *state, chain_t chain, bool may_wait)
{
    if (lock_enter(&state->lock, RANK_CLASS, may_wait)) return true;
    if (!may_leave(heap, state, chain)) {
        lock_acquire(&state->lock, RANK_CLASS);
        return true;
    }
    drain_remote(heap, state->cls, chain);
    return false;
}

/* ---- Cold ---- */

static cold_t *cold_of(hak_heap_t *heap, class_state_t *state)
{
    if (state->cold || !lock_try(&heap->lock, RANK_HEAP)) return state->cold;
    state->cold = record_take(heap, sizeof *state->cold, false);
    lock_release(&heap->lock, RANK_HEAP);
    return state->cold;
}

/* Returns what the cold level has no room for. */
static chain_t put_cold(hak_heap_t *heap, class_state_t *state, chain_t chain, int index)
{
    size_t bytes = size_classes[state->cls].bytes;
    if (!heap_budget_take(heap, chain_count(chain) * bytes)) return chain;
    cold_t *cold = cold_of(heap, state);
    chain_t overflow = cold ? cold_put(cold, chain, (unsigned)index) : chain;
    budget_put(&heap->budget, chain_count(overflow) * bytes);
    return overflow;
}

/* Whether a divided heap keeps a chain that its magazines have no room for. Blocks of more than a
 * page pin little more than themselves, and their slabs are dear to make. Of smaller ones chains are
 * kept where cold level and magazines have room for the class, or a block is a page, and until a
 * block goes to a slab: then the same ones come and go. The last chains of a larger class would only
 * scatter what is allocated next. Small blocks fit magazines by hundreds. */
static bool is_worth_keeping(const class_state_t *state, chain_t chain)
{
    enum { LEAST_COLD = 4 * HAK_LINE /* bytes */, MAGAZINES = 2 };
    class_state_t *at = (class_state_t *)(uintptr_t)state;
    size_t bytes = size_classes[state->cls].bytes;
    if (bytes < LEAST_COLD || bytes > HAK_PAGE) return bytes > HAK_PAGE;
    /* Relaxed: written under the lock, which is held. */
    if (!load_relaxed(&at->grown)) return false;
    return bytes == HAK_PAGE ||
           load_relaxed(&at->outside) <= (COLD_CHAINS + MAGAZINES) * chain_count(chain);
}

/* A thread that may use no magazine has no CPU to keep a chain for. */
void drain_chain(hak_heap_t *heap, class_state_t *state, chain_t chain, int index, bool may_wait)
{
    if (!lock_or_leave(heap, state, chain, may_wait)) return;
    bool to_slabs = index < 0 || (home_is_divided(heap) && !is_worth_keeping(state, chain));
    chain_t overflow = to_slabs ? chain : put_cold(heap, state, chain, index);
    if (overflow) drain_to_slabs(heap, state, overflow, SIZE_MAX);
    drain_leave(heap, state);
}

/* ---- Blocks whose home is another CPU ---- */

/* Whether a block goes to the outbox: its home is another CPU, or its class returns what is
 * freed. */
static bool is_away(entry_t entry, int index, const area_t *area)
{
    if (entry_home(entry) >= HOME_LOOK) return false;
    return entry_home(entry) != registry_home(index) ||
           (area && area_returns(area, entry_code(entry)));
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
    int index;
    area_t *area = area_look(heap, &index);
    if (!is_away(entry, index, area)) return false;
    magazine_t *outbox = area ? load_acquire(&area->outbox) : NULL; /* pairs with area_outbox */
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
    unsigned here = home_of(heap, state, index, false);
    if (home != here && here != HOME_NONE && home < state->homes &&
        home_is_idle(heap, state, home)) {
        home_take_over(state, home, here);
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
    if (!chain || !lock_or_leave(heap, state, chain, false)) return;
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
    drain_leave(heap, state);
}

void drain_outbox(hak_heap_t *heap, class_state_t *state, magazine_t *outbox, int index)
{
    /* Its tag first: a block that comes in between is taken for one of the same home at worst. */
    uint16_t tag = load_relaxed(&outbox->tag);
    store_relaxed(&outbox->tag, (uint16_t)0);
    chain_t chain = percpu_take_outbox(&heap->percpu, PERCPU_HOT(state->cls));
    drain_home(heap, state, chain, tag ? tag >> ENTRY_HOME_SHIFT : HOME_LOOK, index);
}

static void drain_away(hak_heap_t *heap, class_state_t *state, area_t *area, int index,
                       entry_t entry, void *ptr)
{
    percpu_t *percpu = &heap->percpu;
    unsigned cls = state->cls;
    size_t hot = PERCPU_HOT(cls);
    magazine_t *outbox = area_outbox(heap, area);
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
    drain_period(heap, area, index);
}

/* ---- The end of a period: what it did not use goes back ---- */

/* Cold chains that no allocation took in the period. */
static void return_old(hak_heap_t *heap, class_state_t *state, int index)
{
    if (!lock_try(&state->lock, RANK_CLASS)) return;
    cold_t *cold = state->cold;
    for (chain_t chain; cold && (chain = cold_take_old(cold, (unsigned)index)) != 0;)
        (void)drain_cold(heap, state, chain);
    if (cold) cold_age(cold, (unsigned)index);
    drain_leave(heap, state);
}

void drain_ended_period(hak_heap_t *heap, area_t *area, int index)
{
    adapt_period_t period;
    adapt_begin(heap, area, &period);
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        adapt_unused_t unused = adapt_end(heap, area, &period, cls);
        if (unused.hot) drain_chain(heap, state, unused.hot, PERCPU_NONE, false);
        if (unused.spare) drain_chain(heap, state, unused.spare, PERCPU_NONE, false);
        if (unused.outbox) drain_outbox(heap, state, &period.outbox[cls], index);
        return_old(heap, state, index);
    }
}

/* ---- Coarse classes ---- */

/* What the running CPU keeps of coarse classes, and what else is outside of slabs, in bytes. */
typedef struct coarse {
    size_t kept, live;
} coarse_t;

static coarse_t sum_coarse(hak_heap_t *heap, const area_t *area)
{
    area_t *at = (area_t *)(uintptr_t)area;
    coarse_t sum = {0, 0};
    FOR_CLASSES (cls, &heap->made) {
        if (cls < COARSE_FIRST) continue;
        /* Relaxed, all: about. */
        size_t outside = load_relaxed(&heap_class_made(heap, cls)->outside);
        size_t kept = chain_count(load_relaxed(&at->hot[cls].word)) +
                      chain_count(load_relaxed(&at->spare[cls]));
        sum.live += (outside - hak_min(kept, outside)) * size_classes[cls].bytes;
        /* Of a class without blocks outside the last slab is kept, in which one was written. */
        if (!outside) kept = load_relaxed(&heap_class_made(heap, cls)->slabs) ? 1 : 0;
        sum.kept += kept * size_classes[cls].bytes;
    }
    return sum;
}

/* A cold chain of the CPU, and a slab without blocks outside, also where it is the last one. */
static void return_coarse(hak_heap_t *heap, class_state_t *state, int index)
{
    if (!lock_try(&state->lock, RANK_CLASS)) return;
    chain_t chain = state->cold ? cold_take(state->cold, (unsigned)index) : 0;
    if (chain) (void)drain_cold(heap, state, chain);
    slab_set_t *set = home_set(state, registry_home(index));
    slab_t *empty = slab_empty(set) ? slab_empty(set) : slab_empty(&state->shared);
    if (empty) (void)drain_retire(heap, state, empty, false);
    drain_leave(heap, state);
}

/* The thread may have moved: then another CPU's magazines are emptied, which does no harm. */
void drain_kept_coarse(hak_heap_t *heap, area_t *area, int index)
{
    coarse_t sum = sum_coarse(heap, area);
    /* Relaxed: as coarse_missed. */
    uint32_t given = load_relaxed(&area->coarse_given);
    size_t least = (size_t)COARSE_LEAST << given / COARSE_PATIENCE;
    size_t most = hak_max(sum.live / COARSE_SHARE, least);
    store_relaxed(&area->coarse_missed, 0u);
    store_relaxed(&area->coarse_most, (uint32_t)hak_min(most, COARSE_LATEST));
    if (sum.kept <= most) return;
    store_relaxed(&area->coarse_given,
                  (uint32_t)hak_min(given + 1, COARSE_PATIENCE * COARSE_DOUBLINGS));
    FOR_CLASSES (cls, &heap->made) {
        if (cls < COARSE_FIRST) continue;
        class_state_t *state = heap_class_made(heap, cls);
        chain_t hot = percpu_take(&heap->percpu, PERCPU_HOT(cls));
        chain_t spare = percpu_take(&heap->percpu, PERCPU_SPARE(cls));
        if (hot) drain_chain(heap, state, hot, PERCPU_NONE, false);
        if (spare) drain_chain(heap, state, spare, PERCPU_NONE, false);
        return_coarse(heap, state, index);
    }
    counter_add(&heap->counters, kept_coarse, 1);
}

/* ---- The ladder ---- */

/* Returns the block's units, which stay charged; 0: no block begins there. */
static unsigned put_region(hak_heap_t *heap, unsigned index, void *ptr)
{
    unsigned hole, units = region_put(heap_region(heap, index), ptr, &heap->guard, &hole);
    if (HAK_UNLIKELY(!units)) return 0;
    heap_note_hole(heap, index, hole);
    heap_note_freed(heap, units);
    return units;
}

/* Frees the block that a word names first, which no pocket has any more. */
static HAK_NOINLINE void let_go(hak_heap_t *heap, unsigned cls, uint64_t word)
{
    void *ptr = heap_pocketed(heap, word);
    STALL(pocket_left);
    if (key_seals(heap->key))
        region_unseal(ptr, size_classes[cls].bytes / REGION_UNIT, &heap->guard);
    if (!put_region(heap, pocket_region(word), ptr))
        block_corrupt(&heap->guard, "free", ptr, size_classes[cls].bytes);
    heap_refund(heap, size_classes[cls].bytes);
}

/* False: no block begins there. */
static bool put_refunded(hak_heap_t *heap, unsigned index, void *ptr)
{
    unsigned units = put_region(heap, index, ptr);
    heap_refund(heap, units * (size_t)REGION_UNIT);
    return units;
}

/* False: the pocket has it. */
HAK_INLINE bool name_block(hak_heap_t *heap, unsigned cls, uint64_t name, unsigned units)
{
    uint64_t oldest;
    if (HAK_UNLIKELY(!pocket_put(&heap->pocket[cls], name, units, &oldest))) return false;
    if (HAK_UNLIKELY(oldest)) let_go(heap, cls, oldest);
    return true;
}

void drain_to_pocket(hak_heap_t *heap, unsigned cls, uint64_t name)
{
    (void)name_block(heap, cls, name, size_classes[cls].bytes / REGION_UNIT);
}

static size_t empty_pocket(hak_heap_t *heap, unsigned cls)
{
    uint64_t word = pocket_empty(&heap->pocket[cls]);
    size_t bytes = pocket_count(word) * size_classes[cls].bytes;
    for (; word; word >>= POCKET_BITS) let_go(heap, cls, word);
    return bytes;
}

size_t drain_pockets(hak_heap_t *heap, unsigned first, unsigned end)
{
    size_t bytes = 0;
    for (unsigned cls = first; cls < hak_min(end, POCKET_CLASSES); cls++)
        bytes += empty_pocket(heap, cls);
    return bytes;
}

/* The same by way of a pocket, in a busy heap. Of a class that has moved to slabs no block would be
 * taken from there. */
static bool put_pocket(hak_heap_t *heap, unsigned index, void *ptr)
{
    unsigned units = region_length(heap_region(heap, index), region_unit(ptr));
    if (HAK_UNLIKELY(!units)) return false;
    unsigned cls = sizeclass_of(units * REGION_UNIT);
    if (HAK_UNLIKELY(cls >= POCKET_CLASSES || heap_class_made(heap, cls))) {
        (void)drain_pockets(heap, cls, cls + 1);
        return put_refunded(heap, index, ptr);
    }
    if (HAK_UNLIKELY(key_seals(heap->key))) {
        if (region_is_sealed(ptr, 1, &heap->guard)) return false;
        region_seal(ptr, units, &heap->guard);
    }
    STALL(pocket_putting);
    if (HAK_UNLIKELY(!name_block(heap, cls, pocket_name(index, ptr), units))) return false;
    heap_note_waiting(heap);
    return true;
}

bool drain_to_region(hak_heap_t *heap, entry_t entry, void *ptr)
{
    bool pockets = load_relaxed(&heap->busy) == BUSY_POCKETS && heap_may_cache(heap);
    unsigned index = entry_back(entry);
    bool done = pockets ? put_pocket(heap, index, ptr) : put_refunded(heap, index, ptr);
    if (HAK_LIKELY(done)) counter_add(&heap->counters, region, 1);
    return done;
}

bool drain_to_spare(hak_heap_t *heap, entry_t entry, void *ptr)
{
    if (percpu_mode == PERCPU_LOCKED) return false;
    percpu_t *percpu = &heap->percpu;
    unsigned cls = entry_code(entry);
    int index;
    area_t *area = area_look(heap, &index);
    if (!area || is_away(entry, index, area)) return false;
    size_t hot = PERCPU_HOT(cls);
    area_tag(heap, area, index, cls);
    /* The tag was behind, or the block's slab wants to be looked at; by now it has been. */
    if (percpu_push(percpu, hot, ptr, heap->key)) {
        counter_add(&heap->counters, tls_sll, 1);
        return true;
    }
    if (load_relaxed(&area->spare[cls])) return false;
    chain_t full = section_take(percpu, hot);
    if (!full) return false;
    STALL(free_in_hand);
    if (!section_install(percpu, hot, PERCPU_SPARE(cls), full)) {
        /* The thread has moved, or a flush has come: no magazine is owed these blocks. */
        drain_remote(heap, cls, full);
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
    area_t *area = area_get(heap, &index, false);
    if (area && is_away(entry, index, area)) {
        drain_away(heap, state, area, index, entry, ptr);
        return;
    }
    if (area) area_tag(heap, area, index, cls);
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
        magazine_t *outbox = area_outbox(heap, area);
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
    if (area) drain_period(heap, area, index);
}

/* ---- Mid and large blocks ---- */

/* The list runs through the blocks, which are the library's by then; they carry no seals. */
static const guard_t plain = {0, "deferred"};

static void defer(hak_heap_t *heap, void *ptr)
{
    remote_push(&heap->deferred, block_push(0, ptr, 0), &plain, 0);
    heap_note_waiting(heap);
    STALL(deferred_pushed);
}

/* Where the process's lock is busy, the block is noted again. */
static size_t free_mid(hak_heap_t *heap, mid_t *mid, bool may_wait)
{
    superslab_t *ss = registry_superslab(mid->start);
    run_t run = {ss, superslab_index(ss, mid->start)};
    unsigned granules = mid->granules;
    size_t bytes = mid_bytes(mid);
    mid_remove(&heap->large, mid);
    if (runs_put(heap, run, granules, PAGES_ALL, may_wait)) return bytes;
    mid_add(&heap->large, run, granules, bytes);
    defer(heap, superslab_granule(run.ss, run.first));
    return 0;
}

/* Where the reserve is busy, or full, the block is noted again. Not inlined: gcc would see a slot
 * without a block, which no caller has. */
static HAK_NOINLINE size_t free_large(hak_heap_t *heap, large_t *large, bool may_wait)
{
    char *base = large_base(large);
    if (!mapping_give(heap, large, LARGE_RELEASED, may_wait)) defer(heap, base);
    return 0;
}

/* Returns what is to be refunded; 0: the block waits, or mapping_give has done so. */
static size_t free_big(hak_heap_t *heap, void *ptr, bool may_wait)
{
    entry_t entry = registry_lookup(ptr);
    if (entry) return free_mid(heap, mid_of(entry, ptr), may_wait);
    return free_large(heap, registry_range(ptr), may_wait);
}

/* One at a time is taken off the list, and no more than are there: what may not wait is deferred
 * again. */
size_t drain_some_deferred(hak_heap_t *heap, bool may_wait)
{
    hak_assert(lock_is_held(&heap->lock));
    size_t moved = 0, most = hak_min(remote_blocks(&heap->deferred), DRAIN_BIG_AT_ONCE);
    STALL(deferred_counted);
    for (; moved < most; moved++)
        heap_refund(heap, free_big(heap, remote_next(&heap->deferred, &plain, 0), may_wait));
    return moved;
}

void drain_all_deferred(hak_heap_t *heap)
{
    for (size_t left = remote_blocks(&heap->deferred); left;) {
        lock_acquire(&heap->lock, RANK_HEAP);
        size_t moved = drain_deferred(heap, true);
        lock_pass(&heap->lock, RANK_HEAP);
        reserve_settle(&process_reserve, PIECES_STEP_MOST);
        left = moved && moved < left ? left - moved : 0;
    }
}

/* Takes HEAP, or defers the block. Where so many are deferred already, this thread waits for a step
 * of the one that has the lock. */
static bool lock_or_defer(hak_heap_t *heap, void *ptr)
{
    if (lock_try(&heap->lock, RANK_HEAP)) return true;
    if (remote_blocks(&heap->deferred) < DRAIN_DEFERRED) {
        defer(heap, ptr);
        return false;
    }
    lock_acquire(&heap->lock, RANK_HEAP);
    return true;
}

/* NULL: it is a mid one. */
static large_t *large_at(const void *ptr)
{
    return registry_lookup(ptr) ? NULL : registry_range(ptr);
}

static size_t bytes_of_large(const void *ptr)
{
    const large_t *large = large_at(ptr);
    return large ? large_bytes(large) : 0;
}

void drain_big(hak_heap_t *heap, void *ptr, bool deferred)
{
    if (deferred) {
        defer(heap, ptr);
        return;
    }
    size_t bytes = bytes_of_large(ptr);
    if (!lock_or_defer(heap, ptr)) return;
    (void)drain_deferred(heap, false);
    size_t refund = free_big(heap, ptr, false);
    if (refund) heap_refund_inside(heap, refund);
    lock_release(&heap->lock, RANK_HEAP);
    reserve_settle(&process_reserve, bytes);
}

/* ---- A block whose charge another takes over ---- */

static void return_one(hak_heap_t *heap, class_state_t *state, void *ptr)
{
    lock_acquire(&state->lock, RANK_CLASS);
    put_block(heap, state, ptr);
    store_relaxed(&state->outside, load_relaxed(&state->outside) - 1);
    drain_leave(heap, state);
}

void drain_charged(const block_id_t *id, void *ptr)
{
    hak_heap_t *heap = id->heap;
    if (id->kind == KIND_SMALL) {
        return_one(heap, heap_class_made(heap, id->cls), ptr);
    } else if (id->kind == KIND_REGION) {
        if (!put_region(heap, entry_back(id->entry), ptr)) pointer_refuse_again(id, ptr);
    } else {
        size_t bytes = bytes_of_large(ptr);
        lock_acquire(&heap->lock, RANK_HEAP);
        /* Where the reserve is full it waits, and whoever frees it then refunds nothing. */
        if (bytes) large_at(ptr)->charge_moved = true;
        (void)free_big(heap, ptr, true);
        lock_release(&heap->lock, RANK_HEAP);
        reserve_settle(&process_reserve, bytes);
    }
}
