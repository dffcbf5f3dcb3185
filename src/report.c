/* hakheap level 14: report - figures, phantoms, text */
#include "report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "drain.h"
#include "gate.h"
#include "home.h"
#include "tls.h"

/* ---- Classes ---- */

void report_class(hak_heap_t *heap, unsigned cls, hak_class_stats_t *out)
{
    *out = (hak_class_stats_t){.struct_size = sizeof *out, .block_bytes = size_classes[cls].bytes};
    class_state_t *state = heap_class_made(heap, cls);
    if (!state) return;
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++) {
        const area_t *area = percpu_area(&heap->percpu, i);
        if (!area) continue;
        out->hot_blocks += chain_count(load_relaxed(&area->hot[cls].word));
        out->spare_blocks += chain_count(load_relaxed(&area->spare[cls]));
        const magazine_t *outbox = load_acquire(&area->outbox);
        if (outbox) out->remote_blocks += chain_count(load_relaxed(&outbox[cls].word));
    }
    lock_acquire(&state->lock, RANK_CLASS);
    out->cold_blocks = state->cold ? state->cold->blocks : 0;
    out->remote_blocks += remote_blocks(&state->remote);
    for (slab_set_t *set = &state->shared; set; set = home_next_set(state, set)) {
        out->slabs += set->slabs;
        out->free_blocks += set->carved - set->outside;
        out->untouched_blocks += set->slabs * size_classes[cls].blocks - set->carved;
    }
    size_t outside = load_relaxed(&state->outside);
    lock_release(&state->lock, RANK_CLASS);
    lock_release(&heap->areas_lock, RANK_AREAS);
    /* Magazines moved while they were read: the caches get what the slabs say is outside, in the
     * order of the ladder. */
    size_t *caches[] = {&out->remote_blocks, &out->cold_blocks, &out->spare_blocks,
                        &out->hot_blocks};
    size_t left = outside;
    for (int i = 0; i < 4; i++) {
        *caches[i] = hak_min(*caches[i], left);
        left -= *caches[i];
    }
    out->live_blocks = left;
}

/* ---- Phantoms: SuperSlabs in use of which every block outside is in a cache ---- */

static void tally(const hak_heap_t *heap, const void *ptr, unsigned cls, int64_t bytes)
{
    entry_t entry = registry_lookup(ptr);
    if (entry_heap(entry) != heap || entry_code(entry) != cls) return;
    superslab_t *ss = registry_superslab(ptr);
    if (!ss->shared) ss->tally += bytes;
}

/*
 * Takes a chain's blocks off the tally. Hot chains belong to threads that run, so a link may be the
 * program's data by the time it is read: each address is looked up before it is followed, and
 * memory of a heap may always be read.
 */
static void tally_chain(const hak_heap_t *heap, unsigned cls, chain_t chain)
{
    size_t most = chain_count(chain) ? CHAIN_MAX : 0;
    while (chain_block(chain) && most--) {
        block_t *block = chain_block(chain);
        entry_t entry = registry_lookup(block);
        if (entry_heap(entry) != heap || entry_code(entry) != cls) return;
        tally(heap, block, cls, -(int64_t)size_classes[cls].bytes);
        chain = load_relaxed((_Atomic chain_t *)&block->word[heap->key != 0]);
    }
}

static void tally_class(hak_heap_t *heap, class_state_t *state)
{
    unsigned cls = state->cls;
    lock_acquire(&state->lock, RANK_CLASS);
    for (slab_set_t *set = &state->shared; set; set = home_next_set(state, set))
        for (unsigned bin = 0; bin < SLAB_BINS; bin++)
            for (slab_t *slab = set->bin[bin]; slab; slab = slab->next)
                tally(heap, slab->start, cls,
                      (int64_t)(slab_outside(slab) * size_classes[cls].bytes));
    for (uint32_t i = 0; state->cold && i < state->cold->count; i++)
        tally_chain(heap, cls, state->cold->chain[i]);
    tally_chain(heap, cls, load_acquire(&state->remote.head));
    tally_chain(heap, cls, load_relaxed(&state->remote.taken));
    for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++) {
        const area_t *area = percpu_area(&heap->percpu, i);
        if (!area) continue;
        tally_chain(heap, cls, load_relaxed(&area->hot[cls].word));
        tally_chain(heap, cls, load_relaxed(&area->spare[cls]));
        const magazine_t *outbox = load_acquire(&area->outbox);
        if (outbox) tally_chain(heap, cls, load_relaxed(&outbox[cls].word));
    }
    lock_release(&state->lock, RANK_CLASS);
}

