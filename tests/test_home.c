/* Homes: when a heap is divided, whose slab is whose, how blocks come home, and what is left where
 * memory or locks refuse. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "drain.h"
#include "heap.h"
#include "home.h"
#include "pointer.h"
#include "process.h"
#include "reserve.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_os.h"
#include "support_random.h"
#include "support_stall.h"
#include "tls.h"

TestSuite(home, .init = contract_slabs_only, .timeout = 600);

enum { SIZE = 1024, MOST = 16384, HERE = 0, THERE = 1, BEYOND = PERCPU_FEWEST + 2, SLOTS = 400 };

static void *blocks[MOST];

static unsigned class_of(size_t size) { return hak_size_class_of(size); }
static class_state_t *state_of(const hak_heap_t *heap)
{
    return heap_class_made(heap, class_of(SIZE));
}
static unsigned home_in(const void *ptr) { return entry_home(registry_lookup(ptr)); }
static slab_t *slab_at(const void *ptr) { return slab_of(registry_lookup(ptr), ptr); }

static void must_be_sound(const hak_heap_t *heap, size_t live_blocks, const char *when)
{
    int line = contract_unsound(heap, live_blocks);
    cr_assert(line == 0, "%s, %s: support_contract.c:%d (%zu blocks live, %zu expected)",
              hak_percpu_mode(), when, line, contract_stats(heap).live_blocks, live_blocks);
}

/* ---- One thread on any CPU ---- */

/*
 * Sections read the CPU's index from the thread's own memory, so a thread can be any CPU: it is the
 * only one of that index. Nothing of it holds for the twin, which asks the kernel.
 */
static _Thread_local uint32_t pretended __attribute__((tls_model("initial-exec")));

static void pretend(unsigned index)
{
    __atomic_store_n(&pretended, index, __ATOMIC_RELAXED);
    if (percpu_mode != PERCPU_LOCKED)
        percpu_index_offset = (char *)&pretended - (char *)__builtin_thread_pointer();
}

static hak_heap_t *heap_on(unsigned index, int level)
{
    cr_assert(process_start() == 0);
    percpu_slots = SLOTS;
    hak_heap_t *heap = contract_heap(level, "home");
    cr_assert(heap != NULL);
    if (percpu_mode == PERCPU_LOCKED) cr_skip_test("the twin asks the kernel for the CPU");
    pretend(index);
    return heap;
}

static void *must_malloc(hak_heap_t *heap, size_t size)
{
    void *ptr = hak_heap_malloc(heap, size);
    cr_assert(ptr != NULL, "%s", hak_error_text(hak_last_error()));
    return ptr;
}

static void *must_calloc_one(hak_heap_t *heap) { return memset(must_malloc(heap, SIZE), 0, SIZE); }

/* Allocates until the heap is divided, and `more` blocks; returns how many blocks that were. */
static size_t divide(hak_heap_t *heap, size_t more)
{
    size_t count = 0;
    for (; load_relaxed(&heap->divided) != DIVIDED; count++) {
        cr_assert(count < MOST - more);
        blocks[count] = must_calloc_one(heap);
    }
    for (; more; more--) blocks[count++] = must_calloc_one(heap);
    return count;
}

static void free_all(hak_heap_t *heap, size_t count)
{
    for (size_t i = 0; i < count; i++) hak_heap_free(heap, blocks[i]);
}

/* ---- What sections must not reach ---- */

/* HOME_NONE is a number, too: the CPU of that index is at home nowhere, and may have a slot all the
 * same. */
Test(home, the_cpu_of_no_home_looks_at_the_count)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        for (unsigned i = 0; i < 64; i++) blocks[i] = must_malloc(heap, SIZE);
        /* Nobody may make the area of that index: the free has to find by itself that there is
         * none. */
        lock_acquire(&heap->areas_lock, RANK_AREAS);
        pretend(HOME_NONE);
        for (unsigned i = 0; i < 64; i++) hak_heap_free(heap, blocks[i]);
        pretend(HERE);
        lock_release(&heap->areas_lock, RANK_AREAS);
        must_be_sound(heap, 0, "freed by the CPU whose index is HOME_NONE");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static void *take_all_pages(void)
{
    void *pages = NULL;
    for (void **page; (page = meta_take_now(1)) != NULL; pages = page) *page = pages;
    return pages;
}

static void put_all_pages(void *pages)
{
    while (pages) {
        void *next = *(void **)pages;
        meta_put(pages, 1);
        pages = next;
    }
}

/* A CPU that the machine got later has no magazines, and no way into those of others. */
Test(home, a_cpu_beyond_the_slots_uses_no_magazine)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 0);
        hak_heap_free(heap, blocks[--count]);
        chain_t here = load_relaxed(&percpu_area(&heap->percpu, HERE)->hot[class_of(SIZE)].word);
        cr_assert(chain_count(here) > 0);
        for (unsigned index = SLOTS; index < SLOTS + 3; index++) {
            pretend(index);
            blocks[count++] = must_malloc(heap, SIZE);
            memset(blocks[count - 1], (int)index, SIZE);
            hak_heap_free(heap, blocks[0]);
            blocks[0] = must_malloc(heap, SIZE);
            cr_assert(load_relaxed(&percpu_area(&heap->percpu, HERE)->hot[class_of(SIZE)].word) ==
                          here,
                      "another CPU's magazine was used");
            must_be_sound(heap, count, "beyond the slots");
        }
        free_all(heap, count);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A heap's record is longer than a page where the machine has many CPUs. */
Test(home, a_machine_of_many_cpus)
{
    enum { CPUS = 1000 };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        cr_assert(hak_heap_destroy(heap_on(HERE, level)) == 0);
        percpu_slots = CPUS;
        hak_heap_t *heap = contract_heap(level, "many"), *next = contract_heap(level, "next");
        cr_assert(heap != NULL && next != NULL);
        cr_assert((uintptr_t)heap / HAK_PAGE != (uintptr_t)next / HAK_PAGE);
        size_t count = 0;
        for (unsigned index = 0; index < CPUS; index += 37) {
            pretend(index);
            for (unsigned i = 0; i < 100; i++) blocks[count++] = must_calloc_one(heap);
            hak_heap_free(heap, blocks[--count]);
            cr_assert(percpu_area(&heap->percpu, index) != NULL &&
                      percpu_running(&heap->percpu, index) != NULL);
            hak_heap_free(next, must_malloc(next, SIZE));
        }
        must_be_sound(heap, count, "all over the machine");
        free_all(heap, count);
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0, "trimmed");
        must_be_sound(next, 0, "next to it");
        cr_assert(hak_heap_destroy(heap) == 0 && hak_heap_destroy(next) == 0);
        pretend(HERE);
    }
}

/* ---- A free never waits ---- */

typedef struct freer {
    pthread_t thread;
    hak_heap_t *heap;
    size_t count;
    unsigned index;
    _Atomic(uint32_t *) where;
    _Atomic bool ready, go, end;
} freer_t;

static void *free_there(void *arg)
{
    freer_t *freer = arg;
    pretend(freer->index);
    free_all(freer->heap, freer->count);
    return NULL;
}

static bool joins(pthread_t thread)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 300;
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

/* A CPU beyond the class's sets sends blocks home while the heap's lock is busy. */
Test(home, a_free_does_not_wait_for_sets)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 0);
        pretend(BEYOND);
        hak_heap_free(
            heap, must_malloc(heap, 4 * SIZE)); /* it has an area, and no set of the other class */
        cr_assert(state_of(heap)->homes <= BEYOND && percpu_area(&heap->percpu, BEYOND) != NULL);
        lock_acquire(&heap->lock, RANK_HEAP);
        freer_t freer = {.heap = heap, .count = count, .index = BEYOND};
        cr_assert(pthread_create(&freer.thread, NULL, free_there, &freer) == 0);
        cr_assert(joins(freer.thread), "a free waits for the heap's lock");
        lock_release(&heap->lock, RANK_HEAP);
        must_be_sound(heap, 0, "freed beyond the sets");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- An outbox that is somebody else's ---- */

