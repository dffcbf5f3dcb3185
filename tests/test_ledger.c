/* ledger: sums of trees, by a plain model beside it. */
#include "ledger.h"

#include <criterion/criterion.h>
#include <pthread.h>

#include "support_random.h"

TestSuite(ledger, .timeout = 600);

static hak_limits_t limits_of(size_t live)
{
    return (hak_limits_t){0, live, LEDGER_NO_LIMIT, LEDGER_NO_LIMIT};
}

static ledger_answer_t begin(ledger_t *ledger, ledger_t *parent, size_t limit)
{
    hak_limits_t limits = limits_of(limit);
    *ledger = (ledger_t){.credit = 0};
    return ledger_join(ledger, parent, &limits, 0);
}

static void join(ledger_t *ledger, ledger_t *parent, size_t limit)
{
    cr_assert(begin(ledger, parent, limit) == LEDGER_DONE);
}

static bool set_limit(ledger_t *ledger, size_t limit)
{
    full_t full;
    hak_limits_t limits = limits_of(limit);
    return ledger_set_limits(ledger, &limits, &full);
}

static full_t in_the_way;
static ledger_answer_t move(ledger_t *ledger, ledger_t *parent)
{
    return ledger_move(ledger, parent, &in_the_way);
}

static void note_refused(ledger_t *ledger, ledger_t *full, size_t bytes, uint64_t epoch)
{
    borrowed_t refusal = {.full = full, .bytes = bytes};
    ledger_note_refused(ledger, LIVE, &refusal, epoch);
    ledger_count_failed(ledger, FAILED_HERE);
}

/* Bytes for the caller; false: refused. */
static bool take(ledger_t *ledger, size_t bytes)
{
    return ledger_take(ledger, bytes) || !ledger_borrow(ledger, bytes, 0).full;
}

static void recall_all(ledger_t *of, ledger_t *top, uint32_t now)
{
    recall_t recall;
    ledger_begin(&recall, of, top, now);
    while (recall.more) {
        ledger_step(&recall);
        ledger_settle(&recall);
    }
    ledger_end(&recall, LIVE, now);
}

Test(ledger, a_heap_takes_what_its_limit_allows_to_the_byte)
{
    ledger_t root;
    join(&root, NULL, 1000);
    cr_assert(take(&root, 600) && take(&root, 400));
    cr_assert(!take(&root, 1) && load_relaxed(&root.of[LIVE].sum) == 1000);
    ledger_refund(&root, 400);
    cr_assert(!take(&root, 401) && take(&root, 400));
    cr_assert(ledger_live(&root) == 1000 && ledger_is_sound(&root));
}

Test(ledger, the_lowest_heap_without_room_refuses)
{
    ledger_t root, middle, leaf;
    join(&root, NULL, 1000);
    join(&middle, &root, 500);
    join(&leaf, &middle, LEDGER_NO_LIMIT);
    cr_assert(take(&leaf, 500));
    cr_assert(ledger_borrow(&leaf, 1, 0).full == &middle);
    cr_assert(set_limit(&middle, LEDGER_NO_LIMIT));
    cr_assert(take(&leaf, 500));
    cr_assert(ledger_borrow(&leaf, 1, 0).full == &root);
    cr_assert(load_relaxed(&middle.of[LIVE].sum) == 1000 &&
              load_relaxed(&root.of[LIVE].sum) == 1000);
    cr_assert(!set_limit(&root, 999) && set_limit(&root, 1000));
}

Test(ledger, a_heap_borrows_ahead_a_part_of_the_room)
{
    ledger_t root;
    join(&root, NULL, 64 * LEDGER_SHARE);
    cr_assert(take(&root, 16));
    cr_assert(load_relaxed(&root.of[LIVE].sum) == 64 && load_relaxed(&root.credit) == 48);
    cr_assert(ledger_grab(&root, 16, 8) == 3 && ledger_grab(&root, 16, 1) == 0);
    ledger_t wide;
    join(&wide, NULL, LEDGER_NO_LIMIT);
    cr_assert(take(&wide, 16) && load_relaxed(&wide.of[LIVE].sum) == HAK_PAGE, "a page at first");
    cr_assert(take(&wide, 2 * HAK_PAGE) && load_relaxed(&wide.of[LIVE].sum) == 3 * HAK_PAGE);
    cr_assert(take(&wide, 64 * HAK_MIB) && take(&wide, HAK_PAGE));
    cr_assert(take(&wide, 16) && load_relaxed(&wide.credit) > HAK_MIB / 2);
    cr_assert(load_relaxed(&wide.credit) <= LEDGER_AHEAD);
}

