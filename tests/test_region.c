/* region: a map over a granule of its own, against a plain array of units. */
#include "region.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "hakheap.h"
#include "heap.h"
#include "os.h"
#include "reserve.h"
#include "support_child.h"
#include "support_memory.h"
#include "support_must.h"
#include "support_random.h"
#include "support_region.h"

TestSuite(region, .timeout = 600);

static const guard_t guards[CONTRACT_LEVELS] = {{0, "fast"}, {0x1234567890abcdefull, "checked"}};

/* ---- What the test knows of a region ---- */

typedef struct block_of {
    unsigned units; /* 0: no block begins there */
    unsigned seed;
} block_of_t;

typedef struct shadow {
    region_t region;
    const guard_t *guard;
    char *base;
    unsigned record, record_end;
    bool open[GRANULE_PAGES];
    unit_state_t state[REGION_UNITS];
    block_of_t block[REGION_UNITS];
    unsigned seeds;
} shadow_t;

static shadow_t shadow;

/* One granule after another of a SuperSlab of the test's own. */
static char *some_granule(void)
{
    static superslab_set_t owned;
    run_t run = superslab_take(&owned, 1, 1);
    if (!run.ss) {
        uint32_t refused;
        superslab_t *ss = reserve_take(&process_reserve, false, &refused);
        cr_assert(ss != NULL);
        superslab_set_add(&owned, ss);
        run = superslab_take(&owned, 1, 1);
    }
    return superslab_granule(run.ss, run.first);
}

static unsigned page_of(unsigned unit) { return unit / (PAGE_WORDS * WORD_UNITS); }
static bool is_record(unsigned unit) { return unit >= shadow.record && unit < shadow.record_end; }
static char *at_unit(unsigned unit) { return shadow.base + unit * REGION_UNIT; }

static void set_states(unsigned unit, unsigned n, unit_state_t state)
{
    for (unsigned i = unit; i < unit + n; i++) shadow.state[i] = state;
}
static void lay_over(char *base)
{
    shadow.base = base;
    region_attach(&shadow.region, base);
    memset(shadow.open, 0, sizeof shadow.open);
    memset(shadow.block, 0, sizeof shadow.block);
    set_states(0, REGION_UNITS, UNIT_HELD);
}

static char *take_block(unsigned n, unsigned alignment)
{
    return support_region_take(&shadow.region, n, alignment, shadow.guard);
}

static void begin(int level, unsigned record, unsigned record_end)
{
    memset(&shadow, 0x5a, sizeof shadow); /* what region_init has to set */
    shadow.guard = &guards[level];
    shadow.record = record;
    shadow.record_end = record_end;
    shadow.seeds = 0;
    region_init(&shadow.region, record, record_end);
    cr_assert(!region_is_attached(&shadow.region) && !region_may_open(&shadow.region));
    cr_assert(take_block(1, 1) == NULL);
    lay_over(some_granule());
    cr_assert(region_is_attached(&shadow.region));
}

/* The first page that is not open, by the shadow; GRANULE_PAGES: none. */
static unsigned next_page(void)
{
    unsigned page = 0;
    while (page < GRANULE_PAGES && shadow.open[page]) page++;
    return page;
}

static bool open_next(void)
{
    unsigned page = next_page();
    cr_assert(region_may_open(&shadow.region) == (page < GRANULE_PAGES));
    cr_assert(region_open(&shadow.region, shadow.guard) == (page < GRANULE_PAGES));
    if (page == GRANULE_PAGES) return false;
    shadow.open[page] = true;
    for (unsigned unit = 0; unit < REGION_UNITS; unit++)
        if (page_of(unit) == page && !is_record(unit)) shadow.state[unit] = UNIT_FREE;
    char *at = shadow.base + page * (size_t)HAK_PAGE;
    cr_assert(superslab_is_touched(registry_superslab(at), at));
    return true;
}
static void open_all(void)
{
    while (open_next()) {
    }
}

/* Whether a block of so many units has room where it may begin. */
static bool is_hole(unsigned unit, unsigned n)
{
    if (unit + n > REGION_UNITS) return false;
    for (unsigned i = unit; i < unit + n; i++)
        if (shadow.state[i] != UNIT_FREE) return false;
    return true;
}
static unsigned find_room(unsigned n, unsigned alignment)
{
    unsigned unit = 0;
    while (unit < REGION_UNITS && !is_hole(unit, n)) unit += alignment;
    return unit < REGION_UNITS ? unit : REGION_UNITS;
}

static void fill(unsigned unit)
{
    block_of_t *block = &shadow.block[unit];
    block->seed = shadow.seeds++;
    contract_fill(at_unit(unit), block->units * (size_t)REGION_UNIT, block->seed);
}
static void must_hold(unsigned unit)
{
    const block_of_t *block = &shadow.block[unit];
    cr_assert(contract_holds(at_unit(unit), block->units * (size_t)REGION_UNIT, block->seed),
              "the block of %u units at %u has other content", block->units, unit);
}

static void note_block(unsigned unit, unsigned n)
{
    set_states(unit, n, UNIT_INSIDE);
    shadow.state[unit] = UNIT_START;
    shadow.block[unit].units = n;
    fill(unit);
}

/* Returns the unit, or REGION_UNITS where the region had no room. */
static unsigned take(unsigned n, unsigned alignment)
{
    char *ptr = take_block(n, alignment);
    if (!ptr) return REGION_UNITS;
    unsigned unit = region_unit(ptr);
    cr_assert(ptr == at_unit(unit), "%p is not of the granule %p", (void *)ptr,
              (void *)shadow.base);
    cr_assert(unit % alignment == 0, "%u is no multiple of %u", unit, alignment);
    cr_assert(is_hole(unit, n), "%u units at %u are not free", n, unit);
    note_block(unit, n);
    return unit;
}

static void put(unsigned unit)
{
    unsigned n = shadow.block[unit].units, hole = 0;
    must_hold(unit);
    unsigned freed = region_put(&shadow.region, at_unit(unit), shadow.guard, &hole);
    cr_assert(freed == n, "put says %u units, not %u", freed, n);
    set_states(unit, n, UNIT_FREE);
    shadow.block[unit].units = 0;
    cr_assert(hole >= n);
}

