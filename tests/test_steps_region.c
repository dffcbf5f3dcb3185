/* region: one operation between any two instructions of another, and what both leave behind. The
 * suite is that of test_region.c. */
#include <criterion/criterion.h>

#include "region.h"
#include "reserve.h"
#include "support_contract.h"
#include "support_region.h"
#include "support_run.h"
#include "support_step.h"

static const guard_t guards[CONTRACT_LEVELS] = {{0, "fast"}, {0x1234567890abcdefull, "checked"}};

enum { PAGE_UNITS = PAGE_WORDS * WORD_UNITS, RECORD = 8 };

/* A block of the test's. Written whole when it is taken. */
typedef struct part {
    char *at; /* NULL: none */
    unsigned units, seed;
} part_t;

/* What two threads share. Made anew for each instruction. */
static struct {
    region_t region;
    const guard_t *guard;
    char *base[2]; /* granules; the region lies over the first */
    part_t mine, theirs[4];
    unsigned done[2]; /* what the first and the other were told */
    bool moved;       /* the region lies over the second granule */
    size_t purged;
} at;

static char *new_granule(void)
{
    static superslab_set_t owned;
    if (!owned.count) {
        uint32_t refused;
        superslab_t *ss = reserve_take(&process_reserve, false, &refused);
        cr_assert(ss != NULL);
        superslab_set_add(&owned, ss);
    }
    run_t run = superslab_take(&owned, 1, 1);
    cr_assert(run.ss != NULL);
    return superslab_granule(run.ss, run.first);
}

static part_t take(unsigned units, unsigned seed)
{
    part_t piece = {support_region_take(&at.region, units, 1, at.guard), units, seed};
    if (piece.at) contract_fill(piece.at, units * REGION_UNIT, seed);
    return piece;
}
static unsigned put(void *block)
{
    unsigned hole;
    return region_put(&at.region, block, at.guard, &hole);
}

static void begin(int level, bool record)
{
    at.guard = &guards[level];
    at.moved = false;
    at.done[0] = at.done[1] = 0;
    at.purged = 0;
    at.mine = (part_t){0};
    memset(at.theirs, 0, sizeof at.theirs);
    region_init(&at.region, RECORD, record ? PAGE_UNITS : RECORD);
    region_attach(&at.region, at.base[0]);
}

/* Whole, where it is said to be, and as long. */
static bool is_whole(const part_t *piece)
{
    unsigned units = 0;
    if (!piece->at) return true;
    return region_find(&at.region, piece->at, &units) == piece->at && units == piece->units &&
           contract_holds(piece->at, piece->units * REGION_UNIT, piece->seed);
}

/* No block is lost, torn or shared, and the map can be. */
static void prove(unsigned step)
{
    const void *where;
    size_t live = at.mine.at ? at.mine.units : 0;
    size_t record = at.region.record_end - at.region.record;
    cr_assert(is_whole(&at.mine), "instruction %u", step);
    for (size_t i = 0; i < CONTRACT_LENGTH(at.theirs); i++) {
        cr_assert(is_whole(&at.theirs[i]), "instruction %u, block %zu", step, i);
        live += at.theirs[i].at ? at.theirs[i].units : 0;
    }
    const char *wrong = region_check(&at.region, at.guard, &where);
    cr_assert(wrong == NULL, "instruction %u: %s", step, wrong);
    region_sums_t sums = region_sums(&at.region);
    cr_assert(sums.live == live && sums.held == record, "instruction %u: %zu live, %zu held", step,
              sums.live, sums.held);
    cr_assert(sums.live + sums.free + sums.held + sums.untouched == REGION_UNITS);
}

typedef struct race {
    void (*prepare)(void); /* NULL: nothing */
    void (*first)(void);   /* runs an instruction at a time, */
    void (*other)(void);   /* and this runs at one of them */
    void (*after)(unsigned step);
    bool record; /* most of the first page is the heap's: to open it takes no time */
} race_t;

/* At each instruction of the first few hundred, then at one of several: the seals of a page take
 * thousands. At one of three where the run is to be quick. Both levels. */
static void run_race(const race_t *race)
{
    enum { MOST = 100000, EACH = 256 };
    unsigned steps = 0, stride = CONTRACT_SANITIZED ? 29 : getenv("HAK_TEST_QUICK") ? 3 : 1;
    RUN_IN_ONE_MODE();
    for (int i = 0; i < 2; i++)
        if (!at.base[i]) at.base[i] = new_granule();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        for (unsigned step = 1; step < MOST; step += stride + step / EACH, steps++) {
            begin(level, race->record);
            if (race->prepare) race->prepare();
            if (!step_run(&(step_t){race->first, race->other, step})) break;
            race->after(step);
        }
    }
    if (!steps) cr_skip_test("this CPU takes no single steps");
}

