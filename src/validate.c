/* hakheap level 14: validate - the walk that proves a heap sound */
#include "validate.h"

#include <errno.h>

#include "home.h"
#include "os.h"
#include "tls.h"

/* ---- The whole heap. Halted, with every lock of it held, in the order of the ranks. ---- */

typedef struct walk {
    hak_heap_t *heap;
    uint64_t *bits; /* a bit for each block of each slab: found free */
    size_t live_bytes, cached_bytes, free_bytes, untouched_bytes;
    size_t shared_granules;
    int error;
} walk_t;

static void wrong(walk_t *walk, const void *ptr, size_t bytes, const char *words)
{
    if (!walk->error)
        hak_complain(&(hak_fault_t){.code = "CORRUPT",
                                    .operation = "check",
                                    .ptr = ptr,
                                    .heap = walk->heap->guard.name,
                                    .class_bytes = bytes,
                                    .words = words});
    walk->error = EFAULT;
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

/* A mid block whose free is under way carries CODE_RELEASED in its first granule, until who frees
 * it gets the lock. */
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
    if (slab->cls != cls || slab->bin != bin || slab->carved > sizes->blocks ||
        slab->released_blocks > slab->carved)
        wrong(walk, slab->start, sizes->bytes, "a slab's descriptor is damaged");
    bool look = walk->heap->policy.sealed && slab_has_released(slab);
    check_run(walk, slab->start, sizes->granules, cls, look ? HOME_LOOK : slab->home);
    size_t free_blocks = walk_chain(walk, cls, slab->free, true);
    sum->slabs++;
    sum->carved += slab_touched(slab);
    sum->outside += slab_touched(slab) - free_blocks;
    walk->free_bytes += free_blocks * sizes->bytes;
    walk->untouched_bytes += (size_t)sizes->granules * GRANULE - slab_touched(slab) * sizes->bytes;
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

/* Returns the blocks outside. */
static size_t check_set(walk_t *walk, class_state_t *state, const slab_set_t *set)
{
    slab_set_t sum = {.slabs = 0};
    for (unsigned bin = 0; bin < SLAB_BINS; bin++)
        for (slab_t *slab = set->bin[bin]; slab; slab = slab->next) {
            if (home_set(state, slab->home) != set)
                wrong(walk, slab->start, 0, "a slab is not where its home says");
            check_slab(walk, slab, state->cls, bin, &sum);
        }
    if (sum.slabs != set->slabs || sum.carved != set->carved || sum.outside != set->outside)
        wrong(walk, state, size_classes[state->cls].bytes,
              "a class's counts disagree with its slabs");
    return sum.outside;
}

static void check_class(walk_t *walk, class_state_t *state)
{
    hak_heap_t *heap = walk->heap;
    unsigned cls = state->cls;
    size_t bytes = size_classes[cls].bytes;
    size_t outside = 0;
    for (slab_set_t *set = &state->shared; set; set = home_next_set(state, set))
        outside += check_set(walk, state, set);
    if (outside != load_relaxed(&state->outside))
        wrong(walk, state, bytes, "a class's counts disagree with its slabs");
    size_t cached = 0;
    for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++) {
        area_t *area = percpu_area(&heap->percpu, i);
        if (!area) continue;
        cached += walk_chain(walk, cls, load_relaxed(&area->hot[cls].word), true);
        cached += walk_chain(walk, cls, load_relaxed(&area->spare[cls]), true);
        const magazine_t *outbox = load_relaxed(&area->outbox);
        if (outbox) cached += walk_chain(walk, cls, load_relaxed(&outbox[cls].word), true);
    }
    for (uint32_t i = 0; state->cold && i < state->cold->count; i++)
        cached += walk_chain(walk, cls, state->cold->chain[i], true);
    /* Acquire: pairs with the release in remote_push. */
    cached += walk_list(walk, cls, load_acquire(&state->remote.head));
    cached += walk_list(walk, cls, load_relaxed(&state->remote.taken));
    size_t live = 0;
    for (slab_set_t *set = &state->shared; set; set = home_next_set(state, set))
        for (unsigned bin = 0; bin < SLAB_BINS; bin++)
            for (slab_t *slab = set->bin[bin]; slab; slab = slab->next) live += unfound(walk, slab);
    if (live + cached != outside)
        wrong(walk, state, bytes, "cached blocks and live blocks are not all blocks");
    walk->cached_bytes += cached * bytes;
    walk->live_bytes += live * bytes;
}

static void check_large(walk_t *walk, const large_t *large, large_state_t state)
{
    char *base = large_base(large);
    size_t bytes = large_bytes(large);
    for (size_t at = 0; at < bytes; at += SUPERSLAB)
        if (registry_range(base + at) != large)
            wrong(walk, base, bytes, "the range table disagrees");
    /* A live block whose free is under way is FREED already. */
    large_state_t marked = (large_state_t)load_relaxed(&large->state);
    if ((marked != state && marked != LARGE_FREED) || large_heap(large) != walk->heap)
        wrong(walk, base, bytes, "a large block's record is damaged");
    *(state == LARGE_LIVE ? &walk->live_bytes : &walk->cached_bytes) += bytes;
}