static size_t count_phantoms(hak_heap_t *heap)
{
    size_t phantoms = 0;
    lock_acquire(&heap->areas_lock, RANK_AREAS); /* guards the tallies too */
    lock_acquire(&heap->lock, RANK_HEAP);
    for (superslab_t *ss = heap->superslabs.all; ss; ss = ss->set_next) ss->tally = 0;
    for (mid_t *mid = heap->large.mids; mid; mid = mid->next)
        tally(heap, mid->start, CODE_MID, (int64_t)mid_bytes(mid));
    lock_release(&heap->lock, RANK_HEAP);
    /* The twin's areas can be held still for nothing; sections' areas are read as they run. */
    bool still = percpu_mode == PERCPU_LOCKED;
    if (still) percpu_halt(&heap->percpu);
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        class_state_t *state = heap_class_made(heap, cls);
        if (state) tally_class(heap, state);
    }
    if (still) percpu_restart_all(&heap->percpu);
    lock_acquire(&heap->lock, RANK_HEAP);
    for (superslab_t *ss = heap->superslabs.all; ss; ss = ss->set_next)
        phantoms += !superslab_is_empty(ss) && ss->tally <= 0;
    lock_release(&heap->lock, RANK_HEAP);
    lock_release(&heap->areas_lock, RANK_AREAS);
    return phantoms;
}

/* ---- The heap ---- */

static void add_class(hak_heap_t *heap, unsigned cls, hak_heap_stats_t *out)
{
    hak_class_stats_t stats;
    report_class(heap, cls, &stats);
    size_t bytes = stats.block_bytes;
    out->live_blocks += stats.live_blocks;
    out->live_bytes += stats.live_blocks * bytes;
    out->hot_bytes += stats.hot_blocks * bytes;
    out->spare_bytes += stats.spare_blocks * bytes;
    out->cold_bytes += stats.cold_blocks * bytes;
    out->remote_bytes += stats.remote_blocks * bytes;
    out->free_bytes += stats.free_blocks * bytes;
    size_t slab_bytes = stats.slabs * size_classes[cls].granules * (size_t)GRANULE;
    out->untouched_bytes +=
        slab_bytes - (stats.slabs * size_classes[cls].blocks - stats.untouched_blocks) * bytes;
}

/* Classes are read one after another while threads run, so memory that moved may have been counted
 * twice: no sum of parts is more than the whole. */
static void fit(hak_heap_stats_t *out)
{
    size_t *parts[] = {&out->metadata_bytes,     &out->live_bytes, &out->hot_bytes,
                       &out->spare_bytes,        &out->cold_bytes, &out->remote_bytes,
                       &out->large_cached_bytes, &out->free_bytes, &out->untouched_bytes};
    size_t left = out->committed_bytes;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        *parts[i] = hak_min(*parts[i], left);
        left -= *parts[i];
    }
}

void report_stats(hak_heap_t *heap, hak_heap_stats_t *out)
{
    *out = (hak_heap_stats_t){.struct_size = sizeof *out};
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) add_class(heap, cls, out);
    bool cached = out->hot_bytes + out->spare_bytes + out->cold_bytes + out->remote_bytes != 0;
    lock_acquire(&heap->lock, RANK_HEAP);
    const large_set_t *large = &heap->large;
    const superslab_set_t *set = &heap->superslabs;
    out->large_blocks = large->live_blocks;
    out->large_bytes = large->live_bytes;
    out->large_cached_bytes = large->cached_bytes;
    out->live_blocks += large->live_blocks + large->mid_blocks;
    out->live_bytes += large->live_bytes + large->mid_bytes;
    out->superslabs = set->count;
    out->free_bytes += set->free_touched * HAK_PAGE;
    for (superslab_t *ss = set->all; ss; ss = ss->set_next)
        out->untouched_bytes +=
            (size_t)ss->free_granules * GRANULE - (size_t)ss->free_touched * HAK_PAGE;
    lock_release(&heap->lock, RANK_HEAP);
    /* Counted later than the SuperSlabs, of which there may be more by then. */
    if (cached && out->superslabs)
        out->phantom_superslabs = hak_min(count_phantoms(heap), out->superslabs);
    out->metadata_bytes = load_relaxed(&heap->metadata);
    out->committed_bytes = load_relaxed(&heap->committed);
    out->peak_bytes = hak_max(load_relaxed(&heap->peak), out->committed_bytes);
    out->mapped_bytes = out->committed_bytes;
    fit(out);
}

