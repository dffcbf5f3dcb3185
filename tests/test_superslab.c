/* superslab: runs of granules against a shadow, bins and sets, what was touched, purges that
 * fail. */
#include "superslab.h"

#include <criterion/criterion.h>
#include <limits.h>
#include <stdlib.h>

#include "support_child.h"
#include "support_os.h"
#include "support_random.h"

TestSuite(superslab, .timeout = 600);

enum { COUNT = 4 }; /* not more than the tries per bin, so that a run that exists is always found */

static superslab_t slabs[COUNT];
static superslab_set_t set;

/* What the module should think. */
typedef struct shadow {
    bool used[SUPERSLAB_GRANULES];
    bool touched[SUPERSLAB_GRANULES * GRANULE_PAGES];
} shadow_t;
static shadow_t shadows[COUNT];

/* Purges of memory that is not there are watched, never done. */
static size_t purged_pages;
static unsigned purge_calls;
static struct {
    size_t slab, page, pages;
} purges[4096];

static bool watch_purge(void *at, size_t bytes)
{
    uintptr_t offset = (uintptr_t)at - (uintptr_t)slabs[0].base;
    cr_assert(bytes % HAK_PAGE == 0 && offset % HAK_PAGE == 0);
    purged_pages += bytes / HAK_PAGE;
    purges[purge_calls % 4096].slab = offset / SUPERSLAB;
    purges[purge_calls % 4096].page = offset % SUPERSLAB / HAK_PAGE;
    purges[purge_calls++ % 4096].pages = bytes / HAK_PAGE;
    return false;
}

/* Addresses that nobody has mapped: the module never touches a SuperSlab's memory. */
static void make(unsigned count)
{
    fake_os_use();
    fake_os_watch_purge(watch_purge);
    set = (superslab_set_t){0};
    memset(shadows, 0, sizeof shadows);
    purged_pages = purge_calls = 0;
    for (unsigned i = 0; i < count; i++) {
        superslab_init(&slabs[i], (char *)0x100000000000 + (size_t)i * SUPERSLAB, NULL);
        superslab_set_add(&set, &slabs[i]);
    }
}

static unsigned bits_of(unsigned touched) { return (unsigned)__builtin_popcount(touched); }

static unsigned longest_free(const shadow_t *shadow)
{
    unsigned longest = 0, have = 0;
    for (unsigned g = 0; g < SUPERSLAB_GRANULES; g++) {
        have = shadow->used[g] ? 0 : have + 1;
        if (have > longest) longest = have;
    }
    return longest;
}

static unsigned bin_for(unsigned longest)
{
    unsigned bin = 0;
    while (bin < SUPERSLAB_BINS - 1 && 1u << bin <= longest) bin++;
    return bin;
}

static void must_match(unsigned i)
{
    const superslab_t *ss = &slabs[i];
    const shadow_t *shadow = &shadows[i];
    unsigned free_granules = 0, free_touched = 0;
    for (unsigned g = 0; g < SUPERSLAB_GRANULES; g++) {
        cr_assert((ss->free[g / 64] >> (g % 64) & 1) == !shadow->used[g],
                  "SuperSlab %u, granule %u", i, g);
        for (unsigned p = 0; p < GRANULE_PAGES; p++)
            cr_assert((ss->touched[g] >> p & 1) == shadow->touched[g * GRANULE_PAGES + p],
                      "SuperSlab %u, page %u.%u", i, g, p);
        if (shadow->used[g]) continue;
        free_granules++;
        free_touched += bits_of(ss->touched[g]);
    }
    cr_assert(ss->free_granules == free_granules, "SuperSlab %u: %u free", i, ss->free_granules);
    cr_assert(ss->free_touched == free_touched, "SuperSlab %u: %u touched", i, ss->free_touched);
    cr_assert(superslab_is_valid(ss));
    cr_assert(superslab_is_empty(ss) == (free_granules == SUPERSLAB_GRANULES));
    cr_assert(ss->bin == bin_for(longest_free(shadow)), "SuperSlab %u: bin %u, longest run %u", i,
              ss->bin, longest_free(shadow));
}

