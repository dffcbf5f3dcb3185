/* reserve: SuperSlabs to take and give back, the bound on dirty ones, who gave them, the nursery, a
 * system that refuses. */
#include "reserve.h"

#include <criterion/criterion.h>
#include <sys/resource.h>

#include "hakheap.h"
#include "large.h"
#include "registry.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_os.h"

static uint32_t refused;
static reserve_t reserve; /* the tests' own, by the table of the process */
static size_t returned;   /* by puts, since somebody cleared it */

/* How much it keeps, where no time passes: 8 SuperSlabs with their descriptors. */
enum { RESERVE_DIRTY = 8, DIRTY_PAGES = RESERVE_DIRTY * 514, NURSERY_TOUCHED = 16 * 256 };

static uint64_t now_ms;
static uint64_t given_time(void) { return now_ms; }
static os_table_t timed;

static void begin(void)
{
    timed = os_kernel;
    timed.milliseconds = given_time;
    os = &timed;
    reserve_init(&reserve, NULL);
    reserve_set_limit(&reserve, (size_t)DIRTY_PAGES * HAK_PAGE);
}
TestSuite(reserve, .timeout = 600, .init = begin);

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
    os_table_t own = os_kernel;
    own.commit = own_commit;
    reserve_t other;
    reserve_init(&other, &own);
    superslab_t *mine = take(), *ss = reserve_take(&other, false, &refused);
    cr_assert(ss && own_commits == 1);
    cr_assert(reserve_stats(&other).reservations == 1 && reserve_stats(&reserve).reservations == 1);
    cr_assert(reserve_put(&other, ss, NULL, true, &returned) && put(mine, NULL, true));
    cr_assert(take() == mine && own_commits == 1);
    cr_assert(reserve_take(&other, false, &refused) == ss && own_commits == 2);
}

/* ---- What a put does, by a table of the reserve's own ---- */

static reserve_t own;
static struct {
    long decommits, purges;
    bool refuses_decommit, refuses_purge;
} asked;

static bool own_decommit(void *at, size_t bytes)
{
    asked.decommits++;
    return !asked.refuses_decommit && os_kernel.decommit(at, bytes);
}

static bool own_purge(void *at, size_t bytes)
{
    asked.purges++;
    return !asked.refuses_purge && os_kernel.purge(at, bytes);
}

static void make_own(void)
{
    static os_table_t table;
    table = timed;
    table.decommit = own_decommit;
    table.purge = own_purge;
    reserve_init(&own, &table);
    reserve_set_limit(&own, (size_t)DIRTY_PAGES * HAK_PAGE);
}

static superslab_t *own_take(void)
{
    superslab_t *ss = reserve_take(&own, false, &refused);
    cr_assert(ss != NULL, "refused: %u", refused);
    return ss;
}

static void own_put(superslab_t *ss)
{
    returned = 0;
    cr_assert(reserve_put(&own, ss, &giver_a, true, &returned));
}

/* To the bound, and not a page more. Who arrives beyond it goes to the kernel; what is there stays
 * and serves again, the newest first. */
Test(reserve, who_finds_the_reserve_full_goes_to_the_kernel)
{
    enum {
        FULL = SUPERSLAB / HAK_PAGE + 1 /* and one of descriptors */,
        BITS = SUPERSLAB_GRANULES
    };
    const size_t bound = RESERVE_DIRTY * (size_t)(SUPERSLAB / HAK_PAGE + 2);
    make_own();
    superslab_t *full[RESERVE_DIRTY], *rest = own_take(), *less = own_take(), *over = own_take();
    for (unsigned i = 0; i < RESERVE_DIRTY; i++) fill(full[i] = own_take());
    for (unsigned i = 0; i < RESERVE_DIRTY; i++) own_put(full[i]);
    size_t room = bound - RESERVE_DIRTY * (size_t)FULL;
    cr_assert(room > 1 && room <= BITS);
    soil(rest, (unsigned)room - 1);
    own_put(rest);
    cr_assert(asked.decommits + asked.purges == 0 && returned == 0, "there was room for it");
    cr_assert(own_take() == rest);
    soil(less, (unsigned)room - 2);
    own_put(less);
    soil(over, 1);
    own_put(over); /* a page too many */
    cr_assert(asked.decommits == 1 && asked.purges == 1, "the descriptors' pages go as well");
    cr_assert(returned == HAK_PAGE && !memory_is_readable(over->base));
    cr_assert(!memory_is_resident(over->descriptors));
    cr_assert(own_take() == less);
    for (unsigned i = RESERVE_DIRTY; i-- > 0;) cr_assert(own_take() == full[i], "number %u", i);
    cr_assert(own_take() == over && asked.decommits == 1);
}

