/* hakheap level 14: validate - the walk that proves a heap sound */
#include "validate.h"

#include <errno.h>

#include "drain.h"
#include "gate.h"
#include "os.h"
#include "tls.h"
#include "walk.h"

/* ---- The whole heap. Halted, with every lock of it held, in the order of the ranks. ---- */

typedef struct walk {
    hak_heap_t *heap;
    uint64_t *bits; /* a bit for each block of each slab: found free */
    size_t live_bytes, cached_bytes, free_bytes, untouched_bytes, held_bytes;
    size_t moved_bytes; /* of large blocks whose charge another block has taken over */
    size_t shared_granules;
    hak_fault_t *fault; /* the first; code NULL: nothing is wrong */
} walk_t;

static void wrong(walk_t *walk, const void *ptr, size_t bytes, const char *words)
{
    if (walk->fault->code) return;
    *walk->fault = (hak_fault_t){.code = "CORRUPT",
                                 .operation = "check",
                                 .ptr = ptr,
                                 .heap = walk->heap->guard.name,
                                 .class_bytes = bytes,
                                 .words = words};
}

/* Words of bits for a slab. */
static size_t bit_words(unsigned cls) { return (size_t)(size_classes[cls].blocks + 63) / 64; }

static bool find_once(walk_t *walk, slab_t *slab, const void *ptr)
{
    size_t at = (size_t)((const char *)ptr - slab->start) / size_classes[slab->cls].bytes;
    uint64_t *word = &walk->bits[slab->scratch + at / 64];
    bool before = *word >> (at % 64) & 1;
    *word |= 1ull << (at % 64);
    return !before;
}

/* Follows a chain, or a remote list (`counted` false: its counts mean nothing). Returns blocks.
 * Ends on cycles, because no block may be found twice. */
static size_t walk_chain(walk_t *walk, unsigned cls, chain_t chain, bool counted)
{
    hak_heap_t *heap = walk->heap;
    size_t bytes = size_classes[cls].bytes;
    size_t blocks = 0;
    for (chain_t at = chain; chain_block(at); blocks++) {
        block_t *block = chain_block(at);
        entry_t entry = registry_lookup(block);
        if (entry_heap(entry) != heap || entry_code(entry) != cls) {
            wrong(walk, block, bytes, "a chain leads out of its class");
            return blocks;
        }
        slab_t *slab = slab_of(entry, block);
        if (!slab_has(slab, block)) {
            wrong(walk, block, bytes, "a chain leads to an address that is no block");
            return blocks;
        }
        if (!find_once(walk, slab, block)) {
            wrong(walk, block, bytes, "a free block was found twice");
            return blocks;
        }
        if (heap->policy.sealed &&
            !block_is_sealed(block, block_link(block, heap->key), heap->key)) {
            wrong(walk, block, bytes, "a free block was written to");
            return blocks;
        }
        if (counted && chain_count(at) != chain_count(chain) - blocks) {
            wrong(walk, block, bytes, "a chain does not have as many blocks as it counts");
            return blocks;
        }
        at = block_link(block, heap->key);
    }
    if (counted && blocks != chain_count(chain))
        wrong(walk, chain_block(chain), bytes, "a chain is shorter than it counts");
    return blocks;
}

/* A part of a remote list, which counts itself. */
static size_t walk_list(walk_t *walk, unsigned cls, chain_t list)
{
    size_t blocks = walk_chain(walk, cls, list, false);
    if (blocks != chain_count(list) && chain_count(list) < CHAIN_MAX)
        wrong(walk, chain_block(list), size_classes[cls].bytes,
              "a remote list does not have as many blocks as it counts");
    return blocks;
}

/* A mid block whose free is under way carries CODE_RELEASED in its first granule, until the thread
 * that frees it gets the lock. */
