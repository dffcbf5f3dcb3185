/* hakheap level 13: life - a heap is created, emptied and destroyed */
#include "life.h"

#include <errno.h>

#include "drain.h"
#include "home.h"
#include "mapping.h"
#include "record.h"
#include "runs.h"
#include "tls.h"

/* A heap with its tables, and behind them what it counts with. */
static size_t table_end(void)
{
    return hak_round_up(offsetof(hak_heap_t, percpu) + percpu_bytes(), HAK_LINE);
}
static size_t heap_bytes(bool counts)
{
    return table_end() + (counts ? hak_round_up(sizeof(ledger_t), HAK_LINE) : 0);
}
/* One, but for machines of very many CPUs. */
static size_t cradle_granules(void)
{
    return (heap_bytes(true) + HEAP_COLOURS * HAK_LINE + GRANULE - 1) / GRANULE;
}

size_t life_least(void) { return cradle_granules() * GRANULE; }

static char *cradle_of(const hak_heap_t *heap)
{
    return (char *)((uintptr_t)heap & ~(uintptr_t)(GRANULE - 1));
}

static hak_heap_t *place(char *cradle)
{
    size_t colour = ((uintptr_t)cradle >> GRANULE_SHIFT) % HEAP_COLOURS;
    hak_heap_t *heap = (hak_heap_t *)(void *)(cradle + colour * HAK_LINE);
    memset(heap, 0, offsetof(hak_heap_t, near_region));
    memset(&heap->owner, 0, offsetof(hak_heap_t, percpu) - offsetof(hak_heap_t, owner));
    return heap;
}

/* The last granule of the cradle is the heap's first region. What the heap itself has of it is
 * open. */
static void found_region(hak_heap_t *heap)
{
    size_t before = cradle_granules() - 1;
    char *base = cradle_of(heap) + before * GRANULE;
    char *behind =
        (char *)heap + heap_bytes(heap->ledger); /* may be before the last granule: see colours */
    size_t end = behind > base ? (size_t)(behind - base) : 0;
    unsigned record = before ? 0 : region_unit(heap);
    region_t *region = heap->near_region;
    if (before) registry_set_run(cradle_of(heap), before, heap, CODE_RELEASED);
    registry_set_region(base, heap, runs_code(heap, CODE_REGION), 0);
    meta_note(cradle_of(heap), before * GRANULE_PAGES);
    region_init(region, record, (unsigned)(end / REGION_UNIT));
    region_attach(region, base);
    for (size_t page = 0; page < end; page += HAK_PAGE) (void)region_open(region, &heap->guard);
    heap_note_hole(heap, 0, region_room(region));
    /* Release: pairs with the acquire in heap_region_from. */
    store_release(&heap->regions, 1u);
}

static hak_heap_t *refuse(hak_error_t why, int error, int *out)
{
    hak_tls.last_error = why;
    *out = error;
    return NULL;
}

static void place_ledger(hak_heap_t *heap)
{
    const settings_t *settings = &heap->settings;
    if (!settings->counts) return;
    heap->ledger = (ledger_t *)(void *)((char *)heap + table_end());
    *heap->ledger = (ledger_t){.own = {heap, settings->on_pressure, settings->pressure_ctx}};
}

/* Last: recalls come to the heap from here on. */
static ledger_answer_t begin_counting(hak_heap_t *heap)
{
    const settings_t *settings = &heap->settings;
    if (!heap->ledger) return LEDGER_DONE;
    return ledger_join(heap->ledger, settings->parent ? settings->parent->ledger : NULL,
                       &settings->limits, heap_footprint(heap));
}

static void close_pockets(hak_heap_t *heap)
{
    store_relaxed(&heap->busy, (uint32_t)CALM);
    for (unsigned cls = 0; cls < POCKET_CLASSES; cls++) store_relaxed(&heap->pocket[cls].word, 0);
}

/* All of it is given back; nothing refers to it. */
static void end(hak_heap_t *heap)
{
    drain_settle(heap);
    percpu_close(&heap->percpu);
    lock_acquire(&heap->lock, RANK_HEAP);
    runs_empty(heap);
    mapping_empty(heap);
    lock_release(&heap->lock, RANK_HEAP);
    if (heap->large.unused) { /* it had large blocks */
        reserve_disown(&process_reserve, heap);
        reserve_settle(&process_reserve, SIZE_MAX / 2);
    }
    for (meta_page_t *page = heap->pages; page;) {
        meta_page_t *next = page->next;
        meta_put(page, page->pages);
        page = next;
    }
    if (load_relaxed(&heap->busy) != CALM) close_pockets(heap);
    store_relaxed(&heap->regions, 0u);
    /* What is counted of the heap is counted until it is gone. */
    if (heap->ledger) ledger_leave(heap->ledger);
    registry_set_run(cradle_of(heap), cradle_granules(), NULL, CODE_DEAD);
    meta_put(cradle_of(heap), cradle_granules() * GRANULE_PAGES);
}