/* What a heap has borrowed itself is no reason to refuse it. */
Test(ledger, a_heap_pays_with_its_own_credit_first)
{
    ledger_t root;
    join(&root, NULL, 64 * LEDGER_SHARE);
    cr_assert(take(&root, 16) && load_relaxed(&root.credit) > 0);
    cr_assert(!ledger_borrow(&root, 64 * LEDGER_SHARE - 16, 0).full);
    cr_assert(load_relaxed(&root.credit) == 0 && ledger_is_sound(&root));
}

Test(ledger, a_recall_returns_credits_of_all_below)
{
    enum { HEAPS = 3 * LEDGER_AT_ONCE };
    static ledger_t root, heaps[HEAPS];
    join(&root, NULL, LEDGER_NO_LIMIT);
    size_t live = 0;
    for (size_t i = 0; i < HEAPS; i++) {
        join(&heaps[i], i % 3 ? &heaps[i - 1] : &root, LEDGER_NO_LIMIT);
        cr_assert(take(&heaps[i], 16 * (i + 1)));
        live += 16 * (i + 1);
    }
    cr_assert(load_relaxed(&root.of[LIVE].sum) > live);
    recall_all(&heaps[HEAPS - 1], &root, 0);
    cr_assert(load_relaxed(&root.of[LIVE].sum) == live && ledger_is_sound(&root));
    for (size_t i = 0; i < HEAPS; i++)
        cr_assert(ledger_is_tight(&heaps[i]) && load_relaxed(&heaps[i].credit) == 0 &&
                  heaps[i].pins == 0);
}

/* Each step has a bound, and each heap is visited once. */
Test(ledger, steps_of_a_recall_are_short)
{
    enum { HEAPS = 10 * LEDGER_AT_ONCE };
    static ledger_t root, heaps[HEAPS];
    join(&root, NULL, LEDGER_NO_LIMIT);
    for (size_t i = 0; i < HEAPS; i++)
        join(&heaps[i], i % 7 ? &heaps[i - 1] : &root, LEDGER_NO_LIMIT);
    recall_t recall;
    size_t visited = 0;
    for (ledger_begin(&recall, &root, &root, 0); recall.more;) {
        ledger_step(&recall);
        cr_assert(recall.count <= LEDGER_AT_ONCE);
        for (size_t i = 0; i < recall.count; i++) cr_assert(recall.at[i]->pins == 1);
        visited += recall.count;
        ledger_settle(&recall);
    }
    cr_assert(visited == HEAPS + 1, "%zu", visited);
}

/* A recall goes on only as long as the heap that asks is below what it recalls. */
/* A heap that moves from the part that is done to the part that is not hides none of it. */
Test(ledger, a_recall_visits_all_beside_a_heap_that_moves)
{
    static ledger_t root, many, few, leaves[LEDGER_AT_ONCE], last[4];
    join(&root, NULL, LEDGER_NO_LIMIT);
    join(&few, &root, LEDGER_NO_LIMIT);
    join(&many, &root, LEDGER_NO_LIMIT);
    for (size_t i = 0; i < LEDGER_AT_ONCE; i++) join(&leaves[i], &many, LEDGER_NO_LIMIT);
    for (size_t i = 0; i < 4; i++) join(&last[i], &few, LEDGER_NO_LIMIT);
    for (size_t i = 0; i < 4; i++) cr_assert(take(&last[i], 16) && ledger_live(&last[i]) == 16);
    recall_t recall;
    ledger_begin(&recall, &root, &root, 0);
    ledger_step(&recall);
    ledger_settle(&recall);
    ledger_t *done = &leaves[LEDGER_AT_ONCE - 1]; /* the first of its list when it began */
    cr_assert(recall.more && !ledger_is_tight(&last[0]) && ledger_is_tight(done));
    cr_assert(move(done, &few) == LEDGER_DONE);
    while (recall.more) {
        ledger_step(&recall);
        ledger_settle(&recall);
    }
    for (size_t i = 0; i < 4; i++) cr_assert(ledger_is_tight(&last[i]), "%zu", i);
    cr_assert(load_relaxed(&root.of[LIVE].sum) == 4 * 16 && ledger_is_sound(&root));
}

