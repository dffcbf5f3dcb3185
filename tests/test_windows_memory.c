/* Windows of races in memory that changes hands, each held open: slabs, homes, SuperSlabs, large
 * blocks. See stall.h; the suite is that of test_windows.c. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <sys/mman.h>
#include <unistd.h>

#include "drain.h"
#include "gate.h"
#include "home.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_stall.h"
#include "tls.h"
#include "trim.h"

/* As a handler of this thread that interrupted the library: what needs HEAP is deferred. */
static void free_as_a_handler(item_t *item)
{
    hak_tls.depth = 1;
    item_free(scene.heap, item);
    hak_tls.depth = 0;
}

/* ---- A second heap, which takes what the first gives up ---- */

enum { OTHERS = 3000, FOREIGN = 2000 /* a size of blocks of the other heap */ };
static hak_heap_t *other;
static item_t others[OTHERS];

static void make_other(void)
{
    other = contract_heap(1, "other");
    STALL_REQUIRE(other != NULL);
    memset(others, 0, sizeof others);
}

static void other_is_whole(void)
{
    size_t live = 0;
    for (size_t i = 0; i < OTHERS; i++) {
        live += others[i].ptr != NULL;
        STALL_REQUIRE(item_holds(&others[i]));
        STALL_REQUIRE(!others[i].ptr || hak_heap_of(others[i].ptr) == other);
    }
    STALL_REQUIRE(contract_unsound(other, live) == 0);
    for (size_t i = 0; i < OTHERS; i++)
        if (others[i].ptr) item_free(other, &others[i]);
    STALL_REQUIRE(contract_unsound(other, 0) == 0);
    STALL_REQUIRE(hak_heap_destroy(other) == 0);
}

/* The other heap allocates until it has the granule; then it frees most of it again, so that pages
 * there have been written and hold no block. */
static void other_takes(const unsigned char *granule, size_t size)
{
    size_t at = 0;
    do item_make(other, &others[at], size);
    while (hak_heap_of(granule) != other && ++at < OTHERS - 1);
    STALL_REQUIRE(hak_heap_of(granule) == other);
    for (size_t i = 0; i < at; i++)
        if (i % 8 && others[i].ptr) item_free(other, &others[i]);
    (void)hak_heap_flush(other);
}

/* ---- Slabs ---- */

static unsigned char *stale; /* a block that is free by now */

static void make_slabs(void)
{
    scene_make_acts(1500, SCENE_SIZE);
    stale = scene.acts[700].ptr;
}
static void free_and_trim(void)
{
    scene_free_acts();
    scene_trim();
}
static void free_theirs_and_look(void)
{
    scene_free_theirs();
    hak_heap_t *heap = hak_heap_of(stale);
    STALL_REQUIRE(heap == scene.heap || heap == NULL);
    (void)hak_usable_size(stale);
}

Test(windows, slab_retiring)
{
    WINDOW(.point = STALL_slab_retiring, .prepare = make_slabs, .act = free_and_trim,
           .there = scene_signal, .danger = free_theirs_and_look);
}

static hold_t reserve_holder;
static _Atomic bool reserve_is_held, reserve_may_go;
static pthread_t reserve_thread;

/* Holds the process's lock for as long as the thread that retires a slab is on its way. */
static void *hold_reserve(void *unused)
{
    lock_acquire(&process_reserve.lock, RANK_RESERVE);
    store_release(&reserve_is_held, true); /* pairs with the acquire in stall_wait */
    STALL_REQUIRE(stall_wait(&reserve_may_go));
    lock_release(&process_reserve.lock, RANK_RESERVE);
    return unused;
}

/* Takes what caches may hold, so that each free reaches its slab; and gives it back. */
static int64_t room;
static void spend_budget(void)
{
    (void)hak_heap_trim(scene.heap, 0);
    room = load_relaxed(&scene.heap->budget.room);
    cr_assert(budget_take(&scene.heap->budget, (size_t)room));
}
static void refund_budget(void) { budget_put(&scene.heap->budget, (size_t)room); }

