/* hakheap level 4: slab - carving, freelists, bins */
#include "slab.h"

/* Puts a slab that is in no list in the bin for what is outside, and notes where that bin ends. */
static void choose_bin(slab_t *slab)
{
    uint32_t blocks = slab->blocks, outside = (uint32_t)slab_outside(slab);
    const uint32_t least[SLAB_BINS] = {
        blocks, (3 * blocks + 3) / 4, (2 * blocks + 3) / 4, (blocks + 3) / 4, 1, 0};
    uint8_t bin = BIN_FULL;
    while (outside < least[bin]) bin++;
    slab->bin = bin;
    slab->least = (uint16_t)least[bin];
    slab->most = (uint16_t)(bin == BIN_FULL ? blocks : least[bin - 1] - 1);
}

/* At the head where its address is the lowest of the two, else behind the head. */
static void bin_insert(slab_set_t *set, slab_t *slab)
{
    slab_t **at = &set->bin[slab->bin];
    slab_t *before = *at && (*at)->start < slab->start ? *at : NULL;
    slab_t *after = before ? before->next : *at;
    slab->prev = before;
    slab->next = after;
    if (before) before->next = slab;
    else *at = slab;
    if (after) after->prev = slab;
}

static void bin_remove(slab_set_t *set, slab_t *slab)
{
    if (slab->prev) slab->prev->next = slab->next;
    else set->bin[slab->bin] = slab->next;
    if (slab->next) slab->next->prev = slab->prev;
}

static void change_bin(slab_set_t *set, slab_t *slab)
{
    bin_remove(set, slab);
    choose_bin(slab);
    bin_insert(set, slab);
}

HAK_INLINE void rebin(slab_set_t *set, slab_t *slab)
{
    size_t outside = slab_outside(slab);
    if (HAK_UNLIKELY(outside < slab->least || outside > slab->most)) change_bin(set, slab);
}

run_t slab_run(const slab_t *slab)
{
    superslab_t *ss = registry_superslab(slab->start);
    return (run_t){ss, superslab_index(ss, slab->start)};
}

/* The pages that blocks [first, end) lie in; neither of them wraps around. */
static pages_t pages_of(const slab_t *slab, size_t first, size_t end)
{
    size_t bytes = size_classes[slab->cls].bytes;
    if (first == end) return 0;
    size_t page = first * bytes / HAK_PAGE;
    size_t count = (end * bytes + HAK_PAGE - 1) / HAK_PAGE - page;
    return (count == 64 ? PAGES_ALL : ((pages_t)1 << count) - 1) << page;
}

/* The pages that carved blocks lie in. */
static pages_t carved_pages(const slab_t *slab)
{
    size_t blocks = slab->blocks;
    size_t end = (size_t)slab->origin + slab->carved;
    if (end <= blocks) return pages_of(slab, slab->origin, end);
    return pages_of(slab, slab->origin, blocks) | pages_of(slab, 0, end - blocks);
}

static pages_t touched_pages(const slab_t *slab)
{
    return superslab_touched(slab_run(slab), slab->granules);
}

/* Carved pages that were given back; what is not carved is no block's. */
static pages_t released_pages(const slab_t *slab)
{
    return slab_has_released(slab) ? carved_pages(slab) & ~touched_pages(slab) : 0;
}

/* Spread over the pages of the slab and over the lines of half a page, by the slab's address. */
static uint16_t origin_of(const slab_t *slab)
{
    const char *start = slab->start;
    unsigned cls = slab->cls;
    const size_class_t *sizes = &size_classes[cls];
    uint64_t mixed = ((uintptr_t)start >> GRANULE_SHIFT) * 0x9e3779b97f4a7c15ull;
    size_t page =
        (uint64_t)(uint32_t)(mixed >> 16) * (slab->granules * (uint64_t)GRANULE_PAGES) >> 32;
    size_t line = (mixed >> 48) % (HAK_PAGE / 2 / HAK_LINE);
    size_t origin =
        registry_quotient(cls, (uint32_t)((page * HAK_PAGE + line * HAK_LINE) / BLOCK_ALIGN));
    /* Whole cache lines are carved at a time, so the first block begins one. */
    if (sizes->bytes < HAK_LINE) origin &= ~(size_t)3;
    return (uint16_t)(origin < slab->blocks ? origin : 0);
}

