#define _GNU_SOURCE
#include "world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support_contract.h"
#include "support_os.h"

world_t world;
fuzz_progress_t *progress;

_Noreturn void fuzz_fail(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    /* The first to fail is the one that is heard. */
    if (progress && !atomic_exchange(&progress->failed, true))
        memcpy(progress->message, line, sizeof line);
    fprintf(stderr, "fuzz: %s\n", line);
    abort();
}

void world_set_up(void)
{
    fake_os_use();
    /* A reader that comes again and again must not keep a writer out for ever. */
    pthread_rwlockattr_t fair;
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    for (unsigned i = 0; i < FUZZ_MOST_PLACES; i++)
        pthread_rwlock_init(&world.place[i].lock, &fair);
    pthread_rwlockattr_destroy(&fair);
    for (unsigned i = 0; i < WORLD_MAILBOXES; i++) pthread_mutex_init(&world.mailbox[i].lock, NULL);
}

/* ---- Heaps ---- */

static hak_level_t level_of(unsigned number, unsigned choice)
{
    switch (world.header.levels % FUZZ_HEADER_LEVELS) {
    case 0: return HAK_LEVEL_FAST;
    case 1: return HAK_LEVEL_CHECKED;
    default: return (number ^ choice) & 1 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    }
}

static bool has_limits(void) { return world.header.limits & 1; }
/* Whether what is in use has limits, too: then a request may be refused that the model has room for. */
static bool has_footprints(void) { return has_limits() && world.header.limits & 0x40; }

/* From a few KiB to half a GiB, or none. */
static size_t limit_of(unsigned choice)
{
    unsigned power = choice % 20;
    return power > 17 ? FUZZ_NO_LIMIT : ((size_t)4096 << power) + choice / 20 * 16;
}

/* Of a root: room for its heaps, and for some of their blocks. */
static size_t footprint_of(unsigned root)
{
    return has_footprints() ? (size_t)(4 + 20 * root) << 20 : HAK_NO_LIMIT;
}

static void create(place_t *place, unsigned number, unsigned choice)
{
    static _Atomic uint64_t lineages = 1;
    static const size_t cache[] = {0, 1, 100, 4096, 65536, 1 << 20, 32 << 20, 1 << 30};
    static const size_t large[] = {0, 1, 1 << 20, 64 << 20};
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "fuzz";
    config.level = level_of(number, choice);
    if (world.header.budgets) {
        config.cache_bytes = cache[(number + choice / 2) % 8];
        config.large_cache_bytes = large[(number + choice / 16) % 4];
    }
    place->limit = FUZZ_NO_LIMIT;
    if (has_limits()) {
        place->root = (number ^ choice) % WORLD_ROOTS;
        place->limit = limit_of(world.header.limits / 2 + number * 7 + choice);
        config.parent = world.root[place->root].heap;
        config.live_limit = place->limit;
    }
    place->cache_bytes = config.cache_bytes ? config.cache_bytes : 32 << 20;
    place->large_cache_bytes =
        config.large_cache_bytes ? config.large_cache_bytes : (size_t)64 << 30;
    unsigned before = atomic_load(&world.refusals);
    errno = 0;
    place->heap = hak_heap_create(&config);
    place->lineage = atomic_fetch_add(&lineages, 1);
    place->live_blocks = place->live_bytes = 0;
    bool full = has_footprints() && hak_last_error() == HAK_ERROR_LIMIT;
    if (!place->heap && !(errno == ENOMEM && (full || world_may_refuse(before))))
        fuzz_fail("no heap, errno %d: %s", errno, hak_error_text(hak_last_error()));
}

static void destroy(place_t *place)
{
    hak_heap_t *heap = place->heap;
    atomic_fetch_sub(&world.live_bytes, place->live_bytes);
    place->heap = NULL;
    place->live_blocks = place->live_bytes = 0;
    FUZZ_REQUIRE(hak_heap_destroy(heap) == 0);
    if (!world.shared) FUZZ_REQUIRE(hak_heap_destroy(heap) == EINVAL);
}

