/* reserve: SuperSlabs to take and give back, the bound on dirty ones, who gave them, the nursery, a
 * system that refuses. */
#include "reserve.h"

#include <criterion/criterion.h>
#include <sys/resource.h>

#include "hakheap.h"
#include "registry.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_os.h"

TestSuite(reserve, .timeout = 600);

static uint32_t refused;
static reserve_t reserve; /* the tests' own, by the table of the process */
static size_t returned;   /* by puts, since somebody cleared it */

static superslab_t *take(void)
{
    refused = HAK_ERROR_NONE;
    superslab_t *ss = reserve_take(&reserve, false, &refused);
    cr_assert(ss != NULL, "refused: %u", refused);
    return ss;
}

static bool put(superslab_t *ss, const void *giver, bool may_wait)
{
    return reserve_put(&reserve, ss, giver, may_wait, &returned);
}

static bool put_run(run_t run, unsigned granules, pages_t pages, bool may_wait)
{
    return nursery_put(&reserve, &(nursery_run_t){run, granules, pages}, 1, may_wait, &returned);
}

/* Writes the first page of so many granules, as an owner would, and gives all back. */
static void soil(superslab_t *ss, unsigned granules)
{
    superslab_set_t set = {0};
    superslab_set_add(&set, ss);
    run_t run = superslab_take(&set, granules, 1);
    cr_assert(run.ss == ss);
    for (unsigned g = 0; g < granules; g++)
        memset(superslab_granule(ss, run.first + g), 0x77, HAK_PAGE);
    superslab_put(&set, run, granules, 0x1111111111111111ull);
    superslab_set_remove(&set, ss);
}

/* The same of all pages. */
static void fill(superslab_t *ss)
{
    superslab_set_t set = {0};
    superslab_set_add(&set, ss);
    run_t run = superslab_take(&set, SUPERSLAB_GRANULES, 1);
    memset(ss->base, 0x77, SUPERSLAB);
    superslab_put(&set, run, SUPERSLAB_GRANULES, PAGES_ALL);
    superslab_set_remove(&set, ss);
}

Test(reserve, superslabs_are_aligned_registered_and_empty)
{
    enum { COUNT = 20 };
    superslab_t *taken[COUNT];
    for (unsigned i = 0; i < COUNT; i++) {
        superslab_t *ss = taken[i] = take();
        cr_assert((uintptr_t)ss->base % SUPERSLAB == 0);
        cr_assert((uintptr_t)ss->descriptors % DESCRIPTOR_BYTES == 0);
        cr_assert(superslab_is_valid(ss) && superslab_is_empty(ss) && ss->free_touched == 0 &&
                  !ss->shared);
        cr_assert(registry_superslab(ss->base) == ss &&
                  registry_superslab(ss->base + SUPERSLAB - 1) == ss);
        cr_assert(!memory_is_resident(ss->base) &&
                  !memory_is_resident(ss->base + SUPERSLAB - HAK_PAGE));
        ss->base[0] = ss->base[SUPERSLAB - 1] = 1;
        memset(ss->descriptors, (int)i, SUPERSLAB_GRANULES * DESCRIPTOR_BYTES);
        for (unsigned k = 0; k < i; k++) cr_assert(taken[k] != ss && taken[k]->base != ss->base);
    }
    for (unsigned i = 0; i < COUNT; i++)
        cr_assert(taken[i]->descriptors[0] == (char)i &&
                      taken[i]->descriptors[SUPERSLAB_GRANULES * DESCRIPTOR_BYTES - 1] == (char)i,
                  "descriptors overlap");
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.reservations == 1 && stats.reserved_bytes == HAK_GIB);
    cr_assert(stats.dirty_superslabs == 0 && stats.clean_superslabs == 0 &&
              stats.nursery_superslabs == 0);
}

