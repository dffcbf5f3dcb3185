/* Flush and trim: they reach every CPU, move what they say, return what they say, and lose nothing
 * where the kernel refuses. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hakheap.h"
#include "heap.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_os.h"
#include "support_random.h"

TestSuite(flush_trim, .timeout = 600);

/* Criterion's assertions name a line; these say which of the contract's figures it was. */
static void must_be_sound(const hak_heap_t *heap, size_t live_blocks, const char *when)
{
    int line = contract_unsound(heap, live_blocks);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(line == 0,
              "%s: support_contract.c:%d (%zu blocks live, %zu expected, %zu committed, %zu by the "
              "balance)",
              when, line, stats.live_blocks, live_blocks, stats.committed_bytes,
              contract_sum(&stats));
}

static void must_be_flushed(const hak_heap_t *heap, const char *when)
{
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(contract_cached(&stats) == 0, "%s: %zu hot, %zu spare, %zu cold, %zu remote bytes",
              when, stats.hot_bytes, stats.spare_bytes, stats.cold_bytes, stats.remote_bytes);
    cr_assert(stats.phantom_superslabs == 0, "%s: %zu phantoms", when, stats.phantom_superslabs);
}

static size_t cached_of(const hak_heap_t *heap)
{
    hak_heap_stats_t stats = contract_stats(heap);
    return contract_cached(&stats);
}

/* ---- Every CPU ---- */

enum { MOST_CPUS = 64, EACH = 300 };

static const size_t mixed_sizes[] = {16, 48, 100, 200, 1000, 3000, 9000, 32000};

typedef struct visitor {
    pthread_t thread;
    hak_heap_t *heap;
    int cpu;
    bool stays;
    bool moved;
    void *blocks[EACH];
} visitor_t;

static pthread_barrier_t cached, flushed;

/* Allocates and frees on its CPU, then ends or sleeps with everything it freed in that CPU's
 * magazines. */
static void *visit(void *arg)
{
    visitor_t *visitor = arg;
    visitor->moved = contract_move_to(visitor->cpu);
    for (size_t i = 0; i < EACH; i++)
        visitor->blocks[i] =
            hak_heap_malloc(visitor->heap, mixed_sizes[i % CONTRACT_LENGTH(mixed_sizes)]);
    for (size_t i = 0; i < EACH; i++) hak_heap_free(visitor->heap, visitor->blocks[i]);
    if (!visitor->stays) return NULL;
    pthread_barrier_wait(&cached);
    pthread_barrier_wait(&flushed);
    return NULL;
}

static unsigned areas_of(hak_heap_t *heap)
{
    unsigned areas = 0;
    for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++)
        areas += percpu_area(&heap->percpu, i) != NULL;
    return areas;
}

static void must_flush_all(hak_heap_t *heap, size_t held)
{
    errno = 4321;
    size_t moved = hak_heap_flush(heap);
    cr_assert(errno == 4321);
    cr_assert(moved == held, "%zu bytes moved of %zu", moved, held);
    must_be_flushed(heap, "after the flush");
    must_be_sound(heap, 0, "after the flush");
    cr_assert(hak_heap_flush(heap) == 0, "the second flush found something");
}

static void flush_after_visits(int level, bool stay)
{
    static visitor_t visitors[MOST_CPUS];
    int cpus[MOST_CPUS];
    size_t count = contract_cpus(cpus, MOST_CPUS);
    cr_assert(count > 0);
    hak_heap_t *heap = contract_heap(level, "visited");
    cr_assert(heap != NULL);
    pthread_barrier_init(&cached, NULL, (unsigned)count + 1);
    pthread_barrier_init(&flushed, NULL, (unsigned)count + 1);
    for (size_t i = 0; i < count; i++) {
        visitors[i] = (visitor_t){.heap = heap, .cpu = cpus[i], .stays = stay};
        cr_assert(pthread_create(&visitors[i].thread, NULL, visit, &visitors[i]) == 0);
        /* One after the other where they end: mm_cid gives the next thread the same number, and the
         * areas must do. */
        if (!stay) pthread_join(visitors[i].thread, NULL);
    }
    if (stay) pthread_barrier_wait(&cached);
    for (size_t i = 0; i < count; i++) cr_assert(visitors[i].moved, "no way to CPU %d", cpus[i]);

    must_be_sound(heap, 0, "before the flush");
    size_t held = cached_of(heap);
    cr_assert(held > 0, "nothing is cached, so nothing is tested");
    if (strcmp(hak_percpu_mode(), "mm_cid") != 0)
        cr_assert(areas_of(heap) >= count, "%u areas, %zu CPUs", areas_of(heap), count);
    must_flush_all(heap, held);
    if (stay) {
        pthread_barrier_wait(&flushed);
        for (size_t i = 0; i < count; i++) pthread_join(visitors[i].thread, NULL);
    }
    must_be_sound(heap, 0, "after the threads");
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(flush_trim, flush_reaches_threads_that_ended)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) flush_after_visits(level, false);
}

Test(flush_trim, flush_reaches_threads_that_sleep)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) flush_after_visits(level, true);
}

/* ---- One class ---- */

static size_t cached_in_class(const hak_heap_t *heap, unsigned class)
{
    hak_class_stats_t stats = {.struct_size = sizeof stats};
    cr_assert(hak_heap_class_stats(heap, class, &stats) == 0);
    return (stats.hot_blocks + stats.spare_blocks + stats.cold_blocks + stats.remote_blocks) *
           stats.block_bytes;
}

Test(flush_trim, flush_class_leaves_the_others)
{
    contract_slabs_only();
    hak_heap_t *heap = contract_heap(1, "classes");
    static void *blocks[2][EACH];
    const size_t sizes[2] = {64, 1024};
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < EACH; i++)
            cr_assert((blocks[s][i] = hak_heap_malloc(heap, sizes[s])) != NULL);
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < EACH; i++) hak_heap_free(heap, blocks[s][i]);

    unsigned one = hak_size_class_of(64), two = hak_size_class_of(1024);
    size_t held_one = cached_in_class(heap, one), held_two = cached_in_class(heap, two);
    cr_assert(held_one > 0 && held_two > 0);
    size_t moved = hak_heap_flush_class(heap, one);
    cr_assert(moved == held_one, "%zu bytes moved of %zu", moved, held_one);
    cr_assert(cached_in_class(heap, one) == 0);
    cr_assert(cached_in_class(heap, two) == held_two, "another class was flushed");
    for (unsigned class = 0; class < hak_size_class_count(); class ++)
        if (class != one && class != two) cr_assert(hak_heap_flush_class(heap, class) == 0);
    cr_assert(cached_in_class(heap, two) == held_two, "another class was flushed");
    cr_assert(hak_heap_flush_class(heap, hak_size_class_count()) == 0);
    cr_assert(hak_heap_flush_class(heap, UINT32_MAX) == 0);
    cr_assert(hak_heap_flush_class(heap, two) == held_two);
    must_be_flushed(heap, "after both");
    must_be_sound(heap, 0, "after both");
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Phantoms ---- */

