/* Windows of races in the caches, each held open: areas, outboxes, lists, limits. See stall.h. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <unistd.h>

#include "drain.h"
#include "gate.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_stall.h"
#include "tls.h"
#include "trim.h"

TestSuite(windows, .init = contract_slabs_only, .timeout = 900);

static void hop(void)
{
    int cpus[2];
    if (contract_cpus(cpus, 2) == 2) (void)contract_move_to(cpus[os_cpu() == (unsigned)cpus[0]]);
}
/* To another CPU, and what a signal handler may do. */
static void hop_and_signal(void)
{
    hop();
    scene_signal();
}

/* Threads that begin after this run where this one does. */
static void stay_on_one_cpu(void)
{
    int cpu;
    if (contract_cpus(&cpu, 1) == 1) (void)contract_move_to(cpu);
}

/* Of a window that a mode does not have: nothing that `act` does leads there. */
static void never_reached(stall_point_t point, void (*prepare)(void), void (*act)(void))
{
    static hold_t hold;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_begin(level);
        prepare();
        cr_assert(!hold_start(&hold, point, 1, act, NULL));
        cr_assert(hold_end(&hold) && hold_visits(&hold) == 0, "mode %s", hak_percpu_mode());
        SCENE_END();
    }
}

/* ---- Halt, fence, steal, restart ---- */

/* Words of all areas, added up: a pop, a push or a chain that is taken changes the sum. */
static uint64_t sum_of_words(void)
{
    uint64_t sum = 0;
    FOR_AREAS (at, &scene.heap->percpu)
        FOR_CLASSES (cls, &scene.heap->made)
            FOR_WORDS (kind, at) sum += load_relaxed(area_word(at, cls, kind)) * (kind + 3);
    return sum;
}

/* Gives the magazines to an index that no thread has: so a flush has to halt areas for them. */
static void move_area_away(void)
{
    percpu_t *percpu = &scene.heap->percpu;
    lock_acquire(&scene.heap->areas_lock, RANK_AREAS);
    percpu_halt(percpu);
    STALL_REQUIRE(percpu_fence());
    area_at_t at = area_at_from(percpu, 0);
    unsigned away = at.index == percpu_slots - 1 ? 0 : percpu_slots - 1;
    STALL_REQUIRE(at.area && !percpu_areas(percpu)[away]);
    percpu_areas(percpu)[at.index] = NULL;
    percpu_areas(percpu)[away] = at.area;
    percpu_restart_all(percpu);
    lock_release(&scene.heap->areas_lock, RANK_AREAS);
}

static void fill_magazines(void)
{
    stay_on_one_cpu();
    scene_make_acts(60, SCENE_SIZE);
    for (size_t i = 0; i < 20; i++) item_free(scene.heap, &scene.acts[i]);
}

static void fill_magazines_of_another(void)
{
    fill_magazines();
    move_area_away();
}

/* Frees come to an end, and reach no area. */
static void halted_areas_stay_as_they_are(void)
{
    uint64_t before = sum_of_words();
    scene_free_theirs();
    STALL_REQUIRE(sum_of_words() == before);
}

#define TRIM_AT(at)                                                                          \
    WINDOW(.point = at, .prepare = fill_magazines, .act = scene_trim, .there = scene_signal, \
           .danger = halted_areas_stay_as_they_are)
#define FLUSH_AT(at)                                                              \
    WINDOW(.point = at, .prepare = fill_magazines_of_another, .act = scene_flush, \
           .there = scene_signal, .danger = halted_areas_stay_as_they_are)

Test(windows, areas_halted_by_trim) { TRIM_AT(STALL_areas_halted); }
Test(windows, areas_halted_by_flush) { FLUSH_AT(STALL_areas_halted); }
Test(windows, areas_fenced_by_trim) { TRIM_AT(STALL_areas_fenced); }
Test(windows, areas_fenced_by_flush) { FLUSH_AT(STALL_areas_fenced); }
Test(windows, word_read_by_trim) { TRIM_AT(STALL_word_read); }
Test(windows, word_read_by_flush) { FLUSH_AT(STALL_word_read); }
Test(windows, area_stolen_by_trim) { TRIM_AT(STALL_area_stolen); }
Test(windows, area_stolen_by_flush) { FLUSH_AT(STALL_area_stolen); }