/* A free that finds RESERVE busy keeps the slab, and does not wait. */
Test(windows, slab_retiring_and_the_reserve_is_busy)
{
    NEEDS_POINTS();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_begin(level);
        make_slabs();
        spend_budget();
        reserve_is_held = reserve_may_go = false;
        cr_assert(
            hold_start(&reserve_holder, STALL_slab_retiring, 1, scene_free_acts, scene_signal));
        cr_assert(pthread_create(&reserve_thread, NULL, hold_reserve, NULL) == 0);
        cr_assert(stall_wait(&reserve_is_held));
        cr_assert(hold_end(&reserve_holder), "a free waits for RESERVE");
        reserve_may_go = true;
        pthread_join(reserve_thread, NULL);
        refund_budget();
        SCENE_END();
    }
}

/* One slab of the class, and its granule is the first that a trim looks at. */
static void only_one_slab(void)
{
    make_other();
    for (size_t i = 0; i < SCENE_KEPT; i++) item_free(scene.heap, &scene.kept[i]);
    for (size_t i = 0; i < SCENE_HANDLERS; i++) item_free(scene.heap, &scene.handlers[i]);
    scene_free_theirs();
    (void)hak_heap_trim(scene.heap, 0);
    scene_make_acts(100, SCENE_SIZE);
    stale = scene.acts[0].ptr;
}
/* The granule becomes the other heap's. */
static void granule_changes_hands(void)
{
    scene_free_acts();
    (void)hak_heap_flush(scene.heap);
    STALL_REQUIRE(hak_heap_of(stale) != scene.heap);
    other_takes(stale, FOREIGN);
}

Test(windows, slab_looked_at)
{
    WINDOW(.point = STALL_slab_looked_at, .prepare = only_one_slab, .act = scene_trim,
           .danger = granule_changes_hands, .after = other_is_whole, .quiet = true);
}

Test(windows, slab_looked_at_and_all_is_used)
{
    WINDOW(.point = STALL_slab_looked_at, .prepare = make_slabs, .act = scene_trim,
           .there = scene_signal, .danger = free_theirs_and_look);
}

/* ---- Homes ---- */

static unsigned home, next_home;

static void divide(void)
{
    scene_make_acts(3500, SCENE_SIZE);
    (void)hak_heap_trim(scene.heap, 0);
    STALL_REQUIRE(home_is_divided(scene.heap));
    home = entry_home(registry_lookup(scene.acts[1000].ptr)); /* of a slab that is full */
    next_home = home == 0;
    STALL_REQUIRE(home < scene_class()->homes && next_home < scene_class()->homes);
}
static void take_over(void)
{
    STALL_REQUIRE(gate_enter(true) == GATE_IN);
    lock_acquire(&scene_class()->lock, RANK_CLASS);
    home_take_over(scene_class(), home, next_home);
    lock_release(&scene_class()->lock, RANK_CLASS);
    gate_leave();
}
/* Whatever the homes of the blocks are said to be. */
static void free_half_and_look(void)
{
    for (size_t i = 0; i < 3500; i += 2) {
        STALL_REQUIRE(hak_heap_of(scene.acts[i].ptr) == scene.heap);
        item_free(scene.heap, &scene.acts[i]);
    }
    scene_free_theirs();
}

Test(windows, home_moving)
{
    WINDOW(.point = STALL_home_moving, .nth = 3, .prepare = divide, .act = take_over,
           .there = scene_signal, .danger = free_half_and_look);
}

Test(windows, home_taken_over)
{
    WINDOW(.point = STALL_home_taken_over, .prepare = divide, .act = take_over,
           .there = scene_signal, .danger = free_half_and_look);
}

/* ---- Deferred blocks ---- */

static void make_mids(void) { scene_make_acts(20, SCENE_MID); }
static void make_mids_and_hold(void)
{
    make_mids();
    stale = scene.acts[0].ptr;
    lock_acquire(&scene.heap->lock, RANK_HEAP);
}
static void free_mid(void) { item_free(scene.heap, &scene.acts[0]); }

/* The block that was pushed is taken, and is another's at once. */
static void block_serves_again(void)
{
    lock_release(&scene.heap->lock, RANK_HEAP);
    scene_figures();
    size_t at = 100;
    do item_make(scene.heap, &scene.acts[at], SCENE_MID);
    while (scene.acts[at].ptr != stale && ++at < 400);
    STALL_REQUIRE(scene.acts[at].ptr == stale);
}