static void check_run(walk_t *walk, const char *start, unsigned granules, unsigned code,
                      unsigned home)
{
    for (unsigned g = 0; g < granules; g++) {
        entry_t entry = registry_lookup(start + (size_t)g * GRANULE);
        bool pending = code == CODE_MID && g == 0 && entry_code(entry) == CODE_RELEASED;
        if (entry_heap(entry) != walk->heap || (entry_code(entry) != code && !pending) ||
            entry_back(entry) != g || entry_home(entry) != home)
            wrong(walk, start, 0, "the granule table disagrees with a run");
    }
    superslab_t *ss = registry_superslab(start);
    if (ss->shared) walk->shared_granules += granules;
    else ss->tally += granules;
}

static void check_slab(walk_t *walk, slab_t *slab, unsigned cls, unsigned bin, slab_set_t *sum)
{
    const size_class_t *sizes = &size_classes[cls];
    uint32_t pages = superslab_touched_count(slab_run(slab), slab->granules);
    if (slab->cls != cls || slab->bin != bin || slab->carved > slab->blocks ||
        slab->blocks > sizes->blocks || slab->granules > sizes->granules ||
        slab->released_blocks > slab->carved || slab->pages != pages)
        wrong(walk, slab->start, sizes->bytes, "a slab's descriptor is damaged");
    bool look = walk->heap->policy.sealed && slab_has_released(slab);
    check_run(walk, slab->start, slab->granules, cls, look ? HOME_LOOK : slab->home);
    size_t free_blocks = walk_chain(walk, cls, slab->free, true);
    sum->slabs++;
    sum->pages += pages;
    sum->granules += slab->granules;
    sum->blocks += slab->blocks;
    sum->carved += slab_touched(slab);
    sum->outside += slab_touched(slab) - free_blocks;
    walk->free_bytes += free_blocks * sizes->bytes;
    walk->untouched_bytes += (size_t)slab->granules * GRANULE - slab_touched(slab) * sizes->bytes;
}

/* Blocks of a slab that no chain and no freelist has: the program's. Counted bit by bit; only
 * carved blocks have bits. */
static size_t unfound(const walk_t *walk, const slab_t *slab)
{
    size_t found = 0;
    for (size_t word = 0; word < bit_words(slab->cls); word++)
        found += (size_t)__builtin_popcountll(walk->bits[slab->scratch + word]);
    return slab_touched(slab) - found;
}

static void check_set(walk_t *walk, class_state_t *state, const slab_set_t *set)
{
    slab_set_t sum = {.slabs = 0};
    FOR_SLABS (at, set) {
        if (home_set(state, at.slab->home) != set)
            wrong(walk, at.slab->start, 0, "a slab is not where its home says");
        check_slab(walk, at.slab, state->cls, at.bin, &sum);
    }
    if (sum.slabs != set->slabs || sum.granules != set->granules || sum.blocks != set->blocks ||
        sum.pages != set->pages || sum.carved != set->carved || sum.outside != set->outside)
        wrong(walk, state, size_classes[state->cls].bytes,
              "a class's counts disagree with its slabs");
}

typedef struct cached {
    walk_t *walk;
    unsigned cls;
    size_t blocks;
} cached_t;

static void check_cached(void *ctx, walk_place_t place, chain_t chain)
{
    cached_t *cached = ctx;
    cached->blocks += place == WALK_REMOTE ? walk_list(cached->walk, cached->cls, chain)
                                           : walk_chain(cached->walk, cached->cls, chain, true);
}

static void check_class(walk_t *walk, class_state_t *state)
{
    size_t bytes = size_classes[state->cls].bytes;
    FOR_SETS (set, state) check_set(walk, state, set);
    const walk_sums_t sums = walk_sums(state);
    const size_t outside = sums.outside;
    if (outside != load_relaxed(&state->outside) || sums.slabs != load_relaxed(&state->slabs))
        wrong(walk, state, bytes, "a class's counts disagree with its slabs");
    cached_t cached = {walk, state->cls, 0};
    walk_chains(walk->heap, state, check_cached, &cached);
    size_t live = 0;
    FOR_SETS (set, state)
        FOR_SLABS (at, set) live += unfound(walk, at.slab);
    if (live + cached.blocks != outside)
        wrong(walk, state, bytes, "cached blocks and live blocks are not all blocks");
    walk->cached_bytes += cached.blocks * bytes;
    walk->live_bytes += live * bytes;
}