Test(flush_trim, phantoms_are_counted_and_flushed)
{
    contract_slabs_only();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "phantom");
        /* Longer than any run of the nursery: the heap takes a SuperSlab of its own, and its slabs
         * lie in that. */
        void *mid = hak_heap_malloc(heap, 512 * 1024);
        void *small = hak_heap_malloc(heap, 64);
        cr_assert(mid && small && contract_stats(heap).superslabs == 1);
        cr_assert(contract_stats(heap).phantom_superslabs == 0, "live blocks are no phantom");
        hak_heap_free(heap, small);
        cr_assert(contract_stats(heap).phantom_superslabs == 0, "a live mid block is no phantom");
        hak_heap_free(heap, mid);
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(contract_cached(&stats) > 0);
        cr_assert(stats.phantom_superslabs == 1,
                  "%zu phantoms: one SuperSlab holds cached blocks only", stats.phantom_superslabs);
        void *again = hak_heap_malloc(heap, 64);
        cr_assert(again && contract_stats(heap).phantom_superslabs == 0,
                  "a live block is no phantom");
        hak_heap_free(heap, again);
        cr_assert(contract_stats(heap).phantom_superslabs == 1);
        cr_assert(hak_heap_flush(heap) > 0);
        must_be_flushed(heap, "after the flush");
        must_be_sound(heap, 0, "after the flush");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Many SuperSlabs, each kept by one block of another class that was freed last. */
Test(flush_trim, phantoms_of_many_superslabs)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.cache_bytes = 64 * HAK_MIB;
    hak_heap_t *heap = hak_heap_create(&config);
    enum { MIDS = 6 };
    void *mids[MIDS], *smalls[MIDS];
    for (unsigned i = 0; i < MIDS; i++) {
        /* A mid block of a whole megabyte and a slab of another class each time: two runs fill a
         * SuperSlab. */
        mids[i] = hak_heap_malloc(heap, HAK_MIB);
        smalls[i] = hak_heap_malloc(heap, 1024u << i);
        cr_assert(mids[i] && smalls[i]);
    }
    for (unsigned i = 0; i < MIDS; i++) hak_heap_free(heap, smalls[i]);
    for (unsigned i = 0; i < MIDS; i++) hak_heap_free(heap, mids[i]);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.phantom_superslabs > 0 && stats.phantom_superslabs <= stats.superslabs,
              "%zu phantoms of %zu", stats.phantom_superslabs, stats.superslabs);
    (void)hak_heap_flush(heap);
    must_be_flushed(heap, "after the flush");
    must_be_sound(heap, 0, "after the flush");
    cr_assert(contract_stats(heap).superslabs <= 1, "%zu SuperSlabs stay",
              contract_stats(heap).superslabs);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Trim ---- */

enum { PIECES = 16384 };
static void *pieces[PIECES];

/* Blocks of 4 KiB, all written; then all but one of each 400 freed, so that hardly a SuperSlab is
 * empty. Returns those left. */
static size_t fragment(hak_heap_t *heap, size_t count)
{
    size_t left = 0;
    for (size_t i = 0; i < count; i++) {
        cr_assert((pieces[i] = hak_heap_malloc(heap, 4096)) != NULL);
        memset(pieces[i], (int)i, 4096);
    }
    for (size_t i = 0; i < count; i++) {
        if (i % 400 == 0) {
            left++;
            continue;
        }
        hak_heap_free(heap, pieces[i]);
        pieces[i] = NULL;
    }
    return left;
}

static void free_left(hak_heap_t *heap, size_t count)
{
    for (size_t i = 0; i < count; i += 400) {
        unsigned char *at = pieces[i];
        cr_assert(at[0] == (unsigned char)i && at[4095] == (unsigned char)i,
                  "a live block lost its content");
        hak_heap_free(heap, at);
    }
}

static int by_value(const void *a, const void *b)
{
    size_t left = *(const size_t *)a, right = *(const size_t *)b;
    return (left > right) - (left < right);
}

static size_t count_different(size_t *values, size_t count)
{
    size_t different = 0;
    qsort(values, count, sizeof *values, by_value);
    for (size_t i = 0; i < count; i++) different += i == 0 || values[i] != values[i - 1];
    return different;
}

static bool near(size_t a, size_t b, size_t slack)
{
    return a > b ? a - b <= slack : b - a <= slack;
}

Test(flush_trim, trim_returns_what_the_process_loses)
{
    if (CONTRACT_SANITIZED) cr_skip_test("resident memory is the sanitizer's");
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "trim");
        size_t left = fragment(heap, PIECES);
        void *large = hak_heap_malloc(heap, 8 * HAK_MIB);
        memset(large, 1, 8 * HAK_MIB);
        hak_heap_free(heap, large);
        size_t before = contract_resident();
        errno = 4321;
        size_t returned = hak_heap_trim(heap, 0);
        cr_assert(errno == 4321);
        size_t after = contract_resident();
        cr_assert(returned > 40 * HAK_MIB, "only %zu bytes", returned);
        cr_assert(before > after && near(before - after, returned, returned / 50 + 256 * HAK_KIB),
                  "level %d: it says %zu bytes, the process lost %zd", level, returned,
                  (ssize_t)(before - after));
        must_be_flushed(heap, "after the trim");
        must_be_sound(heap, left, "after the trim");
        cr_assert(contract_stats(heap).large_cached_bytes == 0);
        cr_assert(hak_heap_trim(heap, 0) == 0, "the second trim found something");
        free_left(heap, PIECES);
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0, "at the end");
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(stats.superslabs == 0, "%zu SuperSlabs stay in an empty heap", stats.superslabs);
        cr_assert(stats.committed_bytes == stats.metadata_bytes + contract_cradle(heap),
                  "%zu bytes committed, %zu of them records", stats.committed_bytes,
                  stats.metadata_bytes);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static size_t piece_sizes[PIECES];

/* Frees nine pieces of ten. Returns how many stay; *pages: on how many pages. */
static size_t thin_out(hak_heap_t *heap, randoms_t *randoms, size_t *pages)
{
    static size_t places[2 * PIECES];
    size_t touched = 0, live = 0;
    for (size_t i = 0; i < PIECES; i++) {
        if (random_below(randoms, 10) == 0) {
            /* Whole blocks count, not the bytes asked for. */
            size_t first = (uintptr_t)pieces[i] / 4096;
            size_t last = ((uintptr_t)pieces[i] + hak_usable_size(pieces[i]) - 1) / 4096;
            for (size_t page = first; page <= last; page++) places[touched++] = page;
            live++;
            continue;
        }
        hak_heap_free(heap, pieces[i]);
        pieces[i] = NULL;
    }
    *pages = count_different(places, touched);
    return live;
}

static void pieces_must_hold(void)
{
    for (size_t i = 0; i < PIECES; i++) {
        if (!pieces[i]) continue;
        const unsigned char *at = pieces[i];
        cr_assert(at[0] == (unsigned char)i && at[piece_sizes[i] - 1] == (unsigned char)i,
                  "content was lost");
    }
}

/* What was given back serves again, zeroed or not as calloc needs. */
static void take_pieces_again(hak_heap_t *heap)
{
    for (size_t i = 0; i < PIECES; i++) {
        if (pieces[i]) continue;
        cr_assert((pieces[i] = hak_heap_calloc(heap, 1, piece_sizes[i])) != NULL);
        cr_assert(memory_is_zero(pieces[i], piece_sizes[i]), "calloc gave what is not zero");
        memset(pieces[i], 0xff, piece_sizes[i]);
    }
    must_be_sound(heap, PIECES, "used again");
}

/* What stays after nine blocks of ten are gone is the pages that hold a live one, and little
 * else. */