/* At most RESERVE_DIRTY keep their pages; the others come back as the kernel makes them. */
Test(reserve, dirty_superslabs_are_bounded)
{
    enum { COUNT = RESERVE_DIRTY + 4 };
    superslab_t *taken[COUNT];
    for (unsigned i = 0; i < COUNT; i++) fill(taken[i] = take());
    for (unsigned i = 0; i < COUNT; i++) {
        cr_assert(put(taken[i], NULL, true));
        reserve_stats_t stats = reserve_stats(&reserve);
        cr_assert(stats.dirty_superslabs == hak_min(i + 1, RESERVE_DIRTY), "%zu dirty",
                  stats.dirty_superslabs);
        cr_assert(stats.clean_superslabs == i + 1 - stats.dirty_superslabs, "%zu clean",
                  stats.clean_superslabs);
    }
    unsigned resident = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        cr_assert((taken[i]->free_touched != 0) == memory_is_resident(taken[i]->base),
                  "SuperSlab %u", i);
        cr_assert(superslab_is_valid(taken[i]));
        resident += memory_is_resident(taken[i]->base);
    }
    cr_assert(resident == RESERVE_DIRTY);

    /* Dirty ones are used again first, and say that they are; then clean ones, which read as zero;
     * then fresh ones. */
    for (unsigned i = 0; i < COUNT + 1; i++) {
        superslab_t *ss = take();
        bool again = false;
        for (unsigned k = 0; k < COUNT; k++) again = again || taken[k] == ss;
        cr_assert(again == (i < COUNT), "take %u", i);
        cr_assert((ss->free_touched == SUPERSLAB / HAK_PAGE) == (i < RESERVE_DIRTY),
                  "take %u: %u pages", i, ss->free_touched);
        cr_assert(memory_is_zero(ss->base, GRANULE) == (i >= RESERVE_DIRTY), "take %u", i);
        cr_assert(superslab_is_empty(ss) && superslab_is_valid(ss));
    }
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 0 &&
              reserve_stats(&reserve).clean_superslabs == 0);
}

/* What counts is pages, not SuperSlabs. */
Test(reserve, superslabs_with_few_pages_keep_them)
{
    enum { COUNT = 4 * RESERVE_DIRTY, EACH = SUPERSLAB_GRANULES - 1 /* and one of descriptors */ };
    superslab_t *taken[COUNT + 1];
    for (unsigned i = 0; i < COUNT + 1; i++) soil(taken[i] = take(), EACH);
    for (unsigned i = 0; i < COUNT; i++) cr_assert(put(taken[i], NULL, true));
    cr_assert(reserve_stats(&reserve).dirty_superslabs == COUNT &&
              reserve_stats(&reserve).clean_superslabs == 0);
    cr_assert(put(taken[COUNT], NULL, true));
    cr_assert(reserve_stats(&reserve).dirty_superslabs == COUNT &&
                  reserve_stats(&reserve).clean_superslabs == 1,
              "one too many");
    superslab_t *again = take();
    cr_assert(again->free_touched == EACH);
    soil(again, 1);
    cr_assert(put(again, NULL, true) && reserve_stats(&reserve).dirty_superslabs == COUNT,
              "room for it again");
    cr_assert(reserve_trim(&reserve, NULL) == COUNT * EACH * HAK_PAGE);
    for (unsigned i = 0; i < COUNT; i++) soil(taken[i] = take(), EACH);
    for (unsigned i = 0; i < COUNT; i++) cr_assert(put(taken[i], NULL, true));
    cr_assert(reserve_stats(&reserve).dirty_superslabs == COUNT, "a trim forgets what was dirty");
}

Test(reserve, an_untouched_superslab_comes_back_clean)
{
    superslab_t *ss = take();
    memset(ss->descriptors, 1, HAK_PAGE);
    cr_assert(put(ss, NULL, true));
    cr_assert(reserve_stats(&reserve).clean_superslabs == 1 &&
              reserve_stats(&reserve).dirty_superslabs == 0);
    cr_assert(memory_is_zero(ss->descriptors, HAK_PAGE), "the descriptors' pages went too");
    cr_assert(take() == ss);
}

/* ---- Trim ---- */

static const char giver_a, giver_b;

static void give_three_each(superslab_t *of_a[3], superslab_t *of_b[3])
{
    for (unsigned i = 0; i < 3; i++) soil(of_a[i] = take(), i + 1);
    for (unsigned i = 0; i < 3; i++) soil(of_b[i] = take(), 10);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert(put(of_a[i], &giver_a, true));
        cr_assert(put(of_b[i], &giver_b, true));
    }
}

Test(reserve, a_giver_trims_what_it_gave)
{
    superslab_t *of_a[3], *of_b[3];
    give_three_each(of_a, of_b);
    cr_assert(reserve_trim(&reserve, &giver_a) == 6 * HAK_PAGE);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert(!memory_is_resident(of_a[i]->base) && of_a[i]->free_touched == 0);
        cr_assert(memory_is_resident(of_b[i]->base) && of_b[i]->base[0] == 0x77 &&
                  of_b[i]->free_touched == 10);
    }
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.dirty_superslabs == 3 && stats.clean_superslabs == 3);
    cr_assert(reserve_trim(&reserve, &giver_a) == 0);
    cr_assert(reserve_trim(&reserve, NULL) == 30 * HAK_PAGE);
    stats = reserve_stats(&reserve);
    cr_assert(stats.dirty_superslabs == 0 && stats.clean_superslabs == 6);
    cr_assert(reserve_trim(&reserve, NULL) == 0);
}