static void set_must_match(unsigned count)
{
    size_t empty = 0, touched = 0, in_bins = 0, in_all = 0;
    for (unsigned i = 0; i < count; i++) {
        must_match(i);
        empty += superslab_is_empty(&slabs[i]);
        touched += slabs[i].free_touched;
    }
    for (unsigned bin = 0; bin < SUPERSLAB_BINS; bin++) {
        const superslab_t *before = NULL;
        for (const superslab_t *ss = set.bin[bin]; ss; before = ss, ss = ss->next, in_bins++)
            cr_assert(ss->bin == bin && ss->prev == before);
    }
    const superslab_t *before = NULL;
    for (const superslab_t *ss = set.all; ss; before = ss, ss = ss->set_next, in_all++)
        cr_assert(ss->set_prev == before);
    cr_assert(set.last == before);
    cr_assert(set.count == count && in_all == count && in_bins == count);
    cr_assert(set.empty == empty && set.free_touched == touched);
}

static bool shadow_is_free(const shadow_t *shadow, unsigned first, unsigned granules)
{
    if (first + granules > SUPERSLAB_GRANULES) return false;
    for (unsigned g = first; g < first + granules; g++)
        if (shadow->used[g]) return false;
    return true;
}

static bool exists(unsigned granules, unsigned alignment)
{
    for (unsigned i = 0; i < COUNT; i++)
        for (unsigned first = 0; first < SUPERSLAB_GRANULES; first += alignment)
            if (shadow_is_free(&shadows[i], first, granules)) return true;
    return false;
}

static unsigned room_at(const shadow_t *shadow, unsigned first)
{
    unsigned room = 0;
    while (shadow_is_free(shadow, first, room + 1)) room++;
    return room;
}

/* The least room from a place that fits on, in the SuperSlabs of a bin. */
static unsigned least_room(unsigned bin, unsigned granules, unsigned alignment)
{
    unsigned least = UINT_MAX;
    for (const superslab_t *ss = set.bin[bin]; ss; ss = ss->next) {
        for (unsigned first = 0, room = 0, end = 0; first < SUPERSLAB_GRANULES;
             first += alignment) {
            if (first < end || (room = room_at(&shadows[ss - slabs], first)) < granules) continue;
            if (room < least) least = room;
            end = first + room;
        }
    }
    return least;
}

typedef struct held {
    run_t run;
    unsigned granules;
} held_t;

static void take(held_t *held, unsigned granules, unsigned alignment)
{
    unsigned bins[COUNT], least[SUPERSLAB_BINS];
    for (unsigned i = 0; i < COUNT; i++) bins[i] = slabs[i].bin;
    for (unsigned bin = 0; bin < SUPERSLAB_BINS; bin++)
        least[bin] = least_room(bin, granules, alignment);
    run_t run = superslab_take(&set, granules, alignment);
    *held = (held_t){run, granules};
    if (!run.ss) return;
    shadow_t *shadow = &shadows[run.ss - slabs];
    cr_assert(run.first % alignment == 0, "granule %u for alignment %u", run.first, alignment);
    cr_assert(shadow_is_free(shadow, run.first, granules), "granules %u + %u", run.first, granules);
    unsigned chosen = bins[run.ss - slabs];
    cr_assert(room_at(shadow, run.first) == least[chosen], "%u granules: room of %u, not %u",
              granules, room_at(shadow, run.first), least[chosen]);
    for (unsigned bin = 0; bin < chosen; bin++)
        cr_assert(least[bin] == UINT_MAX, "%u granules: bin %u, not %u", granules, chosen, bin);
    bool clean = true;
    for (unsigned g = run.first; g < run.first + granules; g++) {
        shadow->used[g] = true;
        for (unsigned p = 0; p < GRANULE_PAGES; p++)
            clean = clean && !shadow->touched[g * GRANULE_PAGES + p];
    }
    cr_assert(superslab_run_is_clean(run, granules) == clean);
}

/* A bit for each page; the last four bits stand for whatever is beyond them too. */
static void put(const held_t *held, pages_t pages)
{
    shadow_t *shadow = &shadows[held->run.ss - slabs];
    for (unsigned g = 0; g < held->granules; g++) {
        shadow->used[held->run.first + g] = false;
        for (unsigned p = 0; p < GRANULE_PAGES; p++) {
            unsigned bit = (g < 16 ? g : 15) * GRANULE_PAGES + p;
            if (pages >> bit & 1) shadow->touched[(held->run.first + g) * GRANULE_PAGES + p] = true;
        }
    }
    superslab_put(&set, held->run, held->granules, pages);
}