Test(flush_trim, trim_reaches_pages_between_live_blocks)
{
    if (CONTRACT_SANITIZED) cr_skip_test("resident memory is the sanitizer's");
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "sparse");
        (void)hak_heap_trim(heap, 0);
        size_t idle = contract_resident();
        randoms_t randoms = {11};
        for (size_t i = 0; i < PIECES; i++) {
            piece_sizes[i] = 16 + random_below(&randoms, 2000);
            cr_assert((pieces[i] = hak_heap_malloc(heap, piece_sizes[i])) != NULL);
            memset(pieces[i], (int)i, piece_sizes[i]);
        }
        size_t pages, live = thin_out(heap, &randoms, &pages);
        cr_assert(hak_heap_trim(heap, 0) > 0);
        size_t resident = contract_resident() - idle, wanted = pages * 4096;
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(resident <= wanted + wanted / 20 + stats.metadata_bytes + 256 * HAK_KIB,
                  "level %d: %zu KiB stay, pages with a live block have %zu", level,
                  resident / 1024, wanted / 1024);
        must_be_sound(heap, live, "after the trim");
        pieces_must_hold();
        take_pieces_again(heap);
        for (size_t i = 0; i < PIECES; i++) hak_heap_free(heap, pieces[i]);
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(flush_trim, trim_keeps_what_it_may)
{
    hak_heap_t *heap = contract_heap(0, "keep");
    size_t count = contract_work(PIECES) < 4096 ? 4096 : contract_work(PIECES);
    size_t left = fragment(heap, count);
    (void)hak_heap_flush(heap);
    hak_heap_stats_t before = contract_stats(heap);
    size_t keep = before.free_bytes / 2;
    cr_assert(hak_heap_trim(heap, before.committed_bytes) == 0, "all of it may be kept");
    cr_assert(contract_stats(heap).free_bytes == before.free_bytes);
    size_t returned = hak_heap_trim(heap, keep);
    hak_heap_stats_t after = contract_stats(heap);
    cr_assert(returned > 0 && before.free_bytes - after.free_bytes == returned,
              "%zu returned, %zu missing", returned, before.free_bytes - after.free_bytes);
    /* Free blocks in slabs that are in use cannot go, so a slab's worth for each block left may be
     * above `keep`. */
    cr_assert(near(after.free_bytes, keep, left * 8 * 4096), "%zu kept, %zu allowed",
              after.free_bytes, keep);
    must_be_sound(heap, left, "after half a trim");
    free_left(heap, count);
    must_be_sound(heap, 0, "at the end");
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(flush_trim, trim_and_freed_mappings)
{
    hak_heap_t *heap = contract_heap(0, "mappings");
    size_t idle = contract_mappings();
    void *one = hak_heap_malloc(heap, 5 * HAK_MIB), *two = hak_heap_malloc(heap, 6 * HAK_MIB);
    cr_assert(one && two && contract_mappings() > idle);
    hak_heap_free(heap, one);
    hak_heap_free(heap, two);
    cr_assert(contract_stats(heap).large_cached_bytes == 11 * HAK_MIB);
    cr_assert(hak_heap_trim(heap, 11 * HAK_MIB) == 0, "all of it may be kept");
    cr_assert(hak_heap_trim(heap, 6 * HAK_MIB) == 5 * HAK_MIB, "the oldest goes first");
    cr_assert(contract_stats(heap).large_cached_bytes == 6 * HAK_MIB);
    cr_assert(hak_heap_trim(heap, 0) == 6 * HAK_MIB);
    /* The registry may have made a table for the GiB that the blocks lay in; tables stay. */
    cr_assert(contract_mappings() <= idle + 1, "%zu mappings, %zu before", contract_mappings(),
              idle);
    must_be_sound(heap, 0, "at the end");
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(flush_trim, a_small_heap_gives_its_page_back)
{
    hak_heap_t *heap = contract_heap(1, "page");
    size_t empty = contract_stats(heap).committed_bytes;
    void *ptr[40]; /* about a page: some lie behind that of the heap itself */
    for (size_t i = 0; i < 40; i++) {
        ptr[i] = hak_heap_malloc(heap, 100);
        cr_assert(ptr[i] != NULL);
        memset(ptr[i], 1, 100);
    }
    for (size_t i = 0; i < 40; i++) hak_heap_free(heap, ptr[i]);
    size_t returned = hak_heap_trim(heap, 0);
    cr_assert(returned >= 4096, "%zu bytes", returned);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.committed_bytes - stats.metadata_bytes == contract_cradle(heap),
              "%zu bytes beside records", stats.committed_bytes - stats.metadata_bytes);
    cr_assert(stats.committed_bytes <= empty + 4096, "%zu bytes of records, %zu before",
              stats.metadata_bytes, empty);
    must_be_sound(heap, 0, "at the end");
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Mid blocks that a reset or a destroy takes away were written, also one whose free has only just
 * begun, as a fork in another thread may find it: calloc must not take them for new. */
Test(flush_trim, what_mid_blocks_leave_in_the_nursery_is_not_zero)
{
    enum { MID = 40 * 1024, COUNT = 6 };
    for (int destroy = 0; destroy < 2; destroy++) {
        for (int under_way = 0; under_way < 2; under_way++) {
            (void)hak_reserve_trim();
            hak_heap_t *heap = contract_heap(0, "mids");
            for (int i = 0; i < COUNT; i++) {
                void *ptr = hak_heap_malloc(heap, MID);
                cr_assert(ptr != NULL && registry_superslab(ptr)->shared);
                memset(ptr, 0x5a, MID);
                if (under_way) cr_assert(registry_release(ptr));
            }
            if (destroy) {
                cr_assert(hak_heap_destroy(heap) == 0);
                heap = contract_heap(0, "next");
            } else {
                cr_assert(hak_heap_reset(heap) == 0);
            }
            for (int i = 0; i < COUNT; i++) {
                void *ptr = hak_heap_calloc(heap, 1, MID);
                cr_assert(ptr && contract_is_zero(ptr, MID), "destroy %d, under way %d, block %d",
                          destroy, under_way, i);
            }
            must_be_sound(heap, COUNT, "at the end");
            cr_assert(hak_heap_destroy(heap) == 0);
        }
    }
}

/* One page of a slab that the program has locked, and not unlocked: the pages before it go, and no
 * block with them. */
Test(flush_trim, a_locked_page_inside_a_slab_loses_no_block)
{
    enum { KIB = 1024, IN_SLAB = GRANULE / KIB };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "locked");
        size_t count = 4 * IN_SLAB, live = 0;
        for (size_t i = 0; i < count; i++) {
            cr_assert((pieces[i] = hak_heap_malloc(heap, KIB)) != NULL);
            contract_fill(pieces[i], KIB, i);
        }
        char *granule = (char *)((uintptr_t)pieces[count / 2] & ~(uintptr_t)(GRANULE - 1));
        if (syscall(SYS_mlock, granule + 2 * HAK_PAGE, (size_t)HAK_PAGE) != 0)
            cr_skip_test("no page may be locked");
        for (size_t i = 0; i < count; i++) {
            bool stays = (uintptr_t)pieces[i] % GRANULE / KIB == IN_SLAB - 1;
            live += stays;
            if (stays) continue;
            hak_heap_free(heap, pieces[i]);
            pieces[i] = NULL;
        }
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, live, "trimmed");
        for (size_t i = 0; i < count; i++) {
            if (pieces[i]) cr_assert(contract_holds(pieces[i], KIB, i));
            else cr_assert((pieces[i] = hak_heap_malloc(heap, KIB)) != NULL);
        }
        must_be_sound(heap, count, "all taken again");
        for (size_t i = 0; i < count; i++) hak_heap_free(heap, pieces[i]);
        must_be_sound(heap, 0, "at the end");
        (void)syscall(SYS_munlock, granule + 2 * HAK_PAGE, (size_t)HAK_PAGE);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

enum { NEAR_BYTES = 1024, NEAR_BLOCKS = 3 * SUPERSLAB / NEAR_BYTES };

/* Leaves two blocks of each of some slabs, near and far, so that pages inside them go as well.
 * Returns how many blocks. */
static size_t leave_few_slabs(hak_heap_t *heap, void *many[NEAR_BLOCKS])
{
    size_t live = 0, far = 0;
    for (size_t i = 0; i < NEAR_BLOCKS; i++) {
        superslab_t *ss = registry_superslab(many[i]);
        bool is_far = !ss->shared && superslab_is_far((run_t){ss, superslab_index(ss, many[i])});
        bool stays = (size_t)many[i] / GRANULE % 5 == 0 && (size_t)many[i] / NEAR_BYTES % 8 == 1;
        far += is_far && stays;
        live += stays;
        if (stays) continue;
        hak_heap_free(heap, many[i]);
        many[i] = NULL;
    }
    cr_assert(far > 0, "no slab is far");
    return live;
}

/* A SuperSlab of many slabs has two pages of descriptors. When few slabs are left, wherever they
 * lie, one will do. */
Test(flush_trim, a_trim_gives_back_descriptors)
{
    static void *many[NEAR_BLOCKS];
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "near");
        for (size_t i = 0; i < NEAR_BLOCKS; i++) {
            cr_assert((many[i] = hak_heap_malloc(heap, NEAR_BYTES)) != NULL);
            contract_fill(many[i], NEAR_BYTES, i);
        }
        size_t live = leave_few_slabs(heap, many), two = 0;
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, live, "trimmed");
        for (superslab_t *ss = heap->superslabs.all; ss; ss = ss->set_next, two++) {
            cr_assert(!ss->used[1] && !ss->far);
            cr_assert(CONTRACT_SANITIZED || !memory_is_resident(ss->descriptors + HAK_PAGE));
        }
        cr_assert(two >= 2, "%zu SuperSlabs", two);
        for (size_t i = 0; i < NEAR_BLOCKS; i++) {
            if (!many[i]) continue;
            cr_assert(contract_holds(many[i], NEAR_BYTES, i), "block %zu", i);
            hak_heap_free(heap, many[i]);
        }
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(flush_trim, the_reserve_returns_what_destroyed_heaps_left)
{
    hak_heap_t *heap = contract_heap(0, "gone");
    for (size_t i = 0; i < 2000; i++) {
        void *ptr = hak_heap_malloc(heap, 4096);
        cr_assert(ptr != NULL);
        memset(ptr, 1, 4096);
    }
    cr_assert(hak_heap_destroy(heap) == 0);
    size_t before = contract_resident();
    errno = 4321;
    size_t returned = hak_reserve_trim();
    cr_assert(errno == 4321);
    size_t after = contract_resident();
    cr_assert(returned >= 7 * HAK_MIB, "%zu bytes", returned);
    if (!CONTRACT_SANITIZED)
        cr_assert(before > after && before - after >= 7 * HAK_MIB, "%zu bytes before, %zu after",
                  before, after);
    cr_assert(hak_reserve_trim() == 0, "the second time");
}

