/* registry: what it says of any value, of runs, of ranges; tables that the system refuses. */
#include "registry.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "os.h"
#include "support_os.h"
#include "support_random.h"
#include "support_stall.h"
#include "support_step.h"

TestSuite(registry, .timeout = 600);

/* Stands for a heap: an address, aligned as heaps are. Never read. */
static char heaps[4][64] __attribute__((aligned(64)));

static char *reserve_gib_aligned(size_t bytes)
{
    char *base = os->reserve(bytes, HAK_GIB);
    cr_assert(base != NULL);
    return base;
}

static void must_be_foreign(const void *ptr)
{
    cr_assert(registry_lookup(ptr) == 0, "%p", ptr);
    cr_assert(registry_entry(registry_rotate(ptr)) == 0, "%p", ptr);
    cr_assert(registry_superslab(ptr) == NULL, "%p", ptr);
    cr_assert(registry_range(ptr) == NULL, "%p", ptr);
}

static void look_at_odd_values(void)
{
    static const uintptr_t odd[] = {0,
                                    1,
                                    15,
                                    16,
                                    4096,
                                    0x7fffffffffff,
                                    0x7ffffffffff0,
                                    0x800000000000,
                                    0x800000000010,
                                    0xffff800000000000,
                                    0xffffffffffffffff,
                                    0xfffffffffffffff0,
                                    0x8000000000000000,
                                    0x7fffffffffffffff};
    for (unsigned i = 0; i < sizeof odd / sizeof odd[0]; i++) must_be_foreign((const void *)odd[i]);
    int local;
    must_be_foreign(&local);
    must_be_foreign(look_at_odd_values);
    void *other = malloc(100);
    must_be_foreign(other);
    free(other);
}

Test(registry, odd_values_are_foreign)
{
    look_at_odd_values();
    randoms_t randoms = {1};
    for (int i = 0; i < 100000; i++)
        must_be_foreign((const void *)(uintptr_t)random_next(&randoms));
}

Test(registry, odd_values_stay_foreign_where_a_gib_is_covered)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    registry_set_run(base, 1, heaps[0], 3);
    look_at_odd_values();
    /* Never committed, without an entry: looked at without a touch. */
    must_be_foreign(base + GRANULE);
    must_be_foreign(base + HAK_GIB - 1);
    must_be_foreign(base - 1);
    must_be_foreign(base + HAK_GIB);
}

/* Entries begin at bit 23 with the owner: only that heap's own come out small. */
static void must_be_run(const char *start, unsigned granules, const void *heap, unsigned code)
{
    for (unsigned g = 0; g < granules; g++) {
        static const unsigned places[] = {0, 1, 15, 16, 17, 8000, GRANULE - 16, GRANULE - 1};
        for (unsigned i = 0; i < sizeof places / sizeof places[0]; i++) {
            const char *ptr = start + (size_t)g * GRANULE + places[i];
            entry_t entry = registry_lookup(ptr);
            cr_assert(entry_heap(entry) == heap, "granule %u + %u", g, places[i]);
            cr_assert(entry_code(entry) == code, "granule %u: code %u", g, entry_code(entry));
            cr_assert(entry_back(entry) == g, "granule %u: %u before", g, entry_back(entry));
            cr_assert(entry_run_start(entry, ptr) == start, "granule %u + %u", g, places[i]);
            cr_assert(entry_is_owned(entry ^ entry_owner_bits(heap)));
            cr_assert(!entry_is_owned(entry ^ entry_owner_bits(heaps[3])));
            uint64_t rotated = registry_rotate(ptr);
            if (places[i] % 16) {
                cr_assert(rotated >> 43, "a misaligned pointer looks aligned: %u", places[i]);
                cr_assert(registry_entry(rotated) == 0);
                continue;
            }
            cr_assert(registry_entry(rotated) == entry);
            entry_t mine = entry ^ entry_owner_bits(heap);
            cr_assert(entry_offset(mine, rotated) == (g * GRANULE + places[i]) / 16,
                      "granule %u + %u", g, places[i]);
            if (code < SLOT_COUNT) cr_assert(entry_slot(mine) == (size_t)code * 2);
        }
    }
}