static void check_large(walk_t *walk, const large_t *large)
{
    char *base = large_base(large);
    size_t bytes = large_bytes(large);
    for (size_t at = 0; at < bytes; at += SUPERSLAB)
        if (registry_range(base + at) != large)
            wrong(walk, base, bytes, "the range table disagrees");
    /* A live block whose free is under way is FREED already. */
    large_state_t marked = (large_state_t)load_relaxed(&large->state);
    if ((marked != LARGE_LIVE && marked != LARGE_FREED) || large_heap(large) != walk->heap)
        wrong(walk, base, bytes, "a large block's record is damaged");
    walk->live_bytes += bytes;
    if (large->charge_moved) walk->moved_bytes += bytes;
}

static void check_big(walk_t *walk)
{
    large_set_t *set = &walk->heap->large;
    size_t mids = 0, live = 0, mid_sum = 0, live_before = walk->live_bytes;
    for (mid_t *mid = set->mids; mid; mid = mid->next, mids++) {
        check_run(walk, mid->start, mid->granules, CODE_MID, HOME_NONE);
        mid_sum += mid_bytes(mid);
        if (mids > set->mid_blocks) break;
    }
    for (large_t *large = set->live; large && live <= set->live_blocks; large = large->next, live++)
        check_large(walk, large);
    if (mids != set->mid_blocks || live != set->live_blocks)
        wrong(walk, set, 0, "mid and large blocks are not as many as counted");
    if (mid_sum != set->mid_bytes || walk->live_bytes - live_before != set->live_bytes)
        wrong(walk, set, 0, "mid and large blocks have not the bytes that are counted");
    walk->live_bytes += mid_sum;
}

/* A granule's entry names its region, and the map says what is in it. */
static void check_region(walk_t *walk, region_t *region, unsigned index)
{
    const char *base = load_relaxed(&region->base);
    const void *ptr;
    entry_t entry = registry_lookup(base);
    if (entry_heap(entry) != walk->heap || entry_code(entry) != CODE_REGION ||
        entry_back(entry) != index)
        wrong(walk, base, 0, "the granule table disagrees with a region");
    const char *words = region_check(region, &walk->heap->guard, &ptr);
    if (words) wrong(walk, ptr, 0, words);
    /* While its seals were proved a region seemed to have less room. */
    heap_look_again(walk->heap, index);
    region_sums_t sums = region_sums(region);
    walk->live_bytes += sums.live * REGION_UNIT;
    walk->free_bytes += sums.free * REGION_UNIT;
    walk->untouched_bytes += sums.untouched * REGION_UNIT;
    walk->held_bytes += sums.held * REGION_UNIT;
    superslab_t *ss = registry_superslab(base);
    if (!index) return;
    if (!ss->shared) ss->tally++;
}

/* A block that a word names begins in the map. Other threads may take it and free it meanwhile: so it
 * is wrong only where it is so at each look, while its pocket has it. */
static void check_named(walk_t *walk, unsigned cls, uint64_t word)
{
    enum { LOOKS = 100 };
    hak_heap_t *heap = walk->heap;
    uint64_t name = word & UINT16_MAX;
    unsigned index = pocket_region(name), units = size_classes[cls].bytes / REGION_UNIT;
    region_t *region = index < load_acquire(&heap->regions) ? heap_region(heap, index) : NULL;
    for (unsigned look = 0; region && look < LOOKS; look++) {
        if (region_length(region, pocket_unit(name)) == units) return;
        if (!pocket_names(pocket_look(&heap->pocket[cls]), name)) return;
    }
    wrong(walk, heap, size_classes[cls].bytes, "a pocket has what is no block of its class");
}