/* What a slab adds to the sums of its set, but for what is outside. */
static void count_slab(slab_set_t *set, const slab_t *slab)
{
    set->slabs++;
    set->pages += slab->pages;
    set->granules += slab->granules;
    set->blocks += slab->blocks;
    set->carved += slab_touched(slab);
}

slab_t *slab_add(slab_set_t *set, run_t run, unsigned granules, unsigned cls)
{
    slab_t *slab = superslab_descriptor(run.ss, run.first);
    const size_class_t *sizes = &size_classes[cls];
    size_t room = granules * (size_t)GRANULE / sizes->bytes;
    *slab = (slab_t){.start = superslab_granule(run.ss, run.first),
                     .cls = (uint8_t)cls,
                     .home = HOME_NONE,
                     .blocks = (uint16_t)hak_min(room, sizes->blocks),
                     .granules = (uint8_t)granules,
                     .pages = (uint8_t)superslab_touched_count(run, granules),
                     .used_before = superslab_touched(run, granules)};
    slab->origin = origin_of(slab);
    slab_restore(set, slab);
    return slab;
}

void slab_restore(slab_set_t *set, slab_t *slab)
{
    choose_bin(slab);
    bin_insert(set, slab);
    count_slab(set, slab);
}

void slab_remove(slab_set_t *set, slab_t *slab)
{
    bin_remove(set, slab);
    set->slabs--;
    set->pages -= slab->pages;
    set->granules -= slab->granules;
    set->blocks -= slab->blocks;
    set->carved -= slab_touched(slab);
}

void slab_move(slab_set_t *from, slab_set_t *to, slab_t *slab)
{
    slab_remove(from, slab);
    slab_restore(to, slab);
    from->outside -= slab_outside(slab);
    to->outside += slab_outside(slab);
}

static bool is_carved(const slab_t *slab, size_t index)
{
    uint32_t blocks = slab->blocks;
    if (HAK_LIKELY(slab->carved == blocks)) return true;
    /* No branch: which half of a slab a block lies in cannot be guessed. */
    uint32_t at = (uint32_t)index - slab->origin;
    return at + (blocks & -(at >> 31)) < slab->carved;
}

/* The index of the block that is carved next. */
static size_t next_index(const slab_t *slab)
{
    size_t at = (size_t)slab->origin + slab->carved;
    size_t blocks = slab->blocks;
    return at < blocks ? at : at - blocks;
}

/* How many blocks are wanted, may lie beyond the page, and are too many. */
typedef struct carve {
    size_t want, ahead, most;
} carve_t;

/* Blocks whose first byte lies before the end of the page where carving begins, or `ahead` where
 * that is more, up to the last block of the slab, and whole cache lines of them where several blocks
 * share one. */
static size_t carvable(const slab_t *slab, size_t index, size_t want, size_t ahead)
{
    const size_class_t *sizes = &size_classes[slab->cls];
    size_t at = index * sizes->bytes;
    size_t near = (hak_round_up(at + 1, HAK_PAGE) - at + sizes->bytes - 1) / sizes->bytes;
    near = hak_max(near, ahead);
    if (sizes->bytes < HAK_LINE) {
        /* Four blocks end at a line's end, at every size below a line. */
        want = hak_round_up(want, 4);
        near = near < 4 ? 4 : near & ~(size_t)3;
    }
    size_t left = hak_min(slab->blocks - index, (size_t)slab->blocks - slab->carved);
    return hak_min(hak_min(want, near), left);
}

/* Notes that blocks may be written from now on. */
HAK_INLINE void touch(slab_set_t *set, slab_t *slab, const char *from, size_t bytes)
{
    uint32_t fresh = superslab_touch(registry_superslab(slab->start), from, bytes);
    if (!fresh) return;
    slab->pages = (uint8_t)(slab->pages + fresh);
    set->pages += fresh;
}