void world_replace(place_t *place, unsigned number, unsigned choice)
{
    if (place->heap) destroy(place);
    create(place, number, choice);
}

place_t *world_enter(unsigned number)
{
    place_t *place = &world.place[number];
    pthread_rwlock_rdlock(&place->lock);
    if (place->heap) return place;
    pthread_rwlock_unlock(&place->lock);
    pthread_rwlock_wrlock(&place->lock);
    if (!place->heap) create(place, number, 0);
    pthread_rwlock_unlock(&place->lock);
    pthread_rwlock_rdlock(&place->lock);
    if (place->heap) return place;
    pthread_rwlock_unlock(&place->lock);
    return NULL;
}

size_t world_size(const fuzz_operation_t *operation)
{
    unsigned sizes = world.header.sizes;
    /* Few sizes lie anywhere among all: an odd factor mixes them. */
    uint16_t code = operation->size;
    if (sizes) code = (uint16_t)((code % sizes + sizes) * 40503u);
    size_t size = fuzz_size(code);
    int64_t live = atomic_load_explicit(&world.live_bytes, memory_order_relaxed);
    return live + (int64_t)size > WORLD_LIVE_MOST ? size % 1024 : size;
}

void world_leave(place_t *place) { pthread_rwlock_unlock(&place->lock); }

/* ---- Proofs ---- */

static void prove_figures(const hak_heap_stats_t *stats)
{
    size_t committed = stats->committed_bytes;
    FUZZ_REQUIRE(stats->large_bytes <= stats->live_bytes);
    FUZZ_REQUIRE(stats->phantom_superslabs <= stats->superslabs);
    FUZZ_REQUIRE(stats->resident_bytes <= stats->peak_bytes);
    FUZZ_REQUIRE(stats->resident_bytes <= stats->mapped_bytes);
    FUZZ_REQUIRE(committed <= stats->peak_bytes && committed <= stats->mapped_bytes);
    FUZZ_REQUIRE(stats->live_bytes <= committed && contract_sum(stats) <= committed);
}

static void prove_usage(const place_t *place)
{
    hak_usage_t usage = {.struct_size = sizeof usage};
    if (!has_limits()) return;
    FUZZ_REQUIRE(hak_heap_usage(place->heap, &usage) == 0);
    FUZZ_REQUIRE(usage.live_bytes <= usage.tree_bytes && usage.tree_bytes <= usage.live_limit);
    FUZZ_REQUIRE(usage.live_bytes <= usage.committed_bytes);
    FUZZ_REQUIRE(usage.committed_bytes <= usage.peak_bytes);
    FUZZ_REQUIRE(usage.committed_bytes <= usage.tree_committed_bytes);
    FUZZ_REQUIRE(usage.tree_committed_bytes <= usage.committed_limit);
    if (!world.shared) FUZZ_REQUIRE(usage.tree_bytes >= (size_t)place->live_bytes);
}

void world_sample(place_t *place)
{
    hak_heap_stats_t stats = contract_stats(place->heap);
    prove_figures(&stats);
    prove_usage(place);
    if (world.shared) return;
    FUZZ_REQUIRE(stats.live_blocks == (size_t)place->live_blocks);
    FUZZ_REQUIRE(stats.live_bytes == (size_t)place->live_bytes);
    FUZZ_REQUIRE(contract_sum(&stats) == stats.committed_bytes);
    if (contract_cached(&stats) > place->cache_bytes)
        fuzz_fail("%zu hot, %zu spare, %zu cold, %zu remote bytes, where %zu may be cached",
                  stats.hot_bytes, stats.spare_bytes, stats.cold_bytes, stats.remote_bytes,
                  place->cache_bytes);
    /* What the system has refused to unmap stays cached, whatever the limit. */
    if (!(world.header.refuses & 1))
        FUZZ_REQUIRE(stats.large_cached_bytes <= place->large_cache_bytes);
}