/* Where decommit is refused the same table is asked to purge, and a trim tries to decommit
 * again. */
Test(reserve, a_put_asks_its_own_table_for_all)
{
    make_own();
    superslab_t *full[RESERVE_DIRTY], *over = own_take();
    for (unsigned i = 0; i < RESERVE_DIRTY; i++) fill(full[i] = own_take());
    for (unsigned i = 0; i < RESERVE_DIRTY; i++) own_put(full[i]);
    fill(over);
    memset(over->descriptors, 1, SUPERSLAB_GRANULES * DESCRIPTOR_BYTES);
    asked.refuses_decommit = asked.refuses_purge = true;
    own_put(over);
    cr_assert(asked.decommits == 1 && asked.purges > 1 && returned == 0);
    cr_assert(over->committed && over->free_touched == SUPERSLAB / HAK_PAGE && over->far);
    cr_assert(memory_is_resident(over->base) && memory_is_resident(over->descriptors));
    reserve_stats_t stats = reserve_stats(&own);
    cr_assert(stats.dirty_superslabs == RESERVE_DIRTY + 1 && stats.clean_superslabs == 0);
    cr_assert(own.dirty_pages == RESERVE_DIRTY * (SUPERSLAB / HAK_PAGE + 1) + SUPERSLAB / HAK_PAGE +
                                     2 /* of descriptors */);
    asked.refuses_purge = false;
    cr_assert(reserve_trim(&own, NULL) == (RESERVE_DIRTY + 1) * (size_t)SUPERSLAB);
    cr_assert(own.dirty_pages == 0 && !memory_is_resident(over->base));
    asked.refuses_decommit = false;
    asked.decommits = 0;
    cr_assert(reserve_trim(&own, NULL) == 0 && asked.decommits == RESERVE_DIRTY + 1);
    cr_assert(reserve_stats(&own).clean_superslabs == RESERVE_DIRTY + 1);
}