/* The seals of what a pocket has, which is in no pocket meanwhile: it is nobody's to write to. */
static void check_pocket_seals(walk_t *walk, unsigned cls)
{
    hak_heap_t *heap = walk->heap;
    size_t bytes = size_classes[cls].bytes;
    uint64_t word = pocket_empty(&heap->pocket[cls]);
    for (unsigned left = pocket_count(word); left-- > 0;) {
        uint64_t name = word >> left * POCKET_BITS & UINT16_MAX;
        const void *ptr = heap_pocketed(heap, name);
        if (!region_is_sealed(ptr, (unsigned)(bytes / REGION_UNIT), &heap->guard))
            wrong(walk, ptr, bytes, "a free block was written to");
        drain_to_pocket(heap, cls, name);
    }
}

static void check_pockets(walk_t *walk)
{
    for (unsigned cls = 0; cls < POCKET_CLASSES; cls++) {
        uint64_t word = pocket_look(&walk->heap->pocket[cls]);
        size_t bytes = pocket_count(word) * (size_t)size_classes[cls].bytes;
        walk->live_bytes -= bytes;
        walk->cached_bytes += bytes;
        for (; word; word >>= POCKET_BITS) {
            check_named(walk, cls, word);
            if (pocket_names(word >> POCKET_BITS, word & UINT16_MAX))
                wrong(walk, heap_pocketed(walk->heap, word), bytes, "a free block was found twice");
        }
        if (key_seals(walk->heap->key) && !walk->fault->code) check_pocket_seals(walk, cls);
    }
}

static void check_regions(walk_t *walk)
{
    for (uint32_t index = 0; index < load_acquire(&walk->heap->regions); index++) {
        region_t *region = heap_region(walk->heap, index);
        if (region_is_attached(region)) check_region(walk, region, index);
    }
    check_pockets(walk);
}

static void check_superslabs(walk_t *walk)
{
    hak_heap_t *heap = walk->heap;
    const superslab_set_t *set = &heap->superslabs;
    size_t count = 0, granules = 0, pages = 0, empty = 0, shared = 0;
    for (superslab_t *ss = set->all; ss && count <= set->count; ss = ss->set_next, count++) {
        if (!superslab_is_valid(ss) || ss->shared)
            wrong(walk, ss->base, 0, "a SuperSlab's record is damaged");
        if (ss->tally != SUPERSLAB_GRANULES - (int64_t)ss->free_granules)
            wrong(walk, ss->base, 0, "granules in use are in no slab");
        granules += ss->free_granules;
        pages += ss->free_touched;
        empty += superslab_is_empty(ss);
    }
    walk->free_bytes += pages * HAK_PAGE;
    walk->untouched_bytes += granules * GRANULE - pages * HAK_PAGE;
    if (count != set->count || granules != set->free_granules || pages != set->free_touched ||
        empty != set->empty)
        wrong(walk, heap, 0, "SuperSlabs, or what is free in them, are not as many as counted");
    for (uint32_t i = 0; i < heap->nursery_count; i++) shared += heap->nursery->granules[i];
    if (shared != walk->shared_granules || shared != heap->nursery_granules)
        wrong(walk, heap, 0, "granules of the nursery are in no slab");
}

/* Gives each slab its bits. Returns how many words these are. */
static size_t number_slabs(hak_heap_t *heap)
{
    size_t words = 0;
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        FOR_SETS (set, state)
            FOR_SLABS (at, set) {
                at.slab->scratch = (uint32_t)words;
                words += bit_words(at.slab->cls);
            }
    }
    return words;
}

/*
 * What blocks have of the lease is what lies outside of slabs, regions and runs. Other threads may
 * be between a block and its charge at any time, and a child of fork has lost such threads; so this
 * is proved where there are none. A handler may have interrupted its own thread there, with a block
 * of a region in hand, and such handlers may nest: CHARGES_IN_HAND.
 */
static const char *check_charges(const walk_t *walk)
{
    enum { CHARGES_IN_HAND = 4 * 1024 };
    if (os->threads() != 1 || gate_was_forked() || hak_tls.resizing) return NULL;
    size_t charged = ledger_live(walk->heap->ledger);
    size_t outside = walk->live_bytes + walk->cached_bytes - walk->moved_bytes;
    if (charged < outside) return "a heap has blocks that are not charged";
    if (charged - outside > CHARGES_IN_HAND) return "a heap is charged for more than its blocks";
    return NULL;
}