void world_prove(place_t *place)
{
    unsigned before = atomic_load(&world.refusals);
    int error = hak_heap_check(place->heap);
    if (world_may_refuse(before)) {
        FUZZ_REQUIRE(error == 0 || error == EAGAIN || error == ENOMEM);
        return;
    }
    if (error) fuzz_fail("hak_heap_check says %d", error);
    /* Another heap of the tree may be refused, and what this one has cached be on its way. */
    if (world.shared && has_limits()) return;
    int line = contract_unsound(place->heap, (size_t)place->live_blocks);
    if (line && !world_may_refuse(before))
        fuzz_fail("a heap is unsound: support_contract.c:%d", line);
    hak_heap_stats_t stats = contract_stats(place->heap);
    prove_figures(&stats);
    FUZZ_REQUIRE(stats.live_bytes == (size_t)place->live_bytes);
}

/* ---- Limits ---- */

static size_t live_below(unsigned root)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < world.places; i++)
        if (world.place[i].heap && world.place[i].root == root)
            bytes += (size_t)world.place[i].live_bytes;
    return bytes;
}

bool world_fits(const place_t *place, int64_t bytes, bool expected)
{
    if (!has_limits() || world.shared) return expected;
    size_t here = (size_t)(place->live_bytes + bytes);
    size_t below = (size_t)((int64_t)live_below(place->root) + bytes);
    bool fits = bytes <= 0 || (here <= place->limit && below <= world.root[place->root].limit);
    return fits && has_footprints() ? expected : fits;
}

/* What a call on a tree says where the model knows better, or not. */
static void judge(int error, bool fits, unsigned refusals, int refused)
{
    FUZZ_REQUIRE(error == 0 || error == refused || error == EAGAIN);
    if (world.shared || world_may_refuse(refusals) || (fits && has_footprints())) return;
    if ((error == 0) != fits) fuzz_fail("a tree says %d where it fits: %d", error, fits);
}

void world_limit(place_t *place, const fuzz_operation_t *operation)
{
    if (!has_limits()) return;
    bool of_root = operation->choice & 1;
    root_t *root = &world.root[place->root];
    if (of_root && world.shared) return;
    hak_limits_t limits = {.struct_size = sizeof limits,
                           .live_limit = limit_of(operation->choice / 2),
                           .committed_limit = of_root ? footprint_of(place->root) : 0};
    size_t live = of_root ? live_below(place->root) : (size_t)place->live_bytes;
    unsigned before = atomic_load(&world.refusals);
    int error = hak_heap_set_limits(of_root ? root->heap : place->heap, &limits);
    judge(error, live <= limits.live_limit, before, EBUSY);
    if (error) return;
    if (of_root) root->limit = limits.live_limit;
    else place->limit = limits.live_limit;
}

void world_move(place_t *place)
{
    if (!has_limits()) return;
    unsigned to = 1 - place->root, before = atomic_load(&world.refusals);
    bool fits = live_below(to) + (size_t)place->live_bytes <= world.root[to].limit;
    int error = hak_heap_move(place->heap, world.root[to].heap);
    judge(error, fits, before, ENOMEM);
    if (!error) place->root = to;
}

static void make_roots(void)
{
    for (unsigned i = 0; has_limits() && i < WORLD_ROOTS; i++) {
        hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
        config.name = "root";
        config.live_limit = world.root[i].limit = limit_of(world.header.limits / 4 + 5 + i);
        config.committed_limit = footprint_of(i);
        world.root[i].heap = hak_heap_create(&config);
        FUZZ_REQUIRE(world.root[i].heap != NULL);
    }
}

