/* What waits for a lock that was busy when it was freed: how much at most, and who takes it. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "drain.h"
#include "hakheap.h"
#include "refill.h"
#include "support_contract.h"

TestSuite(waiting, .init = contract_slabs_only, .timeout = 120);

enum { BLOCKS = 20000, SIZE = 64, BUDGET = 256 * 1024 };

static void *blocks[BLOCKS];
static hak_heap_t *heap;
static class_state_t *state;
static size_t count; /* of blocks */

static void make_heap(int level, size_t budget, size_t size, size_t wanted)
{
    count = wanted;
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.cache_bytes = budget;
    cr_assert((heap = hak_heap_create(&config)) != NULL);
    for (size_t i = 0; i < count; i++) {
        cr_assert((blocks[i] = hak_heap_malloc(heap, size)) != NULL);
        contract_fill(blocks[i], SIZE, (unsigned)i);
    }
    if (size == SIZE) state = heap_class_made(heap, entry_code(registry_lookup(blocks[0])));
}

/* Leaves all blocks on the remote list, as frees during a fork do. */
static void leave(size_t first)
{
    for (size_t i = 0; i < first; i++)
        drain_remote(heap, state->cls, block_push(0, blocks[i], heap->key));
}

static void end_heap(void)
{
    int line = contract_unsound(heap, 0);
    cr_assert(line == 0, "line %d", line);
    (void)hak_heap_flush(heap);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(contract_cached(&stats) == 0);
    cr_assert(!state || load_relaxed(&state->remote_charged) == 0, "nothing waits");
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- How much waits ---- */

static _Atomic size_t freed;
static _Atomic bool begun;

static void *free_blocks(void *unused)
{
    begun = true;
    for (size_t i = 0; i < count; i++) {
        if (!contract_holds(blocks[i], SIZE, (unsigned)i)) _exit(9);
        hak_heap_free(heap, blocks[i]);
        freed = i + 1;
    }
    return unused;
}

/* Watches a thread that frees while this one holds a lock, until it stands still. Returns the most
 * that waited. */
static size_t watch(size_t (*waiting)(void))
{
    size_t most = 0;
    while (!begun) usleep(1000);
    for (size_t before = SIZE_MAX; before != freed;) {
        before = freed;
        for (unsigned i = 0; i < 100; i++) {
            most = hak_max(most, waiting());
            usleep(2000);
        }
    }
    return most;
}

static size_t remote_waiting(void) { return remote_blocks(&state->remote) * SIZE; }
static size_t deferred_waiting(void) { return remote_blocks(&heap->deferred); }

static size_t most_while_held(hak_lock_t *lock, lock_rank_t rank, size_t (*waiting)(void))
{
    pthread_t thread;
    freed = 0;
    begun = false;
    lock_acquire(lock, rank);
    cr_assert(pthread_create(&thread, NULL, free_blocks, NULL) == 0);
    size_t most = watch(waiting);
    size_t done = freed;
    lock_release(lock, rank);
    pthread_join(thread, NULL);
    cr_assert(done > 0, "the first free waited");
    cr_assert(done < count, "nothing ever waited");
    return most;
}

Test(waiting, what_waits_for_a_class_is_bounded_by_the_cache_budget)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        make_heap(level, BUDGET, SIZE, BLOCKS);
        size_t most = most_while_held(&state->lock, RANK_CLASS, remote_waiting);
        cr_assert(most > 0 && most <= BUDGET, "%zu bytes waited", most);
        end_heap();
    }
}

Test(waiting, what_waits_for_the_heap_is_bounded_by_a_number)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        make_heap(level, BUDGET, 40000, 400);
        size_t most = most_while_held(&heap->lock, RANK_HEAP, deferred_waiting);
        cr_assert(most > 0 && most <= DRAIN_DEFERRED, "%zu blocks waited", most);
        end_heap();
    }
}

/* ---- Who takes it ---- */

Test(waiting, one_step_takes_a_bounded_number)
{
    enum { STEPS = 5, LEFT = 4000 };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        make_heap(level, BUDGET, SIZE, BLOCKS);
        leave(BLOCKS - LEFT);
        size_t before = remote_blocks(&state->remote);
        cr_assert(before == BLOCKS - LEFT, "%zu", before);
        lock_acquire(&state->lock, RANK_CLASS);
        drain_leave(heap, state);
        size_t after = remote_blocks(&state->remote);
        cr_assert(before - after == DRAIN_AT_ONCE, "the holder took %zu", before - after);
        for (before = after; (after = remote_blocks(&state->remote)) == before;)
            cr_assert(refill_block(heap, state->cls, BLOCK_ALIGN, false) != NULL);
        cr_assert(before - after <= STEPS * DRAIN_AT_ONCE, "malloc took %zu", before - after);
        cr_assert(hak_heap_reset(heap) == 0);
        end_heap();
    }
}

static size_t count_slabs(void)
{
    size_t slabs = 0;
    for (slab_set_t *set = &state->shared; set; set = home_next_set(state, set))
        slabs += set->slabs;
    return slabs;
}

/* Memory that waits serves before memory is taken: every slab is full, and a few blocks wait. */
Test(waiting, a_class_takes_what_waits_before_it_grows)
{
    enum { SLAB_BLOCKS = GRANULE / SIZE, WAIT = 10 };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        make_heap(level, 1, SIZE, 4 * SLAB_BLOCKS);
        cr_assert(count_slabs() == 4);
        for (unsigned round = 0; round < 20; round++) {
            leave(WAIT);
            for (size_t i = 0; i < WAIT; i++) {
                cr_assert((blocks[i] = hak_heap_malloc(heap, SIZE)) != NULL);
                contract_fill(blocks[i], SIZE, (unsigned)i);
            }
            cr_assert(count_slabs() == 4, "%zu slabs", count_slabs());
        }
        for (size_t i = 0; i < count; i++) {
            cr_assert(contract_holds(blocks[i], SIZE, (unsigned)i));
            hak_heap_free(heap, blocks[i]);
        }
        end_heap();
    }
}

Test(waiting, a_flush_takes_all_and_the_budget_is_whole_again)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        make_heap(level, BUDGET, SIZE, BLOCKS);
        (void)hak_heap_trim(heap, 0);
        cr_assert(load_relaxed(&heap->budget.room) == BUDGET);
        leave(BLOCKS);
        cr_assert(load_relaxed(&heap->budget.room) == BUDGET, "a fork's frees are not charged");
        cr_assert(hak_heap_flush(heap) >= (size_t)BLOCKS * SIZE);
        cr_assert(load_relaxed(&heap->budget.room) == BUDGET);
        end_heap();
    }
}