static unsigned some_granules(randoms_t *randoms)
{
    unsigned kind = random_below(randoms, 20);
    if (kind < 15) return 1 + random_below(randoms, 8);
    if (kind < 19) return 1 + random_below(randoms, 32);
    return 1 + random_below(randoms, SUPERSLAB_GRANULES);
}

Test(superslab, random_runs_against_a_shadow)
{
    enum { HELD = 200, ROUNDS = 30000 };
    static held_t held[HELD];
    randoms_t randoms = {42};
    unsigned taken = 0, refused = 0;
    make(COUNT);
    for (unsigned round = 0; round < ROUNDS; round++) {
        held_t *slot = &held[random_below(&randoms, HELD)];
        if (slot->run.ss) {
            put(slot, random_next(&randoms) & random_next(&randoms));
            slot->run.ss = NULL;
        } else {
            unsigned granules = some_granules(&randoms);
            unsigned alignment = random_below(&randoms, 4) ? 1 : 1u << random_below(&randoms, 7);
            bool possible = exists(granules, alignment);
            take(slot, granules, alignment);
            cr_assert((slot->run.ss != NULL) == possible, "%u granules at %u", granules, alignment);
            if (possible) taken++;
            else refused++;
        }
        if (round % 16 == 0) set_must_match(COUNT);
        else if (slot->run.ss) must_match((unsigned)(slot->run.ss - slabs));
    }
    cr_assert(taken > 1000 && refused > 100, "%u taken, %u refused", taken, refused);
    for (unsigned i = 0; i < HELD; i++)
        if (held[i].run.ss) put(&held[i], 0);
    set_must_match(COUNT);
    cr_assert(set.empty == COUNT);
}

Test(superslab, every_alignment_of_the_longest_run)
{
    for (unsigned alignment = 1; alignment <= SUPERSLAB_GRANULES; alignment *= 2) {
        make(1);
        held_t one, two, all;
        take(&all, SUPERSLAB_GRANULES, alignment);
        cr_assert(all.run.ss == &slabs[0] && all.run.first == 0);
        set_must_match(1);
        put(&all, 0);
        take(&one, 1, 1);
        take(&two, 1, alignment);
        cr_assert((two.run.ss != NULL) == (alignment < SUPERSLAB_GRANULES));
        if (two.run.ss) cr_assert(two.run.first == alignment);
        set_must_match(1);
    }
}

/* Each page that a byte lies in, and no other. */
Test(superslab, bytes_touch_the_pages_they_lie_in)
{
    static const size_t places[] = {0, 16, 4080, 4095, 8000, 16000, SUPERSLAB - 20000};
    static const size_t lengths[] = {1, 16, 4096, 4097, 5000, 12288, 20000};
    enum { LENGTHS = sizeof lengths / sizeof lengths[0], PLACES = sizeof places / sizeof *places };
    for (size_t i = 0; i < PLACES * LENGTHS; i++) {
        make(1);
        superslab_t *ss = &slabs[0];
        size_t at = places[i / LENGTHS], end = at + lengths[i % LENGTHS], count = 0;
        uint32_t fresh = superslab_touch(ss, ss->base + at, end - at);
        for (size_t page = 0; page < SUPERSLAB; page += HAK_PAGE) {
            bool lies_in = page < end && page + HAK_PAGE > at;
            cr_assert(superslab_is_touched(ss, ss->base + page) == lies_in, "%zu to %zu: page %zu",
                      at, end, page / HAK_PAGE);
            count += lies_in;
        }
        cr_assert(fresh == count && superslab_touch(ss, ss->base + at, end - at) == 0);
    }
}

/* The smallest hole that surely fits comes first; what nobody has used stays whole. */
Test(superslab, the_fuller_superslab_serves_first)
{
    make(3);
    held_t first, second, third;
    take(&first, 100, 1);
    take(&second, 4, 1);
    cr_assert(second.run.ss == first.run.ss, "a hole of 28 was there");
    take(&third, 64, 1);
    cr_assert(third.run.ss != first.run.ss);
    cr_assert(set.empty == 1);
}

/* The shortest hole with room, of several SuperSlabs of a bin; nothing else leaves long holes to
 * long runs. */