/* ---- Text ---- */

typedef struct text {
    hak_write_fn write;
    void *ctx;
    int error;
} text_t;

static __attribute__((format(printf, 2, 3))) void print(text_t *text, const char *format, ...)
{
    char line[200];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length < 0 || text->error) return;
    if (text->write(text->ctx, line, hak_min((size_t)length, sizeof line - 1)) != 0)
        text->error = ECANCELED;
}

static void print_totals(text_t *text, const hak_heap_t *heap, const hak_heap_stats_t *stats)
{
    print(text, "heap \"%s\" (%s, magazines %s)\n", heap->settings.name, heap->policy.name,
          percpu_mode_name(percpu_mode));
#define ROW(field) print(text, "  %-20s %16zu\n", #field, stats->field);
    ROW(live_bytes)
    ROW(live_blocks)
    ROW(hot_bytes)
    ROW(spare_bytes)
    ROW(cold_bytes)
    ROW(remote_bytes)
    ROW(large_cached_bytes)
    ROW(free_bytes)
    ROW(untouched_bytes)
    ROW(metadata_bytes)
    ROW(committed_bytes)
    ROW(peak_bytes)
    ROW(mapped_bytes)
    ROW(superslabs)
    ROW(phantom_superslabs)
    ROW(large_blocks)
    ROW(large_bytes)
#undef ROW
}

static void print_class(text_t *text, const hak_class_stats_t *stats)
{
    if (!stats->slabs) return;
    print(text, "  %8zu %8zu %10zu %8zu %8zu %8zu %8zu %10zu %10zu\n", stats->block_bytes,
          stats->slabs, stats->live_blocks, stats->hot_blocks, stats->spare_blocks,
          stats->cold_blocks, stats->remote_blocks, stats->free_blocks, stats->untouched_blocks);
}

static void print_counters(text_t *text, const hak_heap_t *heap)
{
    const char *group = "";
    for (unsigned i = 0; HAK_COUNTERS && i < COUNTER_COUNT; i++) {
        const counter_row_t *row = &counter_rows[i];
        if (strcmp(group, row->group) != 0) print(text, "%s\n", group = row->group);
        print(text, "  %-22s %14llu  %s\n", row->name,
              (unsigned long long)load_relaxed(&heap->counters.count[HAK_COUNTERS ? i : 0]),
              row->text);
    }
}

/* Inside the gate only while figures are taken: `write` may call anything, on this heap too. */
int report_write(const hak_heap_t *heap, hak_write_fn write, void *ctx)
{
    hak_heap_t *at = (hak_heap_t *)(uintptr_t)heap;
    text_t text = {write, ctx, 0};
    hak_heap_stats_t stats;
    if (gate_enter(true) != GATE_IN) return EDEADLK;
    report_stats(at, &stats);
    gate_leave();
    print_totals(&text, heap, &stats);
    print(&text, "  %8s %8s %10s %8s %8s %8s %8s %10s %10s\n", "class", "slabs", "live", "hot",
          "spare", "cold", "remote", "free", "untouched");
    for (unsigned cls = 0; cls < CLASS_COUNT && !text.error; cls++) {
        hak_class_stats_t row;
        if (gate_enter(true) != GATE_IN) return EDEADLK;
        report_class(at, cls, &row);
        gate_leave();
        print_class(&text, &row);
    }
    print_counters(&text, heap);
    return text.error;
}