/* The line of a block that was never handed out and is not as the kernel gave it. */
static _Noreturn HAK_COLD void never_handed_out(const slab_t *slab, const block_t *block,
                                                const guard_t *guard)
{
    bool freed = block_is_sealed(block, block_link(block, guard->key), guard->key);
    hak_fatal(&(hak_fault_t){.code = freed ? "INTERIOR" : "CORRUPT",
                             .operation = "malloc",
                             .ptr = block,
                             .heap = guard->name,
                             .class_bytes = size_classes[slab->cls].bytes,
                             .words = freed ? "the address was freed and never handed out"
                                            : "a block was written to, or freed, that was never "
                                              "handed out"});
}

/*
 * Of a CHECKED heap: what is carved was never handed out, so that its words are as the kernel gave
 * them. Else the program has freed it, and it is in a magazine or was handed out by one; carved, it
 * would be handed out twice. Pages that were used before say nothing: a free block's seal may be
 * left there.
 */
static void prove_unused(const slab_t *slab, size_t index, size_t count, const guard_t *guard)
{
    const size_t bytes = size_classes[slab->cls].bytes;
    const pages_t all = pages_of(slab, index, index + count), used = slab->used_before & all;
    if (used == all) return;
    const char *at = slab->start + index * bytes;
    for (size_t i = 0; i < count; i++, at += bytes) {
        const block_t *block = (const block_t *)(const void *)at;
        if (HAK_LIKELY(!(block->word[0] | block->word[1]))) continue;
        if (!(used & pages_of(slab, index + i, index + i + 1)))
            never_handed_out(slab, block, guard);
    }
}

/* Lowest address on top, so that a program walks memory upwards. */
static chain_t carve(slab_set_t *set, slab_t *slab, chain_t chain, carve_t of, const guard_t *guard)
{
    size_t index = next_index(slab);
    size_t count = hak_min(carvable(slab, index, of.want, of.ahead), of.most);
    size_t bytes = size_classes[slab->cls].bytes;
    uint64_t key = guard->key;
    if (key_seals(key)) prove_unused(slab, index, count, guard);
    touch(set, slab, slab->start + index * bytes, count * bytes);
    char *first = slab->start + index * bytes;
    for (size_t i = count; i-- > 0;) chain = block_push(chain, first + i * bytes, key);
    slab->carved = (uint16_t)(slab->carved + count);
    set->carved += count;
    return chain;
}

/* Of a carved block. One that overlaps a released page is untouched, so that the page's bit stays
 * true until it is wanted again. */
static bool is_among(const slab_t *slab, size_t index, pages_t released)
{
    return released && (pages_of(slab, index, index + 1) & released);
}

void slab_tell_home(const slab_t *slab)
{
    bool checked = registry_lookup(slab->start) & ENTRY_CHECKED;
    bool look = checked && slab_has_released(slab);
    registry_set_home(slab->start, slab->granules, look ? HOME_LOOK : slab->home);
}

/* Wants the first released page again: blocks of it that overlap no other are free ones. */
static void restore_page(slab_set_t *set, slab_t *slab, uint64_t key)
{
    const size_class_t *sizes = &size_classes[slab->cls];
    size_t bytes = sizes->bytes;
    pages_t released = released_pages(slab), left = released & (released - 1);
    size_t page = (size_t)__builtin_ctzll(released);
    size_t first = page * HAK_PAGE / bytes;
    size_t end = hak_min(((page + 1) * HAK_PAGE + bytes - 1) / bytes, slab->blocks);
    touch(set, slab, slab->start + page * HAK_PAGE, HAK_PAGE);
    for (size_t i = end; i-- > first;) {
        if (!is_carved(slab, i)) continue;
        char *block = slab->start + i * bytes;
        if (is_among(slab, i, left)) {
            /* It reaches into a page that is still gone. Its seal would be here, where slab_forgot
             * does not look any more. */
            (void)block_push(0, block, key);
            continue;
        }
        slab->free = block_push(slab->free, block, key);
        slab->released_blocks--;
        set->carved++;
    }
    if (!slab_has_released(slab)) slab_tell_home(slab);
}

/* A freelist that goes as it is costs nothing; to join or to split one costs a visit to each
 * block. */