/* ---- Refusals ---- */

/* Whether threads reach every area that the heap has: none was left stopped. */
static bool all_areas_run(hak_heap_t *heap)
{
    bool run = true;
    for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++)
        run = run && (!percpu_area(&heap->percpu, i) || percpu_running(&heap->percpu, i));
    return run;
}

/* Blocks of many classes in hot, spare and cold magazines. Returns cached bytes. */
static size_t fill_caches(hak_heap_t *heap)
{
    for (size_t i = 0; i < 2000; i++)
        cr_assert((pieces[i] = hak_heap_malloc(
                       heap, mixed_sizes[i % CONTRACT_LENGTH(mixed_sizes)])) != NULL);
    for (size_t i = 0; i < 2000; i++) hak_heap_free(heap, pieces[i]);
    return cached_of(heap);
}

/* Gives each CPU's area to another CPU; twice gives it back. Nobody else uses the heap. */
static void exchange_areas(hak_heap_t *heap)
{
    percpu_t *percpu = &heap->percpu;
    unsigned slots = load_relaxed(&percpu->slots);
    lock_acquire(&heap->areas_lock, RANK_AREAS);
    for (unsigned low = 0, high = slots - 1; low < high; low++, high--) {
        const unsigned pair[] = {low, high};
        area_t *area[2];
        for (int i = 0; i < 2; i++)
            if ((area[i] = percpu_area(percpu, pair[i])) != NULL) {
                percpu_retire(percpu, pair[i]);
                *percpu_idle(percpu) = area[i]->next;
                store_relaxed(&percpu->table[pair[i]], (area_t *)(uintptr_t)&zero_area);
            }
        for (int i = 0; i < 2; i++)
            if (area[i]) percpu_adopt(percpu, pair[!i], area[i]);
    }
    lock_release(&heap->areas_lock, RANK_AREAS);
}

/* Flushes and trims whose fence is refused. */
static void refused_calls_must_change_nothing(hak_heap_t *heap, const hak_heap_stats_t *before)
{
    for (int what = 0; what < 3; what++) {
        errno = 4321;
        size_t bytes = what == 0   ? hak_heap_flush(heap)
                       : what == 1 ? hak_heap_trim(heap, 0)
                                   : hak_heap_flush_class(heap, hak_size_class_of(100));
        cr_assert(bytes == 0, "call %d moved %zu bytes", what, bytes);
        cr_assert(errno == 4321, "call %d changed errno to %d", what, errno);
        cr_assert(hak_last_error() == HAK_ERROR_FENCE, "call %d says %d", what,
                  (int)hak_last_error());
        hak_heap_stats_t now = contract_stats(heap);
        cr_assert(memcmp(before, &now, sizeof now) == 0, "call %d changed figures", what);
        cr_assert(all_areas_run(heap), "call %d leaves areas stopped", what);
    }
}