static void check_big(walk_t *walk)
{
    large_set_t *set = &walk->heap->large;
    size_t mids = 0, live = 0, cached = 0;
    for (mid_t *mid = set->mids; mid; mid = mid->next, mids++) {
        check_run(walk, mid->start, mid->granules, CODE_MID, HOME_NONE);
        walk->live_bytes += mid_bytes(mid);
        if (mids > set->mid_blocks) break;
    }
    for (large_t *large = set->live; large && live <= set->live_blocks; large = large->next, live++)
        check_large(walk, large, LARGE_LIVE);
    for (large_t *large = set->cached; large && cached <= set->cached_blocks;
         large = large->next, cached++)
        check_large(walk, large, LARGE_FREED);
    if (mids != set->mid_blocks || live != set->live_blocks || cached != set->cached_blocks)
        wrong(walk, set, 0, "mid and large blocks are not as many as counted");
}

static void check_superslabs(walk_t *walk)
{
    hak_heap_t *heap = walk->heap;
    size_t count = 0, shared = 0;
    for (superslab_t *ss = heap->superslabs.all; ss && count <= heap->superslabs.count;
         ss = ss->set_next, count++) {
        if (!superslab_is_valid(ss) || ss->shared)
            wrong(walk, ss->base, 0, "a SuperSlab's record is damaged");
        if (ss->tally != SUPERSLAB_GRANULES - (int64_t)ss->free_granules)
            wrong(walk, ss->base, 0, "granules in use are in no slab");
        walk->free_bytes += (size_t)ss->free_touched * HAK_PAGE;
        walk->untouched_bytes +=
            (size_t)ss->free_granules * GRANULE - (size_t)ss->free_touched * HAK_PAGE;
    }
    if (count != heap->superslabs.count)
        wrong(walk, heap, 0, "SuperSlabs are not as many as counted");
    for (uint32_t i = 0; i < heap->nursery_count; i++) shared += heap->nursery_granules[i];
    if (shared != walk->shared_granules)
        wrong(walk, heap, 0, "granules of the nursery are in no slab");
}

/* Gives each slab of a set its bits, from `words` on. Returns where the next begin. */
static size_t number_slabs(const slab_set_t *set, size_t words)
{
    for (unsigned bin = 0; bin < SLAB_BINS; bin++)
        for (slab_t *slab = set->bin[bin]; slab; slab = slab->next) {
            slab->scratch = (uint32_t)words;
            words += bit_words(slab->cls);
        }
    return words;
}

static size_t number_all_slabs(hak_heap_t *heap)
{
    size_t words = 0;
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        class_state_t *state = heap_class_made(heap, cls);
        for (slab_set_t *set = state ? &state->shared : NULL; set; set = home_next_set(state, set))
            words = number_slabs(set, words);
    }
    return words;
}

static int walk_all(hak_heap_t *heap)
{
    walk_t walk = {.heap = heap};
    size_t bytes = hak_round_up((number_all_slabs(heap) + 1) * sizeof *walk.bits, HAK_PAGE);
    walk.bits = os->map(bytes, 0);
    if (!walk.bits) {
        hak_tls.last_error = HAK_ERROR_COMMIT;
        return ENOMEM;
    }
    for (superslab_t *ss = heap->superslabs.all; ss; ss = ss->set_next) ss->tally = 0;
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        class_state_t *state = heap_class_made(heap, cls);
        if (state) check_class(&walk, state);
    }
    check_big(&walk);
    check_superslabs(&walk);
    size_t sum = walk.live_bytes + walk.cached_bytes + walk.free_bytes + walk.untouched_bytes +
                 load_relaxed(&heap->metadata);
    if (sum != load_relaxed(&heap->committed))
        wrong(&walk, heap, 0,
              "live + cached + free + untouched + metadata is not what is committed");
    os->unmap(walk.bits, bytes);
    return walk.error;
}

typedef class_state_t *classes_t[CLASS_COUNT];

static void release_all(hak_heap_t *heap, classes_t held)
{
    lock_release(&heap->lock, RANK_HEAP);
    for (unsigned cls = CLASS_COUNT; cls-- > 0;)
        if (held[cls]) lock_release_next(&held[cls]->lock);
}

/* Every class lock, and HEAP, under which no class is made. False: one was made meanwhile; nothing
 * is held. */
static bool hold_all(hak_heap_t *heap, classes_t held)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
        if ((held[cls] = heap_class_made(heap, cls)) != NULL)
            lock_acquire_next(&held[cls]->lock, RANK_CLASS);
    lock_acquire(&heap->lock, RANK_HEAP);
    bool all = true;
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) all &= held[cls] == heap_class_made(heap, cls);
    if (!all) release_all(heap, held);
    return all;
}

int validate_heap(hak_heap_t *heap)
{
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    percpu_halt(&heap->percpu);
    int error = percpu_fence() ? 0 : EAGAIN;
    if (error) {
        hak_tls.last_error = HAK_ERROR_FENCE;
    } else {
        classes_t held;
        while (!hold_all(heap, held)) {
        }
        error = walk_all(heap);
        release_all(heap, held);
    }
    percpu_restart_all(&heap->percpu);
    lock_release(&heap->areas_lock, RANK_AREAS);
    return error;
}