static chain_t take_listed(slab_t *slab, chain_t chain, size_t want, size_t most,
                           const guard_t *guard)
{
    if (!chain && chain_count(slab->free) <= most) {
        chain = slab->free;
        slab->free = 0;
        return chain;
    }
    size_t bytes = size_classes[slab->cls].bytes;
    while (slab->free && chain_count(chain) < want) {
        void *block = chain_block(slab->free);
        slab->free = block_next(slab->free, guard, "malloc", bytes);
        chain = block_push(chain, block, guard->key);
    }
    return chain;
}

slab_t *slab_find(const slab_set_t *set, unsigned bin)
{
    for (; bin < SLAB_BINS; bin++)
        if (set->bin[bin]) return set->bin[bin];
    return NULL;
}

chain_t slab_take(slab_set_t *set, unsigned cls, const slab_wanted_t *wanted, const guard_t *guard)
{
    chain_t chain = 0;
    size_t want = wanted->blocks, ahead = wanted->ahead;
    for (slab_t *slab; (slab = slab_find(set, BIN_HIGH)) != NULL;) {
        hak_assert(slab->cls == cls);
        while (!slab->free && slab_has_released(slab)) restore_page(set, slab, guard->key);
        bool listed = slab->free != 0;
        size_t before = chain_count(chain);
        if (before >= (listed ? (want + 3) / 4 : want)) break;
        size_t most = wanted->bound ? wanted->bound - before : SIZE_MAX;
        chain = listed ? take_listed(slab, chain, want, wanted->most, guard)
                       : carve(set, slab, chain, (carve_t){want - before, ahead, most}, guard);
        size_t count = chain_count(chain) - before;
        set->outside += count;
        rebin(set, slab);
        if (listed) continue;
        if (count >= ahead) break; /* the next page stays untouched until it is wanted */
        ahead -= count;
    }
    (void)cls;
    return chain;
}

bool slab_has(const slab_t *slab, const void *ptr)
{
    const size_class_t *cls = &size_classes[slab->cls];
    size_t offset = (size_t)((const char *)ptr - slab->start);
    if (offset >= slab->granules * (size_t)GRANULE) return false;
    size_t index = registry_quotient(slab->cls, (uint32_t)(offset / BLOCK_ALIGN));
    if (index * cls->bytes != offset || index >= slab->blocks) return false;
    return is_carved(slab, index) && !is_among(slab, index, released_pages(slab));
}

static _Noreturn HAK_COLD void refuse(const slab_t *slab, const void *ptr, const guard_t *guard,
                                      const char *code, const char *words)
{
    hak_fatal(&(hak_fault_t){.code = code,
                             .operation = "free",
                             .ptr = ptr,
                             .heap = guard->name,
                             .class_bytes = size_classes[slab->cls].bytes,
                             .words = words});
}

/* Ends the process where an address is none that was handed out. */
static HAK_NOINLINE void prove_handed_out(const slab_t *slab, const void *ptr, const guard_t *guard)
{
    if (!slab_has(slab, ptr))
        refuse(slab, ptr, guard, "INTERIOR",
               "the address is not the start of a block that was handed out");
}

static _Noreturn HAK_COLD void refuse_second(const slab_t *slab, const void *ptr,
                                             const guard_t *guard)
{
    refuse(slab, ptr, guard, "DOUBLE_FREE", "every block of its slab is free already");
}

/* slab_of for a block of a chain: one way down the registry for its entry and its SuperSlab. */
HAK_INLINE slab_t *slab_of_freed(const block_t *block, const size_class_t *sizes)
{
    uintptr_t granule = (uintptr_t)block >> GRANULE_SHIFT;
    gib_t *gib = registry_gib((uintptr_t)block);
    if (sizes->granules > 1)
        granule -= entry_back(load_relaxed(&gib->entry[granule % GIB_GRANULES]));
    /* Acquire: pairs with the release in registry_set_superslab. */
    superslab_t *ss = load_acquire(&gib->superslab[granule / SUPERSLAB_GRANULES % GIB_SUPERSLABS]);
    return superslab_descriptor(ss, granule % SUPERSLAB_GRANULES);
}

HAK_INLINE bool lies_in(const slab_t *slab, const void *ptr)
{
    return (size_t)((const char *)ptr - slab->start) < slab->granules * (size_t)GRANULE;
}