/* What others take and put meanwhile is not in the way, and each is told what it returned. */
Test(reserve, many_may_leave_before_the_next_holder_comes)
{
    enum { MANY = 5 };
    make_own();
    superslab_t *many[MANY];
    size_t all = 0;
    for (unsigned i = 0; i < MANY; i++) soil(many[i] = own_take(), i + 1);
    for (unsigned i = 0; i < MANY; i++) cr_assert(reserve_put(&own, many[i], &giver_a, true, &all));
    cr_assert(all == 0 && reserve_trim(&own, &giver_b) == 0);
    cr_assert(reserve_trim(&own, &giver_a) == (1 + 2 + 3 + 4 + 5) * HAK_PAGE);
    cr_assert(load_relaxed(&own.arrived) != NULL, "they are on no list yet");
    cr_assert(reserve_stats(&own).clean_superslabs == MANY && !load_relaxed(&own.arrived));
    bool again[MANY] = {false};
    for (unsigned i = 0; i < MANY; i++) {
        superslab_t *ss = own_take();
        for (unsigned k = 0; k < MANY; k++) again[k] = again[k] || ss == many[k];
    }
    for (unsigned k = 0; k < MANY; k++) cr_assert(again[k], "number %u is lost", k);
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

/* Many runs at once, as a heap gives that is destroyed: their owner may wait, and goes on until what
 * is left is what may be kept. */
Test(reserve, who_may_wait_takes_as_many_steps_as_it_needs)
{
    enum { RUNS = 40, PAGES = 16 * GRANULE_PAGES };
    _Static_assert(RUNS / 2 * PAGES > 4 * NURSERY_STEP, "one step is not enough");
    nursery_run_t runs[RUNS / 2];
    reserve_set_limit(&reserve, 0);
    for (unsigned i = 0; i < RUNS; i++) {
        run_t run = take_nursery(16);
        /* Every other one stays, so that no SuperSlab leaves the nursery. */
        if (i % 2) runs[i / 2] = (nursery_run_t){run, 16, PAGES_ALL};
    }
    returned = 0;
    cr_assert(nursery_put(&reserve, runs, RUNS / 2, true, &returned));
    cr_assert(reserve_stats(&reserve).nursery_touched_bytes == 0, "%zu bytes stay",
              reserve_stats(&reserve).nursery_touched_bytes);
    cr_assert(returned == (size_t)RUNS / 2 * PAGES * HAK_PAGE, "%zu bytes told", returned);
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

/* ---- Time: what was in use a short while ago stays ---- */

enum { MANY_USED = 40, SECOND = 1000 };

static superslab_t *many[MANY_USED];

/* So many were in use, and are back. */
static void use_many(unsigned count)
{
    reserve_set_limit(&reserve, SIZE_MAX);
    for (unsigned i = 0; i < count; i++) fill(many[i] = take());
    for (unsigned i = 0; i < count; i++) cr_assert(put(many[i], NULL, true));
}

static size_t kept(void) { return reserve_stats(&reserve).dirty_superslabs; }

/* A tick, and as many calls as have something to do in it. */
static void pass_time(unsigned ms)
{
    for (unsigned passed = 0; passed < ms; passed += TICK_MS) {
        now_ms += TICK_MS;
        for (unsigned calls = 0; calls < MANY_USED; calls++) reserve_tick(&reserve);
    }
}

Test(reserve, what_was_in_use_stays_for_a_while_and_then_goes)
{
    use_many(MANY_USED);
    cr_assert(kept() == MANY_USED && returned == 0, "a wave finds its pages again: %zu", kept());
    size_t before = kept();
    for (unsigned tick = 0; tick < 5; tick++) {
        pass_time(TICK_MS);
        size_t now = kept();
        cr_assert(now < before && now * 4 > before * 2, "by degrees: %zu, then %zu", before, now);
        before = now;
    }
    cr_assert(before > MANY_USED / 4, "a third of a second is not the end: %zu", before);
    pass_time(2 * SECOND);
    cr_assert(kept() <= 1, "%zu after two seconds", kept());
    unsigned resident = 0;
    for (unsigned i = 0; i < MANY_USED; i++) resident += memory_is_resident(many[i]->base);
    cr_assert(resident == kept());
}

Test(reserve, the_oldest_goes_first)
{
    use_many(10);
    pass_time(3 * TICK_MS);
    size_t left = kept();
    cr_assert(left > 1 && left < 10, "%zu", left);
    for (unsigned i = 0; i < 10; i++)
        cr_assert(memory_is_resident(many[i]->base) == (i >= 10 - left), "SuperSlab %u", i);
    cr_assert(take() == many[9], "the newest is the first to serve");
}

/* What is in use is no reason to keep as much again; what a wave used before is. */
Test(reserve, a_wave_that_comes_again_in_time_takes_what_stayed)
{
    use_many(MANY_USED);
    for (unsigned wave = 0; wave < 5; wave++) {
        pass_time(TICK_MS);
        size_t before = kept(), commits = reserve_stats(&reserve).clean_superslabs;
        for (unsigned i = 0; i < before; i++) many[i] = take();
        cr_assert(kept() == 0 && reserve_stats(&reserve).clean_superslabs == commits);
        for (unsigned i = 0; i < before; i++) cr_assert(put(many[i], NULL, true));
        cr_assert(kept() == before);
    }
}

Test(reserve, a_tick_gives_back_a_step_and_waits_for_nothing)
{
    use_many(MANY_USED);
    now_ms += 10 * SECOND;
    lock_acquire(&reserve.lock, RANK_RESERVE);
    reserve_tick(&reserve);
    lock_release(&reserve.lock, RANK_RESERVE);
    cr_assert(kept() == MANY_USED, "the lock was busy");
    for (unsigned left = MANY_USED; left > 2; left -= RESERVE_STEP) {
        cr_assert(kept() == left);
        reserve_tick(&reserve);
    }
    fake_os_use();
    for (unsigned i = 0; i < 10; i++) reserve_tick(&reserve);
    cr_assert(fake_os_calls(FAKE_DECOMMIT) + fake_os_calls(FAKE_PURGE) <= 4,
              "nothing is left to do");
    fake_os_restore();
}

Test(reserve, a_lower_limit_holds_at_once)
{
    use_many(MANY_USED);
    reserve_set_limit(&reserve, 10 * (size_t)SUPERSLAB);
    cr_assert(kept() <= 10 && kept() >= 9, "%zu", kept());
    reserve_set_limit(&reserve, 0);
    cr_assert(kept() == 0);
    superslab_t *ss = take();
    fill(ss);
    cr_assert(put(ss, NULL, true) && kept() == 0 && !memory_is_readable(ss->base));
    reserve_set_limit(&reserve, SIZE_MAX);
    use_many(3);
    cr_assert(kept() == 3);
}

/* The nursery's free pages likewise. */
Test(reserve, nursery_pages_stay_for_a_while_and_then_go)
{
    enum { RUNS = 2000 };
    static run_t runs[RUNS];
    reserve_set_limit(&reserve, SIZE_MAX);
    for (unsigned i = 0; i < RUNS; i++) {
        runs[i] = nursery_take(&reserve, 1, &refused);
        cr_assert(runs[i].ss);
        memset(superslab_granule(runs[i].ss, runs[i].first), 1, GRANULE);
    }
    size_t all = RUNS * (size_t)GRANULE;
    for (unsigned i = 0; i < RUNS; i++) cr_assert(put_run(runs[i], 1, PAGES_ALL, true));
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.nursery_touched_bytes + stats.dirty_superslabs * SUPERSLAB >= all);
    pass_time(3 * SECOND);
    stats = reserve_stats(&reserve);
    cr_assert(stats.nursery_touched_bytes <= (size_t)RESERVE_LEAST * HAK_PAGE, "%zu",
              stats.nursery_touched_bytes);
    cr_assert(stats.dirty_superslabs <= 1, "%zu", stats.dirty_superslabs);
}

/* ---- Large blocks ---- */

enum { BLOCKS = 40, BLOCK = PARTS_FROM };

static parts_t parts;
static size_t dirty;

/* A block of its own mapping, filled with one byte. */
static char *map_block(size_t bytes, int byte)
{
    char *base = large_map(bytes, SUPERSLAB);
    cr_assert(base != NULL);
    reserve_note_large(&reserve, bytes, 0);
    return memset(base, byte, bytes);
}

static char *take_block(size_t bytes)
{
    parts.count = 0;
    char *base = reserve_take_pieces(&reserve, bytes, SUPERSLAB, &parts, &dirty);
    cr_assert((uintptr_t)base % SUPERSLAB == 0);
    return base;
}

static void put_block_of(char *base, size_t bytes, const parts_t *of, const void *giver)
{
    piece_t block = {.base = base, .bytes = bytes, .giver = giver};
    cr_assert(reserve_put_pieces(&reserve, block, of, SIZE_MAX, false));
    cr_assert(pieces_are_valid(&reserve.pieces));
}
static void put_block(char *base, size_t bytes) { put_block_of(base, bytes, &(parts_t){0}, NULL); }

static size_t held(void)
{
    cr_assert(pieces_are_valid(&reserve.pieces));
    return reserve_stats(&reserve).piece_bytes;
}

static bool is_filled(const char *at, size_t bytes, int byte)
{
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != (char)byte) return false;
    return true;
}