static void *free_while_moved(void *arg)
{
    freer_t *freer = arg;
    pretend(HERE);
    store_release(&freer->where, &pretended);
    for (size_t i = 0; i < freer->count; i++) hak_heap_free(freer->heap, blocks[i]);
    store_release(&freer->end, true);
    return NULL;
}

/* The one CPU has an outbox and the other may not make one: a thread that moves in between takes a
 * full one all the same. */
Test(home, a_full_outbox_of_another_area_is_sent_home)
{
    for (unsigned round = 0; round < 40; round++) {
        hak_heap_t *heap = heap_on(HERE, (int)round & 1);
        size_t count = divide(heap, 4000);
        pretend(THERE);
        hak_heap_free(heap, must_malloc(heap, 4 * SIZE));
        hak_heap_free(heap, blocks[--count]);
        pretend(2); /* frees what is HERE's, like THERE, but without an outbox */
        hak_heap_free(heap, must_malloc(heap, 4 * SIZE));
        area_t *with = percpu_area(&heap->percpu, THERE), *without = percpu_area(&heap->percpu, 2);
        cr_assert(load_relaxed(&with->outbox) && !load_relaxed(&without->outbox));
        lock_acquire(&heap->lock, RANK_HEAP);
        freer_t freer = {.heap = heap, .count = count};
        cr_assert(pthread_create(&freer.thread, NULL, free_while_moved, &freer) == 0);
        uint32_t *where;
        while (!(where = load_acquire(&freer.where))) {
        }
        while (!load_acquire(&freer.end)) {
            __atomic_store_n(where, 2u, __ATOMIC_RELAXED);
            for (unsigned i = 0; i < round * 7; i++) hak_pause();
            __atomic_store_n(where, (uint32_t)THERE, __ATOMIC_RELAXED);
            for (unsigned i = 0; i < round * 3; i++) hak_pause();
        }
        pthread_join(freer.thread, NULL);
        lock_release(&heap->lock, RANK_HEAP);
        pretend(HERE);
        must_be_sound(heap, 0, "freed on the move");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- The nursery's lock is busy ---- */

static freer_t in_purge;

static bool free_in_purge(void *at, size_t bytes)
{
    (void)at, (void)bytes;
    if (exchange_acq_rel(&in_purge.go, true)) return true;
    while (!load_acquire(&in_purge.end)) {
    }
    return true;
}

static void *free_when_told(void *arg)
{
    freer_t *freer = arg;
    pretend(freer->index);
    while (!load_acquire(&freer->go)) {
    }
    lock_acquire(&state_of(freer->heap)->lock, RANK_CLASS);
    for (size_t i = 0; i < freer->count; i++)
        drain_to_slabs(freer->heap, state_of(freer->heap),
                       block_push(0, blocks[i], freer->heap->key), 1);
    lock_release(&state_of(freer->heap)->lock, RANK_CLASS);
    store_release(&freer->end, true);
    return NULL;
}

/* A slab in the nursery becomes empty while its run cannot be put back: it stays, and stays at
 * home. */
Test(home, a_slab_that_cannot_go_keeps_its_home)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 2500); /* more than the nursery gives */
        hak_heap_t *other = contract_heap(0, "other"), *stays = contract_heap(0, "stays");
        (void)must_malloc(stays, SIZE);
        uint32_t runs = heap->runs;
        /* Something for a trim of the nursery to purge. */
        void *small = must_malloc(other, SIZE);
        memset(small, 1, SIZE);
        cr_assert(hak_heap_destroy(other) == 0 && heap->nursery_count > 0);
        in_purge = (freer_t){.heap = heap, .count = count, .index = THERE};
        cr_assert(pthread_create(&in_purge.thread, NULL, free_when_told, &in_purge) == 0);
        fake_os_use();
        fake_os_watch_purge(free_in_purge);
        (void)hak_reserve_trim();
        cr_assert(load_acquire(&in_purge.go), "nothing was purged");
        pthread_join(in_purge.thread, NULL);
        fake_os_restore();
        cr_assert(heap->runs < runs && heap->nursery_count > 0,
                  "SuperSlabs' runs go, the nursery's stay");
        unsigned at_home = 0;
        for (uint32_t i = 0; i < heap->nursery_count; i++)
            at_home += home_in(heap->nursery->start[i]) == HERE;
        cr_assert(at_home > 1, "%u runs of the nursery have a home", at_home);
        must_be_sound(heap, 0, "with slabs that could not go");
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0, "after a trim");
        cr_assert(heap->nursery_count == 0 && heap->runs == 0);
        cr_assert(hak_heap_destroy(heap) == 0 && hak_heap_destroy(stays) == 0);
    }
}

/* A section that is left has an index in its registers, and gives nothing all the same. */
Test(home, an_operation_that_misses_gives_nothing)
{
    hak_heap_t *heap = heap_on(HERE, 0);
    for (int i = 0; i < 4; i++) hak_heap_free(heap, must_malloc(heap, SIZE));
    static const unsigned indices[] = {HERE,      THERE,  2,      BEYOND,
                                       HOME_NONE, 0x7fff, 0xffff, UINT32_MAX};
    for (size_t i = 0; i < CONTRACT_LENGTH(indices); i++) {
        pretend(indices[i]);
        size_t hot = PERCPU_HOT(0); /* a class that nobody has used */
        chain_t link;
        cr_assert(percpu_take_outbox(&heap->percpu, hot) == 0, "index %u", indices[i]);
        cr_assert(percpu_take(&heap->percpu, hot) == 0, "index %u", indices[i]);
        cr_assert(percpu_take(&heap->percpu, PERCPU_SPARE(0)) == 0, "index %u", indices[i]);
        cr_assert(percpu_pop(&heap->percpu, hot, heap->key, &link) == NULL, "index %u", indices[i]);
        cr_assert(section_pop_marked(&heap->percpu, hot + SLOT_MARK, &link) == NULL, "index %u",
                  indices[i]);
        cr_assert(!percpu_install(&heap->percpu, 0, hot, 0x10001), "index %u", indices[i]);
    }
    pretend(HERE);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Slabs that gave pages back ---- */

/* Frees all but each 16th block, trims, and frees and takes again: no push may skip the look at
 * such a slab. */
static void give_pages_back(int level, bool divided)
{
    hak_heap_t *heap = heap_on(HERE, level);
    size_t before = divided ? divide(heap, 0) : 0, count = before + 6 * 16;
    for (size_t i = before; i < count; i++) blocks[i] = must_calloc_one(heap);
    size_t live = 0;
    for (size_t i = 0; i < count; i++) {
        if (i % 16 == 0) live++;
        else hak_heap_free(heap, blocks[i]);
    }
    (void)hak_heap_trim(heap, 0);
    size_t looked = 0;
    for (size_t i = 0; i < count; i += 16) {
        slab_t *slab = slab_at(blocks[i]);
        bool gave = slab_has_released(slab);
        looked += gave;
        cr_assert(home_in(blocks[i]) == (gave && level ? HOME_LOOK : slab->home),
                  "level %d: home %u", level, home_in(blocks[i]));
    }
    cr_assert(looked > 0, "no page was given back, so nothing is tested");
    must_be_sound(heap, live, "trimmed");
    /* The first words of these blocks are equal, as those of a page that was given back. */
    for (size_t i = 0; i < count; i += 32) hak_heap_free(heap, blocks[i]), live--;
    pretend(THERE);
    for (size_t i = 16; i < count; i += 32) hak_heap_free(heap, blocks[i]), live--;
    must_be_sound(heap, live, "freed");
    pretend(HERE);
    for (size_t i = 0; i < count; i++)
        contract_fill(blocks[i] = must_malloc(heap, SIZE), SIZE, (unsigned)i);
    for (size_t i = 0; i < count; i++)
        cr_assert(contract_holds(blocks[i], SIZE, (unsigned)i), "block %zu", i);
    must_be_sound(heap, count, "taken again");
    free_all(heap, count);
    must_be_sound(heap, 0, "all freed");
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(home, slabs_that_gave_pages_back_are_looked_at)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        give_pages_back(level, false);
        give_pages_back(level, true);
    }
}