Test(ledger, a_recall_ends_where_its_heap_has_moved_away)
{
    ledger_t root, other, leaf;
    join(&root, NULL, LEDGER_NO_LIMIT);
    join(&other, NULL, LEDGER_NO_LIMIT);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    recall_t recall;
    ledger_begin(&recall, &leaf, &root, 0);
    cr_assert(move(&leaf, &other) == LEDGER_DONE);
    ledger_step(&recall);
    cr_assert(!recall.more && recall.count == 0 && !ledger_is_tight(&root));
}

Test(ledger, a_tight_heap_borrows_no_more_than_it_needs)
{
    ledger_t root, leaf;
    join(&root, NULL, 16384);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    cr_assert(take(&leaf, 16384 - 16384 / LEDGER_SLACK + 16));
    recall_all(&leaf, &root, 0);
    cr_assert(!ledger_borrow(&leaf, 16, LEDGER_TIGHT_MS - 1).full);
    cr_assert(load_relaxed(&leaf.credit) == 0 && ledger_is_tight(&leaf));
    ledger_refund(&leaf, 64);
    cr_assert(ledger_grab(&leaf, 16, 4) == 0 && !ledger_grab_one(&leaf, 16), "each is borrowed");
    /* What is left over goes back before more is borrowed. */
    cr_assert(!ledger_borrow(&leaf, 32, LEDGER_TIGHT_MS - 1).full && ledger_is_tight(&leaf));
    cr_assert(load_relaxed(&leaf.credit) == 0);
    /* Time has passed. */
    cr_assert(!ledger_borrow(&leaf, 16, LEDGER_TIGHT_MS).full);
    cr_assert(!ledger_is_tight(&leaf) && load_relaxed(&leaf.credit) > 0);
    ledger_t child;
    recall_all(&leaf, &root, 500);
    join(&child, &leaf, LEDGER_NO_LIMIT);
    cr_assert(ledger_is_tight(&child), "born tight");
}

Test(ledger, a_refusal_holds_until_something_is_freed)
{
    ledger_t root, a, b;
    join(&root, NULL, 1024);
    join(&a, &root, LEDGER_NO_LIMIT);
    join(&b, &root, LEDGER_NO_LIMIT);
    cr_assert(take(&a, 512) && take(&b, 496));
    uint64_t epoch = ledger_epoch(LIVE);
    recall_all(&a, &root, 0);
    note_refused(&a, &root, 32, epoch);
    borrowed_t refusal = ledger_borrow(&b, 32, 0);
    cr_assert(refusal.full == &root && refusal.again);
    cr_assert(!ledger_borrow(&b, 17, 0).again, "less may fit");
    ledger_note_freed(&a);
    cr_assert(!ledger_borrow(&b, 32, 0).again, "what is freed may wait somewhere");
    note_refused(&a, &root, 32, ledger_epoch(LIVE));
    cr_assert(ledger_borrow(&b, 32, 0).again);
    ledger_refund(&a, 512);
    cr_assert(!ledger_borrow(&b, 32, 0).again);
    recall_all(&b, &root, 0);
    cr_assert(!ledger_borrow(&b, 32, 0).full);
    note_refused(&b, &root, 16, ledger_epoch(LIVE));
    cr_assert(set_limit(&root, 4096) && !ledger_borrow(&b, 2000, 0).again);
    cr_assert(load_relaxed(&root.of[LIVE].refusals) == 3);
}

static bool is_due(ledger_t *ledger)
{
    refused_t soft;
    told_t told = {0}, again = {0};
    bool due = ledger_take_due(ledger, &told, &soft);
    cr_assert(!due || soft.on_pressure == ledger->own.on_pressure);
    return due && !ledger_take_due(ledger, &again, &soft);
}