/* So many blocks were in use, and are back; what is kept is not limited. */
static void use_blocks(unsigned count)
{
    static char *blocks[BLOCKS];
    reserve_set_limit(&reserve, SIZE_MAX);
    for (unsigned i = 0; i < count; i++) blocks[i] = map_block(BLOCK, (int)i + 1);
    for (unsigned i = 0; i < count; i++) put_block(blocks[i], BLOCK);
}

Test(reserve, a_block_serves_again_without_a_call)
{
    char *base = map_block(BLOCK, 1);
    put_block(base, BLOCK);
    fake_os_use();
    cr_assert(take_block(BLOCK) == base && dirty == BLOCK && parts.count == 1);
    cr_assert(held() == 0 && load_relaxed(&reserve.large) == BLOCK);
    for (fake_call_t call = 0; call < FAKE_CALLS; call++)
        cr_assert(fake_os_calls(call) == 0, "call %u", call);
    fake_os_restore();
}

/* What is left of a longer one stays where it is, and serves for another. */
Test(reserve, a_longer_block_is_cut)
{
    char *base = map_block(9 * HAK_MIB, 1);
    memset(base + 5 * HAK_MIB, 2, 4 * HAK_MIB);
    put_block(base, 9 * HAK_MIB);
    cr_assert(take_block(5 * HAK_MIB) == base && dirty == 5 * HAK_MIB && held() == 4 * HAK_MIB);
    char *rest = take_block(4 * HAK_MIB);
    cr_assert(rest && dirty == 4 * HAK_MIB && held() == 0 && is_filled(rest, dirty, 2));
    cr_assert(is_filled(base, 5 * HAK_MIB, 1));
}

