/* The window of a recall: heaps are tight and pinned, and not yet flushed. See stall.h; the suite is
 * that of test_windows.c. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>

#include "os.h"
#include "support_contract.h"
#include "support_stall.h"

enum { SIZE = 1024, LIMIT = 64 * SIZE };

static hak_heap_t *parent, *one, *other, *elsewhere;
static void *mine, *theirs[LIMIT / SIZE];
static int error;

static hak_heap_t *counted(hak_heap_t *above, size_t limit)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = above;
    config.live_limit = limit;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    return heap;
}

static void begin(void)
{
    parent = counted(NULL, LIMIT);
    elsewhere = counted(NULL, HAK_NO_LIMIT);
    one = counted(parent, 0);
    other = counted(parent, 0);
    for (size_t i = 0; i < LIMIT / SIZE; i++)
        cr_assert((theirs[i] = hak_heap_malloc(other, SIZE)) != NULL);
}

static void end(void)
{
    cr_assert(ledger_is_sound(parent->ledger) && ledger_is_sound(elsewhere->ledger));
    cr_assert(hak_heap_destroy(parent) == 0 && hak_heap_destroy(elsewhere) == 0);
}

static void allocate(void)
{
    mine = hak_heap_malloc(one, SIZE);
    error = mine ? 0 : errno;
}

static hold_t hold;
static void hold_recall(uint32_t nth)
{
    cr_assert(hold_start(&hold, STALL_recall_stepped, nth, allocate, NULL));
    STALL_REQUIRE(heap_is_tight(one) && heap_is_tight(other));
}

/* A block that is freed while the recall stands is found by it. */
Test(windows, recall_stepped)
{
    NEEDS_POINTS();
    begin();
    hold_recall(1);
    hak_heap_free(other, theirs[0]);
    cr_assert(hold_end(&hold));
    cr_assert(mine != NULL && error == 0);
    /* The next is refused: it is as if nothing had been in between. */
    cr_assert(hak_heap_malloc(other, SIZE) == NULL && hak_last_error() == HAK_ERROR_LIMIT);
    hak_heap_free(other, theirs[1]);
    cr_assert(hak_heap_malloc(one, SIZE) != NULL);
    cr_assert(stall_what_is_wrong() == NULL, "%s", stall_what_is_wrong());
    end();
}

/* A heap that moves away takes what it owes with it, also while a recall is at it. */
Test(windows, recall_stepped_and_a_heap_moves)
{
    NEEDS_POINTS();
    begin();
    hold_recall(1);
    cr_assert(hak_heap_move(other, elsewhere) == 0);
    cr_assert(hold_end(&hold) && mine != NULL);
    for (size_t i = 0; i < LIMIT / SIZE; i++) hak_heap_free(other, theirs[i]);
    (void)hak_heap_flush(other);
    cr_assert(hak_heap_check(other) == 0 && hak_heap_check(one) == 0);
    end();
}

/* The heap that asks moves away: what it asked for is its chain's business from then on. */
Test(windows, recall_stepped_and_the_heap_that_asks_moves)
{
    NEEDS_POINTS();
    begin();
    hold_recall(1);
    cr_assert(hak_heap_move(one, elsewhere) == 0);
    cr_assert(hold_end(&hold) && mine != NULL);
    cr_assert(hak_heap_malloc(other, SIZE) == NULL && hak_heap_malloc(one, SIZE) != NULL);
    end();
}

/* A heap waits with its end until the recall has left it. */
static void destroy_other(void) { STALL_REQUIRE(hak_heap_destroy(other) == 0); }
static void reset_other(void) { STALL_REQUIRE(hak_heap_reset(other) == 0); }

static void end_meanwhile(void (*work)(void))
{
    begin();
    hold_recall(1);
    crew_t crew = {.count = 0};
    crew_start(&crew, work);
    crew_settle(&crew);
    STALL_REQUIRE(!crew.mates[0].done);
    cr_assert(hold_end(&hold) && crew_finish(&crew));
    cr_assert(hak_heap_malloc(one, SIZE) != NULL, "there is room by now");
    cr_assert(stall_what_is_wrong() == NULL, "%s", stall_what_is_wrong());
    end();
}

Test(windows, recall_stepped_and_a_heap_is_destroyed)
{
    NEEDS_POINTS();
    end_meanwhile(destroy_other);
}
Test(windows, recall_stepped_and_a_heap_is_reset)
{
    NEEDS_POINTS();
    end_meanwhile(reset_other);
}

/* A thread that allocates in a tight heap gets no area, and leaves nothing behind in one. */
static void use_other(void)
{
    for (size_t i = 0; i < LIMIT / SIZE / 2; i++) hak_heap_free(other, theirs[i]);
    STALL_REQUIRE(!area_at_from(&other->percpu, 0).area || !heap_is_tight(other));
}

Test(windows, recall_stepped_and_others_free)
{
    NEEDS_POINTS();
    begin();
    hold_recall(1);
    crew_t crew = {.count = 0};
    crew_start(&crew, use_other);
    cr_assert(crew_finish(&crew) && hold_end(&hold) && mine != NULL);
    for (size_t i = 0; i < LIMIT / SIZE / 2 - 1; i++)
        cr_assert(hak_heap_malloc(one, SIZE) != NULL, "%zu", i);
    cr_assert(hak_heap_malloc(one, SIZE) == NULL);
    end();
}

/* ---- A refusal is known, and not yet noted ---- */

