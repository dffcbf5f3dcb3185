/* hakheap level 13: trim - giving back: caches to slabs to SuperSlabs to the kernel */
#include "trim.h"

#include "drain.h"
#include "gate.h"
#include "os.h"
#include "runs.h"
#include "stall.h"
#include "tls.h"
#include "walk.h"

/* ---- Areas: halt, one fence, take the words, restart, and only then return the blocks ---- */

enum { STOLEN = 512, AT_ONCE = 32 /* blocks returned before the class lock is dropped */ };

typedef struct stolen {
    size_t count;
    chain_t chain[STOLEN];
    uint8_t cls[STOLEN];
} stolen_t;

static void note_stolen(stolen_t *stolen, unsigned cls, chain_t chain)
{
    if (!chain) return;
    stolen->chain[stolen->count] = chain;
    stolen->cls[stolen->count++] = (uint8_t)cls;
}

static void steal_word(stolen_t *stolen, unsigned cls, _Atomic chain_t *word)
{
    /* Relaxed: the area is halted and fenced, so only this thread touches it. */
    chain_t chain = load_relaxed(word);
    STALL(word_read);
    if (chain) store_relaxed(word, 0);
    note_stolen(stolen, cls, chain);
}

static chain_t take_own(percpu_t *percpu, unsigned cls, unsigned kind)
{
    if (kind == AREA_OUTBOX) return percpu_take_outbox(percpu, PERCPU_HOT(cls));
    return percpu_take(percpu, kind == AREA_HOT ? PERCPU_HOT(cls) : PERCPU_SPARE(cls));
}

/* What the running CPU has is taken as a miss takes it. Where that is all there is, as in a heap
 * that one thread used, no area has to be halted. A thread that moves to another CPU takes that
 * one's: the area only says what to ask for. */
static void steal_own(hak_heap_t *heap, stolen_t *stolen, unsigned first, unsigned end)
{
    percpu_t *percpu = &heap->percpu;
    int index = percpu_index();
    area_t *area = index < 0 ? NULL : percpu_running(percpu, (unsigned)index);
    if (!area) return;
    area_at_t at = area_at(area, (unsigned)index);
    FOR_CLASSES_IN (cls, &heap->made, first, end)
        FOR_WORDS (kind, at)
            if (load_relaxed(area_word(at, cls, kind)))
                note_stolen(stolen, cls, take_own(percpu, cls, kind));
}

/* A heap that idled is in no near cache: its lines are asked for at once, in place of one miss
 * after another. */

static void fetch_heap(const hak_heap_t *heap)
{
    __builtin_prefetch(&heap->made);
    __builtin_prefetch(&heap->lock, 1);
    __builtin_prefetch(&heap->nursery_count, 1);
    __builtin_prefetch(&heap->percpu);
}

/* The record of a class, and the blocks of a short chain, which were carved as neighbours. */
static void fetch_chain(const class_state_t *state, chain_t chain)
{
    enum { BLOCKS = 4 };
    __builtin_prefetch(state, 1);
    __builtin_prefetch((const char *)state + HAK_LINE, 1);
    const char *block = (const char *)chain_block(chain);
    for (size_t i = 0; i < hak_min(chain_count(chain), BLOCKS); i++)
        __builtin_prefetch(block + i * size_classes[state->cls].bytes, 1);
}

static void return_stolen(hak_heap_t *heap, stolen_t *stolen, size_t *bytes)
{
    for (size_t i = 0; i < stolen->count; i++)
        fetch_chain(heap_class_made(heap, stolen->cls[i]), stolen->chain[i]);
    for (size_t i = 0; i < stolen->count; i++) {
        class_state_t *state = heap_class_made(heap, stolen->cls[i]);
        chain_t chain = stolen->chain[i];
        *bytes += chain_count(chain) * size_classes[state->cls].bytes;
        while (chain) {
            lock_acquire(&state->lock, RANK_CLASS);
            chain = drain_to_slabs(heap, state, chain, AT_ONCE);
            lock_release(&state->lock, RANK_CLASS);
        }
    }
    stolen->count = 0;
}

static void take_limit(hak_heap_t *heap, const area_t *area, magazine_t *magazine, unsigned cls)
{
    uint32_t limit = atomic_exchange_explicit(&magazine->limit, 0u, memory_order_relaxed);
    store_relaxed(&magazine->misses, (uint16_t)0);
    budget_put(&heap->budget, percpu_limit_bytes(area, magazine, cls, limit));
}

/* Takes a halted area from its CPU and its limits from the budget: an idle area costs nothing but
 * its bytes, and begins anew. */