/* The shortest that is long enough is cut, so that long ones stay. */
Test(reserve, the_shortest_that_is_long_enough_serves)
{
    static const size_t mib[] = {9, 6, 12};
    for (size_t i = 0; i < CONTRACT_LENGTH(mib); i++)
        put_block(map_block(mib[i] * HAK_MIB, (int)mib[i]), mib[i] * HAK_MIB);
    cr_assert(is_filled(take_block(7 * HAK_MIB), 7 * HAK_MIB, 9));
    cr_assert(is_filled(take_block(12 * HAK_MIB), 12 * HAK_MIB, 12));
}

Test(reserve, several_blocks_become_one)
{
    put_block(map_block(9 * HAK_MIB, 1), 9 * HAK_MIB);
    cr_assert(reserve_trim(&reserve, NULL) == 9 * HAK_MIB);
    size_t before = contract_mappings();
    put_block(map_block(3 * HAK_MIB, 3), 3 * HAK_MIB);
    put_block(map_block(4 * HAK_MIB, 4), 4 * HAK_MIB);
    char *base = take_block(9 * HAK_MIB);
    cr_assert(base && parts.count == 2 && dirty == 7 * HAK_MIB && held() == 0);
    cr_assert(parts.bytes[0] == 4 * HAK_MIB && parts.bytes[1] == 5 * HAK_MIB);
    cr_assert(is_filled(base, 4 * HAK_MIB, 4) && is_filled(base + 4 * HAK_MIB, 3 * HAK_MIB, 3));
    cr_assert(!memory_is_resident(base + dirty) && memory_is_zero(base + dirty, 2 * HAK_MIB));
    put_block_of(base, 9 * HAK_MIB, &parts, NULL);
    cr_assert(reserve_stats(&reserve).pieces == 2 && held() == 9 * HAK_MIB);
    cr_assert(reserve_trim(&reserve, NULL) == 9 * HAK_MIB && held() == 0);
    cr_assert(contract_mappings() <= before + 1, "a table of the registry");
}

/* No more mappings than that: what is missing comes fresh. */
Test(reserve, a_block_has_few_parts)
{
    use_blocks(PARTS_MOST + 2);
    cr_assert(take_block((PARTS_MOST + 2) * BLOCK) != NULL);
    cr_assert(parts.count == PARTS_MOST && dirty == PARTS_MOST * BLOCK && held() == 2 * BLOCK);
}

