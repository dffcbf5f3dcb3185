/* Windows of races in regions, each held open. No lock is held there, and nothing waits. See stall.h;
 * the suite is that of test_windows.c. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <stdlib.h>

#include "support_contract.h"
#include "support_stall.h"

/* The suite's heaps have slabs only; this test's have regions. Before the first heap. */
static void use_regions(void) { unsetenv("HAKHEAP_REGION_BYTES"); }

enum { WIDE = REGION_BLOCK_MAX, MADE = 1020 }; /* over two words, or three */

static region_t *region_of(const void *ptr)
{
    entry_t entry = registry_lookup(ptr);
    STALL_REQUIRE(entry_code(entry) == CODE_REGION);
    return heap_region(scene.heap, entry_back(entry));
}

/* The holes of the scene are filled, so that what follows lies behind it. */
static void fill_with_narrow(void)
{
    scene_make_acts(200, 16);
    for (size_t i = 0; i < 200; i += 3) item_free(scene.heap, &scene.acts[i]);
}

/* ---- A part of a block is taken ---- */

static void take_wide(void)
{
    for (size_t i = 1000; i < 1010; i++) item_make(scene.heap, &scene.acts[i], WIDE);
}

/* What the thread is about to take, as far as that goes, in small blocks; its neighbours go. */
static void take_what_is_behind(void)
{
    for (size_t i = 1100; i < 1300; i++) item_make(scene.heap, &scene.acts[i], 16 + i % 64);
    for (size_t i = 1; i < 200; i += 3) item_free(scene.heap, &scene.acts[i]);
    scene_free_theirs();
    for (size_t i = 1300; i < 1310; i++) item_make(scene.heap, &scene.acts[i], WIDE);
    scene_check();
}

Test(windows, region_part_taken)
{
    use_regions();
    WINDOW(.point = STALL_region_part_taken, .prepare = fill_with_narrow, .act = take_wide,
           .there = scene_signal, .danger = take_what_is_behind, .crew_never_waits = true);
}

/* The rest is refused, and what was taken is free again: nothing is lost. */
static void take_all_behind(void)
{
    for (size_t i = 1100; i < 1400; i++) item_make(scene.heap, &scene.acts[i], 16);
}

Test(windows, region_part_taken_and_the_rest_is_not)
{
    use_regions();
    WINDOW(.point = STALL_region_part_taken, .prepare = fill_with_narrow, .act = take_wide,
           .danger = take_all_behind, .quiet = true);
}

/* ---- A block that is freed ---- */

static unsigned char *going; /* a block of several words, whose free is under way */
static unsigned char *front; /* the one before it */

static void make_wide(void)
{
    fill_with_narrow();
    for (size_t i = 1000; i < MADE; i++) item_make(scene.heap, &scene.acts[i], WIDE);
    for (size_t i = 1001; i < MADE; i++) {
        going = scene.acts[i].ptr;
        front = scene.acts[i - 1].ptr;
        if (going == front + WIDE) break;
    }
    STALL_REQUIRE(going == front + WIDE);
}

static item_t *item_of(const unsigned char *ptr)
{
    size_t at = 1000;
    while (scene.acts[at].ptr != ptr && at < MADE - 1) at++;
    STALL_REQUIRE(scene.acts[at].ptr == ptr);
    return &scene.acts[at];
}
static void free_going(void) { item_free(scene.heap, item_of(going)); }

/* The block before it is as long as it was; the one that goes is no block, and nobody's yet. */
static void free_in_front(void)
{
    STALL_REQUIRE(hak_usable_size(front) == WIDE);
    unsigned units;
    STALL_REQUIRE(region_find(region_of(front), going, &units) == NULL);
    item_free(scene.heap, item_of(front));
    STALL_REQUIRE(region_find(region_of(going), going, &units) == NULL);
    for (size_t i = 1100; i < 1300; i++) {
        item_make(scene.heap, &scene.acts[i], 16 + i % 64 * 16);
        uintptr_t from = (uintptr_t)scene.acts[i].ptr, to = from + scene.acts[i].size;
        STALL_REQUIRE(to <= (uintptr_t)going || from >= (uintptr_t)going + WIDE);
        STALL_REQUIRE(hak_usable_size(scene.acts[i].ptr) == hak_good_size(scene.acts[i].size));
    }
    scene_check();
}

Test(windows, region_put_held)
{
    use_regions();
    WINDOW(.point = STALL_region_put_held, .prepare = make_wide, .act = free_going,
           .there = scene_signal, .danger = free_in_front, .crew_never_waits = true);
}

/* ---- A block on its way into a pocket, and out of one ---- */

/* Each block turned over until the heap is busy. */
static void make_busy(void)
{
    scene_make_acts(200, 64);
    for (size_t i = 0; load_relaxed(&scene.heap->busy) == CALM; i = (i + 1) % 200) {
        item_free(scene.heap, &scene.acts[i]);
        item_make(scene.heap, &scene.acts[i], 64);
    }
    STALL_REQUIRE(load_relaxed(&scene.heap->busy) == BUSY_POCKETS);
}
static void free_some(void)
{
    for (size_t i = 0; i < 20; i++) item_free(scene.heap, &scene.acts[i]);
}

/* Others fill the pocket, and empty it. */
static void free_others(void)
{
    for (size_t i = 100; i < 120; i++) item_free(scene.heap, &scene.acts[i]);
    for (size_t i = 1100; i < 1120; i++) item_make(scene.heap, &scene.acts[i], 64);
    for (size_t i = 1100; i < 1110; i++) item_free(scene.heap, &scene.acts[i]);
    scene_check();
    scene_trim();
    for (size_t i = 1110; i < 1120; i++) item_free(scene.heap, &scene.acts[i]);
    scene_free_theirs();
}

Test(windows, pocket_putting)
{
    use_regions();
    WINDOW(.point = STALL_pocket_putting, .prepare = make_busy, .act = free_some,
           .there = scene_signal, .danger = free_others, .crew_never_waits = true);
}

Test(windows, pocket_left)
{
    use_regions();
    WINDOW(.point = STALL_pocket_left, .prepare = make_busy, .act = free_some,
           .there = scene_signal, .danger = free_others, .crew_never_waits = true);
}

/* ---- A page that is opened ---- */

static void open_pages(void)
{
    for (size_t i = 1000; i < 1100; i++) item_make(scene.heap, &scene.acts[i], WIDE / 2);
}

/* Others open the next page, or take another region, and give back what is empty. */
static void open_others(void)
{
    for (size_t i = 1100; i < 1160; i++) item_make(scene.heap, &scene.acts[i], WIDE / 2);
    scene_check();
    scene_trim();
    for (size_t i = 1160; i < 1220; i++) item_make(scene.heap, &scene.acts[i], WIDE / 2);
    scene_free_theirs();
    scene_trim();
}

Test(windows, region_opening)
{
    use_regions();
    WINDOW(.point = STALL_region_opening, .act = open_pages, .there = scene_signal,
           .danger = open_others, .crew_never_waits = true);
}