/* Who takes a SuperSlab and gives it on is its giver from then on. */
Test(reserve, the_last_giver_counts)
{
    superslab_t *ss = take();
    soil(ss, 2);
    cr_assert(put(ss, &giver_a, true));
    cr_assert(take() == ss);
    cr_assert(put(ss, &giver_b, true));
    cr_assert(reserve_trim(&reserve, &giver_a) == 0);
    cr_assert(reserve_trim(&reserve, &giver_b) == 2 * HAK_PAGE);
}

Test(reserve, a_refused_purge_stays_dirty)
{
    superslab_t *of_a[3], *of_b[3];
    give_three_each(of_a, of_b);
    fake_os_use();
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_DECOMMIT, 1, FAKE_FOREVER);
    cr_assert(reserve_trim(&reserve, NULL) == 0);
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 6 &&
              reserve_stats(&reserve).clean_superslabs == 0);
    for (unsigned i = 0; i < 3; i++)
        cr_assert(superslab_is_valid(of_a[i]) && of_a[i]->free_touched == i + 1);
    fake_os_allow(FAKE_PURGE);
    fake_os_allow(FAKE_DECOMMIT);
    cr_assert(reserve_trim(&reserve, NULL) == 36 * HAK_PAGE);
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 0 &&
              reserve_stats(&reserve).clean_superslabs == 6);
    fake_os_restore();
}

/* What left the reserve's bound is nobody's: no one can read it, until it is taken again. */
Test(reserve, what_is_clean_is_decommitted)
{
    superslab_t *ss = take();
    fill(ss);
    registry_set_run(ss->base, SUPERSLAB_GRANULES, &giver_a, CODE_RELEASED);
    cr_assert(put(ss, &giver_a, true) && memory_is_readable(ss->base), "there is room for it");
    entry_t before = registry_lookup(ss->base + GRANULE);
    cr_assert(reserve_trim(&reserve, NULL) == SUPERSLAB);
    cr_assert(!memory_is_readable(ss->base) && !memory_is_readable(ss->base + SUPERSLAB - 1));
    entry_t after = registry_lookup(ss->base + GRANULE);
    cr_assert(entry_heap(before) && !entry_heap(after), "no free may take it for its own");
    cr_assert(entry_code(after) == CODE_RELEASED && entry_back(after) == entry_back(before));
    cr_assert(take() == ss && superslab_is_valid(ss) && memory_is_zero(ss->base, SUPERSLAB));
}

/* Where there are too many mappings the pages go all the same, and the next trim asks again. */
Test(reserve, a_refused_decommit_purges)
{
    superslab_t *ss = take();
    fill(ss);
    fake_os_use();
    fake_os_refuse(FAKE_DECOMMIT, 1, 1);
    cr_assert(put(ss, &giver_a, true) && reserve_trim(&reserve, &giver_a) == SUPERSLAB);
    cr_assert(!memory_is_resident(ss->base));
    cr_assert(superslab_is_valid(ss) && !ss->free_touched && memory_is_readable(ss->base));
    long commits = fake_os_calls(FAKE_COMMIT);
    cr_assert(take() == ss && fake_os_calls(FAKE_COMMIT) == commits, "it is committed");
    soil(ss, 1);
    cr_assert(put(ss, &giver_a, true) && reserve_trim(&reserve, &giver_a) == HAK_PAGE);
    cr_assert(!memory_is_readable(ss->base));
    fake_os_restore();
}

/* Pages that did go are no reason to keep more of them. */
Test(reserve, a_refused_decommit_is_no_refused_purge)
{
    enum { COUNT = 4 * RESERVE_DIRTY };
    superslab_t *taken[COUNT];
    for (unsigned i = 0; i < COUNT; i++) fill(taken[i] = take());
    fake_os_use();
    fake_os_refuse(FAKE_DECOMMIT, 1, FAKE_FOREVER);
    for (unsigned i = 0; i < COUNT; i++) cr_assert(put(taken[i], NULL, true));
    unsigned resident = 0;
    for (unsigned i = 0; i < COUNT; i++) resident += memory_is_resident(taken[i]->base);
    cr_assert(resident <= RESERVE_DIRTY, "%u SuperSlabs", resident);
    fake_os_restore();
}

/* ---- Holes ---- */

enum {
    HOLES = 200 + RESERVE_HOLES
}; /* every second SuperSlab is given back, by the kernel's table */
static superslab_t *seconds[HOLES];

static void give_every_second(void)
{
    for (unsigned i = 0; i < HOLES; i++) {
        seconds[i] = take();
        (void)take();
    }
    for (unsigned i = 0; i < HOLES; i++) cr_assert(put(seconds[i], &giver_a, true));
}