static void resize(unsigned unit, unsigned wanted)
{
    unsigned n = shadow.block[unit].units;
    bool fits = wanted <= n || is_hole(unit + n, wanted - n);
    must_hold(unit);
    cr_assert(region_resize(&shadow.region, at_unit(unit), n, wanted, shadow.guard) == fits,
              "%u units at %u: to %u", n, unit, wanted);
    if (wanted >= n) must_hold(unit);
    if (!fits) return;
    set_states(unit, n, UNIT_FREE);
    note_block(unit, wanted);
}

/* ---- The region against the shadow ---- */

static unit_state_t state_in_map(unsigned unit)
{
    uint64_t word = load_relaxed(&shadow.region.word[unit / WORD_UNITS]);
    bool used = word >> unit % WORD_UNITS & 1, start = word >> (32 + unit % WORD_UNITS) & 1;
    return start ? (used ? UNIT_START : UNIT_HELD) : used ? UNIT_INSIDE : UNIT_FREE;
}

static void must_find_blocks(void)
{
    unsigned start = REGION_UNITS;
    for (unsigned unit = 0; unit < REGION_UNITS; unit++) {
        cr_assert(state_in_map(unit) == shadow.state[unit], "unit %u is %d, not %d", unit,
                  state_in_map(unit), shadow.state[unit]);
        if (shadow.state[unit] == UNIT_START) start = unit;
        else if (shadow.state[unit] != UNIT_INSIDE) start = REGION_UNITS;
        bool in_block = start < REGION_UNITS;
        for (unsigned byte = 0; byte < REGION_UNIT; byte += 5) {
            unsigned units = 0;
            char *found = region_find(&shadow.region, at_unit(unit) + byte, &units);
            cr_assert(found == (in_block ? at_unit(start) : NULL), "unit %u", unit);
            cr_assert(!in_block || units == shadow.block[start].units, "unit %u: %u units", unit,
                      units);
        }
        if (shadow.state[unit] == UNIT_START) must_hold(unit);
    }
}

static void must_add_up(void)
{
    region_sums_t wanted = {0};
    size_t counts[REGION_CLASSES] = {0}, found[REGION_CLASSES] = {0};
    for (unsigned unit = 0; unit < REGION_UNITS; unit++) {
        unit_state_t state = shadow.state[unit];
        bool is_held = state == UNIT_HELD, open = shadow.open[page_of(unit)];
        wanted.live += state == UNIT_START || state == UNIT_INSIDE;
        wanted.free += state == UNIT_FREE;
        wanted.held += is_held && (open || is_record(unit));
        wanted.untouched += is_held && !open && !is_record(unit);
        if (state != UNIT_START) continue;
        wanted.blocks++;
        counts[sizeclass_of(shadow.block[unit].units * REGION_UNIT)]++;
    }
    region_sums_t sums = region_sums(&shadow.region);
    cr_assert(sums.blocks == wanted.blocks && sums.live == wanted.live);
    cr_assert(sums.free == wanted.free && sums.held == wanted.held);
    cr_assert(sums.untouched == wanted.untouched);
    region_count(&shadow.region, found);
    cr_assert(memcmp(counts, found, sizeof counts) == 0);
}

static void must_be_as_known(void)
{
    must_find_blocks();
    must_add_up();
    const void *ptr;
    const char *words = region_check(&shadow.region, shadow.guard, &ptr);
    cr_assert(words == NULL, "%s: unit %u", words, region_unit(ptr));
    must_find_blocks(); /* and the check has changed nothing */
}

/* A block that lives, from a unit on; REGION_UNITS: there is none. */
static unsigned some_block(unsigned from)
{
    for (unsigned i = 0; i < REGION_UNITS; i++) {
        unsigned unit = (from + i) % REGION_UNITS;
        if (shadow.state[unit] == UNIT_START) return unit;
    }
    return REGION_UNITS;
}
static void put_all(void)
{
    for (unsigned unit; (unit = some_block(0)) < REGION_UNITS;) put(unit);
}

/* ---- Pages and granules ---- */

static size_t purges;
static bool purge_refuses;
static bool note_purge(void *at, size_t bytes)
{
    purges++;
    cr_assert(bytes == HAK_PAGE && ((uintptr_t)at & (HAK_PAGE - 1)) == 0);
    if (purge_refuses) return false;
    memset(at, 0xee, bytes); /* whatever is there now is no seal */
    return os_purge(at, bytes);
}

/* Whether nothing but what is free, and none of the record, is in a page. */
static bool is_empty(unsigned page)
{
    for (unsigned unit = 0; unit < REGION_UNITS; unit++)
        if (page_of(unit) == page && shadow.state[unit] != UNIT_FREE) return false;
    return true;
}
static bool has_record(unsigned page)
{
    return shadow.record_end && page <= page_of(shadow.record_end - 1);
}

static void release(size_t keep)
{
    size_t wanted = 0, left = keep;
    for (unsigned page = 0; page < GRANULE_PAGES; page++) {
        if (has_record(page) || !shadow.open[page] || !is_empty(page)) continue;
        if (left) {
            left--;
            continue;
        }
        wanted++;
        shadow.open[page] = false;
        set_states(page * PAGE_WORDS * WORD_UNITS, PAGE_WORDS * WORD_UNITS, UNIT_HELD);
    }
    purges = 0;
    size_t pages = region_release(&shadow.region, false, &keep, note_purge);
    cr_assert(pages == wanted && keep == left && purges == wanted, "%zu pages, not %zu", pages,
              wanted);
}

/* Where there are no blocks the granule goes, and another comes. */
static void try_close(void)
{
    bool empty = some_block(0) == REGION_UNITS;
    cr_assert(region_close(&shadow.region) == empty);
    if (!empty) return;
    cr_assert(!region_may_open(&shadow.region));
    cr_assert(take_block(1, 1) == NULL);
    region_detach(&shadow.region);
    cr_assert(!region_is_attached(&shadow.region));
    lay_over(some_granule());
}

/* ---- At random ---- */

static unsigned some_units(randoms_t *randoms)
{
    static const unsigned most[] = {8, 8, 8, REGION_ROOM, REGION_ROOM, REGION_LONGEST};
    return 1 + random_below(randoms, most[random_below(randoms, CONTRACT_LENGTH(most))]);
}

