/* hakheap level 14: report - figures and text */
#include "report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "drain.h"
#include "gate.h"
#include "walk.h"

/* ---- Classes ---- */

/* Magazines moved while they were read: the caches get what the slabs say is outside, in the order
 * of the ladder. */
static void fit_class(hak_class_stats_t *out, size_t outside)
{
    size_t *caches[] = {&out->remote_blocks, &out->cold_blocks, &out->spare_blocks,
                        &out->hot_blocks};
    for (int i = 0; i < 4; i++) {
        *caches[i] = hak_min(*caches[i], outside);
        outside -= *caches[i];
    }
    out->live_blocks = outside;
}

/* Fills *out. Returns what its slabs have. Lock: AREAS. */
static walk_sums_t measure_class(hak_heap_t *heap, class_state_t *state, hak_class_stats_t *out)
{
    size_t cached[WALK_PLACES];
    lock_acquire(&state->lock, RANK_CLASS);
    walk_count(heap, state, cached);
    walk_sums_t sums = walk_sums(state);
    lock_release(&state->lock, RANK_CLASS);
    const size_class_t *sizes = &size_classes[state->cls];
    *out = (hak_class_stats_t){
        .struct_size = sizeof *out,
        .block_bytes = sizes->bytes,
        .slabs = sums.slabs,
        .hot_blocks = cached[WALK_HOT],
        .spare_blocks = cached[WALK_SPARE],
        .cold_blocks = cached[WALK_COLD],
        .remote_blocks = cached[WALK_REMOTE] + cached[WALK_OUTBOX],
        .free_blocks = sums.carved - sums.outside,
        .untouched_blocks = sums.blocks - sums.carved,
    };
    fit_class(out, sums.outside);
    return sums;
}

/* Blocks of a class in regions. A region's granule may go to another heap, and a map without one
 * counts none. What a pocket has lives to the map. */
static void add_in_regions(hak_heap_t *heap, unsigned cls, hak_class_stats_t *out)
{
    size_t blocks[REGION_CLASSES] = {0};
    if (cls >= REGION_CLASSES) return;
    FOR_REGIONS(region, heap) region_count(region, blocks);
    size_t waiting = hak_min(pocket_count(heap_pocket_word(heap, cls)), blocks[cls]);
    out->live_blocks += blocks[cls] - waiting;
    out->hot_blocks += waiting;
}

void report_class(hak_heap_t *heap, unsigned cls, hak_class_stats_t *out)
{
    *out = (hak_class_stats_t){.struct_size = sizeof *out, .block_bytes = size_classes[cls].bytes};
    class_state_t *state = heap_class_made(heap, cls);
    if (state) {
        lock_acquire(&heap->areas_lock, RANK_AREAS);
        (void)measure_class(heap, state, out);
        lock_pass(&heap->areas_lock, RANK_AREAS);
    }
    add_in_regions(heap, cls, out);
}

/* ---- The heap ---- */

/* Adds a class. Returns the most SuperSlabs that its live blocks can lie in; lock: AREAS. */
static size_t add_class(hak_heap_t *heap, class_state_t *state, hak_heap_stats_t *out)
{
    hak_class_stats_t stats;
    walk_sums_t sums = measure_class(heap, state, &stats);
    size_t bytes = size_classes[state->cls].bytes;
    out->resident_bytes += sums.pages * HAK_PAGE;
    out->live_blocks += stats.live_blocks;
    out->live_bytes += stats.live_blocks * bytes;
    out->hot_bytes += stats.hot_blocks * bytes;
    out->spare_bytes += stats.spare_blocks * bytes;
    out->cold_bytes += stats.cold_blocks * bytes;
    out->remote_bytes += stats.remote_blocks * bytes;
    out->free_bytes += stats.free_blocks * bytes;
    out->untouched_bytes += sums.granules * GRANULE - sums.carved * bytes;
    return hak_min(stats.live_blocks, stats.slabs);
}

/* What is in pockets: bytes, and *blocks. */
static size_t count_pockets(hak_heap_t *heap, size_t *blocks)
{
    size_t bytes = *blocks = 0;
    for (unsigned cls = 0; cls < POCKET_CLASSES; cls++) {
        unsigned count = pocket_count(pocket_look(&heap->pocket[cls]));
        *blocks += count;
        bytes += count * (size_t)size_classes[cls].bytes;
    }
    return bytes;
}