/* ---- What a home is ---- */

static size_t slabs_of(class_state_t *state, unsigned home) { return home_set(state, home)->slabs; }

static size_t all_slabs(class_state_t *state)
{
    size_t slabs = 0;
    for (slab_set_t *set = &state->shared; set; set = home_next_set(state, set))
        slabs += set->slabs;
    return slabs;
}

/* A CPU's own outbox is flushed without a fence: here the kernel would refuse one. */
Test(home, an_own_outbox_needs_no_fence)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 500);
        (void)hak_heap_flush(heap);
        pretend(THERE);
        for (int i = 0; i < 8; i++) hak_heap_free(heap, blocks[--count]);
        const magazine_t *outbox = load_relaxed(&percpu_area(&heap->percpu, THERE)->outbox);
        size_t posted_blocks = outbox ? chain_count(load_relaxed(&outbox[class_of(SIZE)].word)) : 0;
        cr_assert(posted_blocks > 0, "nothing was posted");
        fake_os_use();
        fake_os_refuse(FAKE_FENCE, 1, FAKE_FOREVER);
        cr_assert(hak_heap_flush(heap) >= posted_blocks * SIZE);
        cr_assert(fake_os_calls(FAKE_FENCE) == 0 &&
                  load_relaxed(&outbox[class_of(SIZE)].word) == 0);
        fake_os_restore();
        pretend(HERE);
        free_all(heap, count);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(home, a_small_heap_has_no_homes)
{
    hak_heap_t *heap = heap_on(HERE, 1);
    size_t count = 0;
    for (; heap->runs < DIVIDE_SLABS - 1; count++) blocks[count] = must_calloc_one(heap);
    cr_assert(load_relaxed(&heap->divided) == UNDIVIDED && state_of(heap)->homes == 0);
    home_divide(heap, HERE); /* nothing is due */
    lock_acquire(&state_of(heap)->lock, RANK_CLASS);
    cr_assert(home_of(heap, state_of(heap), HERE, true) == HOME_NONE && state_of(heap)->homes == 0);
    lock_release(&state_of(heap)->lock, RANK_CLASS);
    for (size_t i = 0; i < count; i++) cr_assert(home_in(blocks[i]) == HOME_NONE);
    cr_assert(load_relaxed(&percpu_area(&heap->percpu, HERE)->hot[class_of(SIZE)].tag) ==
                  registry_tag(HOME_NONE, class_of(SIZE)),
              "no free of its blocks would find the magazine");
    /* What is freed there goes into that CPU's magazine: only homes are gone home to. */
    pretend(THERE);
    hak_heap_free(heap, must_malloc(heap, 4 * SIZE));
    hak_heap_free(heap, blocks[--count]);
    cr_assert(!load_relaxed(&percpu_area(&heap->percpu, THERE)->outbox));
    cr_assert(must_calloc_one(heap) == blocks[count++]);
    must_be_sound(heap, count, "undivided");
    free_all(heap, count);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(home, all_classes_are_divided_at_once)
{
    static const size_t sizes[] = {16, 100, 3000, 20000, 32768};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        void *others[CONTRACT_LENGTH(sizes)];
        for (size_t i = 0; i < CONTRACT_LENGTH(sizes); i++) others[i] = must_malloc(heap, sizes[i]);
        /* Mid blocks are runs, and divide nothing by themselves: the next miss does, on its CPU. */
        void *mids[DIVIDE_RUNS];
        for (unsigned i = 0; i < DIVIDE_RUNS; i++) mids[i] = must_malloc(heap, 40000);
        cr_assert(load_relaxed(&heap->divided) == DUE && home_in(others[0]) == HOME_NONE);
        pretend(THERE);
        void *one = must_malloc(heap, SIZE);
        cr_assert(load_relaxed(&heap->divided) == DIVIDED && home_in(one) == THERE);
        for (size_t i = 0; i < CONTRACT_LENGTH(sizes); i++) {
            class_state_t *state = heap_class_made(heap, class_of(hak_usable_size(others[i])));
            cr_assert(home_in(others[i]) == THERE && slab_at(others[i])->home == THERE, "%zu bytes",
                      sizes[i]);
            cr_assert(state->shared.slabs == 0 && slabs_of(state, THERE) > 0);
        }
        must_be_sound(heap, DIVIDE_RUNS + CONTRACT_LENGTH(sizes) + 1, "divided");
        for (unsigned i = 0; i < DIVIDE_RUNS; i++) hak_heap_free(heap, mids[i]);
        for (size_t i = 0; i < CONTRACT_LENGTH(sizes); i++) hak_heap_free(heap, others[i]);
        hak_heap_free(heap, one);
        (void)hak_heap_trim(heap, 0);
        cr_assert(heap->runs == 0 && load_relaxed(&heap->divided) == DIVIDED, "%u runs",
                  heap->runs);
        must_be_sound(heap, 0, "all free");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(home, each_cpu_has_slabs_of_its_own)
{
    static const unsigned indices[] = {
        1, 2, 5, 40, HOME_LOOK - 1, HOME_LOOK, HOME_NONE, HOME_NONE + 1, 300};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 0);
        void *there[CONTRACT_LENGTH(indices)];
        for (size_t i = 0; i < CONTRACT_LENGTH(indices); i++) {
            pretend(indices[i]);
            there[i] = memset(must_malloc(heap, SIZE), 1, SIZE);
            unsigned wanted = indices[i] < HOME_LOOK ? indices[i] : HOME_NONE;
            cr_assert(home_in(there[i]) == wanted, "CPU %u: home %u", indices[i],
                      home_in(there[i]));
            cr_assert(slab_at(there[i]) != slab_at(blocks[0]));
            must_be_sound(heap, count + i + 1, "one more CPU");
        }
        /* But for the slab that was taken from last, whoever comes takes a slab of his own. */
        size_t whole = count - size_classes[class_of(SIZE)].blocks;
        for (size_t i = 0; i < whole; i++) cr_assert(home_in(blocks[i]) == HERE, "block %zu", i);
        cr_assert(state_of(heap)->homes == HOME_LOOK);
        /* Freed by CPUs without a home, and by each other. */
        for (size_t i = 0; i < CONTRACT_LENGTH(indices); i++) {
            pretend(indices[CONTRACT_LENGTH(indices) - 1 - i]);
            hak_heap_free(heap, there[i]);
        }
        must_be_sound(heap, count, "freed crosswise");
        pretend(300);
        free_all(heap, count);
        must_be_sound(heap, 0, "freed by a CPU that has no home");
        cr_assert(hak_heap_flush(heap) > 0);
        must_be_sound(heap, 0, "flushed");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(home, figures_are_of_the_slabs_of_all_homes)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 100), free_blocks = 0, untouched = 0;
        for (size_t i = 0; i < 50; i++) hak_heap_free(heap, blocks[--count]);
        cr_assert(hak_heap_flush(heap) > 0);
        class_state_t *state = state_of(heap);
        FOR_SETS (set, state)
            FOR_SLABS (at, set) {
                free_blocks += chain_count(at.slab->free);
                untouched += size_classes[state->cls].blocks - slab_touched(at.slab);
            }
        hak_class_stats_t row = {.struct_size = sizeof row};
        cr_assert(hak_heap_class_stats(heap, state->cls, &row) == 0 && free_blocks > 0);
        cr_assert(row.slabs == all_slabs(state) && row.live_blocks == count);
        cr_assert(row.free_blocks == free_blocks && row.untouched_blocks == untouched,
                  "%zu blocks free, %zu untouched", row.free_blocks, row.untouched_blocks);
        free_all(heap, count);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(home, a_slab_moves_with_all_that_names_its_home)
{
    hak_heap_t *heap = heap_on(HERE, 1);
    size_t count = divide(heap, 0);
    /* A slab of many granules: the first ones of a class are short. */
    void *big = NULL;
    for (int i = 0; i < 16; i++) blocks[count++] = big = must_malloc(heap, 32768);
    class_state_t *state = heap_class_made(heap, class_of(32768));
    slab_t *slab = slab_at(big);
    static const unsigned homes[] = {THERE, HOME_NONE, 2, HERE};
    for (size_t i = 0; i < CONTRACT_LENGTH(homes); i++) {
        size_t before = all_slabs(state);
        lock_acquire(&state->lock, RANK_CLASS);
        home_move(state, slab, homes[i]);
        lock_release(&state->lock, RANK_CLASS);
        cr_assert(slab->home == homes[i] && all_slabs(state) == before &&
                  slabs_of(state, homes[i]) >= 1);
        for (unsigned g = 0; g < slab->granules; g++)
            cr_assert(home_in(slab->start + (size_t)g * GRANULE) == homes[i], "granule %u", g);
        must_be_sound(heap, count, "moved");
    }
    /* The walk knows a home that is wrong in one granule, whichever it is. */
    for (unsigned g = 0; g < slab->granules; g++) {
        registry_set_home(slab->start + (size_t)g * GRANULE, 1, THERE);
        cr_assert(hak_heap_check(heap) == EFAULT, "granule %u", g);
        registry_set_home(slab->start + (size_t)g * GRANULE, 1, HERE);
    }
    must_be_sound(heap, count, "mended");
    free_all(heap, count);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(home, all_of_a_home_is_taken_over)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 2000);
        pretend(THERE); /* what another CPU frees comes home as chains */
        for (size_t i = 0; i < 1500; i++) hak_heap_free(heap, blocks[--count]);
        pretend(HERE);
        class_state_t *state = state_of(heap);
        cr_assert(state->cold && state->cold->count > 0, "no chain of the home");
        size_t slabs = all_slabs(state);
        lock_acquire(&state->lock, RANK_CLASS);
        cr_assert(slabs > HOME_AT_ONCE, "one step would do");
        for (size_t left = slabs; left; left = slabs_of(state, HERE)) {
            home_take_over(state, HERE, THERE);
            /* A step moves no more than so many, whatever the home has. */
            size_t moved = left < HOME_AT_ONCE ? left : HOME_AT_ONCE;
            cr_assert(slabs_of(state, HERE) == left - moved, "%zu of %zu", moved, left);
        }
        cr_assert(slabs_of(state, THERE) == slabs);
        chain_t chain = cold_take(state->cold, HERE);
        cr_assert(chain == 0, "a chain stays behind");
        chain = cold_take(state->cold, THERE);
        cr_assert(chain != 0);
        (void)cold_put(state->cold, chain, THERE);
        lock_release(&state->lock, RANK_CLASS);
        for (size_t i = 0; i < count; i++) cr_assert(home_in(blocks[i]) == THERE);
        must_be_sound(heap, count, "taken over");
        free_all(heap, count);
        cr_assert(hak_heap_flush(heap) > 0);
        must_be_sound(heap, 0, "flushed");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* 32 times in a row: a thread that takes a few blocks that another has freed divides no heap. */
Test(home, one_way_divides_in_time)
{
    enum { TIMES = 32 };
    hak_heap_t *heap = heap_on(HERE, 0);
    (void)must_malloc(heap, SIZE);
    class_state_t *state = state_of(heap);
    lock_acquire(&state->lock, RANK_CLASS);
    for (unsigned i = 1; i < TIMES; i++) home_note_taker(heap, state, THERE);
    home_note_taker(heap, state, HERE); /* the other way: it begins anew */
    for (unsigned i = 1; i < TIMES; i++) home_note_taker(heap, state, THERE);
    cr_assert(load_relaxed(&heap->divided) == UNDIVIDED);
    home_note_taker(heap, state, THERE);
    cr_assert(load_relaxed(&heap->divided) == DUE);
    lock_release(&state->lock, RANK_CLASS);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(home, who_does_nothing_is_idle)
{
    hak_heap_t *heap = heap_on(HERE, 0);
    size_t count = divide(heap, 8);
    class_state_t *state = state_of(heap);
    lock_acquire(&state->lock, RANK_CLASS);
    cr_assert(home_is_idle(heap, state, THERE), "it has no area");
    for (unsigned i = 0; i < 8; i++) {
        hak_heap_free(heap, blocks[--count]); /* pushed; the lock is not asked for */
        cr_assert(!home_is_idle(heap, state, HERE), "it works");
    }
    unsigned looks = 1;
    while (!home_is_idle(heap, state, HERE)) cr_assert(++looks <= HOME_STILL + 1);
    cr_assert(looks >= HOME_STILL, "%u looks prove nothing", looks);
    cr_assert(home_is_idle(heap, state, HERE));
    (void)must_malloc(heap, SIZE), count++;
    cr_assert(!home_is_idle(heap, state, HERE), "it works again");
    lock_release(&state->lock, RANK_CLASS);
    must_be_sound(heap, count, "looked at");
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Refusals ---- */

/* Every page for records is taken: none for sets. Returns what put_all_pages puts back. */
static void *leave_no_page(hak_heap_t *heap)
{
    for (unsigned i = 0; i < 2; i++) heap->room[i] = heap->room_end[i];
    return take_all_pages();
}

/* A refusal of longer sets leaves the shorter ones whole. */
static void lengthen_sets(hak_heap_t *heap, class_state_t *state)
{
    lock_acquire(&state->lock, RANK_CLASS);
    uint32_t homes = state->homes;
    void *pages = leave_no_page(heap);
    cr_assert(home_of(heap, state, 100, false) == HOME_NONE && state->homes == homes);
    put_all_pages(pages);
    cr_assert(home_of(heap, state, 100, true) == 100 && state->homes > 100);
    lock_release(&state->lock, RANK_CLASS);
}

Test(home, without_sets_slabs_have_no_home_until_there_are)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        void *one = must_malloc(heap, SIZE);
        void *mids[DIVIDE_RUNS];
        for (unsigned i = 0; i < DIVIDE_RUNS; i++) mids[i] = must_malloc(heap, 40000);
        cr_assert(load_relaxed(&heap->divided) == DUE);
        void *pages = leave_no_page(heap);
        fake_os_use();
        fake_os_refuse(FAKE_COMMIT, 1, FAKE_FOREVER);
        size_t count = 0;
        class_state_t *state = state_of(heap);
        while (load_relaxed(&heap->divided) != DIVIDED) blocks[count++] = must_malloc(heap, SIZE);
        cr_assert(state->homes == 0 && home_in(blocks[0]) == HOME_NONE, "memory was not refused");
        lock_acquire(&state->lock, RANK_CLASS);
        cr_assert(home_of(heap, state, HERE, true) == HOME_NONE &&
                  home_of(heap, state, HERE, false) == HOME_NONE);
        lock_release(&state->lock, RANK_CLASS);
        must_be_sound(heap, DIVIDE_RUNS + 1 + count, "refused");
        fake_os_restore();
        put_all_pages(pages);
        lock_acquire(&state->lock, RANK_CLASS);
        cr_assert(home_of(heap, state, HERE, true) == HERE && state->homes > 0);
        lock_release(&state->lock, RANK_CLASS);
        cr_assert(home_in(blocks[0]) == HERE && home_in(one) == HERE && state->shared.slabs == 0);
        must_be_sound(heap, DIVIDE_RUNS + 1 + count, "granted");
        lengthen_sets(heap, state);
        must_be_sound(heap, DIVIDE_RUNS + 1 + count, "longer");
        cr_assert(home_in(one) == HERE);
        for (unsigned i = 0; i < DIVIDE_RUNS; i++) hak_heap_free(heap, mids[i]);
        hak_heap_free(heap, one);
        free_all(heap, count);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* No page for an outbox: blocks go home one by one. */
Test(home, without_an_outbox_blocks_go_home)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = divide(heap, 100);
        pretend(THERE);
        hak_heap_free(heap, must_malloc(heap, 4 * SIZE));
        for (unsigned i = 0; i < 2; i++) heap->room[i] = heap->room_end[i];
        void *pages = take_all_pages();
        area_t *there = percpu_area(&heap->percpu, THERE);
        for (size_t i = 0; i < 100; i++) hak_heap_free(heap, blocks[--count]);
        cr_assert(there && !load_relaxed(&there->outbox), "a page was found");
        put_all_pages(pages);
        must_be_sound(heap, count, "without an outbox");
        hak_heap_free(heap, blocks[--count]);
        cr_assert(load_relaxed(&there->outbox) || home_in(blocks[count]) == THERE);
        free_all(heap, count);
        must_be_sound(heap, 0, "with one");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Blocks come home ---- */

/* A CPU for the sections and for the twin, which asks the kernel; false: there are not so many. */
static bool be(unsigned index)
{
    static int cpus[64];
    static size_t count;
    if (!count) count = contract_cpus(cpus, CONTRACT_LENGTH(cpus));
    pretend(index);
    if (percpu_mode != PERCPU_LOCKED) return true;
    return index < count && contract_move_to(cpus[index]) && percpu_index() == (int)index;
}

static hak_heap_t *heap_of_two(int level)
{
    hak_heap_t *heap = contract_heap(level, "two");
    cr_assert(heap != NULL);
    if (!be(THERE) || !be(HERE)) cr_skip_test("one CPU, or CPUs that are not the first two");
    return heap;
}

static uint64_t limits_of(hak_heap_t *heap, unsigned index)
{
    area_t *area = percpu_area(&heap->percpu, index);
    const magazine_t *outbox = area ? load_relaxed(&area->outbox) : NULL;
    uint64_t limits = 0;
    for (unsigned cls = 0; outbox && cls < CLASS_COUNT; cls++)
        limits += load_relaxed(&outbox[cls].limit);
    return limits;
}

static size_t posted(hak_heap_t *heap, unsigned index)
{
    area_t *area = percpu_area(&heap->percpu, index);
    const magazine_t *outbox = area ? load_relaxed(&area->outbox) : NULL;
    size_t count = 0;
    for (unsigned cls = 0; outbox && cls < CLASS_COUNT; cls++)
        count += chain_count(load_relaxed(&outbox[cls].word));
    return count;
}

/* Allocates here, frees `away` of them there, with the home at work in between. Returns what is
 * live. */
static size_t free_there_what_is_here(hak_heap_t *heap, size_t away)
{
    size_t count = divide(heap, 2000);
    for (size_t i = 0; i < away; i++) {
        be(THERE);
        hak_heap_free(heap, blocks[--count]);
        be(HERE);
        hak_heap_free(heap, must_malloc(heap, SIZE)), hak_heap_free(heap, blocks[--count]);
        be(THERE);
    }
    be(HERE);
    return count;
}

/* What limits and cold chains hold of the budget, so that nothing of it is lost. */
static int64_t held_of_budget(hak_heap_t *heap)
{
    int64_t held = 0;
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        int64_t bytes = (int64_t)size_classes[cls].bytes;
        for (uint32_t i = 0; i < load_relaxed(&heap->percpu.slots); i++) {
            area_t *area = percpu_area(&heap->percpu, i);
            const magazine_t *outbox = area ? load_relaxed(&area->outbox) : NULL;
            if (area) held += 2 * (int64_t)load_relaxed(&area->hot[cls].limit) * bytes;
            if (outbox) held += (int64_t)load_relaxed(&outbox[cls].limit) * bytes;
        }
        class_state_t *state = heap_class_made(heap, cls);
        if (state && state->cold) held += (int64_t)state->cold->blocks * bytes;
    }
    return held;
}

static void must_balance(hak_heap_t *heap, const char *when)
{
    int64_t room = load_relaxed(&heap->budget.room), all = (int64_t)heap->settings.cache_bytes;
    cr_assert(room + held_of_budget(heap) == all, "%s: %lld of the budget are lost", when,
              (long long)(all - room - held_of_budget(heap)));
}

Test(home, blocks_go_through_the_outbox_and_come_home)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_two(level);
        size_t count = free_there_what_is_here(heap, 900);
        cr_assert(posted(heap, THERE) > 0 && posted(heap, HERE) == 0);
        if (HAK_COUNTERS)
            cr_assert(load_relaxed(&heap->counters.count[HAK_COUNTERS ? COUNTER_outbox : 0]) > 400);
        must_balance(heap, "outboxes in use");
        must_be_sound(heap, count, "outboxes in use");
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(stats.remote_bytes == posted(heap, THERE) * SIZE, "an outbox counts as remote");
        area_t *there = percpu_area(&heap->percpu, THERE);
        cr_assert(load_relaxed(&there->hot[class_of(SIZE)].word) == 0,
                  "a block of another home in the magazine");
        class_state_t *state = state_of(heap);
        cr_assert(slabs_of(state, THERE) == 0 && slabs_of(state, HERE) == all_slabs(state),
                  "the home is busy");
        for (uint32_t i = 0; i < state->cold->count; i++)
            cr_assert(state->cold->cpu[i] == HERE, "chain %u", i);
        cr_assert(state->cold->count > 0);
        /* All that came home serves again, before any slab is made. */
        uint32_t runs = heap->runs;
        size_t before = count;
        while (heap->runs == runs) blocks[count++] = must_calloc_one(heap);
        cr_assert(count - before > 800, "%zu blocks served again", count - before);
        free_all(heap, count);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(home, flush_empties_outboxes)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_two(level);
        size_t count = free_there_what_is_here(heap, 301);
        cr_assert(posted(heap, THERE) > 0);
        cr_assert(hak_heap_flush_class(heap, class_of(16)) == 0 && posted(heap, THERE) > 0,
                  "another class");
        hak_heap_stats_t stats = contract_stats(heap);
        size_t cached = contract_cached(&stats), moved = hak_heap_flush(heap);
        cr_assert(moved == cached, "%zu bytes moved of %zu", moved, cached);
        stats = contract_stats(heap);
        cr_assert(contract_cached(&stats) == 0 && posted(heap, THERE) == 0 &&
                  stats.phantom_superslabs == 0);
        must_balance(heap, "flushed");
        must_be_sound(heap, count, "flushed");
        be(THERE);
        free_all(heap, count);
        must_be_sound(heap, 0, "freed there after a flush");
        be(HERE);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Areas change their CPU with their outboxes, and every byte of the budget comes back. */
Test(home, trim_gives_the_budget_back)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_two(level);
        size_t count = 0;
        for (unsigned round = 0; round < 3; round++) {
            count = free_there_what_is_here(heap, 301);
            cr_assert(posted(heap, THERE) + posted(heap, HERE) > 0 && limits_of(heap, THERE) > 0);
            (void)hak_heap_trim(heap, 0);
            cr_assert(load_relaxed(&heap->budget.room) == (int64_t)heap->settings.cache_bytes,
                      "%lld of %zu", (long long)load_relaxed(&heap->budget.room),
                      heap->settings.cache_bytes);
            for (area_t *area = *percpu_idle(&heap->percpu); area; area = area->next) {
                const magazine_t *outbox = load_relaxed(&area->outbox);
                for (unsigned cls = 0; outbox && cls < CLASS_COUNT; cls++)
                    cr_assert(!load_relaxed(&outbox[cls].limit) &&
                              !load_relaxed(&outbox[cls].word));
            }
            must_be_sound(heap, count, "trimmed");
            /* The other CPU misses first, so that the areas cross. */
            be(round % 2 ? HERE : THERE);
            free_all(heap, count);
            must_balance(heap, "after a trim");
            must_be_sound(heap, 0, "freed after a trim");
            be(HERE);
        }
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(home, reset_and_destroy_with_full_outboxes)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_two(level);
        for (unsigned round = 0; round < 3; round++) {
            (void)free_there_what_is_here(heap, 301);
            cr_assert(posted(heap, THERE) > 0);
            cr_assert(hak_heap_reset(heap) == 0);
            cr_assert(heap->runs == 0 && posted(heap, THERE) == 0 && limits_of(heap, THERE) == 0);
            cr_assert(load_relaxed(&heap->budget.room) == (int64_t)heap->settings.cache_bytes);
            must_be_sound(heap, 0, "reset");
            void *one = must_malloc(heap, SIZE);
            cr_assert(home_in(one) == HERE, "it stays divided");
            hak_heap_free(heap, one);
        }
        (void)free_there_what_is_here(heap, 301);
        cr_assert(posted(heap, THERE) > 0 && hak_heap_destroy(heap) == 0);
        /* What it left is another heap's, and that one is small. */
        hak_heap_t *next = contract_heap(level, "next");
        void *one = must_malloc(next, SIZE);
        cr_assert(home_in(one) == HOME_NONE);
        must_be_sound(next, 1, "another heap");
        cr_assert(hak_heap_destroy(next) == 0);
    }
}