static void step(randoms_t *randoms, unsigned fullness)
{
    unsigned what = random_below(randoms, 100), unit;
    if (what < fullness) {
        unsigned n = some_units(randoms);
        unsigned alignment = random_below(randoms, 4) ? 1 : 1u << random_below(randoms, 7);
        if (take(n, alignment) == REGION_UNITS && what % 2) (void)open_next();
        return;
    }
    if ((unit = some_block(random_below(randoms, REGION_UNITS))) == REGION_UNITS) {
        if (what > 97) try_close();
        return;
    }
    if (what < 94) put(unit);
    else if (what < 98) resize(unit, some_units(randoms));
    else if (what < 99) release(random_below(randoms, 3));
    else try_close();
}

static void work(int level, unsigned record, unsigned record_end)
{
    randoms_t randoms = {record_end + (unsigned)level};
    begin(level, record, record_end);
    for (size_t i = 0, steps = contract_work(24000); i < steps; i++) {
        step(&randoms, i / 500 % 2 ? 35 : 60); /* fuller, and emptier */
        if (i % 16 == 0) must_be_as_known();
    }
    put_all();
    must_be_as_known();
}

Test(region, is_what_an_array_of_units_is)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        work(level, 0, 0);
        work(level, 8, 200);  /* in the first page */
        work(level, 28, 290); /* over two, as in a cradle */
        work(level, 0, 700);  /* to the third, from the first unit on */
    }
}

/* ---- Sizes, alignments, borders ---- */

/* Each length that a hint can say, then some, and the longest. */
static unsigned next_length(unsigned n)
{
    if (n < REGION_ROOM || n == REGION_LONGEST) return n + 1;
    return (unsigned)hak_min(n + 13, REGION_LONGEST);
}

static void take_and_put(unsigned n, unsigned alignment)
{
    unsigned before = take(1 + n % 7, 1), unit = take(n, alignment), after = take(1, 1);
    cr_assert(before < REGION_UNITS && unit < REGION_UNITS && after < REGION_UNITS);
    put(before);
    put(unit);
    unsigned room = find_room(n, alignment);
    cr_assert(take(n, alignment) == room);
    must_be_as_known();
    put_all();
}

Test(region, every_size_at_every_alignment)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        begin(level, 0, 0);
        open_all();
        for (unsigned n = 1; n <= REGION_LONGEST; n = next_length(n))
            for (unsigned alignment = 1; alignment <= REGION_ROOM; alignment *= 2)
                take_and_put(n, alignment);
    }
}

/* Blocks of one size until nothing is left: over words and pages, to the last unit. Every other one
 * goes and comes back where it was. */
static void fill_up(unsigned n)
{
    unsigned blocks = 0, unit;
    open_all();
    for (; (unit = take(n, 1)) < REGION_UNITS; blocks++) cr_assert(unit == blocks * n);
    cr_assert(blocks == REGION_UNITS / n);
    while (take(1, 1) < REGION_UNITS) blocks++;
    cr_assert(region_sums(&shadow.region).free == 0 && shadow.state[REGION_UNITS - 1] != UNIT_FREE);
    must_be_as_known();
    for (unsigned at = 0; at + n <= REGION_UNITS; at += 2 * n) put(at);
    must_be_as_known();
    for (unsigned at = 0; at + n <= REGION_UNITS; at += 2 * n) cr_assert(take(n, 1) == at);
    cr_assert(take(1, 1) == REGION_UNITS);
    must_be_as_known();
    put_all();
    must_be_as_known();
}

Test(region, is_filled_to_the_last_unit)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (unsigned n = 1; n <= REGION_LONGEST; n = next_length(n)) {
            begin(level, 0, 0);
            fill_up(n);
        }
}

/* ---- What changes nothing ---- */

static void must_change_nothing(unsigned unit)
{
    region_t before;
    unsigned hole = 12345;
    memcpy(&before, &shadow.region, sizeof before);
    cr_assert(region_put(&shadow.region, at_unit(unit), shadow.guard, &hole) == 0, "unit %u", unit);
    cr_assert(memcmp(&before, &shadow.region, sizeof before) == 0, "unit %u", unit);
    cr_assert(hole == 12345);
}

Test(region, a_put_of_what_is_no_block_changes_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        begin(level, 28, 290);
        for (unsigned page = 0; page < 3; page++) (void)open_next(); /* the fourth is not open */
        for (unsigned n = 1; take(n, 1) < REGION_UNITS; n = n % REGION_ROOM + 1) {
        }
        for (unsigned unit = 0; unit < REGION_UNITS; unit += 7)
            if (shadow.state[unit] == UNIT_START) put(unit);
        for (unsigned unit = 0; unit < REGION_UNITS; unit++)
            if (shadow.state[unit] != UNIT_START) must_change_nothing(unit);
        must_be_as_known();
    }
}

/* A block of so many units, and behind it one in the way after `gap` more. */
static void grow_up_to(unsigned from, unsigned n, unsigned gap)
{
    for (unsigned at = 0; at < from; at += hak_min(from - at, 8u))
        cr_assert(take((unsigned)hak_min(from - at, 8u), 1) == at);
    unsigned unit = take(n, 1), hole = take(gap, 1), wall = take(1, 1);
    cr_assert(unit == from && hole == from + n && wall == hole + gap);
    put(hole);
    resize(unit, n + gap + 1); /* is refused, and all that was taken for it is free again */
    must_be_as_known();
    resize(unit, n + gap);
    must_be_as_known();
    resize(unit, 1);
    must_be_as_known();
    cr_assert(take(gap + n - 1, 1) == from + 1);
    put_all();
}

Test(region, a_block_grows_up_to_the_next_one)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (unsigned from = 0; from < 2 * WORD_UNITS; from += 5)
            for (unsigned n = 1; n < REGION_ROOM; n += 3)
                for (unsigned gap = 1; gap <= REGION_ROOM - n; gap += 6) {
                    begin(level, 0, 0);
                    open_all();
                    grow_up_to(from, n, gap);
                }
}