/* A soft limit is passed by what is asked for, and not by what is borrowed ahead; and once more only
 * after an eighth of it was free. */
Test(ledger, a_soft_limit_is_due_once_each_time)
{
    ledger_t root = {.credit = 0};
    hak_limits_t limits = {0, LEDGER_NO_LIMIT, LEDGER_NO_LIMIT, 8000};
    cr_assert(ledger_join(&root, NULL, &limits, 9000) == LEDGER_DONE && !is_due(&root));
    cr_assert(!ledger_borrow(&root, 16, 0).due && !is_due(&root));
    cr_assert(!ledger_borrow(&root, 7984 - root.credit, 0).due && !is_due(&root));
    ledger_return_credit(&root);
    size_t live = ledger_live(&root);
    cr_assert(ledger_borrow(&root, 8001 - live, 0).due);
    cr_assert(ledger_borrow(&root, 16, 0).due && is_due(&root) && !is_due(&root));
    ledger_return_credit(&root);
    ledger_refund(&root, ledger_live(&root) - 7000);
    ledger_return_credit(&root);
    cr_assert(!ledger_borrow(&root, 1100, 0).due && !is_due(&root), "an eighth was not free");
    ledger_return_credit(&root);
    ledger_refund(&root, ledger_live(&root) - 6999);
    ledger_return_credit(&root);
    cr_assert(ledger_borrow(&root, 1100, 0).due && is_due(&root));
    cr_assert(ledger_is_sound(&root));
}

/* What is lent at once leaves nothing to say: no limit of either measure is met, and no soft one. */
Test(ledger, what_is_lent_at_once_meets_no_limit)
{
    ledger_t root = {.credit = 0}, leaf;
    hak_limits_t limits = {0, 10000, 5000, 8000};
    cr_assert(ledger_join(&root, NULL, &limits, 1000) == LEDGER_DONE);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    cr_assert(!ledger_lend(&leaf, 8001) && !ledger_lend_both(&leaf, 1, 4001), "of the parent");
    cr_assert(load_relaxed(&root.of[LIVE].sum) == 0 && load_relaxed(&leaf.footprint) == 0);
    cr_assert(ledger_lend_both(&leaf, 4000, 4000) && ledger_live(&leaf) == 4000);
    cr_assert(load_relaxed(&root.of[FOOTPRINT].sum) == 5000);
    cr_assert(load_relaxed(&leaf.footprint) == 4000 && load_relaxed(&leaf.most) == 4000);
    cr_assert(ledger_is_sound(&root));
    ledger_return_credit(&leaf);
    cr_assert(ledger_lend(&leaf, 4000) && !ledger_lend(&leaf, 1), "it would pass the soft limit");
    cr_assert(!is_due(&leaf) && ledger_borrow(&leaf, 1, 0).due);
    ledger_return_credit(&leaf);
    ledger_refund(&leaf, 1000);
    ledger_return_credit(&leaf);
    cr_assert(!ledger_lend(&leaf, 1) && is_due(&leaf), "somebody is to be told first");
    cr_assert(ledger_is_sound(&root));
}

/* A heap that a recall has found full asks for each block, until it is told that all is well. */
Test(ledger, nothing_is_lent_at_once_after_a_recall)
{
    ledger_t root, leaf, other, comes;
    join(&root, NULL, 1024);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    join(&comes, NULL, LEDGER_NO_LIMIT);
    cr_assert(take(&leaf, 1000));
    recall_all(&leaf, &root, 0);
    cr_assert(ledger_lend(&comes, 16) && move(&comes, &root) == LEDGER_FULL);
    ledger_refund(&comes, 16);
    ledger_return_credit(&comes);
    cr_assert(move(&comes, &root) == LEDGER_DONE);
    cr_assert(!ledger_is_tight(&comes) && !ledger_lend(&comes, 16),
              "what is above it was recalled");
    ledger_refund(&leaf, 500);
    join(&other, &root, LEDGER_NO_LIMIT);
    cr_assert(!ledger_lend(&leaf, 16) && !ledger_lend(&other, 16) && !ledger_lend(&root, 16));
    cr_assert(!ledger_borrow(&leaf, 16, LEDGER_TIGHT_MS).full && ledger_lend(&leaf, 16));
    cr_assert(!ledger_lend(&other, 16), "it is tight until it asks itself");
    cr_assert(!ledger_borrow(&other, 16, LEDGER_TIGHT_MS).full && ledger_lend(&other, 16));
    cr_assert(ledger_is_sound(&root));
}