Test(windows, deferred_pushed)
{
    WINDOW(.point = STALL_deferred_pushed, .prepare = make_mids_and_hold, .act = free_mid,
           .there = scene_signal, .danger = block_serves_again, .crew_never_waits = true);
}

static void defer_some(void)
{
    make_mids();
    for (size_t i = 0; i < 10; i++) free_as_a_handler(&scene.acts[i]);
    STALL_REQUIRE(remote_blocks(&scene.heap->deferred) == 10);
}
static void take_mid(void) { item_make(scene.heap, &scene.acts[50], SCENE_MID); }
static void free_more_mids(void)
{
    for (size_t i = 10; i < 20; i++) item_free(scene.heap, &scene.acts[i]);
    STALL_REQUIRE(remote_blocks(&scene.heap->deferred) >= 20);
    scene_free_theirs();
}

Test(windows, deferred_counted)
{
    WINDOW(.point = STALL_deferred_counted, .prepare = defer_some, .act = take_mid,
           .there = scene_signal, .danger = free_more_mids);
}

/* ---- SuperSlabs ---- */

enum { BIGS = 12 };

/* The last two blocks are the last SuperSlab. */
static void make_bigs(void)
{
    make_other();
    scene_make_acts(BIGS, SCENE_BIG);
    stale = scene.acts[0].ptr;
}
static void leaving_is_nobodys(void)
{
    scene_free_theirs();
    for (size_t i = 0; i < BIGS; i++)
        if (scene.acts[i].ptr) STALL_REQUIRE(hak_heap_of(scene.acts[i].ptr) == scene.heap);
    (void)hak_heap_of(stale);
}

Test(windows, superslab_leaving)
{
    WINDOW(.point = STALL_superslab_leaving, .prepare = make_bigs, .act = scene_free_acts,
           .there = scene_signal, .danger = leaving_is_nobodys, .after = other_is_whole);
}

/* It is in the reserve: another heap takes it, and uses it, before the first has gone on. */
static void other_takes_superslabs(void)
{
    scene_free_theirs();
    size_t taken = reserve_stats(&process_reserve).dirty_superslabs;
    STALL_REQUIRE(taken > 0);
    for (size_t i = 0; i < 6; i++) item_make(other, &others[i], SCENE_BIG);
    for (size_t i = 6; i < 200; i++) item_make(other, &others[i], SCENE_OTHER);
    STALL_REQUIRE(reserve_stats(&process_reserve).dirty_superslabs < taken);
}

Test(windows, superslab_left)
{
    WINDOW(.point = STALL_superslab_left, .prepare = make_bigs, .act = scene_free_acts,
           .there = scene_signal, .danger = other_takes_superslabs, .after = other_is_whole);
}

/* As many SuperSlabs as the reserve may keep. */
enum { KEPT_SUPERSLABS = 8 };
static void fill_reserve(void)
{
    STALL_REQUIRE(hak_reserve_set_limit(KEPT_SUPERSLABS * (size_t)SUPERSLAB) == 0);
    hak_heap_t *filler = contract_heap(0, "filler");
    for (size_t i = 0; i < 2 * (KEPT_SUPERSLABS + 4); i++) {
        void *block = hak_heap_malloc(filler, SCENE_BIG);
        STALL_REQUIRE(block != NULL);
    }
    make_bigs();
    STALL_REQUIRE(hak_heap_destroy(filler) == 0);
}
static void other_uses_reserve(void)
{
    scene_free_theirs();
    for (size_t i = 0; i < 2 * (KEPT_SUPERSLABS + 4); i++) item_make(other, &others[i], SCENE_BIG);
    (void)hak_reserve_trim();
}

Test(windows, superslab_unlisted)
{
    WINDOW(.point = STALL_superslab_unlisted, .prepare = fill_reserve, .act = scene_free_acts,
           .there = scene_signal, .danger = other_uses_reserve, .after = other_is_whole);
}

/* One slab of the nursery, which has nothing else. */
static void only_one_nursery_run(void)
{
    only_one_slab();
    (void)hak_reserve_trim();
    STALL_REQUIRE(registry_superslab(stale)->shared);
}