static void retire_area(hak_heap_t *heap, area_at_t at)
{
    FOR_CLASSES (cls, &heap->made) {
        take_limit(heap, at.area, area_magazine(at, cls, AREA_HOT), cls);
        if (at.outbox) take_limit(heap, at.area, area_magazine(at, cls, AREA_OUTBOX), cls);
    }
    store_relaxed(&at.area->coarse_missed, 0u);
    store_relaxed(&at.area->coarse_most, 0u);
    store_relaxed(&at.area->coarse_given, 0u);
    percpu_retire(&heap->percpu, at.index);
}

static bool has_limits(const hak_heap_t *heap)
{
    FOR_AREAS (at, &heap->percpu)
        FOR_CLASSES (cls, &heap->made)
            FOR_WORDS (kind, at)
                if (load_relaxed(&area_magazine(at, cls, kind)->limit)) return true;
    return false;
}

/* All that a halted area has of these classes; then it runs again, or is retired. */
static void steal_area(hak_heap_t *heap, stolen_t *stolen, area_at_t at, unsigned first,
                       unsigned end, bool retire)
{
    FOR_CLASSES_IN (cls, &heap->made, first, end)
        FOR_WORDS (kind, at) steal_word(stolen, cls, area_word(at, cls, kind));
    STALL(area_stolen);
    if (retire) retire_area(heap, at);
    else percpu_restart(&heap->percpu, at.index);
}

/* Of halted and fenced areas. */
static void take_areas(hak_heap_t *heap, stolen_t *stolen, unsigned first, unsigned end,
                       bool retire, size_t *bytes)
{
    FOR_AREAS (at, &heap->percpu) {
        /* Many CPUs' words may not fit: then some blocks go back while the last areas still
         * wait. */
        if (stolen->count + AREA_KINDS * CLASS_COUNT > STOLEN) return_stolen(heap, stolen, bytes);
        steal_area(heap, stolen, at, first, end, retire);
    }
}

/* False: the kernel refused the fence, and the areas run as before. */
static bool steal_areas(hak_heap_t *heap, stolen_t *stolen, unsigned first, unsigned end,
                        bool retire, size_t *bytes)
{
    percpu_halt(&heap->percpu);
    if (!percpu_fence()) {
        percpu_restart_all(&heap->percpu);
        return false;
    }
    STALL(areas_fenced);
    take_areas(heap, stolen, first, end, retire, bytes);
    return true;
}

static bool flush_areas(hak_heap_t *heap, unsigned first, unsigned end, bool retire, size_t *bytes)
{
    percpu_t *percpu = &heap->percpu;
    stolen_t stolen; /* not zeroed: it is longer than all else that a flush touches */
    stolen.count = 0;
    fetch_heap(heap);
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    /* A trim takes the areas themselves, which only a fence allows. */
    if (!retire && !percpu_is_empty(percpu, &heap->made, first, end))
        steal_own(heap, &stolen, first, end);
    bool fenced = true;
    if (!percpu_is_empty(percpu, &heap->made, first, end) || (retire && has_limits(heap)))
        fenced = steal_areas(heap, &stolen, first, end, retire, bytes);
    lock_release(&heap->areas_lock, RANK_AREAS);
    return_stolen(heap, &stolen, bytes);
    if (!fenced) hak_tls.last_error = HAK_ERROR_FENCE;
    return fenced;
}

/* ---- Cold chains and remote lists ---- */

/* What was there when this began, a chain or a few blocks at a time. */
static void flush_class(hak_heap_t *heap, class_state_t *state, size_t *bytes)
{
    size_t waiting = 0;
    for (bool more = true, first = true; more; first = false) {
        lock_acquire(&state->lock, RANK_CLASS);
        if (first) waiting = walk_waiting(heap, state);
        more = drain_oldest(heap, state, bytes);
        size_t moved = drain_waiting(heap, state, DRAIN_AT_ONCE);
        *bytes += moved * size_classes[state->cls].bytes;
        waiting -= hak_min(waiting, moved);
        more |= moved && waiting;
        lock_pass(&state->lock, RANK_CLASS);
    }
}

static bool flush(hak_heap_t *heap, unsigned first, unsigned end, bool retire, size_t *bytes)
{
    if (!flush_areas(heap, first, end, retire, bytes)) return false;
    FOR_CLASSES_IN (cls, &heap->made, first, end)
        flush_class(heap, heap_class_made(heap, cls), bytes);
    *bytes += drain_pockets(heap, first, end);
    drain_settle(heap);
    return true;
}