Test(reserve, what_is_too_short_is_no_part)
{
    put_block(map_block(HAK_PAGE, 1), HAK_PAGE);
    cr_assert(take_block(64 * HAK_MIB) == NULL && held() == HAK_PAGE);
    cr_assert(load_relaxed(&reserve.large) == 64 * HAK_MIB, "the caller maps it");
}

/* Whichever call is refused, all pieces are there, with what was in them. */
Test(reserve, a_refused_join_loses_nothing)
{
    static const struct {
        fake_call_t call;
        long nth;
    } ways[] = {{FAKE_RESERVE, 1}, {FAKE_MOVE, 1}, {FAKE_MOVE, 2}};
    put_block(map_block(3 * HAK_MIB, 3), 3 * HAK_MIB);
    put_block(map_block(4 * HAK_MIB, 4), 4 * HAK_MIB);
    fake_os_use();
    for (size_t i = 0; i < CONTRACT_LENGTH(ways); i++) {
        fake_os_refuse(ways[i].call, ways[i].nth, 1);
        cr_assert(take_block(7 * HAK_MIB) == NULL, "way %zu", i);
        reserve_note_large(&reserve, 0, 7 * HAK_MIB);
        cr_assert(held() == 7 * HAK_MIB && reserve_stats(&reserve).pieces == 2);
    }
    fake_os_restore();
    char *base = take_block(7 * HAK_MIB);
    cr_assert(is_filled(base, 4 * HAK_MIB, 4) && is_filled(base + 4 * HAK_MIB, 3 * HAK_MIB, 3));
}

Test(reserve, what_large_blocks_used_stays_for_a_while_and_then_goes)
{
    use_blocks(BLOCKS);
    reserve_settle(&reserve, BLOCK);
    size_t before = held();
    cr_assert(before == BLOCKS * BLOCK, "a wave finds its pages again: %zu", before);
    for (unsigned tick = 0; tick < 5; tick++) {
        pass_time(TICK_MS);
        size_t now = held();
        cr_assert(now < before && now * 4 > before * 2, "by degrees: %zu, then %zu", before, now);
        before = now;
    }
    cr_assert(before > BLOCKS * BLOCK / 4, "a third of a second is not the end: %zu", before);
    pass_time(2 * SECOND);
    cr_assert(held() <= RESERVE_LEAST * HAK_PAGE, "%zu after two seconds", held());
}

/* A tenth of a second between two calls, and one tick each. */
Test(reserve, a_few_ticks_suffice)
{
    use_blocks(BLOCKS);
    for (unsigned ms = 0; ms < 2 * SECOND; ms += TICK_MS) {
        now_ms += TICK_MS;
        size_t before = held();
        reserve_tick(&reserve);
        cr_assert(before - held() <= PIECES_STEP_MOST, "a step has a bound");
    }
    cr_assert(held() <= RESERVE_LEAST * HAK_PAGE + PIECES_STEP_LEAST, "%zu", held());
}

/* A free after a long time gives back what it puts, and a step. */
Test(reserve, who_settles_gives_back_a_step)
{
    use_blocks(BLOCKS);
    char *block = map_block(BLOCK, 1);
    now_ms += 10 * SECOND;
    put_block(block, BLOCK);
    size_t before = held();
    reserve_settle(&reserve, BLOCK);
    cr_assert(before - held() == BLOCK + PIECES_STEP_LEAST, "%zu", before - held());
}

/* Blocks that replace each other need what a few of them needed, not the most that there was: no
 * time passes. */
Test(reserve, blocks_in_turn_keep_what_they_need)
{
    enum { TURNS = 5 * TAKE_SHARE };
    use_blocks(BLOCKS);
    char *block = take_block(BLOCK);
    for (unsigned i = 0; i < TURNS; i++) {
        char *next = take_block(BLOCK);
        cr_assert(next != NULL, "the pages of the last one");
        put_block(block, BLOCK);
        reserve_settle(&reserve, BLOCK);
        block = next;
    }
    cr_assert(held() <= 4 * BLOCK && held() >= BLOCK, "%zu", held());
}