/* However heaps come and go, the reserve leaves the process half of its mappings. */
Test(reserve, decommitted_superslabs_are_bounded)
{
    size_t before = contract_mappings();
    give_every_second();
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.clean_superslabs == RESERVE_HOLES, "%zu clean", stats.clean_superslabs);
    cr_assert(stats.dirty_superslabs == HOLES - RESERVE_HOLES, "%zu dirty", stats.dirty_superslabs);
    size_t more = contract_mappings() - before;
    size_t others = 4 * stats.reservations; /* what is reserved, its records, tables */
    cr_assert(more > RESERVE_HOLES && more <= 65530 / 2 + others, "%zu mappings", more);
    cr_assert(memory_is_readable(seconds[HOLES - 1]->base) &&
              !memory_is_readable(seconds[0]->base));
}

/* What is only purged keeps no page, so it takes no room from what does; it serves first, and a
 * trim asks for it when there is room for a hole. */
Test(reserve, beyond_the_bound_superslabs_are_purged)
{
    give_every_second();
    superslab_t *kept[RESERVE_DIRTY];
    for (unsigned i = 0; i < RESERVE_DIRTY; i++) fill(kept[i] = take());
    for (unsigned i = 0; i < RESERVE_DIRTY; i++) cr_assert(put(kept[i], &giver_b, true));
    for (unsigned i = 0; i < RESERVE_DIRTY; i++) cr_assert(memory_is_resident(kept[i]->base));
    fake_os_use();
    size_t bytes = reserve_trim(&reserve, NULL);
    cr_assert(bytes == RESERVE_DIRTY * (size_t)SUPERSLAB, "%zu bytes", bytes);
    cr_assert(fake_os_calls(FAKE_DECOMMIT) == 0, "there is room for no hole");
    cr_assert(fake_os_calls(FAKE_PURGE) <= 2 * RESERVE_DIRTY, "%ld calls for what has nothing",
              fake_os_calls(FAKE_PURGE));
    size_t dirty = reserve_stats(&reserve).dirty_superslabs;
    for (size_t i = 0; i < dirty; i++) cr_assert(take()->committed);
    cr_assert(fake_os_calls(FAKE_COMMIT) == 0, "they are committed");
    superslab_t *clean = take();
    cr_assert(reserve_stats(&reserve).clean_superslabs == RESERVE_HOLES - 1);
    cr_assert(put(clean, NULL, true) && fake_os_calls(FAKE_DECOMMIT) == 1, "there is room for one");
    fake_os_restore();
}

/* Refused where it is taken again: nothing is lost, and the next call tries again. */
Test(reserve, a_refused_commit_leaves_it_clean)
{
    superslab_t *ss = take();
    soil(ss, 1);
    cr_assert(put(ss, NULL, true) && reserve_trim(&reserve, NULL) == HAK_PAGE);
    fake_os_use();
    fake_os_refuse(FAKE_COMMIT, 1, 4); /* the clean one, and a fresh one */
    cr_assert(!reserve_take(&reserve, false, &refused) && refused == HAK_ERROR_COMMIT);
    cr_assert(!nursery_take(&reserve, 1, &refused).ss);
    cr_assert(reserve_stats(&reserve).clean_superslabs == 1);
    /* Where the kernel refuses to split a mapping it may well lengthen one. */
    fake_os_refuse(FAKE_COMMIT, 1, 1);
    refused = HAK_ERROR_NONE;
    superslab_t *fresh = take();
    cr_assert(refused == HAK_ERROR_NONE, "what was had in the end was not refused");
    cr_assert(fresh != ss && reserve_stats(&reserve).clean_superslabs == 1);
    cr_assert(take() == ss);
    fake_os_restore();
}