/* Nothing lives below them. */
static void end_roots(void)
{
    for (unsigned i = 0; has_limits() && i < WORLD_ROOTS; i++) {
        hak_usage_t usage = {.struct_size = sizeof usage};
        FUZZ_REQUIRE(hak_heap_usage(world.root[i].heap, &usage) == 0 && usage.tree_bytes == 0);
        FUZZ_REQUIRE(usage.tree_committed_bytes == usage.committed_bytes);
        FUZZ_REQUIRE(usage.tree_committed_peak_bytes <= usage.committed_limit);
        FUZZ_REQUIRE(hak_heap_destroy(world.root[i].heap) == 0);
    }
}

/* ---- Refusals ---- */

void world_refuse(const fuzz_operation_t *operation)
{
    static const fake_call_t calls[] = {FAKE_RESERVE, FAKE_COMMIT, FAKE_PURGE,  FAKE_DECOMMIT,
                                        FAKE_MAP,     FAKE_UNMAP,  FAKE_UNLOCK, FAKE_RESIZE,
                                        FAKE_MOVE,    FAKE_FENCE};
    if (!(world.header.refuses & 1)) return;
    unsigned which = operation->choice % (sizeof calls / sizeof *calls);
    long times = operation->choice & 0x8000 ? FAKE_FOREVER : 1;
    atomic_fetch_or(&world.refusals, 1);
    fake_os_refuse(calls[which], 1 + operation->size % 8, times);
}

void world_allow(void)
{
    for (int call = 0; call < FAKE_CALLS; call++) fake_os_allow((fake_call_t)call);
    unsigned before = atomic_load(&world.refusals);
    if (before & 1) atomic_compare_exchange_strong(&world.refusals, &before, before + 1);
}

bool world_may_refuse(unsigned before)
{
    return (before & 1) || atomic_load(&world.refusals) != before;
}

/* ---- Begin and end ---- */

/* What the process holds once it has given back what it can. */
static void measure(size_t *resident, size_t *mappings)
{
    (void)hak_reserve_trim();
    if (CONTRACT_SANITIZED) return;
    *resident = contract_resident();
    *mappings = contract_mappings();
}

void world_begin(const fuzz_header_t *header, bool shared)
{
    world.header = *header;
    world.places = header->places % FUZZ_MOST_PLACES + 1;
    world.slots = 16u << header->slots % 10;
    world.shared = shared;
    world.live_bytes = 0;
    world.calls = 0;
    world_allow();
    /* What the first heap of a process makes for all after it. */
    hak_heap_t *first = hak_heap_create(NULL);
    FUZZ_REQUIRE(first != NULL);
    hak_heap_free(first, hak_heap_malloc(first, 100));
    FUZZ_REQUIRE(hak_heap_destroy(first) == 0);
    measure(&world.resident, &world.mappings);
    make_roots();
}

/* What stays with the process: records of address space, and the stacks of threads. */
enum { RESIDENT_MORE = 12 << 20, MAPPINGS_MORE = 24, MAPPINGS_A_THREAD = 6 };

void world_end(unsigned threads)
{
    world_allow();
    for (unsigned i = 0; i < world.places; i++) {
        if (!world.place[i].heap) continue;
        world_prove(&world.place[i]);
        destroy(&world.place[i]);
    }
    end_roots();
    for (unsigned i = 0; i < WORLD_MAILBOXES; i++) world.mailbox[i].block.at = NULL;
    FUZZ_REQUIRE(world.live_bytes == 0);
    size_t resident = 0, mappings = 0;
    measure(&resident, &mappings);
    /* What the system refuses to unmap while a heap is destroyed stays with the process. */
    if (world.header.refuses & 1) return;
    if (mappings > world.mappings + MAPPINGS_MORE + MAPPINGS_A_THREAD * threads)
        fuzz_fail("%zu mappings at the end, %zu before", mappings, world.mappings);
    if (resident > world.resident + RESIDENT_MORE)
        fuzz_fail("%zu bytes resident at the end, %zu before", resident, world.resident);
}