Test(region, a_block_grows_to_the_end_and_no_further)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        begin(level, 0, 0);
        open_all();
        while (take(4, 1) < REGION_UNITS) {
        }
        put(REGION_UNITS - 4);
        cr_assert(take(2, 1) == REGION_UNITS - 4);
        cr_assert(!region_resize(&shadow.region, at_unit(REGION_UNITS - 4), 2, 5, shadow.guard));
        must_be_as_known();
        resize(REGION_UNITS - 4, 4);
        must_be_as_known();
    }
}

/* ---- Hints ---- */

/* In one thread: no hole is there that the last call did not find. */
static size_t hidden_after(randoms_t *randoms)
{
    size_t hidden = 0;
    for (unsigned tries = 0; tries < 20; tries++) {
        unsigned n = some_units(randoms), alignment = 1u << random_below(randoms, 3);
        bool room = find_room(n, alignment) < REGION_UNITS;
        unsigned unit = take(n, alignment);
        hidden += room && unit == REGION_UNITS;
        if (unit < REGION_UNITS) put(unit);
    }
    return hidden;
}

Test(region, hints_hide_no_hole_from_one_thread)
{
    size_t hidden = 0;
    randoms_t randoms = {1};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        begin(level, 8, 200);
        for (size_t i = 0, steps = contract_work(20000); i < steps; i++) {
            step(&randoms, i / 500 % 2 ? 40 : 60);
            if (i % 8 == 0) hidden += hidden_after(&randoms);
        }
    }
    cr_assert(hidden == 0, "%zu holes", hidden);
}

Test(region, all_holes_are_found_by_another_look)
{
    begin(0, 0, 0);
    open_all();
    while (take(4, 1) < REGION_UNITS) {
    }
    for (unsigned at = 0; at < REGION_UNITS; at += 8) put(at);
    for (unsigned at = 0; at < REGION_WORDS; at++) rooms_lower(&shadow.region.rooms, at, 0);
    cr_assert(take(4, 1) == REGION_UNITS); /* hidden: a hint is no truth */
    region_look_again(&shadow.region);
    for (unsigned at = 0; at < REGION_UNITS; at += 8) cr_assert(take(4, 1) == at);
    cr_assert(take(1, 1) == REGION_UNITS && region_room(&shadow.region) == 0);
}

/* Where another thread has moved the tail back, blocks go on behind those that are there, and each
 * free unit is found. */
Test(region, the_tail_passes_blocks_that_it_does_not_know)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (unsigned back = 1; back <= 60; back += 9) {
            begin(level, 0, 0);
            open_all();
            for (unsigned i = 0; i < 10; i++) cr_assert(take(10, 1) < REGION_UNITS);
            store_relaxed(&shadow.region.tail, (uint16_t)(100 - back));
            for (unsigned left = REGION_UNITS - 100; left; left--)
                cr_assert(take(1, 1) < REGION_UNITS, "%u back, %u units left", back, left);
            cr_assert(take(1, 1) == REGION_UNITS);
            must_be_as_known();
        }
}

/* What a region says of its room is never less than what it has, in one thread. */
Test(region, room_is_that_of_the_longest_hole)
{
    begin(0, 0, 0);
    open_all();
    while (take(8, 1) < REGION_UNITS) {
    }
    (void)take(1, 1);
    cr_assert(region_room(&shadow.region) == 0);
    put(16);
    cr_assert(region_room(&shadow.region) == 8);
    put(32);
    put(40);
    cr_assert(region_room(&shadow.region) == 16);
    cr_assert(take(16, 1) == 32);
    cr_assert(take(9, 1) == REGION_UNITS && region_room(&shadow.region) == 8);
    cr_assert(take(8, 1) == 16);
    cr_assert(take(1, 1) == REGION_UNITS && region_room(&shadow.region) == 0);
}

/* A search for more than a hint can say leaves the hints of shorter holes true. */
Test(region, a_search_in_vain_for_a_long_hole_hides_no_short_one)
{
    for (unsigned inside = 0; inside < WORD_UNITS - 10; inside += 3) {
        begin(0, 0, 0);
        open_all();
        unsigned before = inside ? take(inside, 1) : 0, hole = take(10, 1);
        while (take(1, 1) < REGION_UNITS) {
        }
        cr_assert(before == 0 && hole == inside);
        put(hole);
        region_look_again(&shadow.region);
        cr_assert(take(REGION_ROOM + 1, 1) == REGION_UNITS);
        cr_assert(take(10, 1) == hole, "%u", inside);
    }
}

/* What is left of a region is a hole where it is a long one. */
Test(region, a_long_rest_of_a_region_is_a_hole_and_a_short_one_is_not)
{
    for (unsigned left = REGION_ROOM - 2; left <= REGION_ROOM + 2; left++) {
        begin(0, 0, 0);
        open_all();
        for (unsigned i = 0; i < REGION_UNITS - left; i++) cr_assert(take(1, 1) == i);
        region_leave(&shadow.region);
        cr_assert(region_room(&shadow.region) == (left < REGION_ROOM ? 0 : REGION_ROOM));
        cr_assert(take(left, 1) == REGION_UNITS - left);
        must_be_as_known();
    }
}

/* A thread leaves the tail while another gives back all pages: what it writes hides none of them. */
Test(region, a_tail_that_was_left_meanwhile_hides_no_page)
{
    static const unsigned ends[][2] = {{0, 0}, {8, 100}, {8, 300}};
    for (size_t i = 0; i < CONTRACT_LENGTH(ends); i++) {
        begin(0, ends[i][0], ends[i][1]);
        store_relaxed(&shadow.region.tail, (uint16_t)REGION_UNITS);
        open_all();
        unsigned taken = 0;
        while (take(1, 1) < REGION_UNITS) taken++;
        cr_assert(taken >= REGION_UNITS - ends[i][1], "%u units", taken);
        must_be_as_known();
    }
}

/* ---- Pages ---- */

static void one_block_in(unsigned page)
{
    open_all();
    for (unsigned i = 0; i < page; i++)
        for (unsigned k = 0; k < PAGE_WORDS; k++) cr_assert(take(WORD_UNITS, 1) < REGION_UNITS);
    unsigned unit = take(3, 1);
    cr_assert(unit == page * PAGE_WORDS * WORD_UNITS);
    for (unsigned at = 0; at < unit; at += WORD_UNITS) put(at);
}

