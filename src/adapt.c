/* hakheap level 8: ladder_adapt - how much each magazine may hold, from what it missed */
#include "ladder.h"

/*
 * A magazine may first hold FEW_BLOCKS, and twice as many after each miss that reached a lock, up
 * to MOST_BYTES, MOST_BLOCKS or half of the class's blocks outside, as long as the heap's budget
 * has room; the budget is charged for hot and spare alike. What a miss asks for starts with
 * FIRST_BLOCKS and doubles with the misses of the period: a heap that wants a block or two of a
 * class touches no more of its pages, and has no more to flush.
 *
 * What was allowed once is taken back at the end of a period, which is ADAPT_PERIOD misses of one
 * area: a heap that misses nothing has no reason to give up what serves it. Then the blocks, and
 * half of the limit, go from the magazines that the period did not use, and the CPU's cold chains
 * that lay there all the period go to their slabs. Blocks in idle magazines pin slabs that other
 * classes could use, one block a whole slab; and where they are taken again, they spread few live
 * blocks over many slabs.
 *
 * Not used is what missed nothing. Where the budget is nearly spent it is also what missed less,
 * for each byte it may hold, than half the average: with misses inverse to a magazine's size, as
 * those of random sequences are, the misses of all are fewest where they are equal for each byte.
 *
 * Sources: the working set minimum of Bonwick and Adams (USENIX 2001, section 3.4), with misses in
 * place of seconds, and the misses of a per-CPU cache that tcmalloc's resizing counts.
 */
enum {
    MOST_BYTES = 64 * 1024,
    MOST_BLOCKS = 256,
    WIDE_BLOCKS = 32,        /* of classes of which MOST_BYTES are fewer, */
    WIDE_BYTES = 512 * 1024, /* as long as they fit this */
    MOST_POSTED = 64, /* blocks of an outbox, which are of no use to anybody while they lie there */
    LEAST_BLOCKS = 2,
    FIRST_BLOCKS = 4,
    FEW_BLOCKS = 32,
    SHARE = 2,
    RETURN_ENTER = 4, /* a class that returns so many blocks for one that it takes is closed; */
    RETURN_LEAVE = 2, /* with so many or fewer it is opened again */
    SCARCE = 8,       /* the budget is nearly spent when less than this part of it is left */
};

/* What a magazine of a class may hold at most, by class: a miss has no time for divisions. */
#define LESSER(a, b)  ((a) < (b) ? (a) : (b))
#define GREATER(a, b) ((a) > (b) ? (a) : (b))
#define FITS(bytes, granules) \
    LESSER(GREATER(MOST_BYTES / (bytes), LESSER(WIDE_BLOCKS, WIDE_BYTES / (bytes))), MOST_BLOCKS),

static const uint16_t most_of[CLASS_COUNT] = {SIZE_CLASSES(FITS)};

static size_t fits(unsigned cls, bool outbox)
{
    return hak_min(most_of[cls], outbox ? MOST_POSTED : MOST_BLOCKS);
}

static uint32_t most_blocks(const class_state_t *state, bool outbox)
{
    size_t most = fits(state->cls, outbox);
    /* Relaxed: a guess at how many blocks the program uses; what is cached shall stay a fraction of
     * it. */
    size_t share = load_relaxed(&state->outside) / SHARE;
    return (uint32_t)hak_max(hak_min(most, share),
                             hak_min(hak_max(most, LEAST_BLOCKS), FEW_BLOCKS));
}

/* Relaxed: a limit orders nothing; a section reads the one or the other. */
static bool set_limit(magazine_t *magazine, uint32_t from, uint32_t to)
{
    return atomic_compare_exchange_strong_explicit(&magazine->limit, &from, to,
                                                   memory_order_relaxed, memory_order_relaxed);
}

size_t adapt_refill(const magazine_t *hot)
{
    magazine_t *at = (magazine_t *)(uintptr_t)hot;
    uint32_t limit = load_relaxed(&at->limit), misses = load_relaxed(&at->misses);
    size_t most = limit <= FEW_BLOCKS ? limit : limit / 2;
    return hak_max(1, hak_min(most, (size_t)FIRST_BLOCKS << hak_min(misses, 8) >> 1));
}

void adapt_missed(area_t *area, magazine_t *magazine)
{
    /* Relaxed, and no atomic addition: a count that is lost to another thread of the same CPU
     * changes little. */
    store_relaxed(&magazine->misses, (uint16_t)(load_relaxed(&magazine->misses) + 1));
    store_relaxed(&area->misses, load_relaxed(&area->misses) + 1);
}

void adapt_grow(hak_heap_t *heap, area_t *area, magazine_t *magazine, const class_state_t *state)
{
    uint32_t limit = load_relaxed(&magazine->limit);
    uint32_t most = most_blocks(state, magazine != &area->hot[state->cls]);
    uint32_t wanted = limit ? limit * 2 : FEW_BLOCKS;
    if (wanted > most) wanted = most;
    /* What the budget has no room for may fit by half: a first limit is much at once. */
    for (; wanted > limit && wanted >= LEAST_BLOCKS; wanted /= 2) {
        size_t bytes = percpu_limit_bytes(area, magazine, state->cls, wanted - limit);
        if (!budget_take(&heap->budget, bytes)) continue;
        if (!set_limit(magazine, limit, wanted)) budget_put(&heap->budget, bytes);
        return;
    }
}

/* Blocks that a class took from below in this period, about, and blocks that it returned, which its
 * outbox counts. */