/* Its SuperSlab leaves the nursery by way of the reserve, and is the other heap's own. Returns which
 * of the other heap's blocks has the granule. */
static item_t *nursery_changes_hands(void)
{
    superslab_t *ss = registry_superslab(stale);
    (void)hak_reserve_trim();
    for (size_t at = 0; at < OTHERS; at++) {
        item_make(other, &others[at], SCENE_BIG); /* too long for the nursery */
        size_t before = (size_t)(stale - others[at].ptr);
        if (before < SCENE_BIG) return &others[at];
    }
    STALL_REQUIRE(!ss->shared);
    return NULL;
}
static void other_uses_granule(void) { STALL_REQUIRE(nursery_changes_hands() != NULL); }
static void other_frees_granule(void)
{
    item_t *there = nursery_changes_hands();
    item_make(other, &others[OTHERS - 1], SCENE_BIG); /* in the other half of the SuperSlab */
    STALL_REQUIRE(registry_superslab(others[OTHERS - 1].ptr) == registry_superslab(stale));
    item_free(other, there);
}

Test(windows, nursery_given)
{
    WINDOW(.point = STALL_nursery_given, .prepare = only_one_nursery_run, .act = free_and_trim,
           .danger = other_uses_granule, .after = other_is_whole, .quiet = true);
}

Test(windows, nursery_given_and_the_granule_is_free)
{
    WINDOW(.point = STALL_nursery_given, .prepare = only_one_nursery_run, .act = free_and_trim,
           .danger = other_frees_granule, .after = other_is_whole, .quiet = true);
}

/* A SuperSlab whose only block is among `acts`; the trim looks at its slabs next. */
static void superslab_of_slabs(void)
{
    make_other();
    for (size_t i = 0; i < SCENE_KEPT; i++) item_free(scene.heap, &scene.kept[i]);
    for (size_t i = 0; i < SCENE_HANDLERS; i++) item_free(scene.heap, &scene.handlers[i]);
    scene_free_theirs();
    (void)hak_heap_trim(scene.heap, 0);
    scene_make_acts(6, SCENE_BIG);
    item_make(scene.heap, &scene.acts[6], FOREIGN); /* so that this heap knows the class, too */
    stale = scene.acts[0].ptr;
}
/* Whether the other heap has slabs in the SuperSlab that the trim has just left. */
static bool other_has_slabs_there(void)
{
    const char *base = registry_superslab(stale)->base;
    for (size_t g = 0; g < SUPERSLAB_GRANULES; g++) {
        entry_t entry = registry_lookup(base + g * GRANULE);
        if (entry_heap(entry) == other && entry_code(entry) < CLASS_COUNT) return true;
    }
    return false;
}

/* It leaves, and the other heap has slabs in it when the first goes on to look for its own. */
static void superslab_changes_hands(void)
{
    stale = (unsigned char *)scene.heap->superslabs.last->base; /* its turn was the last */
    for (size_t i = BIGS; i-- > 0;) /* the one that is empty first stays */
        if (scene.acts[i].ptr) item_free(scene.heap, &scene.acts[i]);
    size_t at = 0;
    item_make(other, &others[at++], SCENE_BIG); /* too long for the nursery */
    while (!other_has_slabs_there() && at < OTHERS - 1) item_make(other, &others[at++], FOREIGN);
    STALL_REQUIRE(other_has_slabs_there());
    for (size_t i = 1; i < at; i++)
        if (i % 8) item_free(other, &others[i]);
    (void)hak_heap_flush(other);
}

Test(windows, superslab_purged)
{
    WINDOW(.point = STALL_superslab_purged, .prepare = superslab_of_slabs, .act = scene_trim,
           .danger = superslab_changes_hands, .after = other_is_whole, .quiet = true);
}

Test(windows, superslab_purged_and_all_is_used)
{
    WINDOW(.point = STALL_superslab_purged, .prepare = make_bigs, .act = scene_trim,
           .there = scene_signal, .danger = leaving_is_nobodys, .after = other_is_whole);
}

/* ---- Large blocks ---- */

