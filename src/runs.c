/* hakheap level 9: runs - the granules of a heap: from the nursery or SuperSlabs of its own */
#include "runs.h"

#include "record.h"
#include "stall.h"
#include "tls.h"

static const size_t granule_records = DESCRIPTOR_BYTES + sizeof(entry_t);
static const size_t superslab_records =
    SUPERSLAB_GRANULES * (DESCRIPTOR_BYTES + sizeof(entry_t)) + sizeof(superslab_t);

/* A run that is in no table yet. */
static run_t take_young(hak_heap_t *heap, unsigned granules)
{
    if (!heap_admit(heap, granules * (GRANULE + granule_records), true)) return (run_t){0};
    run_t run = nursery_take(&process_reserve, granules, &hak_tls.last_error);
    if (run.ss) {
        heap_charge(heap, granules * (size_t)GRANULE);
        heap_charge_records(heap, granules * granule_records);
    } else {
        heap_settle(heap, true);
    }
    return run;
}

static run_t take_from_nursery(hak_heap_t *heap, unsigned granules)
{
    if (heap->superslabs.count || granules > NURSERY_GRANULES ||
        heap->nursery_granules + granules > NURSERY_MOST)
        return (run_t){0};
    nursery_t *nursery = heap->nursery;
    if (!nursery) nursery = heap->nursery = record_take(heap, sizeof *nursery, true);
    run_t run = nursery ? take_young(heap, granules) : (run_t){0};
    if (!run.ss) return run;
    nursery->start[heap->nursery_count] = superslab_granule(run.ss, run.first);
    nursery->granules[heap->nursery_count++] = (uint8_t)granules;
    heap->nursery_granules = (uint16_t)(heap->nursery_granules + granules);
    return run;
}

static void uncharge_nursery(hak_heap_t *heap, size_t granules)
{
    heap_uncharge(heap, granules * GRANULE);
    heap_uncharge_records(heap, granules * granule_records);
}

static void forget_nursery_run(hak_heap_t *heap, const char *start)
{
    nursery_t *nursery = heap->nursery;
    uint32_t at = 0;
    while (nursery->start[at] != start) at++;
    uncharge_nursery(heap, nursery->granules[at]);
    heap->nursery_granules = (uint16_t)(heap->nursery_granules - nursery->granules[at]);
    nursery->start[at] = nursery->start[--heap->nursery_count];
    nursery->granules[at] = nursery->granules[heap->nursery_count];
}

/* Granules that were taken, and not touched, stay with the heap; else they are free again. */
static bool admit_run(hak_heap_t *heap, run_t run, unsigned granules)
{
    if (HAK_LIKELY(heap_admit(heap, 0, true))) return true;
    superslab_put(&heap->superslabs, run, granules, 0);
    return false;
}

/* One more SuperSlab; NULL where that is refused. What it was before may have left pages in it, which
 * go where there is no room for them. */
static superslab_t *add_superslab(hak_heap_t *heap, unsigned granules)
{
    if (!heap_admit(heap, granules * (size_t)GRANULE + superslab_records, true)) return NULL;
    superslab_t *ss = reserve_take(&process_reserve, false, &hak_tls.last_error);
    if (!ss) {
        heap_settle(heap, true);
        return NULL;
    }
    counter_add(&heap->counters, refill_fresh_superslab, 1);
    superslab_set_add(&heap->superslabs, ss);
    heap_charge(heap, SUPERSLAB);
    heap_charge_records(heap, superslab_records);
    if (!heap_admit(heap, granules * (size_t)GRANULE, true))
        (void)superslab_purge(&heap->superslabs, ss, SIZE_MAX);
    return ss;
}

static run_t take_from_superslabs(hak_heap_t *heap, unsigned granules, unsigned alignment)
{
    size_t touched = heap->superslabs.free_touched;
    run_t run = superslab_take(&heap->superslabs, granules, alignment);
    /* All of its pages may have been written before: as free ones they were counted. */
    if (touched - heap->superslabs.free_touched == granules * (size_t)GRANULE_PAGES) return run;
    superslab_t *ss = run.ss ? NULL : add_superslab(heap, granules);
    if (ss) run = superslab_take(&heap->superslabs, granules, alignment);
    if (!run.ss) return run;
    bool admitted = admit_run(heap, run, granules);
    if (ss && admitted) heap_settle(heap, true);
    if (ss && !admitted) (void)runs_put_superslab(heap, ss, true);
    return admitted ? run : (run_t){0};
}