/* What the blocks of one chain have in common. */
typedef struct returned {
    const guard_t *guard;
    uint64_t key; /* the guard's */
    const size_class_t *sizes;
    divisor_t divisor;
} returned_t;

/* Puts the blocks at a chain's head that lie in one slab on its freelist, no more than `most` and
 * than are outside. The bin is behind then. */
HAK_INLINE chain_t put_run(slab_t *slab, chain_t chain, size_t most, returned_t of)
{
    /* What lies behind the last block of a short slab is a block to its class's divisor. */
    const bool whole = slab->carved == of.sizes->blocks && !slab_has_released(slab);
    chain_t list = slab->free;
    for (size_t left = hak_min(most, slab_outside(slab)); left; left--) {
        block_t *block = chain_block(chain);
        if (!lies_in(slab, block)) break;
        uint32_t offset = (uint32_t)((char *)block - slab->start) / BLOCK_ALIGN;
        chain = block_proved_link(block, of.key, of.guard, "free", of.sizes->bytes);
        if (HAK_UNLIKELY(!whole || !divisor_divides(of.divisor, offset)))
            prove_handed_out(slab, block, of.guard);
        list = block_push(list, block, of.key);
    }
    slab->free = list;
    return chain;
}

HAK_INLINE chain_t put_chain(slab_set_t *set, chain_t chain, size_t most, returned_t of,
                             slab_t **empty)
{
    slab_t *slab = slab_of_freed(chain_block(chain), of.sizes);
    const uint8_t home = slab->home;
    do {
        size_t had = chain_count(slab->free);
        chain_t rest = put_run(slab, chain, most, of);
        size_t count = chain_count(slab->free) - had;
        /* The first block lies in the slab, so none is outside where it was not put. */
        if (HAK_UNLIKELY(!count)) refuse_second(slab, chain_block(chain), of.guard);
        chain = rest;
        set->outside -= count;
        most -= count;
        if (HAK_UNLIKELY(slab_outside(slab) < slab->least)) change_bin(set, slab);
        const block_t *next = chain_block(chain);
        if (HAK_UNLIKELY(slab->bin == BIN_EMPTY)) {
            /* The caller gives the slab back: what it would not find there is named here. */
            if (most && next && lies_in(slab, next)) refuse_second(slab, next, of.guard);
            *empty = slab;
            break;
        }
        if (!most || !next) break;
        slab = slab_of_freed(next, of.sizes);
    } while (slab->home == home);
    return chain;
}

chain_t slab_put_chain(slab_set_t *set, chain_t chain, size_t most, unsigned cls,
                       const guard_t *guard, slab_t **empty)
{
    returned_t of = {guard, guard->key, &size_classes[cls], registry_divisors[cls]};
    *empty = NULL;
    if (key_seals(of.key)) return put_chain(set, chain, most, of, empty);
    of.key = 0;
    return put_chain(set, chain, most, of, empty);
}

bool slab_put(slab_set_t *set, slab_t *slab, void *ptr, const guard_t *guard)
{
    prove_handed_out(slab, ptr, guard);
    if (HAK_UNLIKELY(slab_outside(slab) == 0)) refuse_second(slab, ptr, guard);
    slab->free = block_push(slab->free, ptr, guard->key);
    set->outside--;
    rebin(set, slab);
    return slab->bin == BIN_EMPTY;
}

/* ---- Releasing pages ---- */

enum { MOST_BLOCKS = GRANULE / BLOCK_ALIGN, BIT_WORDS = MOST_BLOCKS / 64 };

typedef struct bits {
    uint64_t word[BIT_WORDS];
} bits_t;

_Static_assert(sizeof(pages_t) * 8 * HAK_PAGE >= 16 * GRANULE,
               "a bit for each page of the longest slab");

static bool bit_is_set(const bits_t *bits, size_t at)
{
    return bits->word[at / 64] >> (at % 64) & 1;
}

/* A bit for each block on the freelist. */
static void mark_free(const slab_t *slab, const guard_t *guard, bits_t *bits)
{
    size_t bytes = size_classes[slab->cls].bytes;
    for (chain_t chain = slab->free; chain; chain = block_next(chain, guard, "trim", bytes)) {
        size_t at = (size_t)((char *)chain_block(chain) - slab->start) / bytes;
        bits->word[at / 64] |= 1ull << (at % 64);
    }
}