/* HAK_ERROR_NONE: there may be such a heap. */
static hak_error_t read_config(const hak_heap_config_t *config, settings_t *out, int *error)
{
    hak_error_t why = HAK_ERROR_ARGUMENT;
    *error = options_read(config, out, &why);
    if (*error) return why;
    if (HAK_LIKELY(!out->counts)) return HAK_ERROR_NONE;
    *error = EINVAL;
    if (out->limits.committed_limit < life_least()) return HAK_ERROR_COMMITTED_LIMIT;
    hak_heap_t *parent = out->parent;
    if (parent && (!heap_is_valid(parent) || !parent->ledger)) return HAK_ERROR_ARGUMENT;
    *error = 0;
    return HAK_ERROR_NONE;
}

hak_heap_t *life_create(const hak_heap_config_t *config, int *error)
{
    settings_t settings;
    hak_error_t why = read_config(config, &settings, error);
    if (why != HAK_ERROR_NONE) return refuse(why, *error, error);
    char *cradle = record_cradle(cradle_granules());
    if (!cradle) {
        *error = ENOMEM;
        return NULL;
    }
    hak_heap_t *heap = place(cradle);
    heap->settings = settings;
    place_ledger(heap);
    heap->guard.name = heap->settings.name;
    heap->policy = heap_policies[settings.level];
    if (heap->policy.sealed) heap->guard.key = block_next_key();
    heap->key = heap->guard.key;
    heap->owner = entry_owner_bits(heap);
    heap->lookup = heap->policy.sealed ? CLASSES_MARKED : CLASSES_PLAIN;
    store_relaxed(&heap->classes, &heap_no_classes);
    store_relaxed(&heap->region_bytes, settings.region_bytes);
    store_relaxed(&heap->budget.room, (int64_t)settings.cache_bytes);
    percpu_init(&heap->percpu);
    found_region(heap);
    heap_charge_records(heap, (cradle_granules() - 1) * GRANULE);
    heap_charge(heap, GRANULE);
    ledger_answer_t answer = begin_counting(heap);
    if (answer != LEDGER_DONE) {
        end(heap);
        return answer == LEDGER_FULL ? refuse(HAK_ERROR_LIMIT, ENOMEM, error)
                                     : refuse(HAK_ERROR_DEPTH, E2BIG, error);
    }
    /* Release: pairs with the acquire in heap_is_valid. */
    store_release(&heap->magic, HEAP_MAGIC ^ (uintptr_t)heap);
    return heap;
}

/* ---- Everything at once ---- */

static void empty_area(area_at_t at)
{
    memset(at.area, 0, offsetof(area_t, outbox));
    if (at.outbox) memset(at.outbox, 0, CLASS_COUNT * sizeof *at.outbox);
}

static void empty_caches(hak_heap_t *heap)
{
    FOR_AREAS (at, &heap->percpu) empty_area(at);
    for (area_t *area = *percpu_idle(&heap->percpu); area; area = area->next)
        empty_area(area_at(area, 0));
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        FOR_SETS (set, state) *set = (slab_set_t){0};
        store_relaxed(&state->outside, 0);
        store_relaxed(&state->slabs, 0u);
        store_relaxed(&state->grown, (uint16_t)0);
        store_relaxed(&state->remote.head, 0);
        store_relaxed(&state->remote.taken, 0);
        store_relaxed(&state->remote_charged, 0u);
        if (state->cold) state->cold->count = state->cold->blocks = 0;
    }
    for (unsigned cls = 0; cls < REGION_CLASSES; cls++)
        store_relaxed(&heap->region_blocks[cls], (uint16_t)0);
    close_pockets(heap);
    store_relaxed(&heap->region_takes, 0u);
    for (unsigned i = 0; i < LOOKS_BEFORE; i++) store_relaxed(&heap->region_many[i], 0);
    store_relaxed(&heap->region_leaves, 0);
    store_relaxed(&heap->deferred.head, 0);
    store_relaxed(&heap->deferred.taken, 0);
    store_relaxed(&heap->budget.room, (int64_t)heap->settings.cache_bytes);
}

/* No recall is at the heap, and none comes. */
static void hide(hak_heap_t *heap)
{
    for (unsigned turn = 0; heap->ledger && !ledger_hide(heap->ledger); turn++) hak_wait(turn);
}

void life_reset(hak_heap_t *heap)
{
    hide(heap);
    drain_settle(heap);
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    lock_acquire(&heap->lock, RANK_HEAP);
    runs_empty(heap);
    region_clear(heap->near_region, &heap->guard);
    heap_note_hole(heap, 0, REGION_ROOM);
    store_relaxed(&heap->region_tail, (uint8_t)0);
    store_relaxed(&heap->region_opens, (uint8_t)0);
    mapping_empty(heap);
    heap_settle(heap, true);
    empty_caches(heap);
    lock_release(&heap->lock, RANK_HEAP);
    lock_release(&heap->areas_lock, RANK_AREAS);
    if (heap->ledger) ledger_clear(heap->ledger);
    reserve_settle(&process_reserve, SIZE_MAX / 2);
}

void life_destroy(hak_heap_t *heap)
{
    hide(heap);
    end(heap);
}