/* The budget is whole after a reset, also where a limit grew on an area that was just retired. */
Test(home, a_reset_empties_areas_without_a_cpu)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "idle");
        hak_heap_free(heap, must_malloc(heap, SIZE));
        (void)hak_heap_trim(heap, 0);
        area_t *area = *percpu_idle(&heap->percpu);
        cr_assert(area != NULL);
        magazine_t *hot = &area->hot[class_of(SIZE)];
        adapt_grow(heap, area, hot, state_of(heap));
        cr_assert(load_relaxed(&hot->limit) > 0 && hak_heap_reset(heap) == 0);
        cr_assert(load_relaxed(&hot->limit) == 0);
        must_be_sound(heap, 0, "reset");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A remote list has two ends: what was pushed, and what was taken off it and waits. */
Test(home, a_reset_forgets_both_ends_of_remote_lists)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "remote");
        for (size_t i = 0; i < 6; i++) blocks[i] = must_malloc(heap, SIZE);
        class_state_t *state = state_of(heap);
        for (size_t i = 0; i < 6; i++) {
            drain_remote(heap, state->cls, block_push(0, blocks[i], heap->key));
            if (i != 2) continue;
            lock_acquire(&state->lock, RANK_CLASS);
            cr_assert(drain_waiting(heap, state, 1) == 1);
            lock_release(&state->lock, RANK_CLASS);
        }
        cr_assert(load_relaxed(&state->remote.taken) && load_relaxed(&state->remote.head));
        cr_assert(hak_heap_reset(heap) == 0);
        cr_assert(remote_blocks(&state->remote) == 0);
        must_be_sound(heap, 0, "reset");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Memory does not pile up ---- */

