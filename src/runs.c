/* hakheap level 8: runs - the granules of a heap: from the nursery or SuperSlabs of its own */
#include "runs.h"

#include "stall.h"
#include "tls.h"

static const size_t granule_records = DESCRIPTOR_BYTES + sizeof(entry_t);
static const size_t superslab_records =
    SUPERSLAB_GRANULES * (DESCRIPTOR_BYTES + sizeof(entry_t)) + sizeof(superslab_t);

static run_t take_from_nursery(hak_heap_t *heap, unsigned granules)
{
    if (heap->superslabs.count || heap->nursery_count == NURSERY_RUNS ||
        granules > NURSERY_GRANULES)
        return (run_t){0};
    run_t run = nursery_take(&process_reserve, granules, &hak_tls.last_error);
    if (!run.ss) return run;
    heap->nursery[heap->nursery_count] = superslab_granule(run.ss, run.first);
    heap->nursery_granules[heap->nursery_count++] = (uint16_t)granules;
    if (heap->nursery_count == COARSE_RUNS) runs_set_lookup(heap, CLASSES_FINE);
    heap_charge(heap, granules * (size_t)GRANULE);
    heap_charge_records(heap, granules * granule_records);
    return run;
}

static void uncharge_nursery(hak_heap_t *heap, size_t granules)
{
    heap_uncharge(heap, granules * GRANULE);
    heap_uncharge_records(heap, granules * granule_records);
}

static void forget_nursery_run(hak_heap_t *heap, const char *start)
{
    uint32_t at = 0;
    while (heap->nursery[at] != start) at++;
    uncharge_nursery(heap, heap->nursery_granules[at]);
    heap->nursery[at] = heap->nursery[--heap->nursery_count];
    heap->nursery_granules[at] = heap->nursery_granules[heap->nursery_count];
}

static run_t take_from_superslabs(hak_heap_t *heap, unsigned granules, unsigned alignment)
{
    run_t run = superslab_take(&heap->superslabs, granules, alignment);
    if (run.ss) return run;
    superslab_t *ss = reserve_take(&process_reserve, false, &hak_tls.last_error);
    if (!ss) return run;
    counter_add(&heap->counters, refill_fresh_superslab, 1);
    superslab_set_add(&heap->superslabs, ss);
    runs_set_lookup(heap, CLASSES_FINE);
    heap_charge(heap, SUPERSLAB);
    heap_charge_records(heap, superslab_records);
    return superslab_take(&heap->superslabs, granules, alignment);
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
    /* The entries first: once in the reserve, the SuperSlab may be another heap's at once. */
    registry_set_run(ss->base, SUPERSLAB_GRANULES, heap, CODE_RELEASED);
    STALL(superslab_leaving);
    if (!reserve_put(&process_reserve, ss, heap, may_wait, &heap->returned)) {
        superslab_set_add(&heap->superslabs, ss);
        return false;
    }
    STALL(superslab_left);
    heap_uncharge(heap, SUPERSLAB);
    heap_uncharge_records(heap, superslab_records);
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
    forget_nursery_run(heap, start);
    heap->nursery_given = true;
    return true;
}

bool runs_put(hak_heap_t *heap, run_t run, unsigned granules, pages_t pages, bool may_wait)
{
    hak_assert(lock_is_held(&heap->lock));
    if (run.ss->shared && !put_nursery_run(heap, run, granules, pages, may_wait)) return false;
    heap->runs--;
    if (run.ss->shared) return true;
    registry_set_run(superslab_granule(run.ss, run.first), granules, heap, CODE_RELEASED);
    superslab_put(&heap->superslabs, run, granules, pages);
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
        return true;
    }
    if (!superslab_extend(&heap->superslabs, run, granules, wanted - granules)) return false;
    registry_extend_run(start, granules, wanted, heap, runs_code(heap, CODE_MID));
    return true;
}
/* Of a granule in use: slabs note their pages as they carve; those of a mid block, or of one whose
 * free is under way, are not noted. */
static bool is_noted(const char *granule)
{
    return entry_code(registry_lookup(granule)) < CLASS_COUNT;
}

static void empty_nursery(hak_heap_t *heap)
{
    nursery_run_t runs[NURSERY_RUNS];
    size_t granules = 0;
    for (uint32_t i = 0; i < heap->nursery_count; i++) {
        char *start = heap->nursery[i];
        superslab_t *ss = registry_superslab(start);
        run_t run = {ss, superslab_index(ss, start)};
        runs[i] = (nursery_run_t){run, heap->nursery_granules[i], is_noted(start) ? 0 : PAGES_ALL};
        granules += runs[i].granules;
        registry_set_run(start, runs[i].granules, NULL, CODE_DEAD);
    }
    if (granules)
        (void)nursery_put(&process_reserve, runs, heap->nursery_count, true, &heap->returned);
    heap->nursery_count = 0;
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
}