Test(superslab, a_run_goes_into_the_shortest_hole)
{
    make(2);
    held_t held[2][6];
    const unsigned lengths[] = {20, 5, 9,
                                3,  7, 84}; /* in turn: taken and given back, taken and kept */
    for (unsigned i = 0; i < 2; i++) {
        superslab_set_remove(&set, &slabs[1 - i]);
        for (unsigned k = 0; k < 6; k++) take(&held[i][k], lengths[k] - (i && k == 2), 1);
        superslab_set_add(&set, &slabs[1 - i]);
    }
    for (unsigned i = 0; i < 2; i++)
        for (unsigned k = 0; k < 6; k += 2) put(&held[i][k], 0);
    held_t nine, eight, seven, six;
    take(&nine, 9, 1);
    cr_assert(nine.run.ss == &slabs[0] && nine.run.first == 25);
    take(&eight, 8, 1);
    cr_assert(eight.run.ss == &slabs[1] && eight.run.first == 25);
    take(&seven, 7, 1);
    cr_assert(seven.run.first == 37 || seven.run.first == 36);
    take(&six, 6, 2);
    cr_assert(six.run.first == 36 || six.run.first == 38, "granule %u", six.run.first);
    set_must_match(2);
}

/* A run grows into free neighbours, and never over the end of its SuperSlab. */
Test(superslab, a_run_grows_into_free_neighbours_only)
{
    make(1);
    held_t low, middle, high;
    take(&low, 100, 1);
    take(&middle, 8, 1);
    take(&high, 16, 1);
    cr_assert(high.run.first == 108);
    cr_assert(!superslab_extend(&set, low.run, 100, 1), "in use");
    cr_assert(!superslab_extend(&set, high.run, 16, 5), "over the end");
    cr_assert(!superslab_extend(&set, high.run, 16, 100), "far over the end");
    set_must_match(1);
    cr_assert(superslab_extend(&set, high.run, 16, 4), "up to the end");
    cr_assert(slabs[0].free_granules == 0 && set.free_granules == 0);
    cr_assert(!superslab_extend(&set, high.run, 20, 1), "from the end on");
    cr_assert(slabs[0].free_granules == 0 && superslab_is_valid(&slabs[0]));
}

Test(superslab, sets_lose_and_gain_superslabs)
{
    make(COUNT);
    held_t held;
    take(&held, 10, 1);
    put(&held, 0xff);
    superslab_t *gone = held.run.ss;
    superslab_set_remove(&set, gone);
    cr_assert(set.count == COUNT - 1 && set.empty == COUNT - 1 && set.free_touched == 0);
    for (const superslab_t *ss = set.all; ss; ss = ss->set_next) cr_assert(ss != gone);
    for (unsigned bin = 0; bin < SUPERSLAB_BINS; bin++)
        for (const superslab_t *ss = set.bin[bin]; ss; ss = ss->next) cr_assert(ss != gone);
    superslab_set_add(&set, gone);
    set_must_match(COUNT);
    cr_assert(set.free_touched == 8);
    /* From the front, the middle and the end of the lists. */
    for (unsigned i = 0; i < COUNT; i++) superslab_set_remove(&set, &slabs[(i * 3 + 1) % COUNT]);
    cr_assert(set.count == 0 && set.empty == 0 && set.free_touched == 0 && !set.all);
    for (unsigned bin = 0; bin < SUPERSLAB_BINS; bin++) cr_assert(!set.bin[bin]);
}

/* As many turns as there are SuperSlabs reach each that was there before and still is, whatever
 * comes and goes in between. */
Test(superslab, turns_reach_every_superslab)
{
    make(COUNT);
    for (unsigned round = 0; round < 2; round++) {
        unsigned reached = 0;
        for (unsigned i = 0; i < COUNT; i++) reached |= 1u << (superslab_set_turn(&set) - slabs);
        cr_assert(reached == (1 << COUNT) - 1, "round %u: %x", round, reached);
        set_must_match(COUNT);
    }
    for (unsigned gone = 0; gone < COUNT; gone++) {
        unsigned reached = 1u << (superslab_set_turn(&set) - slabs);
        superslab_set_remove(&set, &slabs[gone]);
        reached |= 1u << (superslab_set_turn(&set) - slabs);
        superslab_set_add(&set, &slabs[gone]);
        for (unsigned i = 2; i < COUNT; i++) reached |= 1u << (superslab_set_turn(&set) - slabs);
        cr_assert((reached | 1u << gone) == (1 << COUNT) - 1, "without %u: %x", gone, reached);
        set_must_match(COUNT);
    }
}