/* Blocks of regions. Returns in how many SuperSlabs they lie at most; lock: HEAP, which keeps each
 * granule where it is. */
static size_t add_regions(hak_heap_t *heap, hak_heap_stats_t *out)
{
    size_t holders = 0, blocks = 0, live = 0, waiting;
    FOR_REGIONS(region, heap)
    {
        region_sums_t sums = region_sums(region);
        blocks += sums.blocks;
        live += sums.live * REGION_UNIT;
        out->free_bytes += sums.free * REGION_UNIT;
        out->untouched_bytes += sums.untouched * REGION_UNIT;
        out->metadata_bytes += sums.held * REGION_UNIT;
        const char *base = load_relaxed(&region->base);
        superslab_t *ss = registry_superslab(base);
        out->resident_bytes +=
            superslab_touched_count((run_t){ss, superslab_index(ss, base)}, 1) * HAK_PAGE;
        holders += sums.live && !ss->shared;
    }
    size_t bytes = hak_min(live, count_pockets(heap, &waiting));
    out->hot_bytes += bytes;
    out->live_bytes += live - bytes;
    blocks -= hak_min(blocks, waiting);
    out->live_blocks += blocks;
    return hak_min(holders, blocks);
}

/* What is no class's. All under one lock, so that no part of it is above what is committed. */
static size_t add_rest(hak_heap_t *heap, hak_heap_stats_t *out)
{
    lock_acquire(&heap->lock, RANK_HEAP);
    size_t holders = add_regions(heap, out);
    const large_set_t *large = &heap->large;
    const superslab_set_t *set = &heap->superslabs;
    out->large_blocks = large->live_blocks;
    out->large_bytes = large->live_bytes;
    out->large_cached_bytes = reserve_given(&process_reserve, heap);
    out->live_blocks += large->live_blocks + large->mid_blocks;
    out->live_bytes += large->live_bytes + large->mid_bytes;
    out->superslabs = set->count;
    out->phantom_superslabs = set->count - set->empty;
    out->free_bytes += set->free_touched * HAK_PAGE;
    out->untouched_bytes += set->free_granules * GRANULE - set->free_touched * HAK_PAGE;
    size_t records = load_relaxed(&heap->metadata);
    out->metadata_bytes += records;
    out->committed_bytes = load_relaxed(&heap->committed);
    out->peak_bytes = load_relaxed(&heap->peak);
    out->resident_bytes +=
        set->free_touched * HAK_PAGE + large->mid_bytes + large->live_bytes + records;
    holders += large->mid_blocks;
    lock_release(&heap->lock, RANK_HEAP);
    out->mapped_bytes = out->committed_bytes;
    return holders;
}

/* Classes are read one after another while threads run, so memory that moved may have been counted
 * twice: no sum of parts is more than the whole. */
static void fit(hak_heap_stats_t *out)
{
    size_t *parts[] = {&out->metadata_bytes, &out->live_bytes,     &out->hot_bytes,
                       &out->spare_bytes,    &out->cold_bytes,     &out->remote_bytes,
                       &out->free_bytes,     &out->untouched_bytes};
    size_t left = out->committed_bytes;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        *parts[i] = hak_min(*parts[i], left);
        left -= *parts[i];
    }
    out->resident_bytes = hak_min(out->resident_bytes, out->committed_bytes);
}

void report_stats(hak_heap_t *heap, hak_heap_stats_t *out)
{
    *out = (hak_heap_stats_t){.struct_size = sizeof *out};
    size_t holders = 0;
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    FOR_CLASSES (cls, &heap->made) holders += add_class(heap, heap_class_made(heap, cls), out);
    /* Each live block holds one SuperSlab at most, those of a region together. What is in use beyond
     * that holds none. */
    holders += add_rest(heap, out);
    bool cached = out->hot_bytes + out->spare_bytes + out->cold_bytes + out->remote_bytes != 0;
    lock_pass(&heap->areas_lock, RANK_AREAS);
    out->phantom_superslabs -=
        cached ? hak_min(holders, out->phantom_superslabs) : out->phantom_superslabs;
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
    ROW(resident_bytes)
#undef ROW
}

static void print_class(text_t *text, const hak_class_stats_t *stats)
{
    if (!stats->slabs && !stats->live_blocks) return;
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
    drain_settle(at);
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