/* What was refused once is not held against the kernel for ever. */
Test(reserve, the_bound_holds_again_once_the_kernel_takes_again)
{
    enum { MANY = 8 * RESERVE_DIRTY };
    static superslab_t *all[2 * MANY];
    for (unsigned i = 0; i < 2 * MANY; i++) {
        all[i] = take();
        fill(all[i]);
    }
    fake_os_use();
    fake_os_refuse(FAKE_DECOMMIT, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    for (unsigned i = 0; i < MANY; i++) cr_assert(put(all[i], NULL, true));
    cr_assert(reserve_stats(&reserve).dirty_superslabs == MANY);
    fake_os_restore();
    cr_assert(reserve_trim(&reserve, NULL) == MANY * (size_t)SUPERSLAB);
    for (unsigned i = MANY; i < 2 * MANY; i++) cr_assert(put(all[i], NULL, true));
    cr_assert(reserve_stats(&reserve).dirty_superslabs <= RESERVE_DIRTY, "%zu",
              reserve_stats(&reserve).dirty_superslabs);
}

/* Two reserves share nothing, and each asks by its own table. */
static long own_commits;
static bool own_commit(void *at, size_t bytes)
{
    own_commits++;
    return os_kernel.commit(at, bytes);
}

Test(reserve, each_reserve_has_its_table)
{
    os_table_t table = os_kernel;
    table.commit = own_commit;
    reserve_t other;
    reserve_init(&other, &table);
    superslab_t *mine = take(), *ss = reserve_take(&other, false, &refused);
    cr_assert(ss && own_commits == 1);
    cr_assert(reserve_stats(&other).reservations == 1 && reserve_stats(&reserve).reservations == 1);
    cr_assert(reserve_put(&other, ss, NULL, true, &returned) && put(mine, NULL, true));
    cr_assert(take() == mine && own_commits == 1);
    cr_assert(reserve_take(&other, false, &refused) == ss && own_commits == 2);
}

/* A locked SuperSlab costs a few calls, once: those that come after it are kept without a call, until
 * there are twice as many. */
Test(reserve, a_refusal_is_remembered)
{
    enum { COUNT = 20 * RESERVE_DIRTY };
    static superslab_t *taken[COUNT];
    for (unsigned i = 0; i < COUNT; i++) fill(taken[i] = take());
    fake_os_use();
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_DECOMMIT, 1, FAKE_FOREVER);
    for (unsigned i = 0; i < COUNT; i++) cr_assert(put(taken[i], NULL, true));
    /* At 8, 16, 32, 64 and 128. */
    cr_assert(fake_os_calls(FAKE_DECOMMIT) == 5, "%ld calls", fake_os_calls(FAKE_DECOMMIT));
    cr_assert(returned == 0 && reserve_stats(&reserve).dirty_superslabs == COUNT);
    cr_assert(reserve_trim(&reserve, NULL) == 0, "which always asks");
    cr_assert(fake_os_calls(FAKE_DECOMMIT) == 5 + COUNT);
    fake_os_restore();
    cr_assert(reserve_trim(&reserve, NULL) == COUNT * (size_t)SUPERSLAB);
}

Test(reserve, what_goes_to_the_kernel_is_told)
{
    enum { COUNT = RESERVE_DIRTY + 3 };
    superslab_t *taken[COUNT];
    for (unsigned i = 0; i < COUNT; i++) fill(taken[i] = take());
    for (unsigned i = 0; i < COUNT; i++) cr_assert(put(taken[i], NULL, true));
    cr_assert(returned == 3 * (size_t)SUPERSLAB, "%zu bytes", returned);
}

/* ---- Nursery ---- */

static run_t take_nursery(unsigned granules)
{
    run_t run = nursery_take(&reserve, granules, &refused);
    cr_assert(run.ss != NULL, "refused: %u", refused);
    cr_assert(run.ss->shared);
    return run;
}

Test(reserve, the_nursery_shares_superslabs)
{
    run_t runs[32];
    for (unsigned i = 0; i < 32; i++) {
        runs[i] = take_nursery(4);
        cr_assert(runs[i].ss == runs[0].ss, "run %u", i);
        for (unsigned k = 0; k < i; k++)
            cr_assert(runs[k].first + 4 <= runs[i].first || runs[i].first + 4 <= runs[k].first,
                      "runs %u and %u", k, i);
        memset(superslab_granule(runs[i].ss, runs[i].first), 1, HAK_PAGE);
    }
    cr_assert(reserve_stats(&reserve).nursery_superslabs == 1);
    run_t next = take_nursery(1);
    cr_assert(next.ss != runs[0].ss);
    cr_assert(reserve_stats(&reserve).nursery_superslabs == 2);

    for (unsigned i = 0; i < 32; i++) cr_assert(put_run(runs[i], 4, 1, true));
    cr_assert(reserve_stats(&reserve).nursery_touched_bytes == 32 * HAK_PAGE);
    cr_assert(nursery_trim(&reserve) == 32 * HAK_PAGE);
    cr_assert(reserve_stats(&reserve).nursery_touched_bytes == 0);
    cr_assert(!memory_is_resident(superslab_granule(runs[3].ss, runs[3].first)));
    cr_assert(nursery_trim(&reserve) == 0);
    /* The first SuperSlab is empty, and leaves the nursery with the trim. */
    cr_assert(reserve_stats(&reserve).nursery_superslabs == 1);
    cr_assert(put_run(next, 1, 0, true));
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.nursery_superslabs == 1 && stats.clean_superslabs == 1,
              "%zu in the nursery, %zu clean", stats.nursery_superslabs, stats.clean_superslabs);
    superslab_t *ss = take();
    cr_assert((ss == next.ss || ss == runs[0].ss) && !ss->shared);
}