/* Nobody works at home any more: whoever frees takes all of it over, and allocates from it. */
Test(home, what_an_idle_cpu_left_is_taken_over)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_two(level);
        size_t count = divide(heap, 14000);
        class_state_t *state = state_of(heap);
        uint32_t runs = heap->runs;
        be(THERE);
        for (size_t i = 0; i < 14000; i++) hak_heap_free(heap, blocks[--count]);
        cr_assert(slabs_of(state, HERE) == 0 && slabs_of(state, THERE) == all_slabs(state),
                  "%zu slabs stay", slabs_of(state, HERE));
        for (size_t i = 0; i < count; i++) cr_assert(home_in(blocks[i]) == THERE);
        must_be_sound(heap, count, "taken over");
        for (size_t i = 0; i < 1800; i++) blocks[count++] = must_calloc_one(heap);
        cr_assert(heap->runs <= runs, "%u runs, %u before", heap->runs, runs);
        free_all(heap, count);
        must_be_sound(heap, 0, "at the end");
        be(HERE);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Slabs that their home hardly uses serve who is out of blocks; those it does use are left
 * alone. */
Test(home, sparse_slabs_are_adopted)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_two(level);
        size_t count = divide(heap, 1000), each = size_classes[class_of(SIZE)].blocks, kept = 0;
        size_t full = count / 2;
        /* Of the second half one block of a slab stays. */
        for (size_t i = full; i < count; i++) {
            if (i % each == 0) blocks[full + kept++] = blocks[i];
            else hak_heap_free(heap, blocks[i]);
        }
        (void)hak_heap_flush(heap);
        count = full + kept;
        must_be_sound(heap, count, "sparse");
        class_state_t *state = state_of(heap);
        uint32_t runs = heap->runs;
        be(THERE);
        for (size_t i = 0; i < kept * each / 2; i++) {
            void *ptr = must_calloc_one(heap);
            cr_assert(home_in(ptr) == THERE, "block %zu", i);
            blocks[count++] = ptr;
        }
        cr_assert(heap->runs == runs, "%u runs, %u before", heap->runs, runs);
        cr_assert(slabs_of(state, THERE) >= kept / 2 && slabs_of(state, HERE) >= full / each);
        must_be_sound(heap, count, "adopted");
        be(HERE);
        free_all(heap, count);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* What a period did not use goes home, as from a magazine. */
