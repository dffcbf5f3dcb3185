/* hakheap level 3: registry - making and writing the tables */
#include "registry.h"

#include "os.h"

_Static_assert(CODE_META << ENTRY_CODE_SHIFT <= ENTRY_SLOT_MASK, "codes have seven bits");
_Static_assert(MID_MAX / GRANULE - 1 <= ENTRY_BACK_MASK, "granules before have six bits");

#define CEILING(bytes)        (((1ull << 32) + (bytes) / 16 - 1) / ((bytes) / 16))
#define EXCESS(bytes)         (CEILING(bytes) * ((bytes) / 16) - (1ull << 32))
#define LAST(bytes, granules) ((granules)*GRANULE / (bytes)-1)
#define DIVISOR(bytes, granules) \
    {(uint32_t)CEILING(bytes), (uint32_t)(LAST(bytes, granules) * EXCESS(bytes))},
const divisor_t registry_divisors[SLOT_COUNT] = {
    SIZE_CLASSES(DIVISOR){0, UINT32_MAX}, {0, UINT32_MAX}, {0, UINT32_MAX}};

_Atomic uintptr_t registry_top[REGISTRY_TOP];
static hak_lock_t registry_lock; /* rank REGISTRY: held while a table is made */

/* From a table's first entry to where the entry of address 0 would lie. */
static size_t bias(size_t index) { return index * GIB_GRANULES * sizeof(entry_t); }

static bool cover_gib(size_t index)
{
    if (load_acquire(&registry_top[index])) return true;
    lock_acquire(&registry_lock, RANK_REGISTRY);
    bool covered = load_relaxed(&registry_top[index]) != 0;
    if (!covered) {
        gib_t *gib = os->map(hak_round_up(sizeof *gib, HAK_PAGE), 0);
        covered = gib != NULL;
        /* Release: pairs with the acquires in registry_entry and registry_gib. */
        if (covered) store_release(&registry_top[index], (uintptr_t)gib->entry - bias(index));
    }
    lock_release(&registry_lock, RANK_REGISTRY);
    return covered;
}

bool registry_unlock(void)
{
    enum { IN_PAGE = HAK_PAGE / sizeof registry_top[0] };
    static _Atomic uint32_t done; /* only one caller matters */
    if (exchange_acq_rel(&done, 1u)) return false;
    /* From the first whole page on. */
    size_t at = (hak_round_up((uintptr_t)registry_top, HAK_PAGE) - (uintptr_t)registry_top) /
                sizeof registry_top[0];
    for (; at + IN_PAGE <= REGISTRY_TOP; at += IN_PAGE) {
        uintptr_t any = 0;
        for (size_t i = at; i < at + IN_PAGE; i++) any |= load_relaxed(&registry_top[i]);
        if (!any) (void)os->unlock(&registry_top[at], HAK_PAGE);
    }
    return true;
}

bool registry_cover(const void *base, size_t bytes)
{
    if (bytes > ((uintptr_t)1 << ADDRESS_BITS) - (uintptr_t)base) return false;
    uintptr_t first = (uintptr_t)base >> GIB_SHIFT;
    uintptr_t last = ((uintptr_t)base + bytes - 1) >> GIB_SHIFT;
    for (uintptr_t index = first; index <= last; index++)
        if (!cover_gib(index)) return false;
    return true;
}

/* A run lies in one SuperSlab, so in one GiB: its entries follow this one. */
static _Atomic entry_t *entry_at(const void *start)
{
    return &registry_gib((uintptr_t)start)
                ->entry[(uintptr_t)start >> GRANULE_SHIFT & (GIB_GRANULES - 1)];
}

/* Of a run's first granule. */
static entry_t first_entry(const void *heap, unsigned code)
{
    entry_t entry =
        entry_owner_bits(heap) | registry_tag(HOME_NONE, code & ~(unsigned)CODE_CHECKED);
    return code & CODE_CHECKED ? entry | ENTRY_CHECKED : entry;
}

void registry_extend_run(const void *base, size_t had, size_t granules, const void *heap,
                         unsigned code)
{
    entry_t entry = first_entry(heap, code);
    _Atomic entry_t *at = entry_at(base);
    for (size_t i = had; i < granules; i++)
        store_relaxed(&at[i], entry | ((entry_t)i & ENTRY_BACK_MASK) << ENTRY_BACK_SHIFT);
}

void registry_set_run(const void *base, size_t granules, const void *heap, unsigned code)
{
    registry_extend_run(base, 0, granules, heap, code);
}

void registry_set_region(const void *base, const void *heap, unsigned code, unsigned index)
{
    /* In one: a stray address must never be looked up in the map of another region. */
    store_relaxed(entry_at(base), first_entry(heap, code) | (entry_t)index << ENTRY_BACK_SHIFT);
}

void registry_set_home(const void *base, size_t granules, unsigned home)
{
    _Atomic entry_t *at = entry_at(base);
    entry_t mask = (entry_t)HOME_NONE << ENTRY_HOME_SHIFT;
    for (size_t i = 0; i < granules; i++)
        store_relaxed(&at[i], (load_relaxed(&at[i]) & ~mask) | (entry_t)home << ENTRY_HOME_SHIFT);
}

void registry_disown(const void *base, size_t granules)
{
    _Atomic entry_t *at = entry_at(base);
    for (size_t i = 0; i < granules; i++)
        store_relaxed(&at[i], load_relaxed(&at[i]) & (ENTRY_CHECKED - 1));
}

bool registry_release(const void *start)
{
    _Atomic entry_t *at = entry_at(start);
    entry_t entry = load_relaxed(at);
    if (entry_code(entry) != CODE_MID) return false;
    entry_t released = (entry & ~(entry_t)ENTRY_SLOT_MASK) | (entry_t)CODE_RELEASED
                                                                 << ENTRY_CODE_SHIFT;
    return cas_acquire(at, &entry, released);
}

void registry_set_superslab(const void *base, struct superslab *superslab)
{
    /* Release: pairs with the acquire in registry_superslab. */
    store_release(&registry_gib((uintptr_t)base)
                       ->superslab[(uintptr_t)base >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)],
                  superslab);
}

struct large *registry_range(const void *ptr)
{
    gib_t *gib = registry_gib((uintptr_t)ptr);
    return gib ? load_acquire(&gib->range[(uintptr_t)ptr >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)])
               : NULL;
}

void registry_set_range(const void *base, size_t bytes, struct large *large)
{
    uintptr_t end = (uintptr_t)base + bytes;
    for (uintptr_t at = (uintptr_t)base; at < end; at += SUPERSLAB)
        /* Release: pairs with the acquire in registry_range. */
        store_release(&registry_gib(at)->range[at >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)],
                      large);
}

void registry_forget_range(const void *base, size_t bytes)
{
    const uintptr_t gib_bytes = (uintptr_t)1 << GIB_SHIFT;
    uintptr_t at = (uintptr_t)base, end = at + bytes;
    while (at < end) {
        bool whole = at % gib_bytes == 0 && end - at >= gib_bytes;
        gib_t *gib = registry_gib(at);
        if (whole && os->purge(gib->range, sizeof gib->range)) {
            at += gib_bytes;
            continue;
        }
        registry_set_range((const void *)at, 1, NULL);
        at += SUPERSLAB;
    }
}
