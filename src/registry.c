/* hakheap level 3: registry - making and writing the tables */
#include "registry.h"

#include "os.h"

_Static_assert((int)CODE_META <= 0xff, "codes have eight bits");
_Static_assert(SUPERSLAB_GRANULES <= 0x100, "granules before have eight bits");
_Static_assert(CODE_MID * 4 * 4 == CODE_MID * 16, "a slot is 16 bytes");

#define DIVISOR(bytes, granules) {SIZECLASS_DIVISOR(bytes), SIZECLASS_DIVISOR(bytes) - 1},
const divisor_t registry_divisors[SLOT_COUNT] = {SIZE_CLASSES(DIVISOR){0, UINT32_MAX}, {0, UINT32_MAX}};

gib_t *_Atomic registry_top[REGISTRY_TOP];
static hak_lock_t registry_lock; /* rank REGISTRY: who makes a table */

static gib_t *gib_of(uintptr_t at)
{
    if (at >> ADDRESS_BITS) return NULL;
    return load_acquire(&registry_top[at >> GIB_SHIFT]);
}

static bool cover_gib(size_t index)
{
    if (load_acquire(&registry_top[index])) return true;
    lock_acquire(&registry_lock, RANK_REGISTRY);
    gib_t *gib = load_relaxed(&registry_top[index]);
    if (!gib) {
        gib = os->map(sizeof(gib_t), 0);
        /* Release: pairs with the acquires in registry_entry and gib_of. */
        store_release(&registry_top[index], gib);
    }
    lock_release(&registry_lock, RANK_REGISTRY);
    return gib != NULL;
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

void registry_set_run(const void *base, size_t granules, const void *heap, unsigned code)
{
    entry_t entry = entry_owner_bits(heap) | (entry_t)code << ENTRY_CLASS_SHIFT;
    /* A run lies in one SuperSlab, so in one GiB. */
    _Atomic entry_t *at = &gib_of((uintptr_t)base)->entry[(uintptr_t)base >> GRANULE_SHIFT & (GIB_GRANULES - 1)];
    for (size_t i = 0; i < granules; i++) store_relaxed(&at[i], entry | (entry_t)i << ENTRY_BACK_SHIFT);
}

bool registry_release(const void *start)
{
    _Atomic entry_t *at = &gib_of((uintptr_t)start)->entry[(uintptr_t)start >> GRANULE_SHIFT & (GIB_GRANULES - 1)];
    entry_t entry = load_relaxed(at);
    if (entry_code(entry) != CODE_MID) return false;
    entry_t released = (entry & ~((entry_t)0xff << ENTRY_CLASS_SHIFT)) | (entry_t)CODE_RELEASED << ENTRY_CLASS_SHIFT;
    return cas_acquire(at, &entry, released);
}

struct superslab *registry_superslab(const void *ptr)
{
    gib_t *gib = gib_of((uintptr_t)ptr);
    return gib ? load_acquire(&gib->superslab[(uintptr_t)ptr >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)]) : NULL;
}

void registry_set_superslab(const void *base, struct superslab *superslab)
{
    /* Release: pairs with the acquire in registry_superslab. */
    store_release(&gib_of((uintptr_t)base)->superslab[(uintptr_t)base >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)],
                  superslab);
}

struct large *registry_range(const void *ptr)
{
    gib_t *gib = gib_of((uintptr_t)ptr);
    return gib ? load_acquire(&gib->range[(uintptr_t)ptr >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)]) : NULL;
}

void registry_set_range(const void *base, size_t bytes, struct large *large)
{
    uintptr_t end = (uintptr_t)base + bytes;
    for (uintptr_t at = (uintptr_t)base; at < end; at += SUPERSLAB)
        /* Release: pairs with the acquire in registry_range. */
        store_release(&gib_of(at)->range[at >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)], large);
}