static size_t taken(const area_t *area, unsigned cls)
{
    magazine_t *hot = &((area_t *)(uintptr_t)area)->hot[cls];
    return load_relaxed(&hot->misses) * adapt_refill(hot);
}
static size_t returned(const magazine_t *outbox, unsigned cls)
{
    return load_relaxed(&((magazine_t *)(uintptr_t)outbox)->misses) * fits(cls, true);
}

bool adapt_overflowed(const hak_heap_t *heap, area_t *area, magazine_t *outbox, unsigned cls,
                      size_t blocks)
{
    store_relaxed(&area->misses, load_relaxed(&area->misses) + 1);
    store_relaxed(&outbox->misses,
                  (uint16_t)(load_relaxed(&outbox->misses) + (blocks + 1) / fits(cls, true)));
    if (returned(outbox, cls) < RETURN_ENTER * taken(area, cls) ||
        load_relaxed(&heap->divided) != DIVIDED)
        return false;
    percpu_tag(area, cls, TAG_NONE);
    return true;
}

void adapt_wants(const hak_heap_t *heap, area_t *area, int index, unsigned cls)
{
    magazine_t *outbox = load_acquire(&area->outbox); /* pairs with outbox_of in drain.c */
    if (outbox && returned(&outbox[cls], cls) > RETURN_LEAVE * taken(area, cls)) return;
    percpu_tag(area, cls, 0); /* which a free may take for a home's: a hint like all others */
    refill_tag(heap, area, index, cls);
}

/* ---- The end of a period ---- */

/* What one magazine, or all of an area, missed in the period, and the bytes that it may hold. */
typedef struct share {
    uint64_t misses, bytes;
} share_t;

static share_t share_of(const area_t *area, const magazine_t *magazine, unsigned cls)
{
    magazine_t *at = (magazine_t *)(uintptr_t)magazine;
    return (share_t){load_relaxed(&at->misses),
                     percpu_limit_bytes(area, magazine, cls, load_relaxed(&at->limit))};
}

static share_t share_of_all(const area_t *area, const magazine_t *outbox)
{
    share_t all = {0, 0};
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        share_t hot = share_of(area, &area->hot[cls], cls);
        share_t out = outbox ? share_of(area, &outbox[cls], cls) : (share_t){0, 0};
        all.misses += hot.misses + out.misses;
        all.bytes += hot.bytes + out.bytes;
    }
    return all;
}

/* `all`: of the area where the budget is nearly spent, else of nothing. */
static bool is_used(share_t one, share_t all)
{
    return one.misses && one.misses * all.bytes * 2 >= all.misses * one.bytes;
}

static void halve(hak_heap_t *heap, const area_t *area, magazine_t *magazine, unsigned cls)
{
    uint32_t limit = load_relaxed(&magazine->limit);
    uint32_t less = limit <= LEAST_BLOCKS ? 0 : limit / 2;
    if (set_limit(magazine, limit, less))
        budget_put(&heap->budget, percpu_limit_bytes(area, magazine, cls, limit - less));
}

/* The thread may have moved: then another CPU's magazine is emptied, which does no harm. */
static void give_back_hot(hak_heap_t *heap, area_t *area, class_state_t *state)
{
    unsigned cls = state->cls;
    halve(heap, area, &area->hot[cls], cls);
    const size_t words[] = {PERCPU_HOT(cls), PERCPU_SPARE(cls)};
    for (int i = 0; i < 2; i++) {
        chain_t chain = percpu_take(&heap->percpu, words[i]);
        if (chain) drain_chain(heap, state, chain, PERCPU_NONE, false);
    }
}

static void give_back_outbox(hak_heap_t *heap, area_t *area, class_state_t *state,
                             magazine_t *outbox, int index)
{
    halve(heap, area, outbox, state->cls);
    drain_outbox(heap, state, outbox, index);
}

/* Cold chains that nobody took in the period. */
static void give_back_cold(hak_heap_t *heap, class_state_t *state, int index)
{
    if (!lock_try(&state->lock, RANK_CLASS)) return;
    cold_t *cold = state->cold;
    for (chain_t chain; cold && (chain = cold_take_old(cold, (unsigned)index)) != 0;)
        (void)drain_cold(heap, state, chain);
    if (cold) cold_age(cold, (unsigned)index);
    lock_release(&state->lock, RANK_CLASS);
}

void adapt_area(hak_heap_t *heap, area_t *area, int index)
{
    if (HAK_LIKELY(load_relaxed(&area->misses) < ADAPT_PERIOD)) return;
    store_relaxed(&area->misses, 0u);
    magazine_t *outbox = load_acquire(&area->outbox); /* pairs with outbox_of in drain.c */
    bool scarce = load_relaxed(&heap->budget.room) < (int64_t)(heap->settings.cache_bytes / SCARCE);
    share_t all = scarce ? share_of_all(area, outbox) : (share_t){0, 0};
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        if (!is_used(share_of(area, &area->hot[cls], cls), all)) give_back_hot(heap, area, state);
        store_relaxed(&area->hot[cls].misses, (uint16_t)0);
        if (outbox &&
            (adapt_returns(area, cls) || !is_used(share_of(area, &outbox[cls], cls), all)))
            give_back_outbox(heap, area, state, &outbox[cls], index);
        /* Of a class that returns its blocks some are remembered: the first miss of a period is no
         * sign that it grows. */
        uint16_t keep =
            outbox && adapt_returns(area, cls) ? load_relaxed(&outbox[cls].misses) / 2 : 0;
        if (outbox) store_relaxed(&outbox[cls].misses, keep);
        give_back_cold(heap, state, index);
    }
}
