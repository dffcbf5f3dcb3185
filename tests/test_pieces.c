/* pieces: which piece serves, what is left of it, which goes first. Nothing is mapped. */
#include "pieces.h"

#include <criterion/criterion.h>
#include <string.h>

#include "support_contract.h"

TestSuite(pieces, .timeout = 600);

/* What these tests count in: a block of one is long enough to be put together. */
#define UNIT ((size_t)PARTS_FROM)
enum { ALIGNED = 2 * HAK_MIB };

static pieces_t set;
static const char giver_a, giver_b;

enum { TOLD = 8 };
static struct {
    char *at;
    size_t bytes, first;
} told[TOLD];
static unsigned tells;

static void note_split(void *at, size_t bytes, size_t first)
{
    cr_assert(tells < TOLD);
    told[tells].at = at;
    told[tells].bytes = bytes;
    told[tells++].first = first;
}
static unsigned joins;
static void note_join(void *at, size_t bytes, size_t first)
{
    joins++;
    cr_assert(at != NULL && first > 0 && first < bytes);
}
static const os_table_t table = {.split = note_split, .join = note_join};

static piece_t piece_at(char *base, size_t bytes, const void *giver)
{
    return (piece_t){.base = base, .bytes = bytes, .giver = giver};
}

/* A piece of so many units, far from the others, and aligned as any block. */
static char *put(size_t units, const void *giver)
{
    static uintptr_t next = HAK_GIB;
    char *base = (char *)next;
    next += HAK_GIB;
    cr_assert(pieces_put(&set, piece_at(base, units * UNIT, giver), &table));
    return base;
}

static void must_hold(size_t count, size_t units)
{
    cr_assert(pieces_are_valid(&set));
    cr_assert(set.count == count && set.bytes == units * UNIT, "%zu pieces, %zu bytes", set.count,
              set.bytes);
}

static unsigned take(size_t units, piece_t taken[PARTS_MOST])
{
    return pieces_take(&set, units * UNIT, ALIGNED, &table, taken);
}

Test(pieces, the_shortest_that_is_long_enough_serves)
{
    piece_t taken[PARTS_MOST];
    put(90, NULL), put(30, NULL);
    char *best = put(50, NULL);
    put(60, NULL);
    cr_assert(take(40, taken) == 1 && taken[0].base == best && taken[0].bytes == 40 * UNIT);
    must_hold(4, 190);
    cr_assert(tells == 1 && told[0].at == best && told[0].bytes == 50 * UNIT &&
              told[0].first == 40 * UNIT);
    cr_assert(take(10, taken) == 1 && taken[0].base == best + 40 * UNIT, "what was left");
    cr_assert(tells == 1, "it is taken whole");
    must_hold(3, 180);
}

Test(pieces, the_longest_come_first_where_none_suffices)
{
    piece_t taken[PARTS_MOST];
    char *b = put(20, NULL), *a = put(50, NULL), *c = put(13, NULL);
    cr_assert(take(80, taken) == 3);
    cr_assert(taken[0].base == a && taken[1].base == b && taken[2].base == c);
    cr_assert(taken[2].bytes == 10 * UNIT, "no more than is wanted");
    must_hold(1, 3);
}

/* A piece that begins where a block may serves before a shorter one that has to be moved. */
Test(pieces, one_that_need_not_be_moved_serves_first)
{
    piece_t taken[PARTS_MOST];
    char *longer = put(60, NULL), *base = (char *)(HAK_GIB / 2) + HAK_PAGE;
    cr_assert(pieces_put(&set, piece_at(base, 50 * UNIT, NULL), &table));
    cr_assert(take(40, taken) == 1 && taken[0].base == longer);
    cr_assert(take(40, taken) == 1 && taken[0].base == base);
    must_hold(2, 30);
}

/* What is left of a piece is one with it again, once the block in front of it is freed. */
Test(pieces, a_rest_is_one_with_what_was_in_front_of_it)
{
    piece_t taken[PARTS_MOST], again[PARTS_MOST];
    char *base = put(50, &giver_a);
    cr_assert(take(20, taken) == 1 && set.at[0].front == base);
    cr_assert(take(10, again) == 1 && again[0].base == base + 20 * UNIT);
    cr_assert(pieces_put(&set, piece_at(base, 20 * UNIT, &giver_a), &table));
    must_hold(2, 40); /* there is a block between */
    cr_assert(joins == 0);
    cr_assert(pieces_put(&set, piece_at(base + 20 * UNIT, 10 * UNIT, &giver_a), &table));
    must_hold(2, 50);
    cr_assert(joins == 1 && set.at[0].base == base + 20 * UNIT && set.at[0].bytes == 30 * UNIT);
}

Test(pieces, a_rest_of_another_giver_or_one_that_goes_stays_alone)
{
    for (int row = 0; row < 3; row++) {
        piece_t taken[PARTS_MOST];
        memset(&set, 0, sizeof set);
        char *base = put(50, &giver_a);
        cr_assert(take(20, taken) == 1);
        piece_t back = piece_at(base, 20 * UNIT, row == 0 ? &giver_b : &giver_a);
        back.goes = row == 1;
        if (row == 2) back.bytes -= UNIT;
        cr_assert(pieces_put(&set, back, &table) && set.count == 2 && joins == 0, "%d", row);
    }
}