/* What others have cached stays where it is; what the running CPU has needs no fence. */
Test(flush_trim, a_refused_fence_changes_nothing)
{
    contract_slabs_only();
    hak_heap_t *heap = contract_heap(1, "fence");
    if (contract_is_locked()) cr_skip_test("the locked twin needs no fence");
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    size_t held = fill_caches(heap);
    void *live = hak_heap_malloc(heap, 100);
    cr_assert(held > 0 && live);
    contract_fill(live, 100, 7);
    held = cached_of(heap);
    exchange_areas(heap);
    hak_heap_stats_t before = contract_stats(heap);

    fake_os_use();
    fake_os_refuse(FAKE_FENCE, 1, FAKE_FOREVER);
    refused_calls_must_change_nothing(heap, &before);
    cr_assert(hak_heap_check(heap) == EAGAIN);
    cr_assert(all_areas_run(heap), "the check leaves areas stopped");
    cr_assert(fake_os_calls(FAKE_FENCE) >= 4);
    exchange_areas(heap);
    /* The magazines run again: what is freed now is cached, and what is cached is handed out. */
    void *ptr = hak_heap_malloc(heap, 48);
    cr_assert(ptr != NULL);
    hak_heap_free(heap, ptr);
    cr_assert(cached_of(heap) == held);
    fake_os_allow(FAKE_FENCE);
    must_be_sound(heap, 1, "with the fence");
    cr_assert(contract_holds(live, 100, 7));
    cr_assert(hak_heap_flush(heap) == held);
    cr_assert(all_areas_run(heap), "a flush leaves areas stopped");
    must_be_flushed(heap, "with the fence");
    hak_heap_free(heap, live);
    must_be_sound(heap, 0, "at the end");
    fake_os_restore();
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Also where the fence is refused; and what one CPU has is flushed though another's would need
 * it. */
Test(flush_trim, the_running_cpus_own_caches_need_no_fence)
{
    contract_slabs_only();
    if (contract_is_locked()) cr_skip_test("the locked twin needs no fence");
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "own");
        size_t held = fill_caches(heap);
        fake_os_use();
        fake_os_refuse(FAKE_FENCE, 1, FAKE_FOREVER);
        cr_assert(held > 0 && hak_heap_flush(heap) == held);
        cr_assert(fake_os_calls(FAKE_FENCE) == 0, "%ld fences", fake_os_calls(FAKE_FENCE));
        cr_assert(cached_of(heap) == 0);

        /* Of one class, whatever other CPUs have of another. */
        hak_heap_free(heap, hak_heap_malloc(heap, 48));
        exchange_areas(heap);
        hak_heap_free(heap, hak_heap_malloc(heap, 500));
        cr_assert(hak_heap_flush_class(heap, hak_size_class_of(512)) > 0 &&
                  fake_os_calls(FAKE_FENCE) == 0);
        exchange_areas(heap);

        (void)fill_caches(heap);
        exchange_areas(heap);
        size_t others = cached_of(heap), cold = contract_stats(heap).cold_bytes;
        void *ptr = hak_heap_malloc(heap, 48);
        cr_assert(ptr != NULL);
        hak_heap_free(heap, ptr);
        size_t own = cached_of(heap) - others;
        cr_assert(own > 0 && contract_stats(heap).cold_bytes == cold);
        cr_assert(hak_heap_flush(heap) == own && hak_last_error() == HAK_ERROR_FENCE);
        cr_assert(fake_os_calls(FAKE_FENCE) == 1 && cached_of(heap) == others);
        fake_os_restore();
        cr_assert(hak_heap_flush(heap) == others);
        must_be_flushed(heap, "with the fence");
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(flush_trim, empty_caches_need_no_fence)
{
    hak_heap_t *heap = contract_heap(0, "still");
    if (contract_is_locked()) cr_skip_test("the locked twin needs no fence");
    (void)fill_caches(heap);
    (void)hak_heap_flush(heap);
    fake_os_use();
    cr_assert(hak_heap_flush(heap) == 0);
    cr_assert(fake_os_calls(FAKE_FENCE) == 0, "%ld fences", fake_os_calls(FAKE_FENCE));
    fake_os_restore();
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(flush_trim, a_refused_purge_is_counted)
{
    hak_heap_t *heap = contract_heap(0, "purge");
    size_t left = fragment(heap, 4096);
    fake_os_use();
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    /* Whole SuperSlabs go to the reserve all the same. */
    (void)hak_heap_trim(heap, 0);
    hak_heap_stats_t before = contract_stats(heap);
    errno = 4321;
    size_t returned = hak_heap_trim(heap, 0);
    cr_assert(errno == 4321 && returned == 0, "%zu bytes returned", returned);
    cr_assert(fake_os_calls(FAKE_PURGE) > 0);
    cr_assert(hak_last_error() == HAK_ERROR_PURGE, "it says %d", (int)hak_last_error());
    cr_assert(contract_stats(heap).free_bytes == before.free_bytes,
              "what was not returned is still counted");
    must_be_sound(heap, left, "with purge refused");
    /* Some of several refused: the others are returned, and they come next time. */
    fake_os_allow(FAKE_PURGE);
    fake_os_refuse(FAKE_PURGE, 2, 64);
    returned = hak_heap_trim(heap, 0);
    cr_assert(returned > 0 && hak_last_error() == HAK_ERROR_PURGE);
    must_be_sound(heap, left, "with one purge refused");
    fake_os_allow(FAKE_PURGE);
    size_t rest = hak_heap_trim(heap, 0);
    cr_assert(rest > 0, "what was refused once is not returned later");
    cr_assert(near(returned + rest, before.free_bytes, left * 8 * 4096),
              "%zu bytes in all, %zu were free", returned + rest, before.free_bytes);
    must_be_sound(heap, left, "with purge");
    fake_os_restore();
    free_left(heap, 4096);
    must_be_sound(heap, 0, "at the end");
    cr_assert(hak_heap_destroy(heap) == 0);
}

enum { REFUSED = 20 };

/* What is not unmapped is cached, whatever the limit, and no free tells of it. */
static void free_without_unmap(hak_heap_t *heap, void *blocks[REFUSED])
{
    cr_assert(hak_heap_malloc(NULL, 1) == NULL && hak_last_error() == HAK_ERROR_ARGUMENT);
    errno = 4321;
    for (int i = 0; i < REFUSED; i++) hak_heap_free(heap, blocks[i]);
    cr_assert(errno == 4321 && hak_last_error() == HAK_ERROR_ARGUMENT, "a free tells of nothing");
    cr_assert(contract_stats(heap).large_cached_bytes == REFUSED * 4 * HAK_MIB, "%zu bytes counted",
              contract_stats(heap).large_cached_bytes);
    /* Not must_be_sound: a check unmaps what it walked with. */
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.live_blocks == 0 && contract_sum(&stats) == stats.committed_bytes);
}

Test(flush_trim, a_refused_unmap_is_counted_and_reused)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 1;
    hak_heap_t *heap = hak_heap_create(&config);
    void *ptr = hak_heap_malloc(heap, 4 * HAK_MIB);
    cr_assert(ptr != NULL);
    hak_heap_free(heap, ptr);
    cr_assert(contract_stats(heap).large_cached_bytes == 0, "the cache holds one byte");
    size_t idle = contract_mappings();

    fake_os_use();
    void *blocks[REFUSED];
    for (int i = 0; i < REFUSED; i++)
        cr_assert((blocks[i] = hak_heap_malloc(heap, 4 * HAK_MIB)) != NULL);
    fake_os_refuse(FAKE_UNMAP, 1, FAKE_FOREVER);
    free_without_unmap(heap, blocks);
    cr_assert(hak_heap_trim(heap, 0) == 0 && hak_last_error() == HAK_ERROR_PURGE);
    long maps = fake_os_calls(FAKE_MAP);
    void *again = hak_heap_calloc(heap, 1, 4 * HAK_MIB);
    cr_assert(again && fake_os_calls(FAKE_MAP) == maps, "what could not be unmapped is used again");
    cr_assert(contract_is_zero(again, 4 * HAK_MIB));
    hak_heap_free(heap, again);
    fake_os_allow(FAKE_UNMAP);
    must_be_sound(heap, 0, "with unmap");
    cr_assert(hak_heap_trim(heap, 0) == REFUSED * 4 * HAK_MIB);
    /* The registry may have made a table for the GiB that the blocks lay in; tables stay. */
    cr_assert(contract_mappings() <= idle + 1, "%zu mappings, %zu before", contract_mappings(),
              idle);
    must_be_sound(heap, 0, "at the end");
    fake_os_restore();
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(flush_trim, destroy_with_unmap_refused_frees_the_pages)
{
    if (CONTRACT_SANITIZED) cr_skip_test("resident memory is the sanitizer's");
    fake_os_use();
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 1;
    hak_heap_t *heap = hak_heap_create(&config);
    void *ptr = hak_heap_malloc(heap, 32 * HAK_MIB);
    cr_assert(ptr != NULL);
    memset(ptr, 1, 32 * HAK_MIB);
    size_t before = contract_resident();
    fake_os_refuse(FAKE_UNMAP, 1, FAKE_FOREVER);
    cr_assert(hak_heap_destroy(heap) == 0);
    fake_os_restore();
    size_t after = contract_resident();
    cr_assert(before > after && before - after >= 31 * HAK_MIB, "%zu bytes before, %zu after",
              before, after);
}

/* ---- A million blocks, and ten thousand heaps ---- */

Test(flush_trim, superslabs_go_back)
{
    size_t count = contract_work(1000000);
    void **blocks = malloc(count * sizeof *blocks);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "million");
        for (size_t i = 0; i < count; i++)
            cr_assert((blocks[i] = hak_heap_malloc(heap, 16)) != NULL);
        size_t most = contract_stats(heap).superslabs;
        cr_assert(most >= count * 16 / SUPERSLAB, "%zu SuperSlabs", most);
        must_be_sound(heap, count, "full");
        /* Every third first: slabs empty in no order. */
        for (size_t step = 0; step < 3; step++)
            for (size_t i = step; i < count; i += 3) hak_heap_free(heap, blocks[i]);
        cr_assert(contract_stats(heap).superslabs <= most);
        (void)hak_heap_flush(heap);
        must_be_flushed(heap, "after the flush");
        must_be_sound(heap, 0, "after the flush");
        cr_assert(contract_stats(heap).superslabs <= 1, "%zu of %zu SuperSlabs stay",
                  contract_stats(heap).superslabs, most);
        (void)hak_heap_trim(heap, 0);
        cr_assert(contract_stats(heap).superslabs == 0);
        must_be_sound(heap, 0, "after the trim");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
    free(blocks);
}

