/* region: what hints must not hide from a thread that is alone. The suite is that of
 * test_region.c. */
#include <criterion/criterion.h>

#include "region.h"
#include "reserve.h"
#include "support_contract.h"

static const guard_t guards[CONTRACT_LEVELS] = {{0, "fast"}, {0x1234567890abcdefull, "checked"}};
static region_t region;

enum { PAGE_UNITS = PAGE_WORDS * WORD_UNITS, LONGEST = REGION_ROOM };

/* Over a granule of its own, with one page open. */
static char *begin(const guard_t *guard)
{
    uint32_t refused;
    superslab_t *ss = reserve_take(&process_reserve, false, &refused);
    cr_assert(ss != NULL);
    region_init(&region, 0, 0);
    region_attach(&region, ss->base);
    cr_assert(region_open(&region, guard));
    return ss->base;
}

/* Though the page is full but for that, and the hole is one unit short of the longest. */
Test(region, what_an_aligned_block_leaves_out_is_a_hole)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        char *base = begin(&guards[level]);
        cr_assert(region_take(&region, 1, 1, &guards[level]) == base);
        for (unsigned unit = LONGEST; unit < PAGE_UNITS; unit += LONGEST)
            cr_assert(region_take(&region, LONGEST, LONGEST, &guards[level]) ==
                      base + unit * REGION_UNIT);
        cr_assert(region_take(&region, LONGEST - 1, 1, &guards[level]) == base + REGION_UNIT);
        cr_assert(region_take(&region, 1, 1, &guards[level]) == NULL);
    }
}