Test(home, an_outbox_that_a_period_did_not_use_is_emptied)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_of_two(level);
        size_t count = free_there_what_is_here(heap, 301);
        area_t *there = percpu_area(&heap->percpu, THERE);
        magazine_t *outbox = &load_relaxed(&there->outbox)[class_of(SIZE)];
        cr_assert(posted(heap, THERE) > 0);
        be(THERE);
        /* An operation may miss, and then waits for the next period. */
        for (unsigned period = 0; period < 16 && posted(heap, THERE); period++) {
            store_relaxed(&outbox->misses, (uint16_t)0);
            drain_ended_period(heap, there, THERE);
        }
        cr_assert(posted(heap, THERE) == 0);
        be(HERE);
        must_be_sound(heap, count, "after a period");
        free_all(heap, count);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(home, what_is_at_home_nowhere_is_away_nowhere)
{
    static const struct {
        unsigned home;
        bool away;
    } rows[] = {{HERE, false}, {THERE, true}, {HOME_LOOK, false}, {HOME_NONE, false}};
    hak_heap_t *heap = heap_on(HERE, 0);
    size_t count = divide(heap, 0);
    const entry_t all = (entry_t)HOME_NONE << ENTRY_HOME_SHIFT;
    entry_t entry = registry_lookup(blocks[0]) & ~all;
    for (size_t i = 0; i < CONTRACT_LENGTH(rows); i++)
        cr_assert(drain_is_away(heap, entry | (entry_t)rows[i].home << ENTRY_HOME_SHIFT) ==
                      rows[i].away,
                  "home %u", rows[i].home);
    free_all(heap, count);
    must_be_sound(heap, 0, "at the end");
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* An outbox that was emptied knows nothing of the homes of what was in it. */
Test(home, an_empty_outbox_knows_no_home)
{
    hak_heap_t *heap = heap_of_two(0);
    size_t count = free_there_what_is_here(heap, 301);
    area_t *there = percpu_area(&heap->percpu, THERE);
    magazine_t *outbox = &there->outbox[class_of(SIZE)];
    cr_assert(load_relaxed(&outbox->tag) == (registry_tag(HERE, class_of(SIZE)) | TAG_KNOWN));
    be(THERE);
    drain_outbox(heap, state_of(heap), outbox, THERE);
    cr_assert(load_relaxed(&outbox->tag) == 0 && posted(heap, THERE) == 0);
    free_all(heap, count);
    be(HERE);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Where the system refuses a slab ---- */

/* All that the system grants, then of 8 blocks one goes back to its slab. Returns what is live. */
static size_t fill_and_thin(hak_heap_t *heap)
{
    size_t count = divide(heap, 0), kept = 0;
    fake_os_use();
    fake_os_refuse(FAKE_COMMIT, 1, FAKE_FOREVER);
    for (void *ptr; (ptr = hak_heap_malloc(heap, SIZE)) != NULL; blocks[count++] = ptr)
        cr_assert(count < MOST - 1);
    for (size_t i = 0; i < count; i++) {
        if (i % 8) blocks[kept++] = blocks[i];
        else hak_heap_free(heap, blocks[i]);
    }
    cr_assert(hak_heap_flush(heap) > 0);
    return kept;
}

/* Blocks of a home that is at work serve where no other do. */
Test(home, a_busy_home_gives_where_the_system_does_not)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = fill_and_thin(heap);
        pretend(THERE);
        void *ptr = blocks[count++] = hak_heap_malloc(heap, SIZE);
        fake_os_restore();
        cr_assert(ptr != NULL && home_in(ptr) == HERE, "%p", ptr);
        must_be_sound(heap, count, "taken from a busy home");
        free_all(heap, count);
        pretend(HERE);
        cr_assert(hak_heap_destroy(heap) == 0);
        (void)hak_reserve_trim();
    }
}