static void one_cycle(int level)
{
    hak_heap_t *heap = contract_heap(level, "cycle");
    cr_assert(heap != NULL);
    void *small = hak_heap_malloc(heap, 100), *mid = hak_heap_malloc(heap, 50000);
    cr_assert(small && mid);
    memset(small, 1, 100);
    memset(mid, 1, 50000);
    hak_heap_free(heap, small);
    /* The mid block goes with the heap. */
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(flush_trim, ten_thousand_cycles_grow_nothing)
{
    /* Heaps and slabs begin at places that differ by their address, so it takes a while until each
     * page was one's turn. */
    size_t cycles = contract_work(10000);
    size_t resident = 0, mappings = 0;
    /* Measured twice: the first time brings the C library's own pages in. */
    for (int twice = 0; twice < 2; twice++) {
        for (size_t i = 0; i < cycles; i++) one_cycle((int)(i & 1));
        resident = contract_resident(), mappings = contract_mappings();
    }
    for (size_t i = 0; i < cycles; i++) one_cycle((int)(i & 1));
    size_t more = contract_resident();
    cr_assert(contract_mappings() <= mappings + 1, "%zu mappings, %zu before", contract_mappings(),
              mappings);
    if (!CONTRACT_SANITIZED)
        cr_assert(more <= resident + 32 * HAK_KIB, "%zu bytes resident, %zu before", more,
                  resident);
}

/* With large blocks and SuperSlabs of their own, left to destroy. */
Test(flush_trim, cycles_of_big_heaps_grow_nothing)
{
    size_t resident = 0, mappings = 0;
    for (size_t i = 0; i < 5 + contract_work(60); i++) {
        hak_heap_t *heap = contract_heap((int)(i & 1), "big");
        for (int k = 0; k < 6; k++) {
            void *large = hak_heap_malloc(heap, 3 * HAK_MIB), *mid = hak_heap_malloc(heap, 700000);
            cr_assert(large && mid);
            memset(large, 1, 4096);
            memset(mid, 1, 4096);
            if (k % 2) hak_heap_free(heap, large);
        }
        cr_assert(hak_heap_destroy(heap) == 0);
        if (i == 4) resident = contract_resident(), mappings = contract_mappings();
    }
    cr_assert(contract_mappings() <= mappings + 1, "%zu mappings, %zu before", contract_mappings(),
              mappings);
    if (!CONTRACT_SANITIZED)
        cr_assert(contract_resident() <= resident + 256 * HAK_KIB, "%zu bytes, %zu before",
                  contract_resident(), resident);
}

/* ---- What hak_last_error() tells ---- */

/* A success changes nothing; a kernel that keeps no pages back is told of, wherever the pages
 * were. */
Test(flush_trim, errors_are_told_by_refusals_only)
{
    enum { COUNT = 9000 };
    static void *blocks[COUNT];
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        cr_assert(hak_heap_malloc(NULL, 1) == NULL && hak_last_error() == HAK_ERROR_ARGUMENT);
        hak_heap_t *heap = contract_heap(level, "errors");
        for (int i = 0; i < COUNT; i++)
            cr_assert((blocks[i] = hak_heap_malloc(heap, 1000)) != NULL);
        for (int i = 0; i < COUNT; i++)
            if (i % 64) hak_heap_free(heap, blocks[i]);
        cr_assert(hak_heap_trim(heap, HAK_MIB + 1) > 0);
        cr_assert(hak_last_error() == HAK_ERROR_ARGUMENT, "%s", hak_error_text(hak_last_error()));
        fake_os_use();
        fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
        fake_os_refuse(FAKE_DECOMMIT, 1, FAKE_FOREVER);
        cr_assert(hak_heap_trim(heap, 0) == 0 && hak_last_error() == HAK_ERROR_PURGE);
        for (int i = 0; i < COUNT; i += 64) hak_heap_free(heap, blocks[i]);
        cr_assert(hak_heap_destroy(heap) == 0);
        cr_assert(hak_heap_malloc(NULL, 1) == NULL);
        cr_assert(hak_reserve_trim() == 0 && hak_last_error() == HAK_ERROR_PURGE);
        fake_os_restore();
        cr_assert(hak_reserve_trim() > 0);
    }
}

/* ---- The budget ---- */

/* What magazines may hold, what cold chains hold, and what is left are what the heap was given. */
static void must_balance_budget(hak_heap_t *heap, size_t given, const char *when)
{
    int64_t sum = load_relaxed(&heap->budget.room);
    for (unsigned class = 0; class < CLASS_COUNT; class ++) {
        const class_state_t *state = heap_class_made(heap, class);
        if (state && state->cold) sum += (int64_t)state->cold->blocks * size_classes[class].bytes;
        for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++) {
            area_t *area = percpu_area(&heap->percpu, i);
            if (!area) continue;
            sum += (int64_t)load_relaxed(&area->hot[class].limit) * 2 * size_classes[class].bytes;
            const magazine_t *outbox = load_relaxed(&area->outbox);
            if (outbox)
                sum += (int64_t)load_relaxed(&outbox[class].limit) * size_classes[class].bytes;
        }
    }
    cr_assert(sum == (int64_t)given, "%s: %lld of %zu bytes", when, (long long)sum, given);
}