Test(registry, runs_lead_to_owner_class_and_start)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    registry_set_run(base, 1, heaps[0], 0);
    registry_set_run(base + GRANULE, 16, heaps[1], CLASS_COUNT - 1);
    registry_set_run(base + 17 * (size_t)GRANULE, 64, heaps[0], CODE_MID);
    registry_set_run(base + SUPERSLAB, SUPERSLAB_GRANULES, heaps[2], CODE_RELEASED);
    registry_set_run(base + HAK_GIB - GRANULE, 1, heaps[2], 7);
    must_be_run(base, 1, heaps[0], 0);
    must_be_run(base + GRANULE, 16, heaps[1], CLASS_COUNT - 1);
    must_be_run(base + 17 * (size_t)GRANULE, 64, heaps[0], CODE_MID);
    /* "Granules before" counts to 63: no block is longer, and what was given back is no block. */
    must_be_run(base + SUPERSLAB, MID_MAX / GRANULE, heaps[2], CODE_RELEASED);
    cr_assert(entry_code(registry_lookup(base + 2 * (size_t)SUPERSLAB - 1)) == CODE_RELEASED);
    must_be_run(base + HAK_GIB - GRANULE, 1, heaps[2], 7);
    must_be_foreign(base + 81 * (size_t)GRANULE);
    must_be_foreign(base + 2 * (size_t)SUPERSLAB);
    must_be_foreign(base + HAK_GIB - GRANULE - 1);

    /* Written over: nothing of what was there shines through. */
    registry_set_run(base + GRANULE, 3, heaps[2], 5);
    must_be_run(base + GRANULE, 3, heaps[2], 5);
    cr_assert(entry_back(registry_lookup(base + 4 * (size_t)GRANULE)) == 3);
    registry_set_run(base, 1, NULL, CODE_DEAD);
    cr_assert(entry_heap(registry_lookup(base)) == NULL &&
              entry_code(registry_lookup(base)) == CODE_DEAD);
}

Test(registry, a_run_is_lengthened_by_the_granules_behind_it)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    registry_set_run(base, 4, heaps[0], CODE_MID);
    registry_set_home(base, 4, 7); /* what is there stays as it is */
    registry_extend_run(base, 4, 9, heaps[0], CODE_MID);
    must_be_run(base, 9, heaps[0], CODE_MID);
    for (size_t g = 0; g < 9; g++)
        cr_assert(entry_home(registry_lookup(base + g * GRANULE)) == (g < 4 ? 7 : HOME_NONE),
                  "granule %zu", g);
    must_be_foreign(base + 9 * (size_t)GRANULE);
}

Test(registry, a_home_is_written_over_and_changes_nothing_else)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    cr_assert(registry_home(-1) == HOME_NONE && registry_home(0) == 0);
    cr_assert(registry_home(HOME_LOOK - 1) == HOME_LOOK - 1 &&
              registry_home(HOME_LOOK) == HOME_NONE);
    cr_assert(registry_home(HOME_NONE) == HOME_NONE);
    cr_assert(registry_home(1 << 20) == HOME_NONE);
    registry_set_run(base, 16, heaps[0], 9 | CODE_CHECKED);
    registry_set_run(base + 16 * (size_t)GRANULE, 1, heaps[0], 9);
    static const unsigned homes[] = {HOME_NONE, 0, 1, HOME_LOOK - 1, HOME_LOOK, 64, HOME_NONE};
    for (unsigned i = 0; i < sizeof homes / sizeof homes[0]; i++) {
        if (i) registry_set_home(base, 16, homes[i]);
        must_be_run(base, 16, heaps[0], 9);
        for (size_t g = 0; g < 17; g++) {
            entry_t mine = registry_lookup(base + g * GRANULE) ^ entry_owner_bits(heaps[0]);
            cr_assert(entry_home(mine) == (g < 16 ? homes[i] : HOME_NONE), "granule %zu", g);
            cr_assert(entry_is_owned(mine) && entry_is_fast(mine) == (g == 16));
            cr_assert(entry_tag(mine) == registry_tag(entry_home(mine), 9));
        }
    }
}