/* More than NURSERY_TOUCHED pages are never kept, and what a free gives back costs it no more than a
 * step. */
Test(reserve, the_nursery_keeps_a_bounded_number_of_pages)
{
    enum { RUNS = NURSERY_TOUCHED / 64 * 2 };
    static run_t runs[RUNS];
    for (unsigned i = 0; i < RUNS; i++) runs[i] = take_nursery(16);
    /* One run of each SuperSlab stays, so that none of them leaves the nursery. */
    size_t most = 0;
    bool fell = false;
    for (unsigned i = 0; i < RUNS; i++) {
        if (i % 8 == 0) continue;
        size_t before = reserve_stats(&reserve).nursery_touched_bytes, told = returned;
        cr_assert(put_run(runs[i], 16, PAGES_ALL, false));
        cr_assert(returned - told <= NURSERY_STEP * (size_t)HAK_PAGE, "%zu", returned - told);
        size_t after = reserve_stats(&reserve).nursery_touched_bytes;
        fell = fell || after < before;
        most = hak_max(most, after);
        cr_assert(after <= (size_t)NURSERY_TOUCHED * HAK_PAGE, "%zu bytes", after);
    }
    cr_assert(fell);
    cr_assert(most == (size_t)NURSERY_TOUCHED * HAK_PAGE, "%zu bytes", most);
}

/* What the nursery left in the reserve goes with it. */
Test(reserve, a_nursery_trim_reaches_what_it_gave)
{
    enum { RUNS = 3 * SUPERSLAB_GRANULES };
    static run_t runs[RUNS];
    superslab_t *kept = take();
    for (unsigned i = 0; i < RUNS; i++) {
        runs[i] = take_nursery(1);
        *superslab_granule(runs[i].ss, runs[i].first) = 1;
    }
    for (unsigned i = 0; i < RUNS; i++) cr_assert(put_run(runs[i], 1, 1, true));
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 2 &&
              reserve_stats(&reserve).nursery_superslabs == 1);
    soil(kept, 1);
    cr_assert(put(kept, &giver_a, true));
    cr_assert(nursery_trim(&reserve) == RUNS * HAK_PAGE);
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 1 && kept->free_touched == 1,
              "another's stays");
}

Test(reserve, the_nursery_is_bounded_when_everything_comes_back)
{
    enum { RUNS = NURSERY_TOUCHED / 64 * 2 };
    static run_t runs[RUNS];
    for (unsigned i = 0; i < RUNS; i++) runs[i] = take_nursery(16);
    for (unsigned i = 0; i < RUNS; i++) {
        unsigned at = i % 8 * (RUNS / 8) + i / 8; /* across SuperSlabs */
        cr_assert(put_run(runs[at], 16, PAGES_ALL, true));
        cr_assert(reserve_stats(&reserve).nursery_touched_bytes <=
                  (size_t)NURSERY_TOUCHED * HAK_PAGE);
    }
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.nursery_superslabs == 1);
    cr_assert(stats.dirty_superslabs <= RESERVE_DIRTY);
    cr_assert(stats.dirty_superslabs + stats.clean_superslabs == RUNS / 8 - 1,
              "%zu dirty, %zu clean", stats.dirty_superslabs, stats.clean_superslabs);
}

/* ---- A lock that is busy ---- */

static superslab_t *waiting;
static run_t waiting_run;
static unsigned tried;

static superslab_t *taken_meanwhile;

/* Called at each purge and decommit. */
static bool take_and_put_meanwhile(void *at, size_t bytes)
{
    (void)at, (void)bytes;
    if (tried++) return true;
    cr_assert(put(waiting, &giver_a, false), "the lock is held");
    taken_meanwhile = take();
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 0);
    return true;
}

/* A trim of much takes long; it keeps nobody from the reserve. */
Test(reserve, a_trim_asks_the_kernel_without_the_lock)
{
    enum { COUNT = 3 };
    superslab_t *given[COUNT];
    for (unsigned i = 0; i < COUNT; i++) soil(given[i] = take(), 1);
    soil(waiting = take(), 5);
    for (unsigned i = 0; i < COUNT; i++) cr_assert(put(given[i], &giver_a, false));
    fake_os_use();
    fake_os_watch_purge(take_and_put_meanwhile);
    cr_assert(reserve_trim(&reserve, &giver_a) == COUNT * HAK_PAGE);
    fake_os_restore();
    cr_assert(tried > 0 && taken_meanwhile == waiting && waiting->free_touched == 5);
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 0 &&
              reserve_stats(&reserve).clean_superslabs == COUNT);
    for (unsigned i = 0; i < COUNT; i++)
        cr_assert(superslab_is_valid(given[i]) && !given[i]->free_touched);
}