Test(superslab, an_empty_set_has_nothing)
{
    superslab_set_t nothing = {0};
    cr_assert(superslab_take(&nothing, 1, 1).ss == NULL);
    cr_assert(superslab_set_turn(&nothing) == NULL);
}

/* ---- The checker ---- */

static superslab_t sound;

/* The damage is found; then it is undone. */
static void must_be_found(superslab_t *ss, const char *what)
{
    cr_assert(!superslab_is_valid(ss), "%s", what);
    *ss = sound;
}

Test(superslab, the_checker_can_fail)
{
    make(1);
    held_t held, other;
    take(&held, 3, 1);
    put(&held, 0x35);
    superslab_t *ss = &slabs[0];
    cr_assert(superslab_is_valid(ss));
    sound = *ss;
    ss->free[0] ^= 1ull << 20;
    must_be_found(ss, "a granule lost");
    ss->free[1] ^= 1ull << 63;
    must_be_found(ss, "the last granule lost");
    ss->free_granules--;
    must_be_found(ss, "a wrong count of granules");
    ss->free_touched++;
    must_be_found(ss, "a wrong count of pages");
    ss->touched[100] = 1;
    must_be_found(ss, "a page that nobody counted");
    ss->begins[0] ^= 1ull << 50;
    must_be_found(ss, "a free granule begins a run");
    ss->used[1] ^= 1ull << 63;
    must_be_found(ss, "a descriptor that no run has");
    take(&held, 3, 1);
    take(&other, 1, 1);
    cr_assert(superslab_is_valid(ss));
    store_relaxed(&ss->slot[other.run.first], (uint8_t)superslab_slot(ss, held.run.first));
    cr_assert(!superslab_is_valid(ss), "two runs with one descriptor");
    put(&other, 0);
    put(&held, 0);
    *ss = sound;
    cr_assert(superslab_is_valid(ss));
}

static size_t locked_page;
static unsigned asked;

/* What the kernel says where the program has locked one page of the first SuperSlab. */
static bool purge_but_locked(void *at, size_t bytes)
{
    size_t page = (size_t)((char *)at - slabs[0].base) / HAK_PAGE;
    asked++;
    return locked_page < page || locked_page >= page + bytes / HAK_PAGE;
}

/* A page that the program has locked holds back itself, whether what is around it is there or
 * not. */
Test(superslab, a_locked_page_holds_back_itself_only)
{
    make(1);
    os_table_t table = *os;
    table.purge = purge_but_locked;
    os = &table;
    locked_page = 37;
    held_t held;
    take(&held, 16, 1);
    put(&held, PAGES_ALL);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 63 && set.free_touched == 1);
    cr_assert(superslab_is_touched(&slabs[0], slabs[0].base + locked_page * HAK_PAGE) &&
              superslab_is_valid(&slabs[0]));
    cr_assert(asked <= 13, "%u calls", asked);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 0);
    locked_page = 1000;
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 1 && set.free_touched == 0);
    memset(&shadows[0].touched, 0, sizeof shadows[0].touched);

    locked_page = 2;
    take(&held, 4, 1);
    put(&held, 0xf0f3); /* pages 0 and 1, 4 to 7, 12 to 15 */
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 10 && set.free_touched == 0);
    fake_os_restore();
}

/* A kernel that refuses everything is not asked page by page. */
Test(superslab, refusals_are_bounded)
{
    make(1);
    held_t held;
    take(&held, 128, 1);
    put(&held, PAGES_ALL);
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 0 && set.free_touched == 512);
    cr_assert(fake_os_calls(FAKE_PURGE) == 65, "%ld calls", fake_os_calls(FAKE_PURGE));
}

/* However many refusals one free run has spent, the others are asked for. */
Test(superslab, a_locked_run_holds_back_no_other)
{
    make(1);
    held_t runs[3];
    for (int i = 0; i < 3; i++) take(&runs[i], 16, 1);
    put(&runs[0], PAGES_ALL);
    put(&runs[2], PAGES_ALL);
    fake_os_refuse(FAKE_PURGE, 1, 65);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 64 && set.free_touched == 64);
    put(&runs[1], 0);
}

/* ---- Descriptors ---- */