/* ---- Many heaps at once ---- */

/* Halts a heap's areas, with its lock held; false: it has none. `next`: others are halted. */
static bool halt_one(hak_heap_t *heap, bool next)
{
    if (next) lock_acquire_next(&heap->areas_lock, RANK_AREAS);
    else lock_acquire(&heap->areas_lock, RANK_AREAS);
    if (area_at_from(&heap->percpu, 0).area) {
        percpu_halt(&heap->percpu);
        return true;
    }
    if (next) lock_release_next(&heap->areas_lock);
    else lock_release(&heap->areas_lock, RANK_AREAS);
    return false;
}

/* Empties a halted heap's areas and lets its lock go. `last`: no other is halted any more. */
static void end_halt(hak_heap_t *heap, bool fenced, bool last)
{
    stolen_t stolen;
    size_t bytes = 0;
    stolen.count = 0;
    if (fenced) take_areas(heap, &stolen, 0, CLASS_COUNT, true, &bytes);
    else percpu_restart_all(&heap->percpu);
    if (last) lock_release(&heap->areas_lock, RANK_AREAS);
    else lock_release_next(&heap->areas_lock);
    return_stolen(heap, &stolen, &bytes);
}

bool trim_recall(hak_heap_t *const heaps[], size_t count)
{
    hak_heap_t *halted[LEDGER_AT_ONCE];
    size_t used = 0;
    for (size_t i = 0; i < count; i++)
        if (halt_one(heaps[i], used != 0)) halted[used++] = heaps[i];
    bool fenced = !used || percpu_fence();
    for (size_t i = used; i-- > 0;) end_halt(halted[i], fenced, i == 0);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = 0;
        FOR_CLASSES (cls, &heaps[i]->made)
            flush_class(heaps[i], heap_class_made(heaps[i], cls), &bytes);
        bytes += drain_pockets(heaps[i], 0, CLASS_COUNT);
        drain_all_deferred(heaps[i]);
    }
    return fenced;
}

bool trim_close(hak_heap_t *heap)
{
    /* Ordered: pairs with heap_is_closed. Before the areas are taken, so that none is made after. */
    store_ordered(&heap->closed, 1u);
    if (!trim_recall(&heap, 1)) {
        store_ordered(&heap->closed, 0u);
        return false;
    }
    store_relaxed(&heap->region_bytes, 0u);
    return true;
}

/* ---- Slabs ---- */

/* Of a class, at most so many. Returns how many; lock: CLASS. */
static size_t retire_some(hak_heap_t *heap, class_state_t *state, size_t most)
{
    size_t count = 0;
    FOR_SETS (set, state)
        for (slab_t *slab; count < most && (slab = slab_empty(set)) != NULL; count++)
            drain_retire(heap, state, slab, true);
    return count;
}

static void retire_empty_slabs(hak_heap_t *heap, unsigned first, unsigned end)
{
    FOR_CLASSES_IN (cls, &heap->made, first, end) {
        class_state_t *state = heap_class_made(heap, cls);
        for (size_t count = AT_ONCE; count == AT_ONCE;) {
            lock_acquire(&state->lock, RANK_CLASS);
            count = retire_some(heap, state, AT_ONCE);
            lock_pass(&state->lock, RANK_CLASS);
        }
    }
}

/* Regions without blocks; the cradle stays. */
static void retire_empty_regions(hak_heap_t *heap)
{
    for (uint32_t at = 1; at < load_acquire(&heap->regions); at++) {
        lock_acquire(&heap->lock, RANK_HEAP);
        (void)runs_put_region(heap, heap_region(heap, at));
        lock_pass(&heap->lock, RANK_HEAP);
    }
}

bool trim_flush(hak_heap_t *heap, unsigned first, unsigned end, size_t *bytes)
{
    if (!flush(heap, first, end, false, bytes)) return false;
    retire_empty_slabs(heap, first, end);
    retire_empty_regions(heap);
    return true;
}

/* Gives back pages inside one slab in use that hold no block; the first `stay` of them stay. Its
 * descriptor moves near. No lock is held: the granule may be another's by now, and is this heap's
 * slab for sure only under the lock of its class. */