/* For every class: an address is a block's start or it is not, from the entry alone, in every
 * granule of a slab. */
Test(registry, entries_know_where_blocks_begin)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        unsigned code = cls % 2 ? cls | CODE_CHECKED : cls;
        registry_set_run(base, size_classes[cls].granules, heaps[0], code);
        for (uint32_t at = 0; at < (uint32_t)size_classes[cls].granules * GRANULE;
             at += BLOCK_ALIGN) {
            uint64_t rotated = registry_rotate(base + at);
            entry_t mine = registry_entry(rotated) ^ entry_owner_bits(heaps[0]);
            bool begins = at % size_classes[cls].bytes == 0 &&
                          at / size_classes[cls].bytes < size_classes[cls].blocks;
            cr_assert(entry_divides(mine, rotated) == begins, "class %u, offset %u", cls, at);
        }
    }
    cr_assert(entry_divides((entry_t)CODE_MID << ENTRY_CODE_SHIFT, 7),
              "what is no size class is refused by its slot");
    cr_assert(entry_divides((entry_t)CODE_RELEASED << ENTRY_CODE_SHIFT, 7));
}

Test(registry, entries_know_the_level)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    registry_set_run(base, 3, heaps[0], 5);
    registry_set_run(base + 3 * GRANULE, 3, heaps[1], 5 | CODE_CHECKED);
    registry_set_run(base + 6 * GRANULE, 3, heaps[1], CODE_MID | CODE_CHECKED);
    must_be_run(base, 3, heaps[0], 5);
    must_be_run(base + 3 * GRANULE, 3, heaps[1], 5);
    must_be_run(base + 6 * GRANULE, 3, heaps[1], CODE_MID);
    for (size_t g = 0; g < 9; g++) {
        const char *at = base + g * GRANULE;
        entry_t mine = registry_lookup(at) ^ entry_owner_bits(heaps[g < 3 ? 0 : 1]);
        cr_assert(entry_is_owned(mine) && entry_is_fast(mine) == (g < 3), "granule %zu", g);
        entry_t foreign = registry_lookup(at) ^ entry_owner_bits(heaps[2]);
        cr_assert(!entry_is_owned(foreign) && !entry_is_fast(foreign), "granule %zu", g);
    }
    cr_assert(registry_release(base + 6 * GRANULE));
    entry_t mine = registry_lookup(base + 6 * GRANULE) ^ entry_owner_bits(heaps[1]);
    cr_assert(!entry_is_fast(mine) && entry_code(mine) == CODE_RELEASED && entry_back(mine) == 0);
}

/* ---- Giving back a run of one block ---- */

Test(registry, a_run_is_released_once)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    registry_set_run(base, 4, heaps[0], CODE_MID);
    registry_set_run(base + 4 * GRANULE, 1, heaps[0], 9);
    cr_assert(registry_release(base));
    cr_assert(!registry_release(base));
    cr_assert(!registry_release(base + 4 * GRANULE), "a slab is no run of one block");
    cr_assert(!registry_release(base + 5 * GRANULE), "nothing");
    entry_t entry = registry_lookup(base);
    cr_assert(entry_code(entry) == CODE_RELEASED && entry_heap(entry) == heaps[0] &&
              entry_back(entry) == 0);
}

enum { RACERS = 4, RELEASERS = 2, RACES = 4000 };
static char *race_base;
static pthread_barrier_t race_start;
static _Atomic unsigned race_wins[RACES];
static _Atomic unsigned race_arrivals[RACES];

