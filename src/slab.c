/* hakheap level 4: slab - carving, freelists, bins */
#include "slab.h"

static uint8_t bin_of(const slab_t *slab)
{
    size_t blocks = size_classes[slab->class].blocks;
    size_t outside = slab_outside(slab);
    if (outside == blocks) return BIN_FULL;
    if (outside == 0) return BIN_EMPTY;
    return (uint8_t)(BIN_HIGH + (outside * 4 < blocks * 3) + (outside * 2 < blocks) + (outside * 4 < blocks));
}

/* At the head where its address is the lowest of the two, else behind the head. */
static void bin_insert(slab_set_t *set, slab_t *slab)
{
    slab_t **at = &set->bin[slab->bin];
    slab_t *before = *at && *at < slab ? *at : NULL;
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

static void rebin(slab_set_t *set, slab_t *slab)
{
    uint8_t bin = bin_of(slab);
    if (bin == slab->bin) return;
    bin_remove(set, slab);
    slab->bin = bin;
    bin_insert(set, slab);
}

run_t slab_run(const slab_t *slab)
{
    superslab_t *ss = registry_superslab(slab->start);
    return (run_t){ss, superslab_index(ss, slab->start)};
}

size_t slab_pages(const slab_t *slab)
{
    return ((size_t)slab->carved * size_classes[slab->class].bytes + HAK_PAGE - 1) / HAK_PAGE;
}

void slab_add(slab_set_t *set, run_t run, unsigned class)
{
    slab_t *slab = superslab_descriptor(run.ss, run.first);
    *slab = (slab_t){.start = superslab_granule(run.ss, run.first), .class = (uint8_t)class, .bin = BIN_EMPTY};
    bin_insert(set, slab);
    set->slabs++;
}

void slab_remove(slab_set_t *set, slab_t *slab)
{
    bin_remove(set, slab);
    set->slabs--;
    set->carved -= slab->carved;
}

/* Blocks whose first byte lies before the end of the page where carving begins, and at least a cache line of them. */
static size_t carvable(const slab_t *slab, size_t want)
{
    const size_class_t *class = &size_classes[slab->class];
    size_t at = (size_t)slab->carved * class->bytes;
    size_t in_page = (hak_round_up(at + 1, HAK_PAGE) - at + class->bytes - 1) / class->bytes;
    if (class->bytes < HAK_LINE) want = hak_round_up(slab->carved + want, 4) - slab->carved;
    return hak_min(hak_min(want, in_page), class->blocks - slab->carved);
}

/* Lowest address on top, so that a program walks memory upwards. */
static chain_t carve(slab_set_t *set, slab_t *slab, chain_t chain, size_t want, uint64_t key)
{
    size_t count = carvable(slab, want);
    size_t bytes = size_classes[slab->class].bytes;
    for (size_t i = count; i-- > 0;) chain = block_push(chain, slab->start + (slab->carved + i) * bytes, key);
    slab->carved += (uint32_t)count;
    set->carved += count;
    return chain;
}

static chain_t take_listed(slab_t *slab, chain_t chain, size_t want, const guard_t *guard)
{
    if (!chain && chain_count(slab->free) <= want) {
        chain = slab->free;
        slab->free = 0;
        return chain;
    }
    size_t bytes = size_classes[slab->class].bytes;
    while (slab->free && chain_count(chain) < want) {
        void *block = chain_block(slab->free);
        slab->free = block_next(slab->free, guard, "malloc", bytes);
        chain = block_push(chain, block, guard->key);
    }
    return chain;
}

static slab_t *fullest(const slab_set_t *set)
{
    for (unsigned bin = BIN_HIGH; bin < SLAB_BINS; bin++)
        if (set->bin[bin]) return set->bin[bin];
    return NULL;
}

chain_t slab_take(slab_set_t *set, unsigned class, size_t want, const guard_t *guard)
{
    chain_t chain = 0;
    slab_t *slab;
    while (chain_count(chain) < want && (slab = fullest(set)) != NULL) {
        hak_assert(slab->class == class);
        bool listed = slab->free != 0;
        size_t before = chain_count(chain);
        chain = listed ? take_listed(slab, chain, want, guard) : carve(set, slab, chain, want - before, guard->key);
        set->outside += chain_count(chain) - before;
        rebin(set, slab);
        if (!listed) break; /* at a page's end: the next page stays untouched until it is wanted */
    }
    (void)class;
    return chain;
}

bool slab_has(const slab_t *slab, const void *ptr)
{
    const size_class_t *class = &size_classes[slab->class];
    size_t offset = (size_t)((const char *)ptr - slab->start);
    return offset % class->bytes == 0 && offset / class->bytes < slab->carved;
}

bool slab_put(slab_set_t *set, slab_t *slab, void *ptr, const guard_t *guard)
{
    if (HAK_UNLIKELY(!slab_has(slab, ptr)))
        hak_fatal(&(hak_fault_t){.code = "INTERIOR",
                                 .operation = "free",
                                 .ptr = ptr,
                                 .heap = guard->name,
                                 .class_bytes = size_classes[slab->class].bytes,
                                 .words = "the address is not the start of a block that was handed out"});
    if (HAK_UNLIKELY(slab_outside(slab) == 0))
        hak_fatal(&(hak_fault_t){.code = "DOUBLE_FREE",
                                 .operation = "free",
                                 .ptr = ptr,
                                 .heap = guard->name,
                                 .class_bytes = size_classes[slab->class].bytes,
                                 .words = "every block of its slab is free already"});
    slab->free = block_push(slab->free, ptr, guard->key);
    set->outside--;
    rebin(set, slab);
    return slab->bin == BIN_EMPTY;
}

bool slab_is_spare(const slab_set_t *set, const slab_t *slab)
{
    if (slab->next || slab->prev) return true;
    for (unsigned bin = BIN_HIGH; bin < BIN_EMPTY; bin++)
        if (set->bin[bin]) return true;
    return false;
}