static uint64_t frozen_clock(void) { return 1000; }
static void free_theirs(void) { hak_heap_free(other, theirs[0]); }
static void free_beside(void *crew)
{
    crew_start(crew, free_theirs);
    STALL_REQUIRE(crew_finish(crew));
}
static void ask_and_fail(void) { STALL_REQUIRE(hak_heap_malloc(one, SIZE) == NULL); }

/* Of two threads that ask for the same one recalls, and notes that it was refused; the other has
 * waited for it and is refused by that. A block that is freed then is found by the next request. */
Test(windows, recall_refused)
{
    NEEDS_POINTS();
    static os_table_t table;
    table = *os;
    table.milliseconds = frozen_clock;
    os = &table;
    begin();
    cr_assert(hold_start(&hold, STALL_recall_stepped, 1, ask_and_fail, NULL));
    crew_t crew = {.count = 0}, beside = {.count = 0};
    crew_start(&crew, ask_and_fail);
    crew_settle(&crew);
    stall_t refused = {.run = free_beside, .ctx = &beside, .nth = 2};
    stall_arm(STALL_recall_refused, &refused);
    cr_assert(hold_end(&hold) && crew_finish(&crew));
    stall_arm(STALL_recall_refused, NULL);
    cr_assert(load_relaxed(&refused.visits) == 2);
    cr_assert(stall_what_is_wrong() == NULL, "%s", stall_what_is_wrong());
    cr_assert(hak_heap_malloc(one, SIZE) != NULL, "what was freed is room");
    cr_assert(hak_heap_malloc(one, SIZE) == NULL);
    end();
}

/* ---- TREE is busy ---- */

static ledger_t top, leaf;
static const hak_limits_t none = {0, LEDGER_NO_LIMIT, LEDGER_NO_LIMIT, LEDGER_NO_LIMIT};
static void change_limits(void)
{
    full_t full;
    (void)ledger_set_limits(&top, &none, &full);
}

/* What a tight heap cannot return then is known to be there: who is refused recalls it. */
Test(windows, tree_held)
{
    NEEDS_POINTS();
    recall_t recall;
    cr_assert(ledger_join(&top, NULL, &none, 0) == LEDGER_DONE);
    cr_assert(ledger_join(&leaf, &top, &none, 0) == LEDGER_DONE);
    cr_assert(ledger_admit(&leaf, 2 * HAK_PAGE, true));
    ledger_begin(&recall, &leaf, &top, 0);
    ledger_step(&recall);
    ledger_settle(&recall);
    cr_assert(ledger_is_tight(&leaf));
    cr_assert(hold_start(&hold, STALL_tree_held, 1, change_limits, NULL));
    uint64_t epoch = ledger_epoch(FOOTPRINT);
    ledger_settle_at(&leaf, HAK_PAGE, false);
    cr_assert(ledger_epoch(FOOTPRINT) == epoch + 1 && !ledger_is_settled(&leaf, HAK_PAGE));
    cr_assert(hold_end(&hold));
    ledger_settle_at(&leaf, HAK_PAGE, false);
    cr_assert(ledger_is_settled(&leaf, HAK_PAGE) && ledger_is_sound(&top));
}

/* ---- A trim, and a recall that needs what it is at ---- */

enum { PIECE = 960 * 1024, PIECES = 12 /* two fill a SuperSlab */ };
static crew_t asking;
static stall_t next_step;

static void ask_for_much(void) { STALL_REQUIRE(hak_heap_malloc(one, 3 * HAK_MIB) != NULL); }
static void answered(void *unused)
{
    (void)unused;
    STALL_REQUIRE(crew_finish(&asking));
}
/* In the trim's first step. */
static void ask_meanwhile(void *unused)
{
    (void)unused;
    crew_start(&asking, ask_for_much);
    crew_settle(&asking);
    stall_arm(STALL_superslab_purged, &next_step);
}

/* The recall waits for a step of the trim, and not for all of them: at the next step it is over. */
Test(windows, superslab_purged_and_a_recall_waits)
{
    NEEDS_POINTS();
    void *pieces[PIECES];
    begin();
    for (size_t i = 0; i < PIECES; i++)
        cr_assert((pieces[i] = hak_heap_malloc(elsewhere, PIECE)) != NULL);
    for (size_t i = 0; i < PIECES; i += 2) hak_heap_free(elsewhere, pieces[i]);
    hak_limits_t limits = {sizeof limits, HAK_NO_LIMIT, HAK_NO_LIMIT, HAK_NO_LIMIT};
    cr_assert(hak_heap_set_limits(parent, &limits) == 0 && hak_heap_move(elsewhere, parent) == 0);
    limits.committed_limit = load_relaxed(&parent->ledger->of[FOOTPRINT].sum) + HAK_MIB;
    cr_assert(hak_heap_set_limits(parent, &limits) == 0);
    stall_t first = {.run = ask_meanwhile, .nth = 1};
    next_step = (stall_t){.run = answered, .nth = 1};
    stall_arm(STALL_superslab_purged, &first);
    cr_assert(hak_heap_trim(elsewhere, 0) > 0);
    stall_arm(STALL_superslab_purged, NULL);
    cr_assert(load_relaxed(&next_step.visits) > 1 && crew_finish(&asking));
    cr_assert(stall_what_is_wrong() == NULL, "%s", stall_what_is_wrong());
    cr_assert(ledger_is_sound(parent->ledger) && hak_heap_destroy(parent) == 0);
}