/* A miss asks for several slabs at once. What is refused beyond the first is no error. */
Test(home, a_second_slab_that_is_refused_is_no_error)
{
    enum { WIDE = 2048, FIRST = 1500, LEADS = 4 };
    bool partly = false;
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    for (unsigned lead = 0; lead < LEADS; lead++) {
        hak_heap_t *heap = contract_heap(0, "refused");
        (void)must_malloc(heap, HAK_MIB); /* from here on it takes SuperSlabs */
        for (unsigned i = 0; i < lead; i++) (void)must_malloc(heap, (size_t)64 << i);
        for (unsigned i = 0; i < FIRST; i++) (void)must_malloc(heap, WIDE);
        cr_assert(hak_heap_malloc(NULL, 1) == NULL && hak_last_error() == HAK_ERROR_ARGUMENT);
        fake_os_use();
        fake_os_refuse(FAKE_COMMIT, 1, FAKE_FOREVER);
        while (hak_heap_malloc(heap, WIDE)) {
            cr_assert(hak_last_error() == HAK_ERROR_ARGUMENT, "lead %u", lead);
            partly = partly || fake_os_calls(FAKE_COMMIT) > 0;
        }
        cr_assert(hak_last_error() == HAK_ERROR_COMMIT);
        fake_os_restore();
        cr_assert(hak_heap_destroy(heap) == 0);
        (void)hak_reserve_trim();
    }
    cr_assert(partly, "no slab beyond the first was refused, so nothing is tested");
}

/* ---- What one step may do ---- */

/* Begins the free of a mid or large block, and leaves it waiting. */
static void defer(hak_heap_t *heap, void *ptr)
{
    block_id_t id = pointer_prove(heap, ptr, "free");
    pointer_mark_freed(&id, ptr);
    drain_big(heap, ptr, true);
}

Test(home, a_step_takes_a_bounded_number_of_deferred_blocks)
{
    enum { WAITING = 3 * DRAIN_BIG_AT_ONCE };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "deferred");
        for (unsigned i = 0; i < WAITING; i++) blocks[i] = must_malloc(heap, 40000);
        for (unsigned i = 0; i < WAITING; i++) defer(heap, blocks[i]);
        for (size_t left = WAITING; left; left -= DRAIN_BIG_AT_ONCE) {
            cr_assert(remote_blocks(&heap->deferred) == left);
            lock_acquire(&heap->lock, RANK_HEAP);
            size_t moved = drain_some_deferred(heap, true);
            lock_release(&heap->lock, RANK_HEAP);
            cr_assert(moved == DRAIN_BIG_AT_ONCE, "%zu of %zu", moved, left);
        }
        must_be_sound(heap, 0, "all steps are done");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static void *free_to_the_end(void *arg)
{
    freer_t *freer = arg;
    free_all(freer->heap, freer->count);
    store_release(&freer->end, true);
    return NULL;
}

/* Whether the freer comes to wait for a lock, and not to its end. */
static bool is_waited_for(hak_lock_t *lock, freer_t *freer)
{
    enum { STEPS = 120000, STEP_US = 500 };
    for (unsigned step = 0; step < STEPS && !load_acquire(&freer->end); step++, usleep(STEP_US))
        if (lock_is_wanted(lock)) return true;
    return false;
}

/* Where so many wait already, the thread that frees one more waits itself. */
Test(home, no_more_than_so_many_big_blocks_wait)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "deferred");
        freer_t freer = {.heap = heap, .count = DRAIN_DEFERRED + 1};
        for (size_t i = 0; i < freer.count; i++) blocks[i] = must_malloc(heap, 40000);
        lock_acquire(&heap->lock, RANK_HEAP);
        cr_assert(pthread_create(&freer.thread, NULL, free_to_the_end, &freer) == 0);
        bool waits = is_waited_for(&heap->lock, &freer);
        size_t waiting = remote_blocks(&heap->deferred);
        lock_release(&heap->lock, RANK_HEAP);
        pthread_join(freer.thread, NULL);
        cr_assert(waits && waiting == DRAIN_DEFERRED, "%zu wait", waiting);
        must_be_sound(heap, 0, "freed");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static void *leave_one(void *arg)
{
    freer_t *freer = arg;
    class_state_t *state = heap_class_made(freer->heap, class_of(16));
    chain_t chain = block_push(0, blocks[0], freer->heap->key);
    drain_chain(freer->heap, state, chain, PERCPU_NONE, false);
    store_release(&freer->end, true);
    return NULL;
}

/* No list of small blocks is made longer than its word can count. */
Test(home, no_more_than_can_be_counted_wait)
{
    static void *many[CHAIN_MAX - 1];
    hak_heap_t *heap = contract_heap(0, "remote");
    freer_t freer = {.heap = heap};
    blocks[0] = must_malloc(heap, 16);
    class_state_t *state = heap_class_made(heap, class_of(16));
    for (size_t i = 0; i < CONTRACT_LENGTH(many); i++) many[i] = must_malloc(heap, 16);
    for (size_t i = 0; i < CONTRACT_LENGTH(many); i++)
        drain_remote(heap, state->cls, block_push(0, many[i], heap->key));
    lock_acquire(&state->lock, RANK_CLASS);
    cr_assert(pthread_create(&freer.thread, NULL, leave_one, &freer) == 0);
    bool waits = is_waited_for(&state->lock, &freer);
    size_t waiting = remote_blocks(&state->remote);
    lock_release(&state->lock, RANK_CLASS);
    pthread_join(freer.thread, NULL);
    cr_assert(waits && waiting == CHAIN_MAX - 1, "%zu wait", waiting);
    must_be_sound(heap, 0, "all are free");
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* The process's lock is busy: what was to go to the nursery waits, and is free all the same. */
Test(home, a_mid_block_that_cannot_go_is_free)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "waits");
        freer_t freer = {.heap = heap, .count = 1};
        blocks[0] = must_malloc(heap, 40000);
        lock_acquire(&process_reserve.lock, RANK_RESERVE);
        cr_assert(pthread_create(&freer.thread, NULL, free_to_the_end, &freer) == 0);
        pthread_join(freer.thread, NULL);
        lock_release(&process_reserve.lock, RANK_RESERVE);
        cr_assert(remote_blocks(&heap->deferred) == 1 && heap->nursery_count == 1);
        cr_assert(hak_heap_of(blocks[0]) == NULL && hak_usable_size(blocks[0]) == 0);
        must_be_sound(heap, 0, "it has gone");
        cr_assert(heap->nursery_count == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* Who has the lock takes along what waits. */
Test(home, a_free_of_a_big_block_frees_those_that_wait)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "deferred");
        for (unsigned i = 0; i < 3; i++) blocks[i] = must_malloc(heap, i ? 40000 : 3 * HAK_MIB);
        defer(heap, blocks[0]);
        defer(heap, blocks[1]);
        cr_assert(remote_blocks(&heap->deferred) == 2);
        hak_heap_free(heap, blocks[2]);
        cr_assert(remote_blocks(&heap->deferred) == 0);
        must_be_sound(heap, 0, "nothing waits");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A mapping that is too large to be cached is freed, waits, and its heap goes; then it is freed
 * again. */