/* Pages that a block outside overlaps. */
static pages_t pages_outside(const slab_t *slab, const bits_t *is_free)
{
    pages_t pages = 0, released = released_pages(slab);
    for (size_t i = 0; i < slab->blocks; i++)
        if (is_carved(slab, i) && !bit_is_set(is_free, i) && !is_among(slab, i, released))
            pages |= pages_of(slab, i, i + 1);
    return pages;
}

/* Purges runs of the pages asked for, as few calls as there are runs. Returns those that are
 * gone. */
static pages_t purge_runs(const slab_t *slab, pages_t wanted, bool (*purge)(void *, size_t))
{
    pages_t gone = 0;
    for (pages_t left = wanted; left;) {
        unsigned first = (unsigned)__builtin_ctzll(left);
        pages_t from = left >> first;
        unsigned count = ~from ? (unsigned)__builtin_ctzll(~from) : 64;
        pages_t run = (count == 64 ? PAGES_ALL : ((pages_t)1 << count) - 1) << first;
        if (purge(slab->start + first * (size_t)HAK_PAGE, count * (size_t)HAK_PAGE)) gone |= run;
        left &= ~run;
    }
    return gone;
}

/* The freelist without the blocks that overlap released pages. */
static void rebuild(slab_t *slab, const bits_t *is_free, pages_t released, uint64_t key)
{
    size_t bytes = size_classes[slab->cls].bytes;
    slab->free = 0;
    for (size_t i = slab->blocks; i-- > 0;) {
        if (!bit_is_set(is_free, i)) continue;
        if (is_among(slab, i, released)) slab->released_blocks++;
        else slab->free = block_push(slab->free, slab->start + i * bytes, key);
    }
}

/* Seals blocks again that begin in a page that stays and reach into one that is gone: they are on
 * no list, and the page may be empty. */
static void reseal(const slab_t *slab, pages_t released, uint64_t key)
{
    size_t bytes = size_classes[slab->cls].bytes;
    for (size_t i = 0; i < slab->blocks; i++) {
        bool begins_gone = released >> i * bytes / HAK_PAGE & 1;
        if (is_carved(slab, i) && is_among(slab, i, released) && !begins_gone)
            (void)block_push(0, slab->start + i * bytes, key);
    }
}

size_t slab_release(slab_set_t *set, slab_t *slab, const guard_t *guard, size_t *keep,
                    bool (*purge)(void *, size_t))
{
    bits_t is_free = {{0}};
    mark_free(slab, guard, &is_free);
    unsigned granules = slab->granules;
    pages_t wanted = touched_pages(slab) & ~pages_outside(slab, &is_free);
    for (; wanted && *keep; (*keep)--) wanted &= wanted - 1;
    if (!wanted) return 0;
    /* What the kernel refuses may be gone in part, up to a page that the program has locked. So the
     * freelist is written anew. */
    pages_t gone = purge_runs(slab, wanted, purge);
    uint32_t count = (uint32_t)__builtin_popcountll(gone);
    superslab_forget(slab_run(slab), granules, gone);
    slab->pages = (uint8_t)(slab->pages - count);
    slab->used_before &= ~gone;
    set->pages -= count;
    set->carved -= slab_touched(slab);
    pages_t released = carved_pages(slab) & ~touched_pages(slab);
    rebuild(slab, &is_free, released, guard->key);
    if (gone != wanted && key_seals(guard->key)) reseal(slab, released, guard->key);
    set->carved += slab_touched(slab);
    slab_tell_home(slab);
    return count;
}

slab_t *slab_move_near(slab_set_t *set, slab_t *slab)
{
    slab_t *near = superslab_move_near(slab_run(slab));
    if (!near) return slab;
    *near = *slab;
    if (near->prev) near->prev->next = near;
    else set->bin[near->bin] = near;
    if (near->next) near->next->prev = near;
    return near;
}

bool slab_is_spare(const slab_set_t *set, const slab_t *slab)
{
    if (slab->next || slab->prev) return true;
    for (unsigned bin = BIN_HIGH; bin < BIN_EMPTY; bin++)
        if (set->bin[bin]) return true;
    return false;
}
