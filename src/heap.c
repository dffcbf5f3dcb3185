/* hakheap level 7: heap - create, destroy, records, runs of granules */
#include "heap.h"

#include <errno.h>
#include <pthread.h>

#include "gate.h"
#include "os.h"
#include "tls.h"

/* ---- Process ---- */

static struct {
    pthread_once_t once;
    bool ready;
    _Atomic uint32_t pinned; /* the module stays mapped */
    uint64_t key;
    _Atomic uint64_t serial; /* relaxed: only its being different each time matters */
} process = {.once = PTHREAD_ONCE_INIT};

static void in_child(void)
{
    /* The child has the parent's registrations; asking again costs nothing where it has. */
    (void)os->fence_register();
}

static void start_process(void)
{
    os_random(&process.key, sizeof process.key);
    options_start_process();
    percpu_start_process(os_environment("HAKHEAP_RSEQ"));
    process.ready = gate_start_process(in_child);
}

bool heap_start_process(void)
{
    pthread_once(&process.once, start_process);
    /* Not in the once: the loader's lock may be held by a thread that waits for it in a plugin's
     * constructor. */
    if (!exchange_acq_rel(&process.pinned, 1u)) os_pin_module(&process);
    return process.ready;
}

/* ---- Figures ---- */

void heap_charge(hak_heap_t *heap, size_t bytes)
{
    size_t now = load_relaxed(&heap->committed) + bytes;
    store_relaxed(&heap->committed, now);
    if (now > load_relaxed(&heap->peak)) store_relaxed(&heap->peak, now);
}

static void charge_records(hak_heap_t *heap, size_t bytes)
{
    store_relaxed(&heap->metadata, load_relaxed(&heap->metadata) + bytes);
    heap_charge(heap, bytes);
}

static void uncharge_records(hak_heap_t *heap, size_t bytes)
{
    store_relaxed(&heap->metadata, load_relaxed(&heap->metadata) - bytes);
    heap_uncharge(heap, bytes);
}

/* ---- Create ---- */

enum { COLOURS = 8 };

/* A heap with its tables. */
static size_t heap_bytes(void)
{
    return hak_round_up(offsetof(hak_heap_t, percpu) + percpu_bytes(), HAK_LINE);
}
/* One, but for machines of many CPUs. */
static size_t heap_pages(void) { return (heap_bytes() + HAK_PAGE - 1) / HAK_PAGE; }
/* How many places there are for it. */
static size_t heap_colours(void)
{
    return hak_min((heap_pages() * HAK_PAGE - heap_bytes()) / HAK_LINE + 1, COLOURS);
}

/* The first area is zeroed when it is first used: most of the record is that, and many a heap lives
 * without. */
static hak_heap_t *place(char *page)
{
    size_t colour = ((uintptr_t)page >> HAK_PAGE_SHIFT) % heap_colours();
    hak_heap_t *heap = (hak_heap_t *)(void *)(page + colour * HAK_LINE);
    memset(heap, 0, offsetof(hak_heap_t, first_area));
    memset(&heap->owner, 0, offsetof(hak_heap_t, percpu) - offsetof(hak_heap_t, owner));
    heap->room[0] = page;
    heap->room_end[0] = (char *)heap;
    heap->room[1] = (char *)heap + heap_bytes();
    heap->room_end[1] = page + heap_pages() * HAK_PAGE;
    return heap;
}

/* Record pages, with whatever is in them; NULL and hak_last_error() where refused, and only
 * then. */
static char *take_pages(size_t pages)
{
    uint32_t error = HAK_ERROR_COMMIT;
    char *page = meta_take(pages, &error);
    if (!page) hak_tls.last_error = error;
    return page;
}

static void set_lookup(hak_heap_t *heap, size_t table)
{
    store_relaxed(&heap->lookup, table + (heap->key ? CLASSES_MARKED : 0));
}