/* Each page but that of the block goes; `keep` of them stay. */
Test(region, a_release_takes_pages_without_blocks)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (unsigned page = 0; page < GRANULE_PAGES; page++)
            for (size_t keep = 0; keep <= GRANULE_PAGES; keep++) {
                begin(level, 0, 0);
                one_block_in(page);
                release(keep);
                must_be_as_known();
                release(GRANULE_PAGES); /* those that stayed are still there */
                must_be_as_known();
                open_all();
                must_be_as_known();
                while (take(5, 1) < REGION_UNITS) {
                }
                must_be_as_known();
            }
}

Test(region, a_refused_purge_leaves_all_as_it_was)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        begin(level, 0, 0);
        one_block_in(1);
        size_t keep = 0;
        purge_refuses = true;
        cr_assert(region_release(&shadow.region, true, &keep, note_purge) == 0 && keep == 0);
        purge_refuses = false;
        must_be_as_known();
        superslab_t *ss = registry_superslab(shadow.base);
        for (size_t page = 0; page < GRANULE_PAGES; page++)
            cr_assert(superslab_is_touched(ss, shadow.base + page * HAK_PAGE));
        while (take(64, 1) < REGION_UNITS) {
        }
        must_be_as_known();
    }
}

/* Of a granule that another had before: pages that were written, and are not open. */
Test(region, a_release_takes_unopened_pages_where_it_is_told_to)
{
    begin(0, 0, 0);
    (void)open_next();
    superslab_t *ss = registry_superslab(shadow.base);
    superslab_touch_one(ss, shadow.base + 2 * HAK_PAGE);
    cr_assert(take(1, 1) == 0);
    size_t keep = 0;
    purges = 0;
    cr_assert(region_release(&shadow.region, false, &keep, note_purge) == 0 && purges == 0);
    cr_assert(region_release(&shadow.region, true, &keep, note_purge) == 1 && purges == 1);
    cr_assert(!superslab_is_touched(ss, shadow.base + 2 * HAK_PAGE));
    cr_assert(superslab_is_touched(ss, shadow.base));
    cr_assert(region_release(&shadow.region, true, &keep, note_purge) == 0 && purges == 1);
    must_be_as_known();
    open_all();
    must_be_as_known();
}

/* ---- The granule ---- */

Test(region, a_close_fails_with_a_block_anywhere)
{
    static const unsigned places[] = {0, 31, 32, 255, 256, 511, 512, 700, 767, 768, 991, 1023};
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (size_t i = 0; i < CONTRACT_LENGTH(places); i++) {
            begin(level, 0, 0);
            open_all();
            while (take(1, 1) < REGION_UNITS) {
            }
            for (unsigned unit = 0; unit < REGION_UNITS; unit++)
                if (unit != places[i]) put(unit);
            try_close();
            must_be_as_known(); /* all pages are as open as they were */
            cr_assert(find_room(64, 64) < REGION_UNITS && take(64, 64) < REGION_UNITS);
            put_all();
            char *before = shadow.base;
            try_close();
            cr_assert(shadow.base != before);
            must_be_as_known();
            open_all();
            cr_assert(take(64, 1) == 0);
            must_be_as_known();
        }
}

/* Pages that are not open stay so where a close fails, and may be opened. */
Test(region, a_close_leaves_unopened_pages_unopened)
{
    begin(1, 0, 0);
    (void)open_next();
    cr_assert(take(4, 1) == 0);
    try_close();
    must_be_as_known();
    for (unsigned page = 1; page < GRANULE_PAGES; page++) cr_assert(open_next());
    cr_assert(!open_next());
    must_be_as_known();
    for (unsigned i = 1; i < REGION_UNITS / 4; i++) cr_assert(take(4, 1) < REGION_UNITS);
    must_be_as_known();
}

Test(region, a_page_that_another_thread_owns_is_let_be)
{
    begin(0, 0, 0);
    open_all();
    cr_assert(region_close(&shadow.region)); /* as that thread */
    size_t keep = 0;
    purges = 0;
    cr_assert(!region_close(&shadow.region));
    cr_assert(region_release(&shadow.region, true, &keep, note_purge) == 0 && purges == 0);
    cr_assert(!region_open(&shadow.region, shadow.guard));
    cr_assert(take_block(1, 1) == NULL);
}

Test(region, a_clear_frees_every_block_at_once)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        begin(level, 28, 290);
        for (unsigned page = 0; page < 3; page++) (void)open_next();
        for (unsigned n = 1; take(n, 1) < REGION_UNITS; n++) {
        }
        region_clear(&shadow.region, shadow.guard);
        memset(shadow.block, 0, sizeof shadow.block);
        for (unsigned unit = 0; unit < REGION_UNITS; unit++)
            if (shadow.state[unit] != UNIT_HELD) shadow.state[unit] = UNIT_FREE;
        must_be_as_known();
        cr_assert(take(64, 1) < REGION_UNITS);
        while (take(3, 1) < REGION_UNITS) {
        }
        cr_assert(find_room(3, 1) == REGION_UNITS);
        must_be_as_known();
    }
}

/* ---- Another thread, between any two instructions of a take ---- */

#if defined(__x86_64__)
/* The trap flag, by which the CPU raises SIGTRAP after each instruction; beyond the red zone. */
#define TRAP(change)                                               \
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\tpushfq\n\t" change \
                     "\n\tpopfq\n\tlea 128(%%rsp), %%rsp" ::       \
                         : "memory", "cc")

static volatile unsigned traps, trap_wanted;
static char *granules[2];

/* What another thread does that gives the granule back, and takes the next one. */
static void move_region(int number)
{
    (void)number;
    if (++traps != trap_wanted || !region_close(&shadow.region)) return;
    region_detach(&shadow.region);
    region_attach(&shadow.region, granules[1]);
    (void)region_open(&shadow.region, shadow.guard);
}