/* ---- Two that open a page ---- */

static void open_first(void) { at.done[0] = region_open(&at.region, at.guard); }
static void open_and_use(void)
{
    at.done[1] = region_open(&at.region, at.guard);
    for (unsigned i = 0; i < 4; i++) at.theirs[i] = take(i + 1, i);
}
static void two_pages_are_open(unsigned step)
{
    cr_assert(at.done[0] && at.done[1], "instruction %u", step);
    prove(step);
    region_sums_t sums = region_sums(&at.region);
    cr_assert(sums.free + sums.live + sums.held == 2 * PAGE_UNITS, "instruction %u", step);
}

Test(region, of_two_that_open_a_page_one_does_at_every_instruction)
{
    run_race(&(race_t){
        .first = open_first, .other = open_and_use, .after = two_pages_are_open, .record = true});
}

/* ---- Two that free a block ---- */

/* A block with a free unit before it. */
static void make_block(void)
{
    cr_assert(region_open(&at.region, at.guard));
    void *before = support_region_take(&at.region, 1, 1, at.guard);
    at.mine = take(4, 5);
    at.theirs[3] = take(1, 6);
    cr_assert(at.mine.at == (char *)before + REGION_UNIT && put(before) == 1);
}
static void free_first(void) { at.done[0] = put(at.mine.at); }
static void free_other(void) { at.done[1] = put(at.mine.at); }

static void one_has_freed(unsigned step)
{
    cr_assert(at.done[0] + at.done[1] == at.mine.units, "instruction %u: %u and %u", step,
              at.done[0], at.done[1]);
    at.mine = (part_t){0};
    prove(step);
}

Test(region, of_two_that_free_a_block_one_does_at_every_instruction)
{
    run_race(&(race_t){
        .prepare = make_block, .first = free_first, .other = free_other, .after = one_has_freed});
}

/* Where the other has freed it, its units go to blocks that begin elsewhere. */
static void free_and_take(void)
{
    free_other();
    for (unsigned i = 0; at.done[1] && i < 2; i++) at.theirs[i] = take(2, i);
}
/* A second free is told, however late it is. What it has changed by then is its caller's fault. */
static void second_is_told(unsigned step)
{
    cr_assert(at.done[0] + at.done[1] == 4, "instruction %u: %u and %u", step, at.done[0],
              at.done[1]);
    cr_assert(!at.done[1] || at.theirs[1].at == at.mine.at + REGION_UNIT, "instruction %u", step);
}

Test(region, a_free_of_what_others_have_taken_is_told_at_every_instruction)
{
    run_race(&(race_t){.prepare = make_block,
                       .first = free_first,
                       .other = free_and_take,
                       .after = second_is_told});
}

/* ---- A block that others take from, and give to, meanwhile ---- */

static void make_two(void)
{
    cr_assert(region_open(&at.region, at.guard));
    at.mine = take(4, 5);
    at.theirs[3] = take(40, 6);
}
static void take_wide(void) { at.mine.at = support_region_take(&at.region, 40, 1, at.guard); }
static void take_and_free(void)
{
    for (unsigned i = 0; i < 3; i++) at.theirs[i] = take(20 * i + 1, i);
    unsigned units = put(at.theirs[3].at);
    cr_assert(units == 40);
    at.theirs[3] = (part_t){0};
}
static void open_and_make(void)
{
    make_two();
    cr_assert(put(at.mine.at) == 4);
    at.mine = (part_t){0};
}
static void taken_or_not(unsigned step)
{
    at.mine.units = 40;
    if (at.mine.at) contract_fill(at.mine.at, 40 * REGION_UNIT, at.mine.seed);
    prove(step);
}

Test(region, a_block_of_two_words_is_taken_at_every_instruction)
{
    run_race(&(race_t){.prepare = open_and_make,
                       .first = take_wide,
                       .other = take_and_free,
                       .after = taken_or_not});
}

/* As long as it is the only free unit behind it that is wanted, one of the two gets it. */
static void grow(void) { at.done[0] = region_resize(&at.region, at.mine.at, 4, 70, at.guard); }
static void make_one(void)
{
    cr_assert(region_open(&at.region, at.guard));
    at.mine = take(4, 5);
}
static void take_behind(void) { at.theirs[0] = take(40, 8); }
static void grown_or_not(unsigned step)
{
    if (at.done[0]) {
        cr_assert(contract_holds(at.mine.at, 4 * REGION_UNIT, 5), "instruction %u", step);
        at.mine.units = 70;
        contract_fill(at.mine.at, 70 * REGION_UNIT, 5);
    }
    prove(step);
}