/* Called under the reserve's lock. */
static bool put_meanwhile(void *at, size_t bytes)
{
    (void)at, (void)bytes;
    if (tried++) return true;
    cr_assert(!put(waiting, NULL, false));
    cr_assert(!put_run(waiting_run, 2, PAGES_ALL, false));
    return true;
}

Test(reserve, who_may_not_wait_is_told_and_nothing_changes)
{
    waiting = take();
    soil(waiting, 3);
    waiting_run = take_nursery(2);
    run_t given = take_nursery(1);
    cr_assert(put_run(given, 1, 1, false), "the lock was free");
    uint32_t nursery_free = waiting_run.ss->free_granules;
    fake_os_use();
    fake_os_watch_purge(put_meanwhile);
    cr_assert(nursery_trim(&reserve) == HAK_PAGE);
    fake_os_restore();
    cr_assert(tried > 0);
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 0 &&
              reserve_stats(&reserve).clean_superslabs == 0);
    cr_assert(waiting->free_touched == 3 && waiting_run.ss->free_granules == nursery_free);
    cr_assert(superslab_is_valid(waiting) && superslab_is_valid(waiting_run.ss));
    cr_assert(put(waiting, NULL, false) && put_run(waiting_run, 2, 1, false));
    cr_assert(reserve_stats(&reserve).dirty_superslabs == 1 &&
              reserve_stats(&reserve).nursery_touched_bytes == HAK_PAGE);
}

/* As many calls as heaps, where the kernel takes nothing: each refusal doubles what the next needs. */
Test(reserve, a_refusing_kernel_is_asked_seldom_for_the_nursery)
{
    enum { RUNS = NURSERY_TOUCHED / 64 * 16 };
    static run_t runs[RUNS];
    for (unsigned i = 0; i < RUNS; i++) runs[i] = take_nursery(16);
    fake_os_use();
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    for (unsigned i = 0; i < RUNS; i++)
        if (i % 8) cr_assert(put_run(runs[i], 16, PAGES_ALL, true));
    /* Each purge of all asks each SuperSlab some 40 times at most, and each purge knows twice as
     * many as the one before. */
    cr_assert(fake_os_calls(FAKE_PURGE) < 2 * 40 * RUNS / 8, "%ld calls for %d runs",
              fake_os_calls(FAKE_PURGE), RUNS);
    cr_assert(returned == 0 && nursery_trim(&reserve) == 0);
    fake_os_restore();
    cr_assert(nursery_trim(&reserve) == RUNS / 8 * 7 * 64 * (size_t)HAK_PAGE);
}

/* ---- A system that refuses ---- */

Test(reserve, reservations_shrink_to_what_is_granted)
{
    static const struct {
        size_t bound, got;
    } steps[] = {{300 * HAK_MIB, 256 * HAK_MIB},
                 {256 * HAK_MIB - 1, 64 * HAK_MIB},
                 {17 * HAK_MIB, 16 * HAK_MIB},
                 {4 * HAK_MIB, 4 * HAK_MIB},
                 {4 * HAK_MIB - 1, 2 * HAK_MIB}};
    fake_os_use();
    size_t reserved = 0;
    for (unsigned i = 0; i < 5; i++) {
        fake_os_bound(FAKE_RESERVE, steps[i].bound);
        /* To the end of the reservation before, and one beyond. */
        for (size_t used = 0; reserve_stats(&reserve).reservations == i; used++) (void)take();
        reserved += steps[i].got;
        cr_assert(reserve_stats(&reserve).reserved_bytes == reserved, "step %u: %zu bytes", i,
                  reserve_stats(&reserve).reserved_bytes);
    }
    fake_os_restore();
}

/* Large blocks need some of a limited address space too, so a reservation takes its share at
 * most. */
Test(reserve, a_limited_address_space_is_shared)
{
    struct rlimit limit;
    cr_assert(getrlimit(RLIMIT_AS, &limit) == 0);
    limit.rlim_cur = memory_mapped() + 4 * HAK_GIB;
    if (limit.rlim_max != RLIM_INFINITY && limit.rlim_cur > limit.rlim_max)
        cr_skip_test("limited already");
    cr_assert(setrlimit(RLIMIT_AS, &limit) == 0);
    cr_assert(os_address_space() == limit.rlim_cur);
    size_t wanted = HAK_GIB;
    while (wanted > limit.rlim_cur / LIMIT_SHARE) wanted /= 4;
    (void)take();
    cr_assert(reserve_stats(&reserve).reserved_bytes == wanted, "%zu bytes, not %zu",
              reserve_stats(&reserve).reserved_bytes, wanted);
}