static size_t release_slab(hak_heap_t *heap, const char *granule, size_t *stay)
{
    entry_t entry = registry_lookup(granule);
    class_state_t *state =
        entry_code(entry) < CLASS_COUNT ? heap_class_made(heap, entry_code(entry)) : NULL;
    if (entry_heap(entry) != heap || entry_back(entry) || !state) return 0;
    size_t pages = 0;
    STALL(slab_looked_at);
    lock_acquire(&state->lock, RANK_CLASS);
    entry_t again = registry_lookup(granule);
    if (entry_heap(again) == heap && entry_code(again) == state->cls && !entry_back(again)) {
        slab_t *slab = slab_of(again, granule);
        slab_set_t *set = home_set(state, slab->home);
        run_t run = slab_run(slab);
        if (!run.ss->shared && superslab_is_far(run)) {
            lock_acquire(&heap->lock, RANK_HEAP);
            slab = slab_move_near(set, slab);
            lock_release(&heap->lock, RANK_HEAP);
        }
        pages = slab_release(set, slab, &heap->guard, stay, os_purge);
    }
    lock_release(&state->lock, RANK_CLASS);
    return pages;
}

static size_t release_nursery(hak_heap_t *heap, size_t *stay)
{
    size_t pages = 0;
    nursery_t nursery;
    lock_acquire(&heap->lock, RANK_HEAP);
    uint32_t runs = heap->nursery_count;
    if (runs) nursery = *heap->nursery;
    lock_release(&heap->lock, RANK_HEAP);
    for (uint32_t i = 0; i < runs; i++) pages += release_slab(heap, nursery.start[i], stay);
    return pages;
}

/* Pages without blocks in regions. A page is held while the kernel takes it: no lock is. */
static size_t release_regions(hak_heap_t *heap, size_t *stay)
{
    size_t pages = 0;
    for (uint32_t at = 0; at < load_acquire(&heap->regions); at++) {
        pages += region_release(heap_region(heap, at), true, stay, os_purge);
        heap_note_hole(heap, at, REGION_ROOM); /* what was held meanwhile is there */
    }
    return pages;
}

/* ---- Memory to the kernel, a mapping or a SuperSlab at a time: no thread waits for more, a fork
 * neither ---- */

/* Bytes that the heap holds free or left in pieces of large blocks, and of those what is more than
 * `keep`; lock: HEAP. */
static size_t free_touched(const hak_heap_t *heap)
{
    return heap->superslabs.free_touched * HAK_PAGE + reserve_given(&process_reserve, heap);
}
static size_t excess(const hak_heap_t *heap, size_t keep)
{
    size_t held = free_touched(heap);
    return held > keep ? held - keep : 0;
}

/* Relaxed, a hint; lock: SQUEEZE, to write: the heap whose TRIM a recall waits for, or NULL. */
static hak_heap_t *_Atomic recalled;

/* A step is over: lets a fork go first that waits, which would wait for a trim that waits for this
 * one, too; and a recall, for which requests of other heaps wait. That turns all SuperSlabs once, so
 * that this trim goes on where it was. */
static void pass(hak_heap_t *heap)
{
    bool fork = gate_is_closed(), recall = load_relaxed(&recalled) == heap;
    if (HAK_LIKELY(!fork && !recall)) return;
    lock_pass(&heap->trim_lock, RANK_TRIM);
    if (fork) gate_pass();
    lock_acquire(&heap->trim_lock, RANK_TRIM);
}

static size_t count_excess(hak_heap_t *heap, size_t keep)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    size_t bytes = excess(heap, keep);
    lock_release(&heap->lock, RANK_HEAP);
    return bytes & ~(size_t)(HAK_PAGE - 1);
}

/* Of pieces of large blocks what is more than stays, and no more than at the start: what others
 * free meanwhile is theirs to use again. The kernel takes long over pages that were used: meanwhile
 * no lock is held. */
static size_t trim_large(hak_heap_t *heap, size_t keep)
{
    size_t returned = 0, bytes = 1, all = count_excess(heap, keep);
    for (; returned < all && bytes; returned += bytes) {
        size_t most = hak_min(count_excess(heap, keep), all - returned);
        bytes = reserve_trim_piece(&process_reserve, heap, most);
        pass(heap);
    }
    return returned;
}

bool trim_make_room(void) { return reserve_trim(&process_reserve, NULL) > 0; }

static size_t count_superslabs(hak_heap_t *heap)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    size_t count = heap->superslabs.count;
    lock_release(&heap->lock, RANK_HEAP);
    return count;
}

/* Free pages of the next SuperSlab; an empty one goes as a whole where nothing is kept. Returns
 * pages; *base: the SuperSlab, NULL where it is gone. */