Test(region, a_take_gets_units_of_the_granule_that_is_there)
{
    struct sigaction action = {.sa_handler = move_region};
    cr_assert(sigaction(SIGTRAP, &action, NULL) == 0);
    for (int i = 0; i < 2; i++) granules[i] = some_granule();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        size_t moves = 0;
        trap_wanted = traps = 0;
        for (; trap_wanted <= traps; trap_wanted++) {
            shadow.guard = &guards[level];
            region_init(&shadow.region, 0, 0);
            region_attach(&shadow.region, granules[0]);
            cr_assert(region_open(&shadow.region, shadow.guard));
            traps = 0;
            TRAP("orl $0x100, (%%rsp)");
            char *ptr = take_block(3, 1);
            TRAP("andl $0xfffffeff, (%%rsp)");
            char *base = load_relaxed(&shadow.region.base);
            cr_assert(ptr >= base && ptr < base + GRANULE, "after %u instructions", trap_wanted);
            moves += base == granules[1];
        }
        cr_assert(traps > 20 && moves > 5);
    }
}
#endif

/* ---- Seals ---- */

/* Writes to a free unit, one byte: from 0 to 15. */
static void spoil(unsigned unit, unsigned byte) { at_unit(unit)[byte] ^= 1; }

static void take_all(void *unused)
{
    (void)unused;
    while (take_block(8, 1)) {
    }
}
static void grow_first(void *unused)
{
    (void)unused;
    (void)region_resize(&shadow.region, shadow.base, 8, 32, shadow.guard);
}

static void must_name(void (*run)(void *), unsigned from, unsigned end)
{
    for (unsigned unit = from; unit < end; unit += 3)
        for (unsigned byte = 0; byte < REGION_UNIT; byte += 5) {
            child_result_t result;
            char address[40];
            spoil(unit, byte);
            child_run(&result, run, NULL);
            cr_assert(child_aborted(&result, "CORRUPT", "malloc"), "unit %u: %s", unit,
                      result.text);
            snprintf(address, sizeof address, "%p", (void *)at_unit(unit));
            cr_assert(strstr(result.text, address) != NULL, "%s", result.text);
            const void *ptr = NULL;
            const char *words = region_check(&shadow.region, shadow.guard, &ptr);
            cr_assert(words && strcmp(words, "a free block was written to") == 0);
            cr_assert(ptr == at_unit(unit));
            spoil(unit, byte);
            cr_assert(region_check(&shadow.region, shadow.guard, &ptr) == NULL);
        }
}

Test(region, a_write_to_a_free_unit_is_found)
{
    begin(1, 0, 0);
    (void)open_next();
    for (unsigned i = 0; i < 20; i++) cr_assert(take(8, 1) == 8 * i);
    for (unsigned i = 1; i < 20; i += 2) put(8 * i); /* freed, in one word */
    must_name(take_all, 8, 16);
    must_name(take_all, 120, 128);
    must_name(take_all, 201, 207); /* never used */
    put(16);                       /* 8 to 32 is a hole behind the first block */
    cr_assert(take(16, 1) == 8);
    put(8);
    must_name(grow_first, 8, 32);
}

Test(region, a_block_that_is_taken_carries_no_seal)
{
    begin(1, 0, 0);
    open_all();
    char *first = take_block(64, 1);
    cr_assert(first && memory_is_zero(first, 64 * REGION_UNIT));
    cr_assert(region_resize(&shadow.region, first, 64, 1, shadow.guard));
    cr_assert(region_resize(&shadow.region, first, 1, 40, shadow.guard));
    cr_assert(memory_is_zero(first, 40 * REGION_UNIT));
}

/* ---- A map that cannot be ---- */

static void must_be_refused(unsigned at, uint64_t change, const char *wanted)
{
    const void *ptr;
    uint64_t before = load_relaxed(&shadow.region.word[at]);
    store_relaxed(&shadow.region.word[at], before ^ change);
    const char *words = region_check(&shadow.region, shadow.guard, &ptr);
    cr_assert(words && strcmp(words, wanted) == 0, "word %u: %s", at, words);
    store_relaxed(&shadow.region.word[at], before);
    cr_assert(region_check(&shadow.region, shadow.guard, &ptr) == NULL);
}

Test(region, a_map_that_cannot_be_is_found)
{
    static const char no_begin[] = "a region's map has a block without a begin";
    begin(0, 28, 290);
    open_all();
    cr_assert(take(28, 1) == 0 && take(4, 1) == 290);
    must_be_refused(12, 1u << 9, no_begin);          /* in the middle of what is free */
    must_be_refused(12, 1u, no_begin);               /* first of a word, behind a free unit */
    must_be_refused(0, (uint64_t)1 << 32, no_begin); /* the first of all */
    must_be_refused(31, 1u << 31, no_begin);         /* the last */
    must_be_refused(3, (uint64_t)1 << 40, "a region's map has lost the record");
    must_be_refused(9, (uint64_t)1 << 33, "a region's map has lost the record");
}

/* ---- By the public calls: a heap of the default config ---- */

static hak_heap_t *heap_with(int level, size_t region_bytes)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "mine";
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.region_bytes = region_bytes;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    return heap;
}
static bool in_region(const void *ptr) { return entry_code(registry_lookup(ptr)) == CODE_REGION; }

Test(region, api_usable_size_is_the_good_size)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (size_t size = 0; size <= REGION_BLOCK_MAX; size++) {
            hak_heap_t *heap = heap_with(level, 0);
            char *ptr = hak_heap_malloc(heap, size);
            cr_assert(in_region(ptr) && hak_usable_size(ptr) == hak_good_size(size));
            contract_fill(ptr, hak_usable_size(ptr), 1);
            must_be_sound(heap, 1);
            cr_assert(hak_heap_of(ptr) == heap);
            hak_free(ptr);
            must_be_sound(heap, 0);
            cr_assert(hak_heap_destroy(heap) == 0);
        }
}

Test(region, api_aligned_blocks_are)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_with(level, HAK_MIB);
        for (size_t alignment = 32; alignment <= 1024; alignment *= 2)
            for (size_t size = 1; size <= 1024; size += 37) {
                cr_assert(hak_heap_malloc(heap, size % 48) != NULL);
                char *ptr = hak_heap_aligned_alloc(heap, alignment, size);
                cr_assert(ptr && (uintptr_t)ptr % alignment == 0 && hak_usable_size(ptr) >= size);
                cr_assert(in_region(ptr));
                contract_fill(ptr, hak_usable_size(ptr), 1);
                if (size % 2) hak_heap_free(heap, ptr);
            }
        cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
    }
}