static bool purge_descriptors(void *at, size_t bytes)
{
    cr_assert(at == slabs[0].descriptors + HAK_PAGE && bytes == HAK_PAGE);
    purge_calls++;
    return false;
}

/* The first free descriptor serves, whichever granules the run has; neighbours that go back as one
 * give all of theirs back. */
Test(superslab, the_first_free_descriptor_serves)
{
    make(1);
    held_t runs[SUPERSLAB_GRANULES];
    for (unsigned i = 0; i < 40; i++) {
        take(&runs[i], 3, 1);
        cr_assert(superslab_descriptor(&slabs[0], runs[i].run.first) ==
                  slabs[0].descriptors + i * DESCRIPTOR_BYTES);
    }
    put(&runs[30], 0);
    put(&runs[7], 0);
    put(&runs[8], 0);
    held_t next;
    take(&next, 6, 1);
    cr_assert(slabs[0].slot[next.run.first] == 7);
    /* Two runs side by side, and the tail of one. */
    superslab_put(&set, runs[20].run, 6, 0);
    superslab_put(&set, (run_t){&slabs[0], runs[0].run.first + 2}, 1, 0);
    cr_assert(superslab_is_valid(&slabs[0]));
    static const unsigned expected[] = {8, 20, 21, 30, 40};
    for (unsigned i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        run_t run = superslab_take(&set, 1, 1);
        cr_assert(run.ss && superslab_slot(run.ss, run.first) == expected[i],
                  "descriptor %u, not %u", superslab_slot(run.ss, run.first), expected[i]);
    }
    cr_assert(superslab_is_valid(&slabs[0]));
}

Test(superslab, far_descriptors_move_near_and_their_page_goes)
{
    static char descriptors[2 * HAK_PAGE];
    make(1);
    slabs[0].descriptors = descriptors;
    fake_os_watch_purge(purge_descriptors);
    held_t runs[SUPERSLAB_GRANULES];
    for (unsigned i = 0; i < SUPERSLAB_GRANULES; i++) {
        take(&runs[i], 1, 1);
        cr_assert(superslab_is_far(runs[i].run) == (i >= DESCRIPTORS_NEAR));
    }
    cr_assert(superslab_move_near(runs[100].run) == NULL && superslab_is_far(runs[100].run),
              "there is no room");
    for (unsigned i = 0; i < SUPERSLAB_GRANULES; i++)
        if (i != 100 && i != 5) put(&runs[i], 0);
    superslab_purge_far(&set, &slabs[0]);
    cr_assert(purge_calls == 0, "a run has a descriptor there");
    cr_assert(superslab_move_near(runs[100].run) == descriptors &&
              !superslab_is_far(runs[100].run));
    cr_assert(superslab_is_valid(&slabs[0]));
    fake_os_refuse(FAKE_PURGE, 1, 1);
    superslab_purge_far(&set, &slabs[0]);
    cr_assert(slabs[0].far, "refused: to be tried again");
    superslab_purge_far(&set, &slabs[0]);
    cr_assert(purge_calls >= 1 && !slabs[0].far);
    unsigned calls = purge_calls;
    superslab_purge_far(&set, &slabs[0]);
    cr_assert(purge_calls == calls, "once");
}

static child_result_t child;

static void put_twice(void *arg)
{
    const held_t *held = arg;
    superslab_put(&set, held->run, held->granules, 0);
    superslab_put(&set, held->run, held->granules, 0);
}

Test(superslab, a_run_put_twice_asserts)
{
    if (!HAK_DEBUG) cr_skip_test("built without asserts");
    make(1);
    held_t held;
    take(&held, 3, 1);
    child_run(&child, put_twice, &held);
    cr_assert(child_aborted(&child, "ASSERT", "assert"), "signal %d: %s", child.signal, child.text);
}

/* ---- Pages ---- */

Test(superslab, pages_beyond_64_go_with_the_last_four)
{
    make(1);
    held_t held;
    take(&held, 20, 1);
    put(&held, (pages_t)0x9 << 60);
    for (unsigned g = 0; g < 20; g++)
        cr_assert(slabs[0].touched[g] == (g < 15 ? 0 : 0x9), "granule %u", g);
    set_must_match(1);
    take(&held, 128, 1);
    put(&held, PAGES_ALL);
    set_must_match(1);
    cr_assert(set.free_touched == SUPERSLAB / HAK_PAGE);
}