static size_t trim_next(hak_heap_t *heap, size_t keep, char **base)
{
    superslab_set_t *set = &heap->superslabs;
    size_t pages = 0;
    lock_acquire(&heap->lock, RANK_HEAP);
    superslab_t *ss = superslab_set_turn(set);
    if (ss) pages = superslab_purge(set, ss, excess(heap, keep) / HAK_PAGE);
    bool gone = !ss || (keep == 0 && superslab_is_empty(ss) && runs_put_superslab(heap, ss, true));
    *base = gone ? NULL : ss->base;
    heap_settle(heap, true);
    lock_pass(&heap->lock, RANK_HEAP);
    return pages;
}

static size_t trim_superslabs(hak_heap_t *heap, size_t keep, size_t *stay)
{
    size_t pages = 0;
    for (size_t left = count_superslabs(heap); left; left--) {
        char *base;
        pages += trim_next(heap, keep, &base);
        STALL(superslab_purged);
        for (size_t g = 0; base && g < SUPERSLAB_GRANULES; g++)
            pages += release_slab(heap, base + g * GRANULE, stay);
        pass(heap);
    }
    return pages * HAK_PAGE;
}

static void purge_far_descriptors(hak_heap_t *heap)
{
    for (size_t left = count_superslabs(heap); left; left--) {
        lock_acquire(&heap->lock, RANK_HEAP);
        superslab_t *ss = superslab_set_turn(&heap->superslabs);
        if (ss) superslab_purge_far(&heap->superslabs, ss);
        lock_pass(&heap->lock, RANK_HEAP);
        pass(heap);
    }
}

/* What this heap gave to others; true: something, since the last time. */
static bool has_given_nursery(hak_heap_t *heap)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    bool given = heap->nursery_given;
    heap->nursery_given = false;
    lock_release(&heap->lock, RANK_HEAP);
    return given;
}

/* What went to the kernel on the way to the reserve, since the last time. */
static size_t take_returned(hak_heap_t *heap)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    size_t bytes = heap->returned;
    heap->returned = 0;
    lock_release(&heap->lock, RANK_HEAP);
    return bytes;
}

/* Also where there is no SuperSlab: what was kept for what comes next, and what TREE was too busy
 * for. */
static void return_leases(hak_heap_t *heap)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    heap_settle(heap, true);
    if (heap->ledger) ledger_return_credit(heap->ledger);
    lock_release(&heap->lock, RANK_HEAP);
}

/* Lock: TRIM. */
static bool trim_one(hak_heap_t *heap, size_t keep, size_t *bytes)
{
    size_t flushed = 0;
    (void)take_returned(heap);
    if (!flush(heap, 0, CLASS_COUNT, true, &flushed)) return false;
    retire_empty_slabs(heap, 0, CLASS_COUNT);
    retire_empty_regions(heap);
    size_t returned = trim_large(heap, keep);
    lock_acquire(&heap->lock, RANK_HEAP);
    size_t held = free_touched(heap);
    lock_release(&heap->lock, RANK_HEAP);
    /* Pages in slabs that stay, where the heap holds less free than it may keep. */
    size_t stay = (keep > held ? keep - held : 0) / HAK_PAGE;
    returned += (release_regions(heap, &stay) + release_nursery(heap, &stay)) * HAK_PAGE;
    returned += trim_superslabs(heap, keep, &stay);
    purge_far_descriptors(heap);
    return_leases(heap);
    *bytes = returned + take_returned(heap);
    return true;
}

/* What the heap gave to the process before is still resident, and its to return. */
static size_t trim_given(hak_heap_t *heap)
{
    size_t returned = reserve_trim(&process_reserve, heap);
    return has_given_nursery(heap) ? returned + nursery_trim(&process_reserve) : returned;
}

bool trim_release(hak_heap_t *heap, bool may_stop)
{
    bool stop = false;
    char *base;
    store_relaxed(&recalled, heap);
    lock_acquire(&heap->trim_lock, RANK_TRIM);
    store_relaxed(&recalled, NULL);
    retire_empty_slabs(heap, 0, CLASS_COUNT);
    retire_empty_regions(heap);
    for (size_t left = count_superslabs(heap); left && !stop; left--) {
        (void)trim_next(heap, 0, &base);
        stop = may_stop && gate_is_closed();
    }
    return_leases(heap);
    lock_release(&heap->trim_lock, RANK_TRIM);
    return !stop;
}

bool trim_heap(hak_heap_t *heap, size_t keep, size_t *bytes)
{
    lock_acquire(&heap->trim_lock, RANK_TRIM);
    bool done = trim_one(heap, keep, bytes);
    lock_release(&heap->trim_lock, RANK_TRIM);
    if (done && keep == 0) *bytes += trim_given(heap);
    return done;
}