run_t runs_take(hak_heap_t *heap, unsigned granules, unsigned alignment, unsigned code)
{
    hak_assert(lock_is_held(&heap->lock));
    run_t run = alignment == 1 ? take_from_nursery(heap, granules) : (run_t){0};
    if (!run.ss) run = take_from_superslabs(heap, granules, alignment);
    if (!run.ss) return run;
    registry_set_run(superslab_granule(run.ss, run.first), granules, heap, runs_code(heap, code));
    heap->runs++;
    return run;
}

bool runs_put_superslab(hak_heap_t *heap, superslab_t *ss, bool may_wait)
{
    superslab_set_remove(&heap->superslabs, ss);
    /* Each granule's entry is as whoever had it last has left it: a block of a heap that was
     * destroyed before is known as that. */
    STALL(superslab_leaving);
    if (!reserve_put(&process_reserve, ss, heap, may_wait, &heap->returned)) {
        superslab_set_add(&heap->superslabs, ss);
        return false;
    }
    STALL(superslab_left);
    heap_uncharge(heap, SUPERSLAB);
    heap_uncharge_records(heap, superslab_records);
    heap_settle(heap, may_wait);
    return true;
}

static bool put_nursery_run(hak_heap_t *heap, run_t run, unsigned granules, pages_t pages,
                            bool may_wait)
{
    char *start = superslab_granule(run.ss, run.first);
    entry_t entry = registry_lookup(start);
    /* A mid block that is being freed carries CODE_RELEASED in its first granule already. */
    unsigned code = entry_code(entry);
    bool pending = code == CODE_RELEASED;
    if (pending) code = CODE_MID;
    registry_set_run(start, granules, heap, CODE_RELEASED);
    nursery_run_t given = {run, granules, pages};
    if (!nursery_put(&process_reserve, &given, 1, may_wait, &heap->returned)) {
        registry_set_run(start, granules, heap, runs_code(heap, code));
        registry_set_home(start, granules, entry_home(entry));
        if (pending) registry_release(start);
        return false;
    }
    STALL(nursery_given);
    forget_nursery_run(heap, start);
    heap->nursery_given = true;
    heap_settle(heap, may_wait);
    heap->runs--;
    return true;
}

bool runs_put(hak_heap_t *heap, run_t run, unsigned granules, pages_t pages, bool may_wait)
{
    hak_assert(lock_is_held(&heap->lock));
    /* Asked before: once the run is the nursery's, its SuperSlab may be a heap's own at once. */
    if (run.ss->shared) return put_nursery_run(heap, run, granules, pages, may_wait);
    heap->runs--;
    registry_set_run(superslab_granule(run.ss, run.first), granules, heap, CODE_RELEASED);
    superslab_put(&heap->superslabs, run, granules, pages);
    if (pages != PAGES_ALL) heap_settle(heap, may_wait); /* else all of it is counted as before */
    /* One empty SuperSlab stays, so that a heap at a boundary does not take and give at every
     * call. */
    if (superslab_is_empty(run.ss) && heap->superslabs.empty > 1)
        (void)runs_put_superslab(heap, run.ss, may_wait);
    return true;
}

bool runs_resize(hak_heap_t *heap, run_t run, unsigned granules, unsigned wanted)
{
    hak_assert(lock_is_held(&heap->lock));
    char *start = superslab_granule(run.ss, run.first);
    if (run.ss->shared) return false;
    if (wanted < granules) {
        registry_set_run(start + wanted * (size_t)GRANULE, granules - wanted, heap, CODE_RELEASED);
        superslab_put(&heap->superslabs, (run_t){run.ss, run.first + wanted}, granules - wanted,
                      PAGES_ALL);
        heap_settle(heap, true);
        return true;
    }
    if (!superslab_extend(&heap->superslabs, run, granules, wanted - granules)) return false;
    if (!admit_run(heap, (run_t){run.ss, run.first + granules}, wanted - granules)) return false;
    registry_extend_run(start, granules, wanted, heap, runs_code(heap, CODE_MID));
    return true;
}

/* ---- Regions ---- */

static run_t run_at(const char *start)
{
    superslab_t *ss = registry_superslab(start);
    return (run_t){ss, superslab_index(ss, start)};
}

/* The map at an index, made where there is none; NULL where memory is refused. */
static region_t *made_region(hak_heap_t *heap, uint32_t index)
{
    if (index < load_relaxed(&heap->regions)) return heap_region(heap, index);
    region_t *region = index < REGIONS_NEAR ? &heap->near_region[index] : NULL;
    far_regions_t *far = load_relaxed(&heap->far_regions);
    if (!region && !far) {
        far = record_take(heap, sizeof *far, true);
        /* Release: pairs with the acquire in heap_region. */
        store_release(&heap->far_regions, far);
    }
    if (!region && far) region = record_take(heap, sizeof *region, true);
    if (!region) return NULL;
    region_init(region, 0, 0);
    /* Release: likewise. */
    if (index >= REGIONS_NEAR) store_release(&far->at[index - REGIONS_NEAR], region);
    /* Release: pairs with the acquire in heap_region_from. */
    store_release(&heap->regions, index + 1);
    return region;
}

