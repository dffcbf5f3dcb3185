/* hakheap level 4: large - records, mappings and the cache of mappings */
#include "large.h"

#include "os.h"

large_t *large_find(const void *ptr)
{
    large_t *large = registry_range(ptr);
    if (!large || large == LARGE_RELEASED) return NULL;
    uintptr_t at = (uintptr_t)ptr;
    bool inside = at >= (uintptr_t)large->base && at - (uintptr_t)large->base < large->bytes;
    /* A record may be used again while it is read; the slot names it only as long as what was read is true. */
    return inside && registry_range(ptr) == large && load_relaxed(&large->state) == LARGE_LIVE ? large : NULL;
}

void mid_add(large_set_t *set, run_t run, unsigned granules, size_t bytes)
{
    mid_t *mid = superslab_descriptor(run.ss, run.first);
    *mid = (mid_t){.next = set->mids,
                   .start = superslab_granule(run.ss, run.first),
                   .bytes = bytes,
                   .granules = granules};
    if (set->mids) set->mids->prev = mid;
    set->mids = mid;
    set->mid_blocks++;
    set->mid_bytes += bytes;
}

void mid_remove(large_set_t *set, mid_t *mid)
{
    if (mid->prev) mid->prev->next = mid->next;
    else set->mids = mid->next;
    if (mid->next) mid->next->prev = mid->prev;
    set->mid_blocks--;
    set->mid_bytes -= mid->bytes;
}

mid_t *mid_of(entry_t entry, const void *ptr)
{
    const char *start = entry_run_start(entry, ptr);
    superslab_t *ss = registry_superslab(start);
    return superslab_descriptor(ss, superslab_index(ss, start));
}

/* ---- Mappings ---- */

char *large_map(size_t bytes, size_t alignment)
{
    char *base = os->map(bytes, hak_max(alignment, SUPERSLAB));
    if (!base) return NULL;
    if (registry_cover(base, bytes)) return base;
    os->unmap(base, bytes);
    return NULL;
}

bool large_unmap(char *base, size_t bytes)
{
    /* The tombstone first: once unmapped, the range may be another heap's at once. */
    large_t *before = registry_range(base);
    registry_set_range(base, bytes, LARGE_RELEASED);
    if (os->unmap(base, bytes)) return true;
    registry_set_range(base, bytes, before);
    return false;
}

static char *move(large_t *large, size_t bytes)
{
    char *to = os->reserve(bytes, SUPERSLAB);
    if (!to) return NULL;
    registry_set_range(large->base, large->bytes, LARGE_RELEASED);
    if (registry_cover(to, bytes) && os->move(large->base, large->bytes, to, bytes)) {
        registry_set_range(to, bytes, large);
        return to;
    }
    registry_set_range(large->base, large->bytes, large);
    os->unmap(to, bytes);
    return NULL;
}

char *large_remap(large_t *large, size_t bytes)
{
    char *base = large->base;
    if (bytes < large->bytes) {
        if (!os->resize(base, large->bytes, bytes)) return NULL;
        char *end = (char *)hak_round_up((uintptr_t)base + bytes, SUPERSLAB);
        if (end < base + large->bytes) registry_set_range(end, (size_t)(base + large->bytes - end), NULL);
        return base;
    }
    if (!registry_cover(base, bytes) || !os->resize(base, large->bytes, bytes)) return move(large, bytes);
    registry_set_range(base, bytes, large);
    return base;
}

/* ---- The set ---- */

void large_add(large_set_t *set, large_t *large, void *heap, char *base, size_t bytes)
{
    large->heap = heap;
    large->base = base;
    large->bytes = bytes;
    large->prev = NULL;
    large->next = set->live;
    if (set->live) set->live->prev = large;
    set->live = large;
    set->live_blocks++;
    set->live_bytes += bytes;
    store_relaxed(&large->state, (uint32_t)LARGE_LIVE);
    registry_set_range(base, bytes, large); /* publishes the record */
}

void large_remove(large_set_t *set, large_t *large)
{
    if (large->prev) large->prev->next = large->next;
    else set->live = large->next;
    if (large->next) large->next->prev = large->prev;
    set->live_blocks--;
    set->live_bytes -= large->bytes;
}

static void uncache(large_set_t *set, large_t *large)
{
    if (large->prev) large->prev->next = large->next;
    else set->cached = large->next;
    if (large->next) large->next->prev = large->prev;
    else set->oldest = large->prev;
    set->cached_blocks--;
    set->cached_bytes -= large->bytes;
}

large_t *large_reuse(large_set_t *set, size_t bytes, size_t alignment)
{
    large_t *best = NULL;
    for (large_t *at = set->cached; at; at = at->next) {
        bool fits = at->bytes >= bytes && at->bytes - bytes <= bytes / 4 && (uintptr_t)at->base % alignment == 0;
        if (fits && (!best || at->bytes < best->bytes)) best = at;
    }
    if (!best) return NULL;
    uncache(set, best);
    large_add(set, best, best->heap, best->base, best->bytes);
    return best;
}

void large_cache(large_set_t *set, large_t *large)
{
    large->prev = NULL;
    large->next = set->cached;
    if (set->cached) set->cached->prev = large;
    else set->oldest = large;
    set->cached = large;
    set->cached_blocks++;
    set->cached_bytes += large->bytes;
}

large_t *large_evict(large_set_t *set, size_t limit)
{
    large_t *large = set->oldest;
    if (!large || (set->cached_blocks <= LARGE_CACHED && set->cached_bytes <= limit)) return NULL;
    uncache(set, large);
    return large;
}