Test(windows, areas_halted_by_check)
{
    WINDOW(.point = STALL_areas_halted, .prepare = fill_magazines, .act = scene_check,
           .there = scene_signal, .danger = halted_areas_stay_as_they_are);
}

/* ---- The locked twin ---- */

static void free_one(void) { item_free(scene.heap, &scene.acts[59]); }

/* The area that was chosen becomes another CPU's. */
static void retire_and_adopt(void)
{
    (void)hak_heap_trim(scene.heap, 0);
    hop();
    scene_allocate();
}

Test(windows, twin_chosen)
{
    NEEDS_POINTS();
    if (!contract_is_locked()) {
        never_reached(STALL_twin_chosen, fill_magazines, scene_allocate);
        return;
    }
    WINDOW(.point = STALL_twin_chosen, .prepare = fill_magazines, .act = free_one,
           .there = scene_signal, .danger = retire_and_adopt, .crew_never_waits = true);
}

/* ---- What is made once ---- */

static void retire_areas(void)
{
    stay_on_one_cpu();
    (void)hak_heap_trim(scene.heap, 0);
}

static void take_one(void) { item_make(scene.heap, &scene.acts[0], SCENE_SIZE); }

Test(windows, area_made)
{
    WINDOW(.point = STALL_area_made, .prepare = retire_areas, .act = take_one,
           .there = hop_and_signal, .danger = scene_free_theirs);
}

static void prepare_many(void)
{
    stay_on_one_cpu();
    scene_make_acts(2000, SCENE_SIZE);
}

Test(windows, outbox_made)
{
    WINDOW(.point = STALL_outbox_made, .prepare = prepare_many, .act = scene_free_acts,
           .there = scene_signal, .danger = scene_free_theirs);
}

enum { RARE = 1024 }; /* a size that no other block of the scene has */
static class_state_t *made;
static void take_rare(void) { item_make(scene.heap, &scene.acts[0], RARE); }
static void make_class(void)
{
    for (size_t i = 1; i < 40; i++) item_make(scene.heap, &scene.acts[i], RARE);
    made = heap_class_made(scene.heap, entry_code(registry_lookup(scene.acts[1].ptr)));
}
static void class_is_the_same(void)
{
    unsigned cls = entry_code(registry_lookup(scene.acts[0].ptr));
    STALL_REQUIRE(made && heap_class_made(scene.heap, cls) == made);
}

Test(windows, class_missed)
{
    WINDOW(.point = STALL_class_missed, .act = take_rare, .there = scene_signal,
           .danger = make_class, .after = class_is_the_same, .crew_never_waits = true);
}

/* ---- Remote lists ---- */

/* As a free that found the class's lock busy. */
static void leave(item_t *item)
{
    STALL_REQUIRE(item_holds(item));
    drain_remote(scene.heap, scene_class()->cls, block_push(0, item->ptr, scene.heap->key));
    item->ptr = NULL;
}
static void leave_some(size_t first, size_t end)
{
    for (size_t i = first; i < end; i++) leave(&scene.acts[i]);
}

static void leave_ten(void)
{
    scene_make_acts(60, SCENE_SIZE);
    leave_some(0, 10);
}
static void leave_one(void) { leave(&scene.acts[10]); }
static void leave_more(void)
{
    leave_some(11, 30);
    scene_free_theirs();
}

Test(windows, remote_linked)
{
    WINDOW(.point = STALL_remote_linked, .prepare = leave_ten, .act = leave_one,
           .there = scene_signal, .danger = leave_more, .crew_never_waits = true);
}

static void leave_none(void) { scene_make_acts(60, SCENE_SIZE); }
static unsigned char *again; /* the block that was the list's head */
static void leave_the_head(void)
{
    scene_make_acts(60, SCENE_SIZE);
    again = scene.acts[0].ptr;
    leave(&scene.acts[0]);
}

/* The head goes to its slab, is allocated, and is left once more: the same word (ABA). */
static void bring_the_head_back(void)
{
    chain_t before = load_relaxed(&scene_class()->remote.head);
    (void)hak_heap_flush(scene.heap);
    STALL_REQUIRE(load_relaxed(&scene_class()->remote.head) == 0);
    size_t at = 100;
    do item_make(scene.heap, &scene.acts[at], SCENE_SIZE);
    while (scene.acts[at].ptr != again && ++at < SCENE_ACTS - 1);
    leave(&scene.acts[at]);
    STALL_REQUIRE(load_relaxed(&scene_class()->remote.head) == before);
}