static void free_what_waited(void *level)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.level = *(int *)level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.large_cache_bytes = 1;
    hak_heap_t *heap = hak_heap_create(&config);
    void *ptr = hak_heap_malloc(heap, 2 * HAK_MIB);
    if (!ptr) _exit(90);
    defer(heap, ptr);
    if (hak_heap_destroy(heap) != 0) _exit(91);
    hak_free(ptr);
}

/* What was freed before the heap went was freed, also where it waited. */
Test(home, a_block_that_waited_is_freed_before_its_heap_goes)
{
    static child_result_t child;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        child_run(&child, free_what_waited, &level);
        cr_assert(child_aborted(&child, "DOUBLE_FREE", "free"), "status %d: %s", child.status,
                  child.text);
    }
}

/* ---- What comes from below the magazines is proved ---- */

static void take_what_was_written_to(void *unused)
{
    enum { FEW = 100 };
    int cpu;
    (void)unused;
    if (!contract_cpus(&cpu, 1) || !contract_move_to(cpu)) _exit(90);
    hak_heap_t *heap = contract_heap(1, "written to");
    for (size_t i = 0; i < FEW; i++)
        if (!(blocks[i] = hak_heap_malloc(heap, SIZE))) _exit(91);
    free_all(heap, FEW);
    area_t *area = percpu_area(&heap->percpu, (unsigned)percpu_index());
    chain_t spare = area ? load_relaxed(&area->spare[class_of(SIZE)]) : 0;
    if (!spare) _exit(92);
    chain_block(spare)->word[0] ^= 1;
    for (size_t i = 0; i < FEW; i++)
        if (!hak_heap_malloc(heap, SIZE)) _exit(93);
    _exit(94);
}

/* A chain goes as it is, and is looked at by who gets it. */
Test(home, the_first_block_of_a_spare_chain_is_proved)
{
    static child_result_t child;
    child_run(&child, take_what_was_written_to, NULL);
    cr_assert(child_aborted(&child, "CORRUPT", "malloc"), "status %d: %s", child.status,
              child.text);
}

/* ---- Without the gate ---- */

static int depth_there;
static void note_depth(void *unused)
{
    (void)unused;
    depth_there = hak_tls.depth;
}

/* A fork waits for those in the gate only: the twin's try-lock must not be held outside of it. */
Test(home, the_twin_works_inside_the_gate)
{
    NEEDS_POINTS();
    setenv("HAKHEAP_RSEQ", "0", 1);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "locked");
        hak_heap_free(heap, must_malloc(heap, SIZE)); /* it has an area */
        void *ptr = must_malloc(heap, SIZE);
        depth_there = -1;
        stall_t look = {.run = note_depth, .nth = 1};
        stall_arm(STALL_twin_chosen, &look);
        hak_heap_free(heap, ptr);
        stall_arm(STALL_twin_chosen, NULL);
        cr_assert(depth_there == 1, "depth %d", depth_there);
        must_be_sound(heap, 0, "locked");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static void move_on(void *unused)
{
    (void)unused;
    pretend(BEYOND);
}

/* The thread comes to a CPU that has no magazine for the chain in its hand, nor for the block. */
Test(home, who_moves_with_a_chain_in_hand_loses_no_block)
{
    NEEDS_POINTS();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        size_t count = 100;
        for (size_t i = 0; i < count; i++) blocks[i] = must_calloc_one(heap);
        stall_t move = {.run = move_on, .nth = 1};
        stall_arm(STALL_free_in_hand, &move);
        while (count && !load_relaxed(&move.visits)) hak_heap_free(heap, blocks[--count]);
        stall_arm(STALL_free_in_hand, NULL);
        pretend(HERE);
        cr_assert(load_relaxed(&move.visits), "no chain was in hand, so nothing is tested");
        must_be_sound(heap, count, "moved with a chain in hand");
        free_all(heap, count);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Anywhere, at any instant ---- */

static const unsigned everywhere[] = {0, 1, 2, 7, HOME_LOOK, HOME_NONE, 200};
static volatile sig_atomic_t moves;

/* A migration: the kernel restarts the section that the signal hits, and it finds itself on another
 * CPU. */
static void move_thread(int number)
{
    (void)number;
    pretend(everywhere[(size_t)++moves * 7 / 3 % CONTRACT_LENGTH(everywhere)]);
}

Test(home, who_moves_at_any_instant_loses_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = heap_on(HERE, level);
        randoms_t randoms = {(uint64_t)level + 1};
        size_t count = divide(heap, 0);
        struct sigaction action = {.sa_handler = move_thread, .sa_flags = SA_RESTART};
        cr_assert(sigaction(SIGALRM, &action, NULL) == 0);
        struct itimerval often = {{0, 40}, {0, 40}}, never = {{0, 0}, {0, 0}};
        setitimer(ITIMER_REAL, &often, NULL);
        sig_atomic_t goal = moves + (sig_atomic_t)contract_work(8000);
        for (unsigned step = 0; moves < goal; step++) {
            size_t at = random_below(&randoms, (unsigned)count);
            hak_heap_free(heap, blocks[at]);
            blocks[at] = must_malloc(
                heap, random_below(&randoms, 8) ? SIZE : 1 + random_below(&randoms, 3000));
            if (step % 4096 == 0) (void)hak_heap_flush(heap);
            if (step % 10000 == 0) (void)hak_heap_trim(heap, 0);
        }
        setitimer(ITIMER_REAL, &never, NULL);
        pretend(HERE);
        must_balance(heap, "everywhere");
        must_be_sound(heap, count, "everywhere");
        free_all(heap, count);
        (void)hak_heap_trim(heap, 0);
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(contract_cached(&stats) == 0 && heap->runs == 0 &&
                  slabs_of(state_of(heap), HERE) == 0);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A child finds every outbox whole, whenever the fork comes. */
static void *free_and_allocate(void *arg)
{
    freer_t *freer = arg;
    int cpus[2];
    if (contract_cpus(cpus, 2) == 2) (void)contract_move_to(cpus[freer->index]);
    randoms_t randoms = {freer->index + 9};
    while (!load_relaxed(&freer->end)) {
        _Atomic(void *) *slot =
            (_Atomic(void *) *)(void *)&blocks[random_below(&randoms, (unsigned)freer->count)];
        void *ptr = hak_heap_malloc(freer->heap, SIZE);
        if (!ptr) continue;
        hak_heap_free(freer->heap, atomic_exchange_explicit(slot, ptr, memory_order_acq_rel));
    }
    return NULL;
}

Test(home, a_child_finds_outboxes_whole)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "fork");
        size_t count = divide(heap, 0);
        freer_t freers[2];
        for (unsigned i = 0; i < 2; i++) {
            freers[i] = (freer_t){.heap = heap, .count = count, .index = i};
            cr_assert(pthread_create(&freers[i].thread, NULL, free_and_allocate, &freers[i]) == 0);
        }
        for (size_t fork_number = 0; fork_number < contract_work(160); fork_number++) {
            pid_t child = fork();
            cr_assert(child >= 0);
            if (child == 0) {
                alarm(300);
                if (hak_heap_check(heap) != 0) _exit(1);
                (void)hak_heap_flush(heap);
                hak_heap_stats_t stats = contract_stats(heap);
                if (contract_cached(&stats) || hak_heap_check(heap) != 0) _exit(2);
                for (size_t i = 0; i < count; i++) hak_heap_free(heap, blocks[i]);
                if (hak_heap_check(heap) != 0) _exit(3);
                _exit(hak_heap_destroy(heap) == 0 ? 0 : 4);
            }
            int status;
            cr_assert(waitpid(child, &status, 0) == child);
            cr_assert(status == 0, "fork %zu: status %x", fork_number, (unsigned)status);
        }
        for (unsigned i = 0; i < 2; i++) store_relaxed(&freers[i].end, true);
        for (unsigned i = 0; i < 2; i++) pthread_join(freers[i].thread, NULL);
        must_be_sound(heap, count, "after the forks");
        free_all(heap, count);
        must_be_sound(heap, 0, "at the end");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}