/* A large credit goes back when a footprint falls, in the same step. */
Test(ledger, what_is_borrowed_in_vain_goes_with_the_footprint)
{
    ledger_t root, leaf;
    join(&root, NULL, 2 * HAK_MIB);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    cr_assert(ledger_lend_both(&leaf, HAK_MIB, HAK_MIB));
    ledger_refund(&leaf, HAK_MIB);
    ledger_settle_at(&leaf, 0, true);
    for (unsigned measure = 0; measure < MEASURES; measure++) {
        cr_assert(load_relaxed(&leaf.of[measure].lease) == 0);
        cr_assert(load_relaxed(&root.of[measure].sum) == 0);
    }
    cr_assert(load_relaxed(&leaf.credit) == 0 && ledger_is_sound(&root));
}

/* ---- What is kept ---- */

static size_t sum_of(ledger_t *ledger, unsigned measure)
{
    return load_relaxed(&ledger->of[measure].sum);
}

/* The charge and the room of a large block that is freed serve the next one, and count until then. */
Test(ledger, what_was_freed_is_kept_for_what_comes_next)
{
    ledger_t root, leaf;
    join(&root, NULL, 1024 * HAK_MIB);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    cr_assert(!ledger_take_kept(&leaf, HAK_MIB), "there is nothing yet");
    cr_assert(ledger_lend_both(&leaf, 8 * HAK_MIB, 8 * HAK_MIB));
    cr_assert(ledger_keep_freed(&leaf, 8 * HAK_MIB));
    cr_assert(ledger_live(&leaf) == 0 && load_relaxed(&leaf.footprint) == 0);
    cr_assert(sum_of(&root, LIVE) == 8 * HAK_MIB && sum_of(&root, FOOTPRINT) == 8 * HAK_MIB);
    cr_assert(ledger_take_kept(&leaf, 5 * HAK_MIB) && !ledger_take_kept(&leaf, 3 * HAK_MIB + 1));
    cr_assert(ledger_take_kept(&leaf, 3 * HAK_MIB));
    cr_assert(ledger_live(&leaf) == 8 * HAK_MIB && load_relaxed(&leaf.footprint) == 8 * HAK_MIB);
    cr_assert(load_relaxed(&leaf.most) == 8 * HAK_MIB && ledger_is_sound(&root));
}

/* A 64th part of the room, and LEDGER_KEEP, where that is less. */
Test(ledger, what_is_kept_has_a_bound)
{
    ledger_t root, wide;
    join(&root, NULL, 64 * HAK_MIB);
    cr_assert(ledger_lend_both(&root, 2 * HAK_MIB, 2 * HAK_MIB));
    cr_assert(!ledger_keep_freed(&root, 2 * HAK_MIB));
    ledger_settle_at(&root, 0, false);
    cr_assert(sum_of(&root, LIVE) == 0 && sum_of(&root, FOOTPRINT) == 0);
    cr_assert(ledger_admit(&root, 2 * HAK_MIB, true) && !ledger_keeps(&root, 0));
    cr_assert(ledger_keeps(&root, 2 * HAK_MIB - 4 * HAK_PAGE), "some");
    ledger_settle_at(&root, 0, true);
    cr_assert(ledger_lend_both(&root, 2 * HAK_MIB, 0));
    ledger_refund(&root, 2 * HAK_MIB);
    cr_assert(!ledger_keeps(&root, 0), "the credit");
    join(&wide, NULL, LEDGER_NO_LIMIT);
    cr_assert(ledger_lend_both(&wide, LEDGER_KEEP, LEDGER_KEEP) &&
              ledger_grab(&wide, 1, SIZE_MAX) == 0);
    cr_assert(ledger_keep_freed(&wide, LEDGER_KEEP));
    cr_assert(ledger_lend_both(&wide, LEDGER_KEEP, LEDGER_KEEP), "beside what is kept");
    cr_assert(!ledger_keep_freed(&wide, HAK_PAGE));
}