Test(windows, remote_linked_and_the_head_comes_back)
{
    WINDOW(.point = STALL_remote_linked, .prepare = leave_the_head, .act = leave_one,
           .danger = bring_the_head_back, .quiet = true);
}

/* All goes to slabs, and nothing is charged for caches: what a fork caught shows in the room. */
static void room_is_no_less(void *unused)
{
    (void)unused;
    alarm(STALL_SECONDS);
    (void)hak_heap_trim(scene.heap, 0);
    if (load_relaxed(&scene.heap->budget.room) < (int64_t)scene.heap->settings.cache_bytes)
        _exit(7);
    scene_child(NULL);
}
static void fork_before_the_charge(void)
{
    child_result_t child;
    child_run(&child, room_is_no_less, NULL);
    STALL_REQUIRE(child.status == 0 && child.signal == 0);
    (void)hak_heap_flush(scene.heap);
}

Test(windows, remote_pushed)
{
    WINDOW(.point = STALL_remote_pushed, .prepare = leave_none, .act = leave_one,
           .there = scene_signal, .danger = fork_before_the_charge, .crew_never_waits = true);
}

Test(windows, remote_taken)
{
    WINDOW(.point = STALL_remote_taken, .prepare = leave_ten, .act = scene_flush,
           .there = scene_signal, .danger = leave_more);
}

/* ---- Chains in hand ---- */

static void trim_and_check(void)
{
    scene_free_theirs();
    scene_check();
    scene_trim();
    scene_fork();
    scene_check();
}

Test(windows, free_in_hand)
{
    NEEDS_POINTS();
    if (contract_is_locked()) {
        never_reached(STALL_free_in_hand, prepare_many, scene_free_acts);
        return;
    }
    WINDOW(.point = STALL_free_in_hand, .prepare = prepare_many, .act = scene_free_acts,
           .there = hop_and_signal, .danger = trim_and_check, .crew_never_waits = true);
}

/* The area goes, and nothing makes another: the chain finds no magazine. */
Test(windows, free_in_hand_and_the_area_goes)
{
    NEEDS_POINTS();
    if (contract_is_locked()) cr_skip_test("the twin has no such rung");
    WINDOW(.point = STALL_free_in_hand, .prepare = prepare_many, .act = scene_free_acts,
           .danger = trim_and_check, .quiet = true);
}

static void check_and_trim(void)
{
    scene_free_theirs();
    scene_check();
    scene_trim();
}

Test(windows, refill_in_hand)
{
    WINDOW(.point = STALL_refill_in_hand, .prepare = retire_areas, .act = take_one,
           .there = hop_and_signal, .danger = check_and_trim, .crew_never_waits = true);
}

Test(windows, refill_in_hand_and_the_area_goes)
{
    WINDOW(.point = STALL_refill_in_hand, .prepare = retire_areas, .act = take_one,
           .danger = check_and_trim, .quiet = true);
}

/* ---- Limits and the budget ---- */

/* As if each area had missed as much as ends a period, and nothing in this class. */
static void end_periods(void)
{
    FOR_AREAS (at, &scene.heap->percpu) {
        store_relaxed(&at.area->hot[scene_class()->cls].misses, (uint16_t)0);
        store_relaxed(&at.area->misses, (uint32_t)ADAPT_PERIOD);
    }
    for (size_t i = 1000; i < 2000; i++) item_make(scene.heap, &scene.acts[i], SCENE_OTHER);
}

Test(windows, limit_read)
{
    WINDOW(.point = STALL_limit_read, .prepare = fill_magazines, .act = end_periods,
           .there = scene_signal, .danger = scene_trim, .crew_never_waits = true);
}

Test(windows, limit_halved)
{
    WINDOW(.point = STALL_limit_halved, .prepare = fill_magazines, .act = end_periods,
           .there = scene_signal, .danger = scene_trim, .crew_never_waits = true);
}

static void take_many(void)
{
    for (size_t i = 1000; i < 3000; i++) item_make(scene.heap, &scene.acts[i], SCENE_SIZE);
}

Test(windows, limit_charged)
{
    WINDOW(.point = STALL_limit_charged, .prepare = fill_magazines, .act = take_many,
           .there = scene_signal, .danger = scene_trim, .crew_never_waits = true);
}