Test(reserve, small_reservations_follow_each_other)
{
    enum { COUNT = 9 };
    superslab_t *taken[COUNT];
    fake_os_use();
    fake_os_bound(FAKE_RESERVE, 4 * HAK_MIB);
    for (unsigned i = 0; i < COUNT; i++) {
        taken[i] = take();
        cr_assert(registry_superslab(taken[i]->base) == taken[i]);
        memset(taken[i]->base, 1, SUPERSLAB);
        memset(taken[i]->descriptors, 1, SUPERSLAB_GRANULES * DESCRIPTOR_BYTES);
        for (unsigned k = 0; k < i; k++)
            cr_assert(taken[k] != taken[i] && taken[k]->base != taken[i]->base);
    }
    for (unsigned i = 0; i < COUNT; i++) cr_assert(superslab_is_valid(taken[i]));
    cr_assert(reserve_stats(&reserve).reservations == (COUNT + 1) / 2);
    fake_os_restore();
}

Test(reserve, no_address_space_at_all)
{
    fake_os_use();
    fake_os_refuse(FAKE_RESERVE, 1, FAKE_FOREVER);
    cr_assert(reserve_take(&reserve, false, &refused) == NULL && refused == HAK_ERROR_RESERVE);
    cr_assert(fake_os_calls(FAKE_RESERVE) == 12,
              "1 GiB, 256, 64, 16, 4 and 2 MiB, and once more unlocked");
    refused = HAK_ERROR_NONE;
    cr_assert(nursery_take(&reserve, 1, &refused).ss == NULL && refused == HAK_ERROR_RESERVE);
    cr_assert(reserve_stats(&reserve).reservations == 0 &&
              reserve_stats(&reserve).reserved_bytes == 0);
    fake_os_allow(FAKE_RESERVE);
    (void)take();
    cr_assert(reserve_stats(&reserve).reserved_bytes == HAK_GIB);
    fake_os_restore();
}

/* Where the records or the tables are refused, the address space goes back and a smaller one is
 * tried. */
Test(reserve, refused_records_leave_nothing_behind)
{
    size_t before = memory_mapped();
    fake_os_use();
    fake_os_refuse(FAKE_MAP, 1, FAKE_FOREVER);
    cr_assert(reserve_take(&reserve, false, &refused) == NULL && refused == HAK_ERROR_RESERVE);
    cr_assert(fake_os_calls(FAKE_UNMAP) == 12, "%ld ranges unmapped", fake_os_calls(FAKE_UNMAP));
    cr_assert(memory_mapped() < before + 100 * HAK_MIB);
    fake_os_refuse(FAKE_MAP, 1, 1);
    (void)take();
    cr_assert(reserve_stats(&reserve).reserved_bytes == 256 * HAK_MIB);
    fake_os_restore();
}

Test(reserve, refused_tables_leave_nothing_behind)
{
    fake_os_use();
    fake_os_refuse(FAKE_MAP, 2, 1); /* the records are granted, the registry's table is not */
    (void)take();
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.reservations == 1 && stats.reserved_bytes == 256 * HAK_MIB);
    cr_assert(fake_os_calls(FAKE_UNMAP) == 2, "the records and the range");
    fake_os_restore();
}

Test(reserve, refused_memory_can_be_asked_for_again)
{
    superslab_t *first = take();
    fake_os_use();
    fake_os_refuse(FAKE_COMMIT, 1, 3);
    for (unsigned i = 0; i < 3; i++) {
        refused = HAK_ERROR_NONE;
        if (i == 1) cr_assert(nursery_take(&reserve, 2, &refused).ss == NULL);
        else cr_assert(reserve_take(&reserve, false, &refused) == NULL);
        cr_assert(refused == HAK_ERROR_COMMIT);
    }
    cr_assert(registry_superslab(first->base + SUPERSLAB) == NULL);
    superslab_t *next = take();
    cr_assert(next->base == first->base + SUPERSLAB, "no SuperSlab was lost");
    next->base[0] = 1;
    /* What is dirty needs no commit. */
    soil(next, 1);
    cr_assert(put(next, NULL, true));
    fake_os_refuse(FAKE_COMMIT, 1, FAKE_FOREVER);
    cr_assert(take() == next);
    cr_assert(reserve_take(&reserve, false, &refused) == NULL);
    fake_os_restore();
    cr_assert(reserve_stats(&reserve).reservations == 1);
}