/* What is free shall not hide that a soft limit is passed no longer. */
Test(ledger, nothing_is_kept_below_a_soft_limit)
{
    ledger_t root, leaf;
    hak_limits_t limits = limits_of(LEDGER_NO_LIMIT);
    full_t full;
    join(&root, NULL, LEDGER_NO_LIMIT);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    limits.soft_limit = 1024 * HAK_MIB;
    cr_assert(ledger_set_limits(&root, &limits, &full));
    cr_assert(ledger_lend_both(&leaf, HAK_MIB, HAK_MIB) && !ledger_keep_freed(&leaf, HAK_MIB));
}

/* Whoever recalls finds what is kept; what is freed after that goes back, and is known to have. */
Test(ledger, nothing_is_kept_in_a_tight_heap)
{
    ledger_t root, leaf;
    join(&root, NULL, 1024 * HAK_MIB);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    cr_assert(ledger_lend_both(&leaf, HAK_MIB, HAK_MIB) && ledger_keep_freed(&leaf, HAK_MIB));
    cr_assert(ledger_take_kept(&leaf, HAK_MIB));
    recall_all(&leaf, &root, 0);
    uint64_t epoch = ledger_epoch(FOOTPRINT);
    cr_assert(!ledger_keep_freed(&leaf, HAK_MIB) && ledger_epoch(FOOTPRINT) == epoch + 1);
    cr_assert(!ledger_keeps(&leaf, 0));
    cr_assert(!ledger_take_kept(&leaf, HAK_PAGE));
}

static void *lacks_more(void *leaf) { return ledger_admit(leaf, 4 * HAK_MIB, true) ? leaf : NULL; }

/* Two threads of one heap may lack room at a time: each recalls for what it has lacked itself. */
Test(ledger, what_a_thread_lacks_is_its_own)
{
    ledger_t root, leaf;
    hak_limits_t limits = {0, LEDGER_NO_LIMIT, HAK_MIB, LEDGER_NO_LIMIT};
    pthread_t thread;
    void *admitted = &root;
    full_t full;
    join(&root, NULL, LEDGER_NO_LIMIT);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    cr_assert(ledger_set_limits(&root, &limits, &full));
    cr_assert(!ledger_admit(&leaf, 2 * HAK_MIB, true));
    cr_assert(pthread_create(&thread, NULL, lacks_more, &leaf) == 0);
    cr_assert(pthread_join(thread, &admitted) == 0 && !admitted);
    cr_assert(!ledger_lacks(&leaf, HAK_MIB).full, "what another has lacked says nothing");
    borrowed_t lacks = ledger_lacks(&leaf, HAK_MIB + 1);
    cr_assert(lacks.full == &root && lacks.bytes == HAK_MIB + 1);
    cr_assert(!ledger_admit(&leaf, 2 * HAK_MIB, true));
    lacks = ledger_lacks(&leaf, HAK_PAGE);
    cr_assert(lacks.full == &root && lacks.bytes == 2 * HAK_MIB);
    limits.committed_limit = 2 * HAK_MIB;
    cr_assert(ledger_set_limits(&root, &limits, &full) && !ledger_lacks(&leaf, HAK_PAGE).full);
}

/* What could not go back because TREE was busy is not forgotten, where the footprint is the same. */
Test(ledger, what_was_not_settled_is_seen_by_the_next_one)
{
    ledger_t root;
    join(&root, NULL, LEDGER_NO_LIMIT);
    cr_assert(ledger_admit(&root, 2 * HAK_PAGE, true) && ledger_is_settled(&root, 2 * HAK_PAGE));
    store_relaxed(&root.footprint, HAK_PAGE); /* as ledger_settle_at leaves it then */
    cr_assert(ledger_is_admitted(&root, HAK_PAGE) && !ledger_is_settled(&root, HAK_PAGE));
    ledger_settle_at(&root, HAK_PAGE, true);
    cr_assert(ledger_is_settled(&root, HAK_PAGE) && !ledger_is_settled(&root, 2 * HAK_PAGE));
}