/* Short blocks come so fast that what each forgets is what the next one needs: while they come, more
 * is kept, and a while later it is gone. */
Test(reserve, short_blocks_in_turn_stay)
{
    enum { SHORT = PARTS_FROM / 2, TURNS = 100, LIVE = 30, FEW = 10, TICKS = 60 };
    char *live[LIVE];
    reserve_set_limit(&reserve, SIZE_MAX);
    for (unsigned i = 0; i < LIVE; i++) live[i] = map_block(SHORT, 1);
    for (unsigned i = 0; i < LIVE; i++) put_block(live[i], SHORT);
    for (unsigned i = 0; i < LIVE; i++) cr_assert((live[i] = take_block(SHORT)) != NULL);
    for (unsigned i = 0; i < LIVE; i++) put_block(live[i], SHORT), reserve_settle(&reserve, SHORT);
    for (unsigned i = 0; i < TURNS; i++) {
        char *block = take_block(SHORT);
        cr_assert(block != NULL, "turn %u", i);
        put_block(block, SHORT);
        reserve_settle(&reserve, SHORT);
    }
    cr_assert(held() == LIVE * SHORT, "%zu", held());
    for (unsigned i = 0; i < TICKS; i++) { /* what was in use is forgotten */
        now_ms += TICK_MS;
        char *block = take_block(SHORT);
        put_block(block, SHORT);
        reserve_tick(&reserve);
    }
    cr_assert(held() >= FEW * SHORT && held() < LIVE * SHORT, "%zu", held());
    for (unsigned i = 0; i < TICKS; i++) {
        now_ms += TICK_MS;
        reserve_tick(&reserve);
    }
    cr_assert(held() <= RESERVE_LEAST * HAK_PAGE + PIECES_STEP_LEAST, "%zu", held());
}

Test(reserve, pieces_keep_to_the_limit)
{
    use_blocks(BLOCKS);
    reserve_set_limit(&reserve, 10 * BLOCK);
    cr_assert(held() == 10 * BLOCK, "%zu", held());
    use_many(2); /* the SuperSlabs and the pieces share it */
    reserve_set_limit(&reserve, 10 * BLOCK);
    reserve_stats_t stats = reserve_stats(&reserve);
    cr_assert(stats.dirty_superslabs == 2);
    cr_assert(stats.piece_bytes <= 10 * BLOCK - 2 * SUPERSLAB, "%zu", stats.piece_bytes);
    reserve_set_limit(&reserve, 0);
    cr_assert(held() == 0);
}

/* A giver may have a limit of its own. */
Test(reserve, what_a_giver_may_not_leave_goes_at_once)
{
    char *blocks[3];
    reserve_set_limit(&reserve, SIZE_MAX);
    for (unsigned i = 0; i < 3; i++) blocks[i] = map_block(BLOCK, 1);
    for (unsigned i = 0; i < 3; i++) {
        piece_t block = {.base = blocks[i], .bytes = BLOCK, .giver = &giver_a};
        cr_assert(reserve_put_pieces(&reserve, block, &parts, 2 * BLOCK, false));
        reserve_settle(&reserve, BLOCK);
        cr_assert(held() == hak_min(i + 1, 2) * BLOCK, "block %u: %zu", i, held());
    }
    piece_t block = {.base = map_block(BLOCK, 1), .bytes = BLOCK, .giver = &giver_b};
    cr_assert(reserve_put_pieces(&reserve, block, &parts, BLOCK, false));
    reserve_settle(&reserve, BLOCK);
    cr_assert(held() == 3 * BLOCK, "the other's is not counted");
}