Test(region, api_realloc_grows_and_shrinks_in_place)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_with(level, 0);
        char *ptr = hak_heap_malloc(heap, 16);
        for (size_t size = 32; size <= REGION_BLOCK_MAX; size += 16) {
            contract_fill(ptr, size - 16, 3);
            ptr = hak_heap_realloc(heap, ptr, size);
            cr_assert(contract_holds(ptr, size - 16, 3) && in_region(ptr));
            cr_assert(hak_usable_size(ptr) == hak_good_size(size));
        }
        for (size_t size = REGION_BLOCK_MAX; size > 0; size -= 16) {
            memset(ptr, (int)(size / 16), hak_usable_size(ptr));
            cr_assert(hak_heap_realloc(heap, ptr, size) == ptr);
            for (size_t i = 0; i < size; i++)
                cr_assert((unsigned char)ptr[i] == (unsigned char)(size / 16));
            cr_assert(hak_usable_size(ptr) == hak_good_size(size));
        }
        must_be_sound(heap, 1);
        hak_heap_free(heap, ptr);
        ptr = hak_heap_malloc(heap, 16);
        char *behind = hak_heap_malloc(heap, 16);
        cr_assert(behind == ptr + 16);
        contract_fill(ptr, 16, 6);
        char *moved = hak_heap_realloc(heap, ptr, 100);
        cr_assert(moved != ptr && contract_holds(moved, 16, 6));
        must_be_sound(heap, 2);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Misuse ---- */

typedef struct misuse {
    hak_heap_t *heap;
    char *ptr;
    size_t units;
} misuse_t;

static void free_twice(void *arg)
{
    misuse_t *misuse = arg;
    hak_heap_free(misuse->heap, misuse->ptr);
    hak_heap_free(misuse->heap, misuse->ptr);
}
static void free_inside(void *arg)
{
    misuse_t *misuse = arg;
    hak_free(misuse->ptr + (misuse->units - 1) * REGION_UNIT);
}
static void free_off_unit(void *arg) { hak_free(((misuse_t *)arg)->ptr + 8); }
static void write_after_free(void *arg)
{
    misuse_t *misuse = arg;
    hak_heap_free(misuse->heap, misuse->ptr);
    misuse->ptr[misuse->units * REGION_UNIT - 1] ^= 1;
    if (!hak_heap_malloc(misuse->heap, misuse->units * REGION_UNIT)) _exit(99);
}
static void write_beyond(void *arg)
{
    misuse_t *misuse = arg;
    misuse->ptr[misuse->units * REGION_UNIT] ^= 1;
    if (!hak_heap_malloc(misuse->heap, misuse->units * REGION_UNIT)) _exit(99);
}
static void check_after_write(void *arg)
{
    misuse_t *misuse = arg;
    misuse->ptr[misuse->units * REGION_UNIT] ^= 1;
    _exit(hak_heap_check(misuse->heap) ? 41 : 0);
}
static void check_after_free(void *arg)
{
    misuse_t *misuse = arg;
    hak_heap_free(misuse->heap, misuse->ptr);
    misuse->ptr[0] ^= 1;
    _exit(hak_heap_check(misuse->heap) ? 41 : 0);
}

static void must_abort(void (*run)(void *), misuse_t *misuse, const char *code,
                       const char *operation)
{
    child_result_t result;
    child_run(&result, run, misuse);
    cr_assert(child_aborted(&result, code, operation), "%s, %zu units: %d, %s", code, misuse->units,
              result.status, result.text);
}
static void must_be_checked(void (*run)(void *), misuse_t *misuse)
{
    child_result_t result;
    child_run(&result, run, misuse);
    cr_assert(result.status == 41 && strstr(result.text, "CORRUPT: check"), "%s", result.text);
}

static misuse_t misuse_of(int level, size_t units)
{
    misuse_t misuse = {heap_with(level, 0), NULL, units};
    misuse.ptr = hak_heap_malloc(misuse.heap, units * REGION_UNIT);
    cr_assert(in_region(misuse.ptr));
    memset(misuse.ptr, 0x5a, units * REGION_UNIT);
    return misuse;
}

Test(region, api_misuse_is_named)
{
    static const size_t units[] = {1, 2, 8, 40, 64};
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (size_t i = 0; i < CONTRACT_LENGTH(units); i++) {
            misuse_t misuse = misuse_of(level, units[i]);
            must_abort(free_twice, &misuse, "DOUBLE_FREE", "free");
            must_abort(free_off_unit, &misuse, "INTERIOR", "free");
            if (units[i] > 1) must_abort(free_inside, &misuse, "INTERIOR", "free");
            if (!level) continue;
            must_abort(write_after_free, &misuse, "CORRUPT", "malloc");
            must_abort(write_beyond, &misuse, "CORRUPT", "malloc");
            must_be_checked(check_after_write, &misuse);
            must_be_checked(check_after_free, &misuse);
        }
}

/* ---- What regions serve ---- */

Test(region, api_a_class_moves_to_slabs)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        enum { BYTES = 64, LIMIT = 8192 };
        hak_heap_t *heap = heap_with(level, LIMIT);
        static char *blocks[400];
        for (size_t i = 0; i < 400; i++) {
            blocks[i] = hak_heap_malloc(heap, BYTES);
            contract_fill(blocks[i], BYTES, (unsigned)i);
            cr_assert(in_region(blocks[i]) == (i < LIMIT / BYTES), "block %zu", i);
        }
        cr_assert(in_region(hak_heap_malloc(heap, 2 * BYTES)));
        must_be_sound(heap, 401);
        for (size_t i = 0; i < 400; i++) {
            cr_assert(contract_holds(blocks[i], BYTES, (unsigned)i));
            hak_heap_free(heap, blocks[i]);
        }
        cr_assert(!in_region(hak_heap_malloc(heap, BYTES))); /* for ever */
        must_be_sound(heap, 2);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(region, api_one_byte_serves_nothing_from_regions)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_with(level, 1);
        for (size_t size = 0; size <= REGION_BLOCK_MAX; size += 8)
            cr_assert(!in_region(hak_heap_malloc(heap, size)));
        cr_assert(!in_region(hak_heap_aligned_alloc(heap, 64, 64)));
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