/* The first index without a granule, or REGION_MOST. */
static uint32_t region_index(hak_heap_t *heap)
{
    uint32_t index = 0, regions = load_relaxed(&heap->regions);
    while (index < regions && region_is_attached(heap_region(heap, index))) index++;
    return index;
}

bool runs_take_region(hak_heap_t *heap)
{
    hak_assert(lock_is_held(&heap->lock));
    uint32_t index = region_index(heap);
    region_t *region = index < REGION_MOST ? made_region(heap, index) : NULL;
    if (!region) return false;
    run_t run = heap->superslabs.count ? (run_t){0} : take_young(heap, 1);
    if (!run.ss) run = take_from_superslabs(heap, 1, 1);
    if (!run.ss) return false;
    char *base = superslab_granule(run.ss, run.first);
    registry_set_region(base, heap, runs_code(heap, CODE_REGION), index);
    heap->runs++;
    region_attach(region, base);
    return true;
}

bool runs_put_region(hak_heap_t *heap, region_t *region)
{
    hak_assert(lock_is_held(&heap->lock));
    if (!region_is_attached(region) || !region_close(region)) return false;
    char *base = load_relaxed(&region->base);
    run_t run = run_at(base);
    region_detach(region);
    registry_set_run(base, 1, heap, CODE_RELEASED);
    heap->runs--;
    if (!run.ss->shared) {
        superslab_put(&heap->superslabs, run, 1, 0);
        heap_settle(heap, true);
        return true;
    }
    nursery_run_t given = {run, 1, 0};
    (void)nursery_put(&process_reserve, &given, 1, true, &heap->returned);
    uncharge_nursery(heap, 1);
    heap_settle(heap, true);
    heap->nursery_given = true;
    return true;
}

/* ---- All at once ---- */

/* Of a granule in use: slabs and regions note their pages as they use them; those of a mid block,
 * or of one whose free is under way, are not noted. */
static bool is_noted(const char *granule)
{
    unsigned code = entry_code(registry_lookup(granule));
    return code < CLASS_COUNT || code == CODE_REGION;
}

static nursery_run_t dead_run(char *start, unsigned granules)
{
    pages_t pages = is_noted(start) ? 0 : PAGES_ALL;
    registry_set_run(start, granules, NULL, CODE_DEAD);
    return (nursery_run_t){run_at(start), granules, pages};
}

static void empty_nursery(hak_heap_t *heap)
{
    nursery_run_t runs[NURSERY_MOST + REGION_MOST];
    size_t count = 0, granules = 0;
    for (uint32_t i = 0; i < heap->nursery_count; i++)
        runs[count++] = dead_run(heap->nursery->start[i], heap->nursery->granules[i]);
    FOR_REGIONS(region, heap)
    {
        char *base = load_relaxed(&region->base);
        if (region == heap->near_region) continue;
        if (run_at(base).ss->shared) runs[count++] = dead_run(base, 1);
        region_detach(region);
    }
    for (size_t i = 0; i < count; i++) granules += runs[i].granules;
    if (count) (void)nursery_put(&process_reserve, runs, count, true, &heap->returned);
    heap->nursery_count = heap->nursery_granules = 0;
    uncharge_nursery(heap, granules);
}

static void note_mids(superslab_t *ss)
{
    for (unsigned g = 0; g < SUPERSLAB_GRANULES; g++)
        if (!superslab_is_free(ss, g) && !is_noted(superslab_granule(ss, g)))
            superslab_note((run_t){ss, g}, 1, PAGES_ALL);
}

static void empty_superslabs(hak_heap_t *heap)
{
    for (superslab_t *ss; (ss = heap->superslabs.all) != NULL;) {
        superslab_set_remove(&heap->superslabs, ss);
        note_mids(ss);
        superslab_clear(ss);
        registry_set_run(ss->base, SUPERSLAB_GRANULES, NULL, CODE_DEAD);
        heap_uncharge(heap, SUPERSLAB);
        heap_uncharge_records(heap, superslab_records);
        reserve_put(&process_reserve, ss, NULL, true, &heap->returned);
    }
}

void runs_empty(hak_heap_t *heap)
{
    hak_assert(lock_is_held(&heap->lock));
    empty_nursery(heap);
    empty_superslabs(heap);
    heap->runs = 0;
    heap_settle(heap, true);
}