static void check_ledger(walk_t *walk)
{
    hak_heap_t *heap = walk->heap;
    if (!heap->ledger) return;
    const char *words = ledger_check(heap->ledger, heap_footprint(heap));
    if (!words) words = check_charges(walk);
    if (words) wrong(walk, heap, 0, words);
}

/* 0, EFAULT or ENOMEM. */
static int walk_all(hak_heap_t *heap, hak_fault_t *fault)
{
    walk_t walk = {.heap = heap, .fault = fault};
    size_t bytes = hak_round_up((number_slabs(heap) + 1) * sizeof *walk.bits, HAK_PAGE);
    walk.bits = os->map(bytes, 0);
    if (!walk.bits) {
        hak_tls.last_error = HAK_ERROR_COMMIT;
        return ENOMEM;
    }
    for (superslab_t *ss = heap->superslabs.all; ss; ss = ss->set_next) ss->tally = 0;
    FOR_CLASSES (cls, &heap->made) check_class(&walk, heap_class_made(heap, cls));
    check_big(&walk);
    check_regions(&walk);
    check_superslabs(&walk);
    size_t sum = walk.live_bytes + walk.cached_bytes + walk.free_bytes + walk.untouched_bytes +
                 walk.held_bytes + load_relaxed(&heap->metadata);
    if (sum != load_relaxed(&heap->committed))
        wrong(&walk, heap, 0,
              "live + cached + free + untouched + metadata is not what is committed");
    check_ledger(&walk);
    os->unmap(walk.bits, bytes);
    return fault->code ? EFAULT : 0;
}

typedef class_state_t *held_t[CLASS_COUNT];

/* True: a thread waits for one of them. */
static bool release_all(hak_heap_t *heap, held_t held)
{
    bool wanted = lock_is_wanted(&heap->lock);
    lock_release(&heap->lock, RANK_HEAP);
    for (unsigned cls = CLASS_COUNT; cls-- > 0;) {
        if (!held[cls]) continue;
        wanted |= lock_is_wanted(&held[cls]->lock);
        lock_release_next(&held[cls]->lock);
    }
    return wanted;
}

/* Every class lock, and HEAP, under which no class is made. False: one was made meanwhile; nothing
 * is held. */
static bool hold_all(hak_heap_t *heap, held_t held)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
        if ((held[cls] = heap_class_made(heap, cls)) != NULL)
            lock_acquire_next(&held[cls]->lock, RANK_CLASS);
    lock_acquire(&heap->lock, RANK_HEAP);
    bool all = true;
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) all &= held[cls] == heap_class_made(heap, cls);
    if (!all) (void)release_all(heap, held);
    return all;
}

/* The areas are halted. */
static int walk_halted(hak_heap_t *heap, hak_fault_t *fault)
{
    held_t held;
    while (!hold_all(heap, held)) {
    }
    int error = walk_all(heap, fault);
    bool wanted = release_all(heap, held);
    percpu_restart_all(&heap->percpu);
    if (wanted) lock_rest();
    return error;
}

/* Locks are not fair. So one check at a time asks for them, by TRIM, and the next one not before
 * the threads that waited for this one have had a moment to go on. */
int validate_heap(hak_heap_t *heap, hak_fault_t *fault)
{
    int error = EAGAIN;
    *fault = (hak_fault_t){.code = NULL};
    lock_acquire(&heap->trim_lock, RANK_TRIM);
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    percpu_halt(&heap->percpu);
    if (percpu_fence()) {
        error = walk_halted(heap, fault);
    } else {
        percpu_restart_all(&heap->percpu);
        hak_tls.last_error = HAK_ERROR_FENCE;
    }
    lock_pass(&heap->areas_lock, RANK_AREAS);
    lock_release(&heap->trim_lock, RANK_TRIM);
    return error;
}
