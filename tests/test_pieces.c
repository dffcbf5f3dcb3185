/* pieces: which piece serves, what is left of it, which goes first. Nothing is mapped. */
#include "pieces.h"

#include <criterion/criterion.h>

#include "support_contract.h"

TestSuite(pieces, .timeout = 600);

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
static const os_table_t table = {.split = note_split};

/* A piece of so many pages, far from the others. */
static char *put(size_t pages, const void *giver)
{
    static uintptr_t next = HAK_GIB;
    char *base = (char *)next;
    next += HAK_GIB;
    cr_assert(pieces_put(&set, (piece_t){base, pages * HAK_PAGE, giver, false}));
    return base;
}

static void must_hold(size_t count, size_t pages)
{
    cr_assert(pieces_are_valid(&set));
    cr_assert(set.count == count && set.bytes == pages * HAK_PAGE, "%zu pieces, %zu bytes",
              set.count, set.bytes);
}

static unsigned take(size_t pages, piece_t taken[PARTS_MOST])
{
    return pieces_take(&set, pages * HAK_PAGE, &table, taken);
}

Test(pieces, the_shortest_that_is_long_enough_serves)
{
    piece_t taken[PARTS_MOST];
    put(90, NULL), put(30, NULL);
    char *best = put(50, NULL);
    put(60, NULL);
    cr_assert(take(40, taken) == 1 && taken[0].base == best && taken[0].bytes == 40 * HAK_PAGE);
    must_hold(4, 190);
    cr_assert(tells == 1 && told[0].at == best && told[0].bytes == 50 * HAK_PAGE &&
              told[0].first == 40 * HAK_PAGE);
    cr_assert(take(10, taken) == 1 && taken[0].base == best + 40 * HAK_PAGE, "what was left");
    cr_assert(tells == 1, "it is taken whole");
    must_hold(3, 180);
}

Test(pieces, the_longest_come_first_where_none_suffices)
{
    piece_t taken[PARTS_MOST];
    char *b = put(20, NULL), *a = put(50, NULL), *c = put(13, NULL);
    cr_assert(take(80, taken) == 3);
    cr_assert(taken[0].base == a && taken[1].base == b && taken[2].base == c);
    cr_assert(taken[2].bytes == 10 * HAK_PAGE, "no more than is wanted");
    must_hold(1, 3);
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
    cr_assert(out.base == c && out.bytes == 20 * HAK_PAGE, "of this giver");
    must_hold(2, 40);
    cr_assert(pieces_take_out(&set, NULL, 0, &table).bytes == 0);
    out = pieces_take_out(&set, NULL, 4 * HAK_PAGE, &table);
    cr_assert(out.base == b + 6 * HAK_PAGE && out.bytes == 4 * HAK_PAGE, "the end of it");
    must_hold(2, 36);
    cr_assert(pieces_of(&set, &giver_b) == 6 * HAK_PAGE && pieces_of(&set, NULL) == 0);
    pieces_disown(&set, &giver_b);
    cr_assert(pieces_of(&set, &giver_b) == 0 && pieces_of(&set, NULL) == 6 * HAK_PAGE);
    cr_assert(pieces_take_out(&set, &giver_b, SIZE_MAX, &table).bytes == 0);
}

Test(pieces, what_has_to_go_goes_before_shorter_ones)
{
    put(10, NULL);
    char *base = (char *)(HAK_GIB / 2);
    cr_assert(!pieces_have_going(&set));
    cr_assert(pieces_put(&set, (piece_t){base, 50 * HAK_PAGE, NULL, true}));
    put(5, NULL);
    cr_assert(pieces_have_going(&set));
    cr_assert(pieces_take_out(&set, NULL, SIZE_MAX, &table).base == base);
    cr_assert(!pieces_have_going(&set));
    must_hold(2, 15);
}

Test(pieces, there_is_room_for_so_many)
{
    for (unsigned i = 0; i < PIECES_MOST; i++) put(1, NULL);
    cr_assert(!pieces_put(&set, (piece_t){(char *)HAK_PAGE, HAK_PAGE, NULL, false}));
    must_hold(PIECES_MOST, PIECES_MOST);
}

Test(pieces, the_check_can_fail)
{
    char *base = put(10, NULL);
    cr_assert(pieces_are_valid(&set));
    cr_assert(pieces_put(&set, (piece_t){base + 9 * HAK_PAGE, HAK_PAGE, NULL, false}));
    cr_assert(!pieces_are_valid(&set), "two overlap");
    set.at[1].base += HAK_PAGE;
    cr_assert(pieces_are_valid(&set));
    set.bytes += HAK_PAGE;
    cr_assert(!pieces_are_valid(&set), "the sum");
    set.bytes -= HAK_PAGE;
    set.at[1].base += 1;
    cr_assert(!pieces_are_valid(&set), "no page");
}

Test(pieces, parts_are_cut)
{
    const parts_t three = {3, {5 * HAK_PAGE, 7 * HAK_PAGE, 9 * HAK_PAGE}};
    static const struct {
        size_t pages;
        unsigned count;
        size_t last;
    } cuts[] = {{21, 3, 9}, {20, 3, 8}, {13, 3, 1}, {12, 2, 7}, {6, 2, 1}, {5, 1, 5}, {1, 1, 1}};
    for (size_t i = 0; i < CONTRACT_LENGTH(cuts); i++) {
        parts_t parts = three;
        parts_cut(&parts, cuts[i].pages * HAK_PAGE);
        cr_assert(parts.count == cuts[i].count, "row %zu: %u parts", i, parts.count);
        cr_assert(parts.bytes[parts.count - 1] == cuts[i].last * HAK_PAGE, "row %zu", i);
    }
    parts_t one = {0};
    parts_cut(&one, HAK_PAGE);
    cr_assert(one.count == 0, "one mapping of any length");
}