/* What comes in by a move may have something to recall, and what goes leaves room. */
Test(ledger, a_refusal_ends_with_a_move)
{
    ledger_t root, a, b;
    join(&root, NULL, 1024);
    join(&a, &root, LEDGER_NO_LIMIT);
    join(&b, NULL, LEDGER_NO_LIMIT);
    cr_assert(take(&a, 1000));
    recall_all(&a, &root, 0);
    note_refused(&a, &root, 32, ledger_epoch(LIVE));
    cr_assert(ledger_borrow(&a, 32, 0).again);
    cr_assert(move(&b, &root) == LEDGER_DONE && !ledger_borrow(&a, 32, 0).again);
}

Test(ledger, a_move_asks_the_chain_first)
{
    ledger_t top, left, right, heap, below;
    join(&top, NULL, 10000);
    join(&left, &top, LEDGER_NO_LIMIT);
    join(&right, &top, 300);
    join(&heap, &left, LEDGER_NO_LIMIT);
    join(&below, &heap, LEDGER_NO_LIMIT);
    cr_assert(take(&below, 301));
    cr_assert(move(&heap, &right) == LEDGER_FULL && in_the_way.ledger == &right &&
              heap.parent == &left);
    cr_assert(move(&heap, &below) == LEDGER_LOOP && move(&heap, &heap) == LEDGER_LOOP);
    ledger_refund(&below, 45);
    recall_all(&below, &below, 0);
    cr_assert(move(&heap, &right) == LEDGER_DONE && ledger_is_sound(&top));
    cr_assert(load_relaxed(&left.of[LIVE].sum) == 0 && load_relaxed(&right.of[LIVE].sum) == 256);
    cr_assert(load_relaxed(&top.of[LIVE].sum) == 256);
    cr_assert(move(&heap, NULL) == LEDGER_DONE && load_relaxed(&top.of[LIVE].sum) == 0);
    cr_assert(ledger_is_sound(&top) && ledger_is_sound(&heap));
}

Test(ledger, no_tree_is_deeper_than_its_bound)
{
    static ledger_t chain[LEDGER_DEPTH + 1], other, third;
    for (size_t i = 0; i < LEDGER_DEPTH; i++)
        join(&chain[i], i ? &chain[i - 1] : NULL, LEDGER_NO_LIMIT);
    ledger_t *deepest = &chain[LEDGER_DEPTH - 1];
    cr_assert(begin(&chain[LEDGER_DEPTH], deepest, LEDGER_NO_LIMIT) == LEDGER_DEEP);
    join(&other, NULL, LEDGER_NO_LIMIT);
    cr_assert(move(&other, deepest) == LEDGER_DEEP);
    cr_assert(move(&other, &chain[LEDGER_DEPTH - 2]) == LEDGER_DONE);
    join(&third, NULL, LEDGER_NO_LIMIT);
    cr_assert(move(&chain[1], &third) == LEDGER_DONE);
    cr_assert(move(&third, &chain[0]) == LEDGER_DEEP);
}

Test(ledger, a_heap_that_is_emptied_is_passed_by)
{
    ledger_t root, leaf;
    join(&root, NULL, 1024);
    join(&leaf, &root, LEDGER_NO_LIMIT);
    cr_assert(take(&leaf, 512));
    recall_t recall;
    ledger_begin(&recall, &root, &root, 0);
    ledger_step(&recall);
    cr_assert(!ledger_hide(&leaf), "it is pinned");
    ledger_settle(&recall);
    cr_assert(ledger_hide(&leaf));
    recall_all(&root, &root, 0);
    cr_assert(load_relaxed(&leaf.of[LIVE].lease) == 512);
    ledger_clear(&leaf);
    cr_assert(load_relaxed(&leaf.of[LIVE].lease) == 0 && load_relaxed(&root.of[LIVE].sum) == 0);
    cr_assert(take(&leaf, 100) && ledger_hide(&leaf));
    ledger_leave(&leaf);
    cr_assert(ledger_is_sound(&root) && !ledger_child(&root) &&
              load_relaxed(&root.of[LIVE].sum) == 0);
}