/* All meet before each race, spinning, so that they release within nanoseconds of each other. */
static void *release_all(void *arg)
{
    (void)arg;
    for (unsigned race = 0; race < RACES; race++) {
        race_arrivals[race]++;
        for (unsigned spin = 0; race_arrivals[race] < RELEASERS; spin++)
            if (spin % 4096 == 4095) sched_yield();
        if (registry_release(race_base + (size_t)race * GRANULE)) race_wins[race]++;
    }
    return NULL;
}

Test(registry, of_several_that_release_one_wins)
{
    race_base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(race_base, HAK_GIB));
    for (unsigned i = 0; i < RACES; i++)
        registry_set_run(race_base + (size_t)i * GRANULE, 1, heaps[0], CODE_MID);
    pthread_t threads[RELEASERS];
    for (int i = 0; i < RELEASERS; i++)
        cr_assert(pthread_create(&threads[i], NULL, release_all, NULL) == 0);
    for (int i = 0; i < RELEASERS; i++) pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < RACES; i++)
        cr_assert(race_wins[i] == 1, "run %u: %u winners", i, race_wins[i]);
}

static char *stepped_base;
static bool stepped_won[2];
static void release_first(void) { stepped_won[0] = registry_release(stepped_base); }
static void release_other(void) { stepped_won[1] = registry_release(stepped_base); }

Test(registry, of_two_that_release_one_wins_at_every_instruction)
{
    enum { MOST = 10000 };
    stepped_base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(stepped_base, HAK_GIB));
    unsigned wins[2] = {0, 0}, at = 1;
    for (; at < MOST; at++) {
        registry_set_run(stepped_base, 1, heaps[0], CODE_MID);
        if (!step_run(&(step_t){release_first, release_other, at})) break;
        cr_assert(stepped_won[0] != stepped_won[1], "after instruction %u: %d and %d", at,
                  stepped_won[0], stepped_won[1]);
        wins[stepped_won[0]]++;
    }
    if (at == 1) cr_skip_test("no single steps here");
    cr_assert(wins[0] && wins[1] && at < MOST);
}

/* ---- SuperSlabs and ranges ---- */

/* Records are only ever compared here. */
static struct superslab *fake_superslab(size_t n) { return (struct superslab *)(void *)&heaps[n]; }
static struct large *fake_large(size_t n) { return (struct large *)(void *)&heaps[n]; }

Test(registry, superslabs_are_found_from_anywhere_inside)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    registry_set_superslab(base + SUPERSLAB, fake_superslab(1));
    cr_assert(registry_superslab(base + SUPERSLAB) == fake_superslab(1));
    cr_assert(registry_superslab(base + 2 * (size_t)SUPERSLAB - 1) == fake_superslab(1));
    cr_assert(registry_superslab(base + SUPERSLAB - 1) == NULL);
    cr_assert(registry_superslab(base + 2 * (size_t)SUPERSLAB) == NULL);
}

Test(registry, ranges_cover_what_they_touch)
{
    char *base = reserve_gib_aligned(2 * HAK_GIB);
    char *middle = base + HAK_GIB;
    cr_assert(registry_cover(base, 2 * HAK_GIB));
    /* 5 MiB take three slots, across the border of two tables. */
    registry_set_range(middle - SUPERSLAB, 5 * HAK_MIB, fake_large(0));
    cr_assert(registry_range(middle - SUPERSLAB - 1) == NULL);
    cr_assert(registry_range(middle - SUPERSLAB) == fake_large(0));
    cr_assert(registry_range(middle - 1) == fake_large(0));
    cr_assert(registry_range(middle) == fake_large(0));
    cr_assert(registry_range(middle + 2 * (size_t)SUPERSLAB - 1) == fake_large(0));
    cr_assert(registry_range(middle + 2 * (size_t)SUPERSLAB) == NULL);
    registry_set_range(middle, SUPERSLAB, fake_large(1));
    cr_assert(registry_range(middle - 1) == fake_large(0) &&
              registry_range(middle + 1) == fake_large(1));
    registry_set_range(middle - SUPERSLAB, 6 * HAK_MIB, NULL);
    for (int slot = -2; slot < 3; slot++)
        cr_assert(registry_range(middle + (ptrdiff_t)slot * SUPERSLAB) == NULL);
}