/* A block that is not worth the calls is never moved or put together. */
Test(pieces, a_short_block_is_served_in_place_or_not_at_all)
{
    piece_t taken[PARTS_MOST];
    size_t bytes = PARTS_FROM - HAK_PAGE;
    char *aside = (char *)(HAK_GIB / 2) + HAK_PAGE;
    cr_assert(pieces_put(&set, piece_at(aside, 2 * UNIT, NULL), &table));
    cr_assert(pieces_put(&set, piece_at((char *)(HAK_GIB / 4), bytes - HAK_PAGE, NULL), &table));
    cr_assert(pieces_take(&set, bytes, ALIGNED, &table, taken) == 0 && set.count == 2);
    char *here = put(2, NULL);
    cr_assert(pieces_take(&set, bytes, ALIGNED, &table, taken) == 1 && taken[0].base == here);
    cr_assert(taken[0].bytes == bytes);
    cr_assert(take(1, taken) == 1 && (uintptr_t)taken[0].base % ALIGNED, "a long one is moved");
}

Test(pieces, a_block_has_few_parts)
{
    piece_t taken[PARTS_MOST];
    for (unsigned i = 0; i < PARTS_MOST + 3; i++) put(10, NULL);
    cr_assert(take(10 * (PARTS_MOST + 3), taken) == PARTS_MOST);
    must_hold(3, 30);
}

Test(pieces, what_is_too_short_is_no_part)
{
    piece_t taken[PARTS_MOST];
    put(1, NULL);
    cr_assert(take(2 * PARTS_LEAST, taken) == 0);
    must_hold(1, 1);
    cr_assert(take(PARTS_LEAST, taken) == 1, "as much as it has to be");
    must_hold(0, 0);
    cr_assert(take(1, taken) == 0, "there is none");
}

Test(pieces, the_shortest_goes_first)
{
    put(30, &giver_a);
    char *b = put(10, &giver_b), *c = put(20, &giver_a);
    piece_t out = pieces_take_out(&set, &giver_a, SIZE_MAX, &table);
    cr_assert(out.base == c && out.bytes == 20 * UNIT, "of this giver");
    must_hold(2, 40);
    cr_assert(pieces_take_out(&set, NULL, 0, &table).bytes == 0);
    out = pieces_take_out(&set, NULL, 4 * UNIT, &table);
    cr_assert(out.base == b + 6 * UNIT && out.bytes == 4 * UNIT, "the end of it");
    must_hold(2, 36);
    cr_assert(pieces_of(&set, &giver_b) == 6 * UNIT && pieces_of(&set, NULL) == 0);
    pieces_disown(&set, &giver_b);
    cr_assert(pieces_of(&set, &giver_b) == 0 && pieces_of(&set, NULL) == 6 * UNIT);
    cr_assert(pieces_take_out(&set, &giver_b, SIZE_MAX, &table).bytes == 0);
}

Test(pieces, what_has_to_go_goes_before_shorter_ones)
{
    put(10, NULL);
    char *base = (char *)(HAK_GIB / 2);
    cr_assert(!pieces_have_going(&set));
    piece_t goes = piece_at(base, 50 * UNIT, NULL);
    goes.goes = true;
    cr_assert(pieces_put(&set, goes, &table));
    put(5, NULL);
    cr_assert(pieces_have_going(&set));
    cr_assert(pieces_take_out(&set, NULL, SIZE_MAX, &table).base == base);
    cr_assert(!pieces_have_going(&set));
    must_hold(2, 15);
}

Test(pieces, there_is_room_for_so_many)
{
    for (unsigned i = 0; i < PIECES_MOST; i++) put(1, NULL);
    cr_assert(!pieces_put(&set, piece_at((char *)UNIT, UNIT, NULL), &table));
    must_hold(PIECES_MOST, PIECES_MOST);
}

Test(pieces, the_check_can_fail)
{
    char *base = put(10, NULL);
    cr_assert(pieces_are_valid(&set));
    cr_assert(pieces_put(&set, piece_at(base + 9 * UNIT, UNIT, NULL), &table));
    cr_assert(!pieces_are_valid(&set), "two overlap");
    set.at[1].base += UNIT;
    cr_assert(pieces_are_valid(&set));
    set.bytes += UNIT;
    cr_assert(!pieces_are_valid(&set), "the sum");
    set.bytes -= UNIT;
    set.at[1].base += 1;
    cr_assert(!pieces_are_valid(&set), "no page");
}

Test(pieces, parts_are_cut)
{
    const parts_t three = {3, {5 * UNIT, 7 * UNIT, 9 * UNIT}};
    static const struct {
        size_t pages;
        unsigned count;
        size_t last;
    } cuts[] = {{21, 3, 9}, {20, 3, 8}, {13, 3, 1}, {12, 2, 7}, {6, 2, 1}, {5, 1, 5}, {1, 1, 1}};
    for (size_t i = 0; i < CONTRACT_LENGTH(cuts); i++) {
        parts_t parts = three;
        parts_cut(&parts, cuts[i].pages * UNIT);
        cr_assert(parts.count == cuts[i].count, "row %zu: %u parts", i, parts.count);
        cr_assert(parts.bytes[parts.count - 1] == cuts[i].last * UNIT, "row %zu", i);
    }
    parts_t one = {0};
    parts_cut(&one, UNIT);
    cr_assert(one.count == 0, "one mapping of any length");
}