enum { MANY = 40000 };
static char *many[MANY];

static size_t regions_of(hak_heap_t *heap)
{
    size_t count = 0;
    FOR_REGIONS(region, heap) count++;
    return count;
}

/* More regions than there can be: the class goes on in slabs. */
static hak_heap_t *heap_of_many(int level, size_t size)
{
    hak_heap_t *heap = heap_with(level, HAK_MIB);
    for (size_t i = 0; i < MANY; i++) {
        many[i] = hak_heap_malloc(heap, size);
        cr_assert(many[i] != NULL);
        contract_fill(many[i], size, (unsigned)i);
    }
    return heap;
}

Test(region, api_goes_on_beyond_the_last_region)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_many(level, 16);
        cr_assert(regions_of(heap) == REGION_MOST && !in_region(many[MANY - 1]));
        must_be_sound(heap, MANY);
        size_t full = contract_stats(heap).committed_bytes;
        for (size_t i = 0; i < MANY; i++) {
            cr_assert(contract_holds(many[i], 16, (unsigned)i));
            hak_heap_free(heap, many[i]);
        }
        must_be_sound(heap, 0);
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0);
        cr_assert(regions_of(heap) == 1);
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(stats.committed_bytes + 31 * GRANULE < full);
        cr_assert(stats.resident_bytes < stats.metadata_bytes + GRANULE);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* The regions of a heap that has SuperSlabs lie in those, else in the nursery. */
static void reset_and_destroy(int level, bool own)
{
    hak_heap_t *heap = heap_with(level, HAK_MIB);
    for (size_t i = 0; own && i < NURSERY_MOST / 3 + 1; i++)
        cr_assert(hak_heap_malloc(heap, 40000) != NULL);
    cr_assert((contract_stats(heap).superslabs != 0) == own);
    for (unsigned round = 0; round < 3; round++) {
        for (size_t i = 0; i < 6000; i++)
            contract_fill(many[i] = hak_heap_malloc(heap, 16 + i % 100), 16, (unsigned)i);
        cr_assert(regions_of(heap) > REGIONS_NEAR);
        for (size_t i = 0; i < 6000; i++) cr_assert(contract_holds(many[i], 16, (unsigned)i));
        superslab_t *ss = registry_superslab(many[5999]);
        cr_assert(round || !ss->shared == own);
        cr_assert(hak_heap_check(heap) == 0);
        cr_assert(hak_heap_reset(heap) == 0);
        must_be_sound(heap, 0);
        cr_assert(regions_of(heap) == 1);
    }
    for (size_t i = 0; i < 2000; i++) many[i] = hak_heap_malloc(heap, 48);
    cr_assert(hak_heap_destroy(heap) == 0);
    cr_assert(hak_heap_of(many[0]) == NULL && hak_heap_of(many[1999]) == NULL);
}

Test(region, api_reset_and_destroy)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        reset_and_destroy(level, false);
        reset_and_destroy(level, true);
    }
}

Test(region, api_a_destroyed_heap_gives_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_with(level, 0);
        cr_assert(hak_heap_malloc(heap, 64) != NULL);
        cr_assert(hak_heap_destroy(heap) == 0);
        for (size_t size = 0; size <= 1040; size += 16) {
            errno = 0;
            cr_assert(hak_heap_malloc(heap, size) == NULL && errno == EINVAL);
            cr_assert(hak_last_error() == HAK_ERROR_ARGUMENT);
        }
    }
}

/* Blocks of every eighth page are kept: the others' pages go, but for what may stay. */
Test(region, api_trim_gives_pages_back)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_with(level, HAK_MIB);
        enum { BLOCKS = 480 };
        for (size_t i = 0; i < BLOCKS; i++) {
            many[i] = hak_heap_malloc(heap, 512);
            contract_fill(many[i], 512, (unsigned)i);
        }
        size_t live = 0;
        for (size_t i = 0; i < BLOCKS; i++) {
            if (i % 64 < 8) live++;
            else hak_heap_free(heap, many[i]);
        }
        must_be_sound(heap, live);
        size_t before = contract_stats(heap).resident_bytes;
        (void)hak_heap_trim(heap, 5 * HAK_PAGE);
        size_t kept = contract_stats(heap).resident_bytes;
        size_t bytes = hak_heap_trim(heap, 0);
        size_t after = contract_stats(heap).resident_bytes;
        cr_assert(kept <= before && kept - after == 5 * HAK_PAGE, "%zu, %zu, %zu", before, kept,
                  after);
        cr_assert(bytes >= kept - after);
        must_be_sound(heap, live);
        for (size_t i = 0; i < BLOCKS; i++) {
            if (i % 64 >= 8) continue;
            cr_assert(contract_holds(many[i], 512, (unsigned)i));
            hak_heap_free(heap, many[i]);
        }
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Fork ---- */

static void use_in_child(void *arg)
{
    hak_heap_t *heap = arg;
    for (size_t i = 0; i < 300; i++) {
        if (!contract_holds(many[i], 96, (unsigned)i)) _exit(2);
        if (i % 2) hak_heap_free(heap, many[i]);
    }
    for (size_t i = 0; i < 100; i++)
        if (!hak_heap_malloc(heap, 16 + i)) _exit(3);
    if (contract_unsound(heap, 250)) _exit(4);
    (void)hak_heap_trim(heap, 0);
    if (contract_unsound(heap, 250)) _exit(5);
}

Test(region, api_a_fork_has_both_whole)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_with(level, 0);
        for (size_t i = 0; i < 300; i++)
            contract_fill(many[i] = hak_heap_malloc(heap, 96), 96, (unsigned)i);
        child_result_t result;
        child_run(&result, use_in_child, heap);
        cr_assert(result.status == 0, "%d: %s", result.status, result.text);
        must_be_sound(heap, 300);
        for (size_t i = 0; i < 300; i++) cr_assert(contract_holds(many[i], 96, (unsigned)i));
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}