/* Ranges and runs lie in different tables: a large block has no entry, a run no range. */
Test(registry, ranges_and_runs_do_not_mix)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    cr_assert(registry_cover(base, HAK_GIB));
    registry_set_range(base, SUPERSLAB, fake_large(0));
    cr_assert(registry_lookup(base) == 0 && registry_superslab(base) == NULL);
    registry_set_run(base + SUPERSLAB, 128, heaps[0], 1);
    cr_assert(registry_range(base + SUPERSLAB) == NULL);
}

Test(registry, two_reservations_share_a_gib)
{
    char *base = reserve_gib_aligned(HAK_GIB);
    size_t index = (uintptr_t)base >> GIB_SHIFT;
    char *other = base + 100 * (size_t)SUPERSLAB;
    cr_assert(registry_cover(base, 4 * HAK_MIB));
    uintptr_t table = registry_top[index];
    registry_set_run(base, 2, heaps[0], 4);
    registry_set_superslab(base, fake_superslab(0));
    cr_assert(registry_cover(other, 4 * HAK_MIB));
    cr_assert(registry_top[index] == table, "one table serves both");
    registry_set_run(other, 3, heaps[1], 6);
    registry_set_superslab(other, fake_superslab(1));
    must_be_run(base, 2, heaps[0], 4);
    must_be_run(other, 3, heaps[1], 6);
    cr_assert(registry_superslab(base) == fake_superslab(0) &&
              registry_superslab(other) == fake_superslab(1));
}

/* ---- Making tables ---- */

Test(registry, refused_tables_can_be_asked_for_again)
{
    char *base = reserve_gib_aligned(3 * HAK_GIB);
    size_t index = (uintptr_t)base >> GIB_SHIFT;
    fake_os_use();
    fake_os_refuse(FAKE_MAP, 1, 1);
    cr_assert(!registry_cover(base, SUPERSLAB));
    must_be_foreign(base);
    fake_os_refuse(FAKE_MAP, 2, 1);
    cr_assert(!registry_cover(base, 3 * HAK_GIB));
    uintptr_t first = registry_top[index];
    cr_assert(first && !registry_top[index + 1] && !registry_top[index + 2]);
    must_be_foreign(base);
    must_be_foreign(base + HAK_GIB);
    cr_assert(registry_cover(base, 3 * HAK_GIB));
    cr_assert(registry_top[index] == first && registry_top[index + 1] && registry_top[index + 2]);
    long maps = fake_os_calls(FAKE_MAP);
    cr_assert(registry_cover(base + HAK_GIB / 2, 2 * HAK_GIB));
    cr_assert(fake_os_calls(FAKE_MAP) == maps, "what is covered is not mapped again");
    fake_os_restore();
    registry_set_run(base + 2 * HAK_GIB, 1, heaps[0], 2);
    must_be_run(base + 2 * HAK_GIB, 1, heaps[0], 2);
}

Test(registry, a_range_is_covered_to_its_last_byte)
{
    char *base = reserve_gib_aligned(2 * HAK_GIB);
    size_t index = (uintptr_t)base >> GIB_SHIFT;
    cr_assert(registry_cover(base + SUPERSLAB, HAK_GIB - SUPERSLAB));
    cr_assert(registry_top[index] && !registry_top[index + 1]);
    cr_assert(registry_cover(base + SUPERSLAB, HAK_GIB - SUPERSLAB + 1));
    cr_assert(registry_top[index + 1] != 0);
}

static char *cover_base;
static _Atomic unsigned cover_failures;