Test(reserve, a_giver_trims_its_pieces)
{
    reserve_set_limit(&reserve, SIZE_MAX);
    put_block_of(map_block(BLOCK, 1), BLOCK, &parts, &giver_a);
    put_block_of(map_block(2 * BLOCK, 1), 2 * BLOCK, &parts, &giver_b);
    cr_assert(reserve_given(&reserve, &giver_a) == BLOCK);
    cr_assert(reserve_trim_piece(&reserve, &giver_b, HAK_MIB) == HAK_MIB, "so much of it");
    cr_assert(reserve_given(&reserve, &giver_b) == 2 * BLOCK - HAK_MIB);
    cr_assert(reserve_trim(&reserve, &giver_a) == BLOCK && held() == 2 * BLOCK - HAK_MIB);
    reserve_disown(&reserve, &giver_b);
    cr_assert(reserve_given(&reserve, &giver_b) == 0 && reserve_trim(&reserve, &giver_b) == 0);
    cr_assert(reserve_trim(&reserve, NULL) == 2 * BLOCK - HAK_MIB && held() == 0);
}

static unsigned unlocked;
static bool unmap_and_look(void *at, size_t bytes)
{
    unlocked += !lock_is_held(&reserve.lock);
    return os_kernel.unmap(at, bytes);
}

Test(reserve, pieces_go_without_the_lock)
{
    use_blocks(3);
    timed.unmap = unmap_and_look;
    reserve_set_limit(&reserve, 2 * BLOCK);
    cr_assert(unlocked == 1 && reserve_trim(&reserve, NULL) == 2 * BLOCK && unlocked == 3);
    use_blocks(1);
    now_ms += 10 * SECOND;
    reserve_tick(&reserve);
    cr_assert(unlocked == 4, "%u", unlocked);
}

Test(reserve, who_may_not_wait_keeps_the_block)
{
    char *base = map_block(BLOCK, 1);
    piece_t block = {.base = base, .bytes = BLOCK, .giver = NULL};
    lock_acquire(&reserve.lock, RANK_RESERVE);
    cr_assert(!reserve_put_pieces(&reserve, block, &parts, SIZE_MAX, false));
    store_relaxed(&reserve.pieces_due, 1u);
    reserve_settle(&reserve, BLOCK);
    lock_release(&reserve.lock, RANK_RESERVE);
    cr_assert(held() == 0 && load_relaxed(&reserve.large) == BLOCK);
}

/* More of them are not kept, and where a call found no time to give back, none is lost. */
Test(reserve, there_are_few_pieces)
{
    reserve_set_limit(&reserve, SIZE_MAX);
    size_t put = 0;
    for (;; put++) {
        piece_t block = {.base = map_block(HAK_PAGE, 1), .bytes = HAK_PAGE, .giver = NULL};
        if (!reserve_put_pieces(&reserve, block, &parts, SIZE_MAX, false)) break;
    }
    cr_assert(put > PIECES_STAY && put <= PIECES_MOST && held() == put * HAK_PAGE);
    reserve_settle(&reserve, BLOCK);
    cr_assert(reserve_stats(&reserve).pieces == PIECES_STAY);
}

/* Its pages go all the same, and it is not asked again at once. */
Test(reserve, a_refused_unmap_keeps_the_piece)
{
    char *base = map_block(BLOCK, 1);
    reserve_set_limit(&reserve, SIZE_MAX);
    put_block(base, BLOCK);
    fake_os_use();
    fake_os_refuse(FAKE_UNMAP, 1, FAKE_FOREVER);
    reserve_set_limit(&reserve, 0);
    cr_assert(held() == BLOCK && fake_os_calls(FAKE_UNMAP) == 1);
    cr_assert(!memory_is_resident(base) && memory_is_readable(base));
    for (unsigned i = 0; i < 10; i++) {
        store_relaxed(&reserve.due, 1u);
        reserve_tick(&reserve);
    }
    cr_assert(fake_os_calls(FAKE_UNMAP) == 1, "%ld calls", fake_os_calls(FAKE_UNMAP));
    fake_os_allow(FAKE_UNMAP);
    cr_assert(reserve_trim(&reserve, NULL) == BLOCK && held() == 0);
    fake_os_restore();
}
