/* hakheap level 11: adapt - how much each magazine may hold, from what it missed */
#include "adapt.h"

#include "stall.h"

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
    AHEAD = 32,        /* of what a class has outside, such a part may be carved ahead, */
    AHEAD_GROWING = 8, /* or such a one while it grows, */
    GROWING = 2,       /* that is, while it took such a part since a block came back */
    RETURN_ENTER = 4,  /* a class that returns so many blocks for one that it takes is closed; */
    RETURN_LEAVE = 2,  /* with so many or fewer it is opened again */
    SCARCE = 8,        /* the budget is nearly spent when less than this part of it is left */
};

/* What a magazine of a class may hold at most, by class: a miss has no time for divisions. */
#define LESSER(a, b)  ((a) < (b) ? (a) : (b))
#define GREATER(a, b) ((a) > (b) ? (a) : (b))
#define FITS(bytes, granules) \
    LESSER(GREATER(MOST_BYTES / (bytes), LESSER(WIDE_BLOCKS, WIDE_BYTES / (bytes))), MOST_BLOCKS),

static const uint16_t most_of[CLASS_COUNT] = {SIZE_CLASSES(FITS)};

/* And what it asks for at a time while the class grows: beyond that a miss costs little a block. */
#define IN_GRANULE(bytes, granules) (uint16_t)(GRANULE / (bytes)),
static const uint16_t granule_blocks[CLASS_COUNT] = {SIZE_CLASSES(IN_GRANULE)};

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
    return cas_once_relaxed(&magazine->limit, &from, to);
}

static size_t refill_of(uint32_t limit, uint32_t misses)
{
    size_t most = limit <= FEW_BLOCKS ? limit : limit / 2;
    return hak_max(1, hak_min(most, (size_t)FIRST_BLOCKS << hak_min(misses, 8) >> 1));
}

size_t adapt_refill(const magazine_t *hot)
{
    magazine_t *at = (magazine_t *)(uintptr_t)hot;
    return refill_of(load_relaxed(&at->limit), load_relaxed(&at->misses));
}

bool adapt_is_growing(const class_state_t *state)
{
    class_state_t *at = (class_state_t *)(uintptr_t)state;
    /* Relaxed: as in most_blocks. */
    return load_relaxed(&at->grown) >= load_relaxed(&at->outside) / GROWING;
}

slab_wanted_t adapt_wanted(const class_state_t *state, const magazine_t *hot)
{
    magazine_t *at = (magazine_t *)(uintptr_t)hot;
    size_t limit = load_relaxed(&at->limit);
    /* Relaxed: as in most_blocks. */
    size_t outside = load_relaxed(&((class_state_t *)(uintptr_t)state)->outside);
    size_t blocks = refill_of((uint32_t)limit, load_relaxed(&at->misses));
    bool grows = adapt_is_growing(state);
    size_t ahead = outside / (grows ? AHEAD_GROWING : AHEAD);
    if (grows) blocks = hak_max(blocks, hak_min(hak_min(limit, granule_blocks[state->cls]), ahead));
    return (slab_wanted_t){
        .blocks = (uint32_t)blocks, .most = (uint32_t)hak_max(1, limit), .ahead = (uint32_t)ahead};
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
        if (!heap_budget_take(heap, bytes)) continue;
        STALL(limit_charged);
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
    if (returned(outbox, cls) < RETURN_ENTER * taken(area, cls) || !home_is_divided(heap))
        return false;
    percpu_tag(area, cls, TAG_NONE);
    return true;
}

void adapt_wants(const hak_heap_t *heap, area_t *area, int index, unsigned cls)
{
    magazine_t *outbox = load_acquire(&area->outbox); /* pairs with area_outbox */
    if (outbox && returned(&outbox[cls], cls) > RETURN_LEAVE * taken(area, cls)) return;
    percpu_tag(area, cls, 0); /* which a free may take for a home's: a hint like all others */
    area_tag(heap, area, index, cls);
}

/* ---- The end of a period ---- */

static adapt_share_t share_of(const area_t *area, const magazine_t *magazine, unsigned cls)
{
    magazine_t *at = (magazine_t *)(uintptr_t)magazine;
    return (adapt_share_t){load_relaxed(&at->misses),
                           percpu_limit_bytes(area, magazine, cls, load_relaxed(&at->limit))};
}

static adapt_share_t share_of_all(const area_t *area, const magazine_t *outbox)
{
    adapt_share_t all = {0, 0};
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        adapt_share_t hot = share_of(area, &area->hot[cls], cls);
        adapt_share_t out = outbox ? share_of(area, &outbox[cls], cls) : (adapt_share_t){0, 0};
        all.misses += hot.misses + out.misses;
        all.bytes += hot.bytes + out.bytes;
    }
    return all;
}

/* `all`: of the area where the budget is nearly spent, else of nothing. */
static bool is_used(adapt_share_t one, adapt_share_t all)
{
    return one.misses && one.misses * all.bytes * 2 >= all.misses * one.bytes;
}

static void halve(hak_heap_t *heap, const area_t *area, magazine_t *magazine, unsigned cls)
{
    uint32_t limit = load_relaxed(&magazine->limit);
    uint32_t less = limit <= LEAST_BLOCKS ? 0 : limit / 2;
    STALL(limit_read);
    if (!set_limit(magazine, limit, less)) return;
    STALL(limit_halved);
    budget_put(&heap->budget, percpu_limit_bytes(area, magazine, cls, limit - less));
}

void adapt_begin(hak_heap_t *heap, area_t *area, adapt_period_t *period)
{
    store_relaxed(&area->misses, 0u);
    period->outbox = load_acquire(&area->outbox); /* pairs with area_outbox */
    bool scarce = load_relaxed(&heap->budget.room) < (int64_t)(heap->settings.cache_bytes / SCARCE);
    period->all = scarce ? share_of_all(area, period->outbox) : (adapt_share_t){0, 0};
}

static bool end_hot(hak_heap_t *heap, area_t *area, unsigned cls, adapt_share_t all)
{
    magazine_t *hot = &area->hot[cls];
    bool used = is_used(share_of(area, hot, cls), all);
    if (!used) halve(heap, area, hot, cls);
    store_relaxed(&hot->misses, (uint16_t)0);
    return !used;
}

static bool end_outbox(hak_heap_t *heap, area_t *area, unsigned cls, const adapt_period_t *period)
{
    magazine_t *outbox = &period->outbox[cls];
    bool returns = area_returns(area, cls);
    bool used = !returns && is_used(share_of(area, outbox, cls), period->all);
    if (!used) halve(heap, area, outbox, cls);
    /* Of a class that returns its blocks some are remembered: the first miss of a period is no
     * sign that it grows. */
    store_relaxed(&outbox->misses, returns ? load_relaxed(&outbox->misses) / 2 : (uint16_t)0);
    return !used;
}

/* The thread may have moved: then another CPU's magazine is emptied, which does no harm. */
adapt_unused_t adapt_end(hak_heap_t *heap, area_t *area, const adapt_period_t *period, unsigned cls)
{
    adapt_unused_t unused = {0};
    if (end_hot(heap, area, cls, period->all)) {
        unused.hot = percpu_take(&heap->percpu, PERCPU_HOT(cls));
        unused.spare = percpu_take(&heap->percpu, PERCPU_SPARE(cls));
    }
    unused.outbox = period->outbox && end_outbox(heap, area, cls, period);
    return unused;
}