hak_heap_t *heap_create(const hak_heap_config_t *config, int *error)
{
    settings_t settings;
    if ((*error = options_read(config, &settings)) != 0) {
        hak_tls.last_error = HAK_ERROR_ARGUMENT;
        return NULL;
    }
    char *page = take_pages(heap_pages());
    if (!page) {
        *error = ENOMEM;
        return NULL;
    }
    hak_heap_t *heap = place(page);
    heap->settings = settings;
    heap->guard.name = heap->settings.name;
    if (settings.level == HAK_LEVEL_CHECKED)
        heap->guard.key = block_key(process.key, add_relaxed(&process.serial, 1u));
    heap->key = heap->guard.key;
    heap->owner = entry_owner_bits(heap);
    set_lookup(heap, CLASSES_COARSE);
    heap->large.cache_limit = settings.large_cache_bytes;
    store_relaxed(&heap->budget.room, (int64_t)settings.cache_bytes);
    percpu_init(&heap->percpu);
    charge_records(heap, heap_pages() * HAK_PAGE);
    /* Release: pairs with the acquire in heap_is_valid. */
    store_release(&heap->magic, HEAP_MAGIC ^ (uintptr_t)heap);
    return heap;
}

bool heap_is_valid(const hak_heap_t *heap)
{
    if ((uintptr_t)heap % HAK_LINE || entry_code(registry_lookup(heap)) != CODE_META) return false;
    hak_heap_t *at = (hak_heap_t *)(uintptr_t)heap;
    return (uintptr_t)heap % HAK_PAGE < COLOURS * HAK_LINE &&
           load_acquire(&at->magic) == (HEAP_MAGIC ^ (uintptr_t)heap);
}

/* ---- Records ---- */

static void *from_room(hak_heap_t *heap, size_t bytes)
{
    for (int i = 0; i < 2; i++) {
        char *at = heap->room[i];
        if ((size_t)(heap->room_end[i] - at) < bytes) continue;
        heap->room[i] = at + bytes;
        return memset(at, 0, bytes);
    }
    return NULL;
}

static void *record(hak_heap_t *heap, size_t bytes, bool may_wait)
{
    hak_assert(lock_is_held(&heap->lock));
    bytes = hak_round_up(bytes, HAK_LINE);
    void *at = from_room(heap, bytes);
    if (at) return at;
    size_t pages = (bytes + HAK_LINE + HAK_PAGE - 1) / HAK_PAGE;
    char *page = may_wait ? take_pages(pages) : meta_take_now(pages);
    if (!page) return NULL;
    charge_records(heap, pages * HAK_PAGE);
    meta_page_t *header = (meta_page_t *)(void *)page;
    *header = (meta_page_t){heap->pages, pages};
    heap->pages = header;
    int smaller = heap->room_end[0] - heap->room[0] > heap->room_end[1] - heap->room[1];
    /* The same records of many heaps must not all fall in the same cache sets: see place(). */
    size_t spare = pages * HAK_PAGE - HAK_LINE - bytes;
    size_t colour =
        ((uintptr_t)page >> HAK_PAGE_SHIFT) % (hak_min(spare, COLOURS * HAK_LINE) / HAK_LINE + 1);
    heap->room[smaller] = page + HAK_LINE + colour * HAK_LINE;
    heap->room_end[smaller] = page + pages * HAK_PAGE;
    return from_room(heap, bytes);
}

void *heap_record(hak_heap_t *heap, size_t bytes) { return record(heap, bytes, true); }
void *heap_record_now(hak_heap_t *heap, size_t bytes) { return record(heap, bytes, false); }

area_t *heap_area(hak_heap_t *heap, bool may_wait)
{
    if (heap->first_area_used) return record(heap, sizeof(area_t), may_wait);
    heap->first_area_used = true;
    return memset(&heap->first_area, 0, sizeof heap->first_area);
}

class_state_t *heap_class(hak_heap_t *heap, unsigned cls)
{
    class_state_t *state = heap_class_made(heap, cls);
    if (HAK_LIKELY(state)) return state;
    lock_acquire(&heap->lock, RANK_HEAP);
    state = load_relaxed(&heap->classes[cls]);
    if (!state && (state = heap_record(heap, sizeof *state)) != NULL) {
        state->cls = cls;
        /* Release: pairs with the acquire in heap_class_made. */
        store_release(&heap->classes[cls], state);
        class_bits_add(&heap->made, cls);
    }
    lock_release(&heap->lock, RANK_HEAP);
    return state;
}

/* ---- Homes ---- */

void heap_rehome(class_state_t *state, slab_t *slab, unsigned home)
{
    hak_assert(lock_is_held(&state->lock));
    slab_move(heap_set_of(state, slab->home), heap_set_of(state, home), slab);
    slab->home = (uint8_t)home;
    slab_tell_home(slab);
}