Test(region, a_block_grows_or_not_at_every_instruction)
{
    run_race(
        &(race_t){.prepare = make_one, .first = grow, .other = take_behind, .after = grown_or_not});
}

static void shrink(void) { at.done[0] = region_resize(&at.region, at.mine.at, 40, 3, at.guard); }
static void make_wide(void)
{
    cr_assert(region_open(&at.region, at.guard));
    at.mine = take(40, 5);
}
static void shrunk(unsigned step)
{
    cr_assert(at.done[0], "instruction %u", step);
    at.mine.units = 3;
    contract_fill(at.mine.at, 3 * REGION_UNIT, at.mine.seed);
    prove(step);
}

Test(region, a_block_shrinks_at_every_instruction)
{
    run_race(
        &(race_t){.prepare = make_wide, .first = shrink, .other = take_behind, .after = shrunk});
}

/* ---- A granule that changes meanwhile, where no block is in it ---- */

static void move_where_empty(void)
{
    if (!region_close(&at.region)) return;
    region_detach(&at.region);
    region_attach(&at.region, at.base[1]);
    at.moved = true;
}

/* Whatever the hints say: what is opened is used, and lies in the granule that is there. */
static void goes_on_where_it_is(unsigned step)
{
    prove(step);
    char *base = at.base[at.moved];
    for (unsigned page = 0; region_open(&at.region, at.guard); page++)
        cr_assert(page < GRANULE_PAGES, "instruction %u", step);
    size_t units = (at.mine.at ? at.mine.units : 0) + at.region.record_end - at.region.record;
    for (char *block; (block = support_region_take(&at.region, 1, 1, at.guard)) != NULL; units++)
        cr_assert(block >= base && block < base + GRANULE, "instruction %u", step);
    region_look_again(&at.region);
    while (support_region_take(&at.region, 1, 1, at.guard)) units++;
    cr_assert(units == REGION_UNITS, "instruction %u: %zu units", step, units);
}

Test(region, a_granule_leaves_while_a_page_opens_at_every_instruction)
{
    run_race(&(race_t){.first = open_first,
                       .other = move_where_empty,
                       .after = goes_on_where_it_is,
                       .record = true});
}

static void free_mine(void)
{
    at.done[0] = put(at.mine.at);
    at.mine = (part_t){0};
}

Test(region, a_granule_leaves_while_its_last_block_goes_at_every_instruction)
{
    run_race(&(race_t){.prepare = make_wide,
                       .first = free_mine,
                       .other = move_where_empty,
                       .after = goes_on_where_it_is});
}

static void close_first(void) { at.done[0] = region_close(&at.region); }
static void make_hole(void)
{
    make_wide();
    free_mine();
}
static void take_one(void) { at.theirs[0] = take(40, 9); }
static void closed_or_taken(unsigned step)
{
    if (at.theirs[0].at) {
        at.mine = at.theirs[0];
        at.theirs[0] = (part_t){0};
        cr_assert(!at.done[0], "instruction %u", step);
    }
    if (!at.done[0]) goes_on_where_it_is(step);
}

Test(region, a_granule_is_closed_or_used_at_every_instruction)
{
    run_race(&(race_t){
        .prepare = make_hole, .first = close_first, .other = take_one, .after = closed_or_taken});
}

/* ---- A page on its way to the kernel ---- */

/* A few words: each byte of it would be an instruction. */
static bool purge(void *page, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 512) *(uint64_t *)(void *)((char *)page + i) = 0;
    at.purged++;
    return true;
}
static void release(void)
{
    size_t keep = 0;
    at.done[0] = (unsigned)region_release(&at.region, true, &keep, purge);
}
static void make_pages(void)
{
    for (unsigned page = 0; page < 3; page++) cr_assert(region_open(&at.region, at.guard));
    at.mine = take(60, 1);
}
static void use_pages(void)
{
    for (unsigned i = 0; i < 4; i++) at.theirs[i] = take(64, i);
    (void)region_open(&at.region, at.guard);
}
static void released_or_used(unsigned step)
{
    cr_assert(at.done[0] == at.purged, "instruction %u", step);
    prove(step);
}

Test(region, a_page_is_released_or_used_at_every_instruction)
{
    run_race(&(race_t){
        .prepare = make_pages, .first = release, .other = use_pages, .after = released_or_used});
}
