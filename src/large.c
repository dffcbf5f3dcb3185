/* hakheap level 4: large - records and mappings of mid and large blocks */
#include "large.h"

#include "os.h"
#include "stall.h"

large_t *large_find(const void *ptr)
{
    large_t *large = registry_range(ptr);
    if (!large_is_record(large)) return NULL;
    uintptr_t start = (uintptr_t)large_base(large);
    bool inside = (uintptr_t)ptr >= start && (uintptr_t)ptr - start < large_bytes(large);
    bool live = load_relaxed(&large->state) == LARGE_LIVE;
    STALL(large_read);
    /* A record may be used again while it is read; the slot names it only as long as what was read
     * is true. Acquire: the second look comes after the reads above. */
    atomic_thread_fence(memory_order_acquire);
    return inside && live && registry_range(ptr) == large ? large : NULL;
}

mid_t *mid_add(large_set_t *set, run_t run, unsigned granules, size_t bytes)
{
    mid_t *mid = superslab_descriptor(run.ss, run.first);
    mid->next = set->mids;
    mid->prev = NULL;
    mid->start = superslab_granule(run.ss, run.first);
    store_relaxed(&mid->bytes, bytes);
    mid->granules = granules;
    mid->asked = (asked_t){0};

    if (set->mids) set->mids->prev = mid;
    set->mids = mid;
    set->mid_blocks++;
    set->mid_bytes += bytes;
    return mid;
}

void mid_remove(large_set_t *set, mid_t *mid)
{
    if (mid->prev) mid->prev->next = mid->next;
    else set->mids = mid->next;
    if (mid->next) mid->next->prev = mid->prev;
    set->mid_blocks--;
    set->mid_bytes -= mid_bytes(mid);
}

void mid_resize(large_set_t *set, mid_t *mid, unsigned granules)
{
    size_t bytes = granules * (size_t)GRANULE;
    set->mid_bytes += bytes - mid_bytes(mid);
    mid->granules = granules;
    store_relaxed(&mid->bytes, bytes);
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

void large_bury(char *base, size_t bytes, large_t *tombstone)
{
    registry_forget_range(base, bytes);
    registry_set_range(base, 1, tombstone);
}

bool large_unmap(char *base, size_t bytes, large_t *tombstone)
{
    /* The tombstone first: once unmapped, the range may be another heap's at once. */
    large_t *before = registry_range(base);
    large_bury(base, bytes, tombstone);
    STALL(large_buried);
    if (os->unmap(base, bytes)) return true;
    registry_set_range(base, bytes, before);
    return false;
}

/* Where the kernel refuses, it may or may not have unmapped `to` already, and another thread may
 * have it by now: it is left alone. It is address space, not memory. */
static bool move(large_t *large, size_t bytes)
{
    char *from = large_base(large);
    size_t held = large_bytes(large);
    char *to = os->reserve(bytes, SUPERSLAB);
    if (!to) return false;
    if (!registry_cover(to, bytes)) {
        os->unmap(to, bytes);
        return false;
    }
    large_bury(from, held, LARGE_RELEASED);
    if (!os->move(from, held, to, bytes)) {
        registry_set_range(from, held, large);
        return false;
    }
    store_relaxed(&large->base, to);
    store_relaxed(&large->bytes, bytes);
    registry_set_range(to, bytes, large);
    return true;
}

/* The tail's slots go first: once unmapped, the tail may be another heap's at once. */
static bool shrink(large_t *large, size_t bytes)
{
    char *base = large_base(large);
    size_t held = large_bytes(large);
    char *tail = (char *)hak_round_up((uintptr_t)base + bytes, SUPERSLAB);
    size_t tail_bytes = tail < base + held ? (size_t)(base + held - tail) : 0;
    registry_forget_range(tail, tail_bytes);
    store_relaxed(&large->bytes, bytes);
    if (os->resize(base, held, bytes)) {
        parts_cut(&large->parts, bytes);
        return true;
    }
    store_relaxed(&large->bytes, held);
    registry_set_range(tail, tail_bytes, large);
    return false;
}

static bool grow(large_t *large, size_t bytes)
{
    char *base = large_base(large);
    /* The kernel first: tables for a size that it refuses would stay. */
    if (!os->resize(base, large_bytes(large), bytes)) return move(large, bytes);
    if (!registry_cover(base, bytes)) {
        (void)os->resize(base, bytes, large_bytes(large));
        return false;
    }
    store_relaxed(&large->bytes, bytes);
    registry_set_range(base, bytes, large);
    return true;
}

bool large_remap(large_set_t *set, large_t *large, size_t bytes)
{
    size_t held = large_bytes(large);
    if (bytes == held) return true;
    hak_assert(large_may_remap(large, bytes));
    if (!(bytes < held ? shrink(large, bytes) : grow(large, bytes))) return false;
    set->live_bytes += bytes - held;
    return true;
}

/* ---- The set ---- */

void large_add(large_set_t *set, large_t *large, void *heap, char *base, size_t bytes)
{
    store_relaxed(&large->heap, heap);
    store_relaxed(&large->base, base);
    store_relaxed(&large->bytes, bytes);
    large->charge_moved = false;
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
    set->live_bytes -= large_bytes(large);
}

void large_put_unused(large_set_t *set, large_t *large)
{
    large->next = set->unused;
    set->unused = large;
}

large_t *large_take_unused(large_set_t *set)
{
    large_t *large = set->unused;
    if (large) set->unused = large->next;
    return large;
}