static void *cover(void *arg)
{
    (void)arg;
    pthread_barrier_wait(&race_start);
    if (!registry_cover(cover_base, 4 * HAK_GIB)) atomic_fetch_add(&cover_failures, 1u);
    return NULL;
}

Test(registry, of_several_that_cover_one_makes_each_table)
{
    cover_base = reserve_gib_aligned(4 * HAK_GIB);
    fake_os_use();
    pthread_barrier_init(&race_start, NULL, RACERS);
    pthread_t threads[RACERS];
    for (int i = 0; i < RACERS; i++) cr_assert(pthread_create(&threads[i], NULL, cover, NULL) == 0);
    for (int i = 0; i < RACERS; i++) pthread_join(threads[i], NULL);
    cr_assert(cover_failures == 0);
    cr_assert(fake_os_calls(FAKE_MAP) == 4, "%ld tables", fake_os_calls(FAKE_MAP));
    fake_os_restore();
}

static os_table_t slow;
static _Atomic bool is_mapping, may_map;
static _Atomic unsigned maps;

static void *map_when_told(size_t bytes, size_t alignment)
{
    if (maps++ == 0) {
        store_release(&is_mapping, true);
        (void)stall_wait(&may_map);
    }
    return os_kernel.map(bytes, alignment);
}

static void cover_one(void)
{
    if (!registry_cover(cover_base, HAK_GIB)) atomic_fetch_add(&cover_failures, 1u);
}

/* The one is still mapping a table when the others come. */
Test(registry, who_waits_for_a_table_makes_no_other)
{
    static crew_t crew;
    cover_base = reserve_gib_aligned(HAK_GIB);
    slow = os_kernel;
    slow.map = map_when_told;
    os = &slow;
    crew_start(&crew, cover_one);
    bool mapping = stall_wait(&is_mapping);
    for (int i = 1; i < RACERS; i++) crew_start(&crew, cover_one);
    crew_settle(&crew);
    store_release(&may_map, true);
    bool ended = crew_finish(&crew);
    os = &os_kernel;
    cr_assert(mapping && ended && cover_failures == 0);
    cr_assert(maps == 1, "%u tables", maps);
}

/* The top table of a process that locks everything is a MiB; all of it but where an entry is may be
 * paged, and once is enough. */
Test(registry, the_top_table_is_unlocked_where_it_is_empty)
{
    enum { PAGES = sizeof registry_top / HAK_PAGE };
    cr_assert(registry_cover((void *)(size_t)HAK_GIB, HAK_PAGE));
    fake_os_use();
    cr_assert(registry_unlock());
    long calls = fake_os_calls(FAKE_UNLOCK);
    cr_assert(calls >= PAGES - 3 && calls < PAGES, "%ld of %d pages", calls, PAGES);
    cr_assert(!registry_unlock() && fake_os_calls(FAKE_UNLOCK) == calls);
    fake_os_restore();
}

/* Owners go, and all else stays: what is left of a pointer is that it was somebody's. */
Test(registry, a_run_is_disowned)
{
    char *base = (char *)(size_t)(5 * HAK_GIB);
    cr_assert(registry_cover(base, SUPERSLAB));
    registry_set_run(base, 3, (void *)(size_t)(64 * 12345), CODE_RELEASED | CODE_CHECKED);
    registry_set_run(base + 3 * GRANULE, 2, NULL, CODE_DEAD);
    registry_disown(base, 4);
    for (unsigned g = 0; g < 5; g++) {
        entry_t entry = registry_lookup(base + g * GRANULE);
        cr_assert(entry_heap(entry) == NULL &&
                  entry_code(entry) == (g < 3 ? CODE_RELEASED : CODE_DEAD));
        cr_assert(entry_back(entry) == (g < 3 ? g : g - 3));
        cr_assert(!entry_is_owned(entry ^ entry_owner_bits((void *)(size_t)(64 * 12345))));
    }
}