bool heap_home_is_idle(hak_heap_t *heap, class_state_t *state, unsigned home)
{
    hak_assert(lock_is_held(&state->lock) && home < state->homes);
    home_t *at = &state->at_home[home];
    area_t *area = percpu_running(&heap->percpu, home);
    if (!area) return true;
    /* Relaxed: a look at what another CPU writes, for no more than whether it does. */
    chain_t now = load_relaxed(&area->hot[state->cls].word);
    magazine_t *outbox = load_acquire(&area->outbox); /* pairs with outbox_of in drain.c */
    /* Where the class returns its blocks, frees go there. */
    if (outbox && load_relaxed(&area->hot[state->cls].tag) == TAG_NONE)
        now ^= load_relaxed(&outbox[state->cls].word);
    at->still = now == at->seen ? at->still + 1 : 0;
    at->seen = now;
    return at->still >= HOME_STILL;
}

void heap_take_over(class_state_t *state, unsigned from, unsigned to)
{
    slab_set_t *set = heap_set_of(state, from);
    hak_assert(lock_is_held(&state->lock) && set != heap_set_of(state, to));
    for (unsigned bin = 0; bin < SLAB_BINS; bin++)
        while (set->bin[bin]) heap_rehome(state, set->bin[bin], to);
    if (state->cold) cold_move(state->cold, from, to);
}

/* Sets for at least `homes` homes. What the class shared while the heap was small goes to
 * `home`. */
static bool make_homes(hak_heap_t *heap, class_state_t *state, unsigned home, bool may_wait)
{
    unsigned homes = state->homes ? state->homes : FEWEST_HOMES;
    while (homes <= home) homes *= 2;
    if (homes > HOME_LOOK) homes = HOME_LOOK;
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return false;
    home_t *sets = record(heap, homes * sizeof *sets, may_wait);
    lock_release(&heap->lock, RANK_HEAP);
    if (!sets) return false;
    bool first = state->homes == 0;
    if (!first) memcpy(sets, state->at_home, state->homes * sizeof *sets);
    state->at_home = sets;
    state->homes = (uint16_t)homes;
    for (unsigned bin = 0; first && bin < SLAB_BINS; bin++)
        while (state->shared.bin[bin]) heap_rehome(state, state->shared.bin[bin], home);
    return true;
}

unsigned heap_home(hak_heap_t *heap, class_state_t *state, int index, bool may_wait)
{
    unsigned home = heap_is_divided(heap) ? registry_home(index) : HOME_NONE;
    if (home == HOME_NONE || home < state->homes || make_homes(heap, state, home, may_wait))
        return home;
    return HOME_NONE;
}

void heap_divide(hak_heap_t *heap, int index)
{
    uint32_t due = DUE;
    if (!cas_relaxed(&heap->divided, &due, (uint32_t)DIVIDED)) return;
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        lock_acquire(&state->lock, RANK_CLASS);
        (void)heap_home(heap, state, index, true);
        lock_release(&state->lock, RANK_CLASS);
    }
}

/* ---- Granules ---- */

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
    if (heap->nursery_count == COARSE_RUNS) set_lookup(heap, CLASSES_FINE);
    heap_charge(heap, granules * (size_t)GRANULE);
    charge_records(heap, granules * granule_records);
    return run;
}

static void uncharge_nursery(hak_heap_t *heap, size_t granules)
{
    heap_uncharge(heap, granules * GRANULE);
    uncharge_records(heap, granules * granule_records);
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
    set_lookup(heap, CLASSES_FINE);
    heap_charge(heap, SUPERSLAB);
    charge_records(heap, superslab_records);
    return superslab_take(&heap->superslabs, granules, alignment);
}

run_t heap_take_run(hak_heap_t *heap, unsigned granules, unsigned alignment, unsigned code)
{
    hak_assert(lock_is_held(&heap->lock));
    run_t run = alignment == 1 ? take_from_nursery(heap, granules) : (run_t){0};
    if (!run.ss) run = take_from_superslabs(heap, granules, alignment);
    if (!run.ss) return run;
    registry_set_run(superslab_granule(run.ss, run.first), granules, heap,
                     code | (heap->key ? CODE_CHECKED : 0));
    if (++heap->runs == DIVIDE_RUNS) heap_divide_soon(heap);
    return run;
}