Test(flush_trim, the_budget_balances)
{
    const size_t budgets[] = {1, 4096, 100000, 4 * HAK_MIB, HAK_GIB};
    randoms_t randoms = {11};
    for (size_t b = 0; b < CONTRACT_LENGTH(budgets); b++) {
        hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
        config.level = HAK_LEVEL_CHECKED;
        config.cache_bytes = budgets[b];
        hak_heap_t *heap = hak_heap_create(&config);
        enum { SLOTS = 2000 };
        static void *slots[SLOTS];
        memset(slots, 0, sizeof slots);
        for (size_t i = 0; i < contract_work(100000); i++) {
            void **slot = &slots[random_below(&randoms, SLOTS)];
            if (*slot) hak_heap_free(heap, *slot);
            *slot = random_below(&randoms, 2) ? hak_heap_malloc(heap, random_below(&randoms, 5000))
                                              : NULL;
            if (random_below(&randoms, 4000) == 0) (void)hak_heap_flush(heap);
            if (random_below(&randoms, 4000) == 0) (void)hak_heap_trim(heap, 0);
        }
        must_balance_budget(heap, budgets[b], "running");
        cr_assert(cached_of(heap) <= budgets[b], "%zu bytes cached, %zu allowed", cached_of(heap),
                  budgets[b]);
        (void)hak_heap_flush(heap);
        must_balance_budget(heap, budgets[b], "flushed");
        (void)hak_heap_trim(heap, 0);
        must_balance_budget(heap, budgets[b], "trimmed");
        cr_assert(hak_heap_reset(heap) == 0);
        must_balance_budget(heap, budgets[b], "reset");
        must_be_sound(heap, 0, "reset");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Several at once ---- */

static hak_heap_t *common;
static _Atomic bool stop;

static void *use(void *arg)
{
    randoms_t randoms = {(uint64_t)(uintptr_t)arg};
    void *slots[64] = {NULL};
    while (!stop) {
        void **slot = &slots[random_below(&randoms, 64)];
        hak_heap_free(common, *slot);
        *slot = hak_heap_malloc(common, random_below(&randoms, 70000));
    }
    for (int i = 0; i < 64; i++) hak_heap_free(common, slots[i]);
    return NULL;
}

static void *tidy(void *arg)
{
    for (size_t i = (uintptr_t)arg; !stop; i++) {
        (void)hak_heap_flush(common);
        (void)hak_heap_trim(common, i % 2 ? 0 : 100000);
    }
    return NULL;
}

Test(flush_trim, several_flush_and_trim_at_once)
{
    common = contract_heap(1, "common");
    pthread_t users[2], janitors[2];
    for (uintptr_t i = 0; i < 2; i++)
        cr_assert(pthread_create(&users[i], NULL, use, (void *)(i + 1)) == 0);
    for (uintptr_t i = 0; i < 2; i++)
        cr_assert(pthread_create(&janitors[i], NULL, tidy, (void *)i) == 0);
    for (size_t i = 0; i < contract_work(400); i++) {
        (void)hak_heap_flush(common);
        (void)hak_heap_trim(common, i % 2 ? 0 : 100000);
        cr_assert(hak_heap_check(common) == 0);
        hak_heap_stats_t stats = contract_stats(common);
        cr_assert(stats.live_bytes <= stats.committed_bytes &&
                  stats.committed_bytes <= stats.peak_bytes);
    }
    stop = true;
    for (int i = 0; i < 2; i++) pthread_join(users[i], NULL), pthread_join(janitors[i], NULL);
    (void)hak_heap_flush(common);
    must_be_flushed(common, "at the end");
    must_be_sound(common, 0, "at the end");
    cr_assert(hak_heap_destroy(common) == 0);
}

/* What a reset gives back is counted by its pages, and the pages of mid blocks, which nobody notes,
 * all of them. */
Test(flush_trim, a_reset_counts_what_may_have_been_written)
{
    enum { MIDS = 60, BYTES = 40000, GRANULES = (BYTES + GRANULE - 1) / GRANULE };
    for (int level = 0; level < 2; level++) {
        hak_heap_t *heap = contract_heap(level, "reset");
        (void)hak_reserve_trim();
        for (unsigned i = 0; i < MIDS; i++) cr_assert(hak_heap_malloc(heap, BYTES) != NULL);
        char *small = hak_heap_malloc(heap, 32768);
        cr_assert(small != NULL);
        *small = 1;
        cr_assert(hak_heap_reset(heap) == 0);
        size_t bytes = hak_reserve_trim();
        size_t mids = MIDS * GRANULES * (size_t)GRANULE;
        cr_assert(bytes >= mids && bytes <= mids + 4 * 32768, "%zu bytes, %zu of mid blocks", bytes,
                  mids);
        char *again = hak_heap_calloc(heap, 1, 100000);
        for (size_t i = 0; i < 100000; i++) cr_assert(!again[i]);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Long trims ---- */

enum { LONG_SUPERSLABS = 12, LONG_BLOCKS = LONG_SUPERSLABS * 6, LONG_BYTES = SUPERSLAB / 8 };

static hak_heap_t *long_heap;
static _Atomic unsigned long_purges, purges_before;

/* Each purge takes a while, as that of much memory does. */
static bool purge_slowly(void *at, size_t bytes)
{
    (void)at, (void)bytes;
    long_purges++;
    usleep(5000);
    return true;
}

static _Atomic bool long_done;

static void *trim_long(void *arg)
{
    (void)arg;
    return (void *)hak_heap_trim(long_heap, 0);
}

static void *malloc_meanwhile(void *arg)
{
    (void)arg;
    while (!long_purges) usleep(100);
    /* For the lock that the trim works under. */
    void *block = hak_heap_malloc(long_heap, LONG_BYTES);
    purges_before = long_purges;
    hak_heap_free(long_heap, block);
    return NULL;
}

static void *fork_meanwhile(void *arg)
{
    (void)arg;
    while (!long_purges) usleep(100);
    pid_t child = fork();
    if (child == 0) {
        void *block = hak_heap_malloc(long_heap, LONG_BYTES);
        hak_heap_free(long_heap, block);
        _exit(!block || hak_heap_check(long_heap) != 0);
    }
    purges_before = long_purges;
    int status = -1;
    cr_assert(child > 0 && waitpid(child, &status, 0) == child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
    return NULL;
}

/* A trim of many SuperSlabs purges one after another: who comes in between waits for a few and not
 * for all. */
static void meet_a_long_trim(void *(*meanwhile)(void *))
{
    static void *blocks[LONG_BLOCKS];
    long_heap = contract_heap(0, "long");
    for (unsigned i = 0; i < LONG_BLOCKS; i++) {
        cr_assert((blocks[i] = hak_heap_malloc(long_heap, LONG_BYTES)) != NULL);
        contract_fill(blocks[i], LONG_BYTES, i);
    }
    /* One in two stays, so that SuperSlabs do, each with several free runs. */
    for (unsigned i = 0; i < LONG_BLOCKS; i += 2) hak_heap_free(long_heap, blocks[i]);
    fake_os_use();
    fake_os_watch_purge(purge_slowly);
    pthread_t trimmer, other;
    cr_assert(pthread_create(&trimmer, NULL, trim_long, NULL) == 0);
    cr_assert(pthread_create(&other, NULL, meanwhile, NULL) == 0);
    void *returned;
    pthread_join(trimmer, &returned);
    pthread_join(other, NULL);
    fake_os_restore();
    cr_assert((size_t)returned >= LONG_SUPERSLABS * (size_t)LONG_BYTES, "%zu bytes",
              (size_t)returned);
    cr_assert(purges_before && purges_before <= long_purges / 2, "%u of %u purges came before",
              purges_before, long_purges);
    for (unsigned i = 1; i < LONG_BLOCKS; i += 2) {
        cr_assert(contract_holds(blocks[i], LONG_BYTES, i), "block %u", i);
        hak_heap_free(long_heap, blocks[i]);
    }
    must_be_sound(long_heap, 0, "at the end");
    cr_assert(hak_heap_destroy(long_heap) == 0);
}

Test(flush_trim, no_allocation_waits_for_a_whole_trim) { meet_a_long_trim(malloc_meanwhile); }
Test(flush_trim, no_fork_waits_for_a_whole_trim) { meet_a_long_trim(fork_meanwhile); }

static void *trim_the_process(void *arg)
{
    (void)arg;
    return (void *)hak_reserve_trim();
}

static void *begin_meanwhile(void *arg)
{
    (void)arg;
    while (!long_purges) usleep(100);
    /* For the lock of the nursery. */
    hak_heap_t *heap = contract_heap(0, "meanwhile");
    void *block = hak_heap_malloc(heap, GRANULE);
    purges_before = long_purges;
    cr_assert(block && hak_heap_destroy(heap) == 0);
    return NULL;
}

/* The same of the nursery's SuperSlabs, in which each heap has one granule of eight. */
Test(flush_trim, no_heap_waits_for_a_whole_trim_of_the_nursery)
{
    enum { HEAPS = LONG_SUPERSLABS, YOUNG = SUPERSLAB_GRANULES / 3 };
    static hak_heap_t *heaps[HEAPS];
    static char *blocks[HEAPS][YOUNG];
    for (unsigned h = 0; h < HEAPS; h++) {
        cr_assert((heaps[h] = contract_heap(0, "young")) != NULL);
        for (unsigned i = 0; i < YOUNG; i++) {
            cr_assert((blocks[h][i] = hak_heap_malloc(heaps[h], 3 * GRANULE)) != NULL);
            *blocks[h][i] = 1;
        }
    }
    for (unsigned h = 0; h < HEAPS; h++)
        for (unsigned i = 0; i < YOUNG; i++)
            if (i % 8) hak_heap_free(heaps[h], blocks[h][i]);
    fake_os_use();
    fake_os_watch_purge(purge_slowly);
    pthread_t trimmer, other;
    cr_assert(pthread_create(&trimmer, NULL, trim_the_process, NULL) == 0);
    cr_assert(pthread_create(&other, NULL, begin_meanwhile, NULL) == 0);
    pthread_join(trimmer, NULL);
    pthread_join(other, NULL);
    fake_os_restore();
    cr_assert(purges_before && purges_before <= long_purges / 2, "%u of %u purges came before",
              purges_before, long_purges);
    for (unsigned h = 0; h < HEAPS; h++) cr_assert(hak_heap_destroy(heaps[h]) == 0);
}

static void *trim_and_keep(void *arg)
{
    (void)arg;
    while (!long_done) (void)hak_heap_trim(long_heap, SIZE_MAX);
    return NULL;
}

/* Trims of one heap at once: none passes over what another reached with a keep_bytes of its own. */
Test(flush_trim, a_trim_beside_one_that_keeps_leaves_nothing)
{
    enum { BLOCKS = 200, ROUNDS = 10 };
    static void *blocks[BLOCKS];
    pthread_t other;
    long_heap = contract_heap(0, "two");
    cr_assert(pthread_create(&other, NULL, trim_and_keep, NULL) == 0);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < BLOCKS; i++) {
            cr_assert((blocks[i] = hak_heap_malloc(long_heap, LONG_BYTES)) != NULL);
            memset(blocks[i], 1, LONG_BYTES);
        }
        for (unsigned i = 0; i < BLOCKS; i++)
            if (i % 8) hak_heap_free(long_heap, blocks[i]);
        size_t first = hak_heap_trim(long_heap, 0), again = hak_heap_trim(long_heap, 0);
        cr_assert(first > 0 && again == 0, "%zu bytes, and %zu that it left", first, again);
        for (unsigned i = 0; i < BLOCKS; i += 8) hak_heap_free(long_heap, blocks[i]);
    }
    long_done = true;
    pthread_join(other, NULL);
    must_be_sound(long_heap, 0, "at the end");
    cr_assert(hak_heap_destroy(long_heap) == 0);
}

/* A trim returns what was cached when it began; what others go on to free is theirs. */
static void *free_large_again_and_again(void *arg)
{
    (void)arg;
    while (!long_done) {
        void *block = hak_heap_malloc(long_heap, 2 * HAK_MIB);
        cr_assert(block);
        hak_heap_free(long_heap, block);
    }
    return NULL;
}

Test(flush_trim, a_trim_ends_beside_large_frees)
{
    enum { TRIMS = 50, THREADS = 2, MOST = 8 };
    pthread_t threads[THREADS];
    long_heap = contract_heap(0, "ends");
    for (unsigned i = 0; i < THREADS; i++)
        cr_assert(pthread_create(&threads[i], NULL, free_large_again_and_again, NULL) == 0);
    for (unsigned i = 0; i < TRIMS; i++) {
        size_t returned = hak_heap_trim(long_heap, 0);
        cr_assert(returned <= MOST * 2 * HAK_MIB, "%zu bytes", returned);
    }
    long_done = true;
    for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    must_be_sound(long_heap, 0, "at the end");
    cr_assert(hak_heap_destroy(long_heap) == 0);
}

static os_table_t watched;
static unsigned unmapped_unlocked;

static bool note_locks(void *at, size_t bytes)
{
    bool free = !lock_is_held(&long_heap->lock) && !lock_is_held(&process_reserve.lock);
    unmapped_unlocked += free && bytes == 64 * HAK_MIB;
    return os_kernel.unmap(at, bytes);
}

/* The kernel takes long over it. */
Test(flush_trim, a_block_too_large_to_keep_goes_without_a_lock)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 32 * HAK_MIB;
    long_heap = hak_heap_create(&config);
    char *large = hak_heap_malloc(long_heap, 64 * HAK_MIB),
         *kept = hak_heap_malloc(long_heap, 16 * HAK_MIB);
    cr_assert(large && kept);
    large[0] = large[64 * HAK_MIB - 1] = kept[0] = 1;
    watched = os_kernel;
    watched.unmap = note_locks;
    os = &watched;
    hak_heap_free(long_heap, large);
    hak_heap_free(long_heap, kept);
    os = &os_kernel;
    cr_assert(unmapped_unlocked == 1, "%u calls", unmapped_unlocked);
    cr_assert(contract_stats(long_heap).large_cached_bytes == 16 * HAK_MIB,
              "a block that is kept keeps its pages");
    must_be_sound(long_heap, 0, "at the end");
    cr_assert(hak_heap_destroy(long_heap) == 0);
}