/* ---- A random tree beside a model that knows each heap's bytes ---- */

enum { MOST = 40, STEPS = 200000 };
static ledger_t heaps[MOST];
static bool alive[MOST];
static size_t live[MOST], limits[MOST];
static uint32_t now; /* milliseconds: heaps are tight at times only */
static int parents[MOST];

static size_t live_below(int at)
{
    size_t sum = live[at];
    for (int i = 0; i < MOST; i++)
        if (alive[i] && parents[i] == at) sum += live_below(i);
    return sum;
}

/* The lowest that has no room by what is live. */
static int full_by_model(int at, size_t bytes)
{
    for (; at >= 0; at = parents[at])
        if (live_below(at) + bytes > limits[at]) return at;
    return -1;
}

/* As recall.c does it. */
static int charge(int at, size_t bytes)
{
    ledger_t *last = NULL;
    if (ledger_take(&heaps[at], bytes)) return -1;
    for (;;) {
        borrowed_t refusal = ledger_borrow(&heaps[at], bytes, now);
        if (!refusal.full) return -1;
        if (refusal.again || refusal.full == last) {
            note_refused(&heaps[at], refusal.full, bytes, ledger_epoch(LIVE));
            return (int)(refusal.full - heaps);
        }
        last = refusal.full;
        recall_all(&heaps[at], last, now);
    }
}

static bool is_below(int at, int top)
{
    for (; at >= 0; at = parents[at])
        if (at == top) return true;
    return false;
}

static void step(randoms_t *randoms)
{
    int at = (int)random_below(randoms, MOST);
    unsigned what = random_below(randoms, 20);
    if (!alive[at]) {
        int parent = (int)random_below(randoms, MOST + 1) - 1;
        if (parent >= 0 && !alive[parent]) return;
        limits[at] = random_below(randoms, 3) ? 100 + random_below(randoms, 100000) : SIZE_MAX;
        ledger_t *above = parent >= 0 ? &heaps[parent] : NULL;
        if (begin(&heaps[at], above, limits[at]) != LEDGER_DONE) return;
        alive[at] = true, parents[at] = parent, live[at] = 0;
    } else if (what < 12) {
        size_t bytes = 1 + random_below(randoms, 4000);
        int full = full_by_model(at, bytes), refused = charge(at, bytes);
        cr_assert(full == refused, "heap %d, %zu bytes: %d, not %d", at, bytes, refused, full);
        if (refused < 0) live[at] += bytes;
    } else if (what < 17) {
        size_t bytes = live[at] ? 1 + random_below(randoms, (unsigned)live[at]) : 0;
        ledger_refund(&heaps[at], bytes);
        live[at] -= bytes;
    } else if (what == 17) {
        int parent = (int)random_below(randoms, MOST + 1) - 1;
        if (parent >= 0 && (!alive[parent] || is_below(parent, at))) return;
        if (move(&heaps[at], parent >= 0 ? &heaps[parent] : NULL) == LEDGER_DONE)
            parents[at] = parent;
    } else if (what == 18) {
        size_t limit = 100 + random_below(randoms, 200000);
        if (set_limit(&heaps[at], limit)) limits[at] = limit;
        else recall_all(&heaps[at], &heaps[at], now);
    } else if (!ledger_child(&heaps[at])) {
        cr_assert(ledger_hide(&heaps[at]));
        ledger_leave(&heaps[at]);
        alive[at] = false;
    }
}

Test(ledger, random_trees_refuse_what_a_model_refuses)
{
    randoms_t randoms = {1};
    for (size_t i = 0; i < STEPS; i++) {
        step(&randoms);
        now += random_below(&randoms, 64) == 0 ? LEDGER_TIGHT_MS : 0;
        if (i % 100) continue;
        for (int at = 0; at < MOST; at++)
            if (alive[at])
                cr_assert(ledger_is_sound(&heaps[at]) && ledger_live(&heaps[at]) == live[at]);
    }
}