bool heap_put_superslab(hak_heap_t *heap, superslab_t *ss, bool may_wait)
{
    superslab_set_remove(&heap->superslabs, ss);
    /* The entries first: once in the reserve, the SuperSlab may be another heap's at once. */
    registry_set_run(ss->base, SUPERSLAB_GRANULES, heap, CODE_RELEASED);
    if (!reserve_put(&process_reserve, ss, heap, may_wait, &heap->returned)) {
        superslab_set_add(&heap->superslabs, ss);
        return false;
    }
    heap_uncharge(heap, SUPERSLAB);
    uncharge_records(heap, superslab_records);
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
        registry_set_run(start, granules, heap, code | (heap->key ? CODE_CHECKED : 0));
        registry_set_home(start, granules, entry_home(entry));
        if (pending) registry_release(start);
        return false;
    }
    forget_nursery_run(heap, start);
    heap->nursery_given = true;
    return true;
}

bool heap_put_run(hak_heap_t *heap, run_t run, unsigned granules, pages_t pages, bool may_wait)
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
        (void)heap_put_superslab(heap, run.ss, may_wait);
    return true;
}

bool heap_resize_run(hak_heap_t *heap, run_t run, unsigned granules, unsigned wanted)
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
    registry_extend_run(start, granules, wanted, heap, CODE_MID | (heap->key ? CODE_CHECKED : 0));
    return true;
}

/* ---- Everything at once ---- */

/* Of a granule in use: slabs note their pages as they carve; those of a mid block, or of one whose
 * free is under way, nobody. */
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
        uncharge_records(heap, superslab_records);
        reserve_put(&process_reserve, ss, NULL, true, &heap->returned);
    }
}

static void forget_large(hak_heap_t *heap, large_t *large)
{
    heap_uncharge(heap, large_bytes(large));
    large->next = heap->large.unused;
    heap->large.unused = large;
}

bool heap_drop_large(hak_heap_t *heap, large_t *large, large_t *tombstone)
{
    if (!large_unmap(large_base(large), large_bytes(large), tombstone)) {
        hak_tls.last_error = HAK_ERROR_PURGE;
        return false;
    }
    forget_large(heap, large);
    return true;
}

/* Where the kernel refuses to unmap, the pages go and the address space stays. */
static void empty_large(hak_heap_t *heap)
{
    large_set_t *set = &heap->large;
    for (large_t *large; (large = set->live) != NULL; large_cache(set, large))
        large_remove(set, large);
    for (large_t *large; (large = large_evict(set, 0)) != NULL;) {
        if (heap_drop_large(heap, large, LARGE_DEAD)) continue;
        large_bury(large_base(large), large_bytes(large), LARGE_DEAD);
        (void)os_purge(large_base(large), large_bytes(large));
        forget_large(heap, large);
    }
    set->mids = NULL;
    set->mid_blocks = set->mid_bytes = 0;
}

static void empty_area(area_t *area)
{
    magazine_t *outbox = load_relaxed(&area->outbox);
    memset(area, 0, offsetof(area_t, outbox));
    if (outbox) memset(outbox, 0, CLASS_COUNT * sizeof *outbox);
}

static void empty_caches(hak_heap_t *heap)
{
    for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++)
        if (percpu_area(&heap->percpu, i)) empty_area(percpu_area(&heap->percpu, i));
    for (area_t *area = *percpu_idle(&heap->percpu); area; area = area->next) empty_area(area);
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        for (slab_set_t *set = &state->shared; set; set = heap_next_set(state, set))
            *set = (slab_set_t){0};
        store_relaxed(&state->outside, 0);
        store_relaxed(&state->remote.head, 0);
        store_relaxed(&state->remote.blocks, 0);
        if (state->cold) state->cold->count = state->cold->blocks = 0;
    }
    store_relaxed(&heap->deferred, NULL);
    store_relaxed(&heap->budget.room, (int64_t)heap->settings.cache_bytes);
}

void heap_empty(hak_heap_t *heap)
{
    hak_assert(lock_is_held(&heap->lock));
    empty_nursery(heap);
    empty_superslabs(heap);
    empty_large(heap);
    empty_caches(heap);
    heap->runs = 0;
}

void heap_destroy(hak_heap_t *heap)
{
    percpu_close(&heap->percpu);
    lock_acquire(&heap->lock, RANK_HEAP);
    empty_nursery(heap);
    empty_superslabs(heap);
    empty_large(heap);
    lock_release(&heap->lock, RANK_HEAP);
    for (meta_page_t *page = heap->pages; page;) {
        meta_page_t *next = page->next;
        meta_put(page, page->pages);
        page = next;
    }
    meta_put((void *)((uintptr_t)heap & ~(uintptr_t)(HAK_PAGE - 1)), heap_pages());
}