Test(superslab, clearing_counts_every_page_that_was_noted)
{
    make(1);
    held_t a, b;
    take(&a, 5, 1);
    take(&b, 7, 1);
    put(&a, 1);
    superslab_note(b.run, 7, 0x8031);
    superslab_set_remove(&set, &slabs[0]);
    superslab_clear(&slabs[0]);
    cr_assert(superslab_is_valid(&slabs[0]) && superslab_is_empty(&slabs[0]));
    cr_assert(slabs[0].free_touched == 1 + 4, "%u", slabs[0].free_touched);
    superslab_set_add(&set, &slabs[0]);
    cr_assert(set.empty == 1 && set.free_touched == 1 + 4);
}

/* One call for all that is free side by side, from the first touched page to the last; granules in
 * use are never in it. */
Test(superslab, a_purge_is_a_call_for_each_free_run)
{
    make(1);
    held_t held, other;
    take(&held, 4, 1);
    put(&held, 0x36fc); /* pages 2 to 7, 9, 10, 12, 13 */
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 10);
    cr_assert(purge_calls == 1, "%u calls", purge_calls);
    cr_assert(purges[0].page == 2 && purges[0].pages == 12);
    memset(&shadows[0].touched, 0, sizeof shadows[0].touched);
    set_must_match(1);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 0 && purge_calls == 1);

    /* As many as are asked for, and no touched page more. */
    take(&held, 4, 1);
    put(&held, 0x36fc);
    cr_assert(superslab_purge(&set, &slabs[0], 7) == 7);
    cr_assert(purge_calls == 2 && purges[1].page == 2 && purges[1].pages == 8);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 3);
    cr_assert(purge_calls == 3 && purges[2].page == 10 && purges[2].pages == 4);
    memset(&shadows[0].touched, 0, sizeof shadows[0].touched);
    set_must_match(1);

    /* Used granules between free ones are never purged. */
    take(&held, 6, 1);
    put(&held, PAGES_ALL);
    take(&other, 2, 4);
    cr_assert(other.run.first == 0 || other.run.first == 4);
    purge_calls = 0;
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 4 * GRANULE_PAGES);
    for (unsigned i = 0; i < purge_calls; i++) {
        size_t from = other.run.first * GRANULE_PAGES, to = from + 2 * GRANULE_PAGES;
        cr_assert(purges[i].page + purges[i].pages <= from || purges[i].page >= to, "call %u", i);
    }
    cr_assert(set.free_touched == 0 && superslab_is_valid(&slabs[0]));
    cr_assert(!superslab_run_is_clean(other.run, 2));
}

Test(superslab, a_purge_stops_when_enough_is_gone)
{
    make(1);
    held_t held;
    take(&held, 16, 1);
    put(&held, PAGES_ALL);
    cr_assert(superslab_purge(&set, &slabs[0], 0) == 0 && purge_calls == 0);
    size_t purged = superslab_purge(&set, &slabs[0], 10);
    cr_assert(purged >= 10 && purged < 64, "%zu pages", purged);
    cr_assert(purged == purged_pages);
    cr_assert(set.free_touched == 64 - purged && superslab_is_valid(&slabs[0]));
}

Test(superslab, refused_purges_stay_counted)
{
    make(1);
    held_t held;
    take(&held, 4, 1);
    put(&held, 0xf0f3);
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 0);
    cr_assert(set.free_touched == 10);
    set_must_match(1);
    cr_assert(!superslab_run_is_clean(held.run, 4));

    fake_os_allow(FAKE_PURGE);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 10);
    cr_assert(set.free_touched == 0 && superslab_run_is_clean(held.run, 4));
    memset(&shadows[0].touched, 0, sizeof shadows[0].touched);

    /* One of three refused, and each part of it: the others go. */
    held_t runs[5];
    for (int i = 0; i < 5; i++) take(&runs[i], 2, 1);
    for (int i = 0; i < 5; i += 2) put(&runs[i], 0x3c);
    fake_os_refuse(FAKE_PURGE, 2, 7);
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 8);
    cr_assert(set.free_touched == 4 && superslab_is_valid(&slabs[0]) &&
              !superslab_run_is_clean(runs[2].run, 2));
    cr_assert(superslab_purge(&set, &slabs[0], SIZE_MAX) == 4);
    cr_assert(set.free_touched == 0 && superslab_run_is_clean(runs[2].run, 2));
}