static void cache_larges(void)
{
    scene_make_acts(3, SCENE_LARGE);
    stale = scene.acts[0].ptr;
    scene_free_acts();
}
/* As an allocation that was refused: TRIM is not held. */
static void make_room(void)
{
    STALL_REQUIRE(gate_enter(true) == GATE_IN);
    (void)trim_make_room();
    gate_leave();
}
static void use_larges_and_prove(void)
{
    STALL_REQUIRE(hak_heap_of(stale) == NULL && hak_usable_size(stale) == 0);
    STALL_REQUIRE(contract_unsound(scene.heap, scene_live()) == 0);
    for (size_t i = 10; i < 14; i++) item_make(scene.heap, &scene.acts[i], SCENE_LARGE);
    STALL_REQUIRE(contract_unsound(scene.heap, scene_live()) == 0);
    item_free(scene.heap, &scene.acts[12]);
    scene_free_theirs();
}
static void larges_are_known(void)
{
    for (size_t i = 10; i < 14; i++)
        if (scene.acts[i].ptr) STALL_REQUIRE(hak_heap_of(scene.acts[i].ptr) == scene.heap);
}

Test(windows, piece_dropped)
{
    WINDOW(.point = STALL_piece_dropped, .prepare = cache_larges, .act = make_room,
           .there = scene_signal, .danger = use_larges_and_prove, .after = larges_are_known,
           .crew_never_waits = true);
}

/* Pieces of blocks that were freed become a longer one. */
static void take_pieces(void) { item_make(scene.heap, &scene.acts[14], 2 * SCENE_LARGE); }

Test(windows, pieces_moved)
{
    WINDOW(.point = STALL_pieces_moved, .prepare = cache_larges, .act = take_pieces,
           .there = scene_signal, .danger = use_larges_and_prove, .after = larges_are_known,
           .crew_never_waits = true);
}

static void make_larges(void)
{
    scene_make_acts(3, SCENE_LARGE);
    stale = scene.acts[0].ptr;
}
static void free_a_large(void) { item_free(scene.heap, &scene.acts[0]); }

Test(windows, large_buried)
{
    WINDOW(.point = STALL_large_buried, .prepare = make_larges, .act = free_a_large,
           .there = scene_signal, .danger = scene_free_theirs, .after = larges_are_known);
}

/* A free that finds RESERVE busy defers the block, and does not wait. */
Test(windows, large_freed_and_the_reserve_is_busy)
{
    NEEDS_POINTS();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_begin(level);
        make_larges();
        reserve_is_held = reserve_may_go = false;
        cr_assert(hold_start(&reserve_holder, STALL_large_buried, 1, free_a_large, NULL));
        cr_assert(pthread_create(&reserve_thread, NULL, hold_reserve, NULL) == 0);
        cr_assert(stall_wait(&reserve_is_held));
        cr_assert(hold_end(&reserve_holder), "a free waits for RESERVE");
        cr_assert(remote_blocks(&scene.heap->deferred) == 1);
        reserve_may_go = true;
        pthread_join(reserve_thread, NULL);
        SCENE_END();
    }
}

static size_t usable;
static void *blocker;
static void make_large(void)
{
    item_make(scene.heap, &scene.acts[0], SCENE_LARGE);
    stale = scene.acts[0].ptr;
}
static void ask_usable(void) { usable = hak_usable_size(stale); }

/* The record that is being read becomes another block's, elsewhere: something has the addresses. */
static void record_serves_again(void)
{
    large_t *record = registry_range(stale);
    item_free(scene.heap, &scene.acts[0]);
    (void)hak_heap_trim(scene.heap, 0);
    blocker = mmap(stale, SCENE_LARGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
                   -1, 0);
    STALL_REQUIRE(blocker == stale);
    item_make(scene.heap, &scene.acts[1], 2 * SCENE_LARGE);
    STALL_REQUIRE(registry_range(scene.acts[1].ptr) == record);
}
static void nothing_was_said(void)
{
    STALL_REQUIRE(usable == 0);
    munmap(blocker, SCENE_LARGE);
}

Test(windows, large_read)
{
    WINDOW(.point = STALL_large_read, .prepare = make_large, .act = ask_usable,
           .there = scene_signal, .danger = record_serves_again, .after = nothing_was_said,
           .crew_never_waits = true);
}
