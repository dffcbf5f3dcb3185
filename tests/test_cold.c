/* cold: chains by CPU, the remote list, the budget. */
#include "cold.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "os.h"
#include "support_child.h"
#include "support_random.h"
#include "support_stall.h"

TestSuite(cold, .timeout = 600);

/* Chains are words to the cold array: it never looks at a block. */
static chain_t chain_of(unsigned number, unsigned count)
{
    return (chain_t)(number + 1) << 20 | count;
}

Test(cold, its_own_cpu_comes_first_newest_first)
{
    cold_t cold = {0};
    for (unsigned i = 0; i < 6; i++) cr_assert(cold_put(&cold, chain_of(i, i + 1), i % 2) == 0);
    cr_assert(cold.count == 6 && cold.blocks == 21);
    cr_assert(cold_take(&cold, 1) == chain_of(5, 6));
    cr_assert(cold_take(&cold, 1) == chain_of(3, 4));
    cr_assert(cold_take(&cold, 0) == chain_of(4, 5));
    cr_assert(cold_take(&cold, 1) == chain_of(1, 2));
    cr_assert(cold.count == 2 && cold.blocks == 4);
}

Test(cold, another_cpu_gets_chains_by_stealing_only_oldest_first)
{
    cold_t cold = {0};
    cr_assert(cold_put(&cold, chain_of(0, 2), 7) == 0);
    cr_assert(cold_put(&cold, chain_of(1, 2), 8) == 0);
    cr_assert(cold_put(&cold, chain_of(2, 2), 7) == 0);
    cr_assert(cold_take(&cold, 3) == 0 && cold.count == 3);
    cr_assert(cold_steal(&cold) == chain_of(0, 2));
    cr_assert(cold_steal(&cold) == chain_of(1, 2));
    cr_assert(cold_steal(&cold) == chain_of(2, 2));
    cr_assert(cold_steal(&cold) == 0 && cold_take(&cold, 7) == 0);
    cr_assert(cold.count == 0 && cold.blocks == 0);
}

Test(cold, chains_move_to_another_cpu_in_their_order)
{
    cold_t cold = {0};
    for (unsigned i = 0; i < 6; i++) cr_assert(cold_put(&cold, chain_of(i, 2), i % 3) == 0);
    cold_move(&cold, 0, 2);
    cr_assert(cold_take(&cold, 0) == 0 && cold.count == 6 && cold.blocks == 12);
    cr_assert(cold_take(&cold, 2) == chain_of(5, 2));
    cr_assert(cold_take(&cold, 2) == chain_of(3, 2));
    cr_assert(cold_take(&cold, 2) == chain_of(2, 2));
    cr_assert(cold_take(&cold, 2) == chain_of(0, 2));
    cr_assert(cold_take(&cold, 2) == 0 && cold_take(&cold, 1) == chain_of(4, 2));
}

Test(cold, what_nobody_took_since_the_last_ageing_is_old)
{
    cold_t cold = {0};
    for (unsigned i = 0; i < 4; i++) cr_assert(cold_put(&cold, chain_of(i, 2), i % 2) == 0);
    cr_assert(cold_take_old(&cold, 0) == 0, "none has aged");
    cold_age(&cold, 0);
    cr_assert(cold_put(&cold, chain_of(4, 2), 0) == 0);
    cr_assert(cold_take(&cold, 0) == chain_of(4, 2));
    cr_assert(cold_put(&cold, chain_of(5, 2), 0) == 0);
    cr_assert(cold_take_old(&cold, 1) == 0, "another CPU's");
    cr_assert(cold_take_old(&cold, 0) == chain_of(0, 2));
    cr_assert(cold_take_old(&cold, 0) == chain_of(2, 2));
    cr_assert(cold_take_old(&cold, 0) == 0 && cold.count == 3 && cold.blocks == 6);
    cold_age(&cold, 0);
    cr_assert(cold_take_old(&cold, 0) == chain_of(5, 2));
}

/* A chain is young in a place where an old one lay. */
Test(cold, a_place_has_no_age)
{
    cold_t cold = {0};
    for (unsigned i = 0; i < 3; i++) cr_assert(cold_put(&cold, chain_of(i, 2), 0) == 0);
    cold_age(&cold, 0);
    for (unsigned i = 0; i < 3; i++) cr_assert(cold_take(&cold, 0) != 0);
    for (unsigned i = 3; i < 6; i++) cr_assert(cold_put(&cold, chain_of(i, 2), 0) == 0);
    cr_assert(cold_take_old(&cold, 0) == 0);
    cold_age(&cold, 0);
    cr_assert(cold_take_old(&cold, 0) == chain_of(3, 2));
}

Test(cold, a_full_array_gives_up_its_oldest)
{
    cold_t cold = {0};
    for (unsigned i = 0; i < COLD_CHAINS; i++)
        cr_assert(cold_put(&cold, chain_of(i, 3), 0) == 0, "chain %u", i);
    for (unsigned i = 0; i < 5; i++) {
        cr_assert(cold_put(&cold, chain_of(100 + i, 4), 0) == chain_of(i, 3), "chain %u", i);
        cr_assert(cold.count == COLD_CHAINS && cold.blocks == 3 * COLD_CHAINS + i + 1, "%u blocks",
                  cold.blocks);
    }
}

Test(cold, large_processor_numbers)
{
    cold_t cold = {0};
    cr_assert(cold_put(&cold, chain_of(0, 1), 0) == 0);
    cr_assert(cold_put(&cold, chain_of(1, 1), 0xfffe) == 0);
    cr_assert(cold_put(&cold, chain_of(2, 1), 0) == 0);
    cr_assert(cold_take(&cold, 0xfffe) == chain_of(1, 1));
}

/* Whatever is put comes out once, by take or as overflow, and counts never drift. */
Test(cold, random_chains_against_a_shadow)
{
    enum { ROUNDS = 50000 };
    static unsigned char out[ROUNDS];
    cold_t cold = {0};
    randoms_t randoms = {3};
    unsigned put = 0, gone = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        chain_t chain;
        if (random_below(&randoms, 5) < 3) {
            chain = cold_put(&cold, chain_of(put, 1 + put % 9), random_below(&randoms, 4));
            put++;
        } else {
            bool some = cold.count > 0;
            chain = cold_take(&cold, random_below(&randoms, 5));
            if (!chain) {
                chain = cold_steal(&cold);
                cr_assert((chain != 0) == some);
            }
        }
        if (chain) {
            unsigned number = (unsigned)(chain >> 20) - 1;
            cr_assert(number < put && out[number]++ == 0, "chain %u", number);
            cr_assert(chain == chain_of(number, 1 + number % 9));
            gone++;
        }
        cr_assert(cold.count == put - gone && cold.count <= COLD_CHAINS);
        size_t blocks = 0;
        for (unsigned i = 0; i < cold.count; i++) blocks += chain_count(cold.chain[i]);
        cr_assert(cold.blocks == blocks, "%u counted, %zu there", cold.blocks, blocks);
    }
    cr_assert(put > 20000 && gone > 20000);
}

/* ---- The remote list ---- */

enum { PUSHERS = 3, CHAINS = 4000, LONGEST = 5, BLOCKS = PUSHERS * CHAINS * LONGEST };

static block_t blocks[BLOCKS] __attribute__((aligned(16)));
static _Atomic unsigned char taken[BLOCKS];
static remote_t remote;
static const guard_t guards[] = {{0, "fast"}, {0xabcdef0123456789ull, "checked"}};
static const guard_t *guard;

static block_t *next_block(void) { return remote_next(&remote, guard, sizeof(block_t)); }

Test(cold, a_remote_list_is_handed_on_block_by_block)
{
    for (unsigned level = 0; level < 2; level++) {
        guard = &guards[level];
        cr_assert(next_block() == NULL && remote_blocks(&remote) == 0);
        chain_t three = 0;
        for (unsigned i = 0; i < 3; i++) three = block_push(three, &blocks[i], guard->key);
        remote_push(&remote, three, guard, sizeof(block_t));
        remote_push(&remote, block_push(0, &blocks[3], guard->key), guard, sizeof(block_t));
        cr_assert(remote_blocks(&remote) == 4);
        unsigned seen = 1u << (next_block() - blocks);
        cr_assert(remote_blocks(&remote) == 3);
        /* What is pushed meanwhile is counted, and comes later. */
        remote_push(&remote, block_push(0, &blocks[4], guard->key), guard, sizeof(block_t));
        for (size_t left = 4; left > 0; left--) {
            cr_assert(remote_blocks(&remote) == left);
            seen |= 1u << (next_block() - blocks);
        }
        cr_assert(seen == 0x1f, "%x", seen);
        cr_assert(next_block() == NULL && remote_blocks(&remote) == 0);
    }
}

Test(cold, a_remote_list_longer_than_its_count_loses_no_block)
{
    enum { CHAIN = 250, MANY = CHAIN_MAX / CHAIN + 20 };
    static block_t many[MANY * CHAIN] __attribute__((aligned(16)));
    for (unsigned level = 0; level < 2; level++) {
        guard = &guards[level];
        for (unsigned i = 0; i < MANY; i++) {
            chain_t chain = 0;
            for (unsigned k = 0; k < CHAIN; k++)
                chain = block_push(chain, &many[i * CHAIN + k], guard->key);
            remote_push(&remote, chain, guard, sizeof(block_t));
        }
        cr_assert(remote_blocks(&remote) == CHAIN_MAX);
        size_t count = 0;
        while (next_block()) cr_assert(++count == MANY * CHAIN || remote_blocks(&remote) > 0);
        cr_assert(count == MANY * CHAIN, "%zu", count);
        cr_assert(remote_blocks(&remote) == 0);
    }
}

static void push_between(void *unused)
{
    (void)unused;
    remote_push(&remote, block_push(0, &blocks[1], guard->key), guard, sizeof(block_t));
}

/* Another push comes between the look at the list and the push. */
Test(cold, a_push_that_meets_another_loses_no_block)
{
    NEEDS_POINTS();
    for (unsigned level = 0; level < 2; level++) {
        guard = &guards[level];
        stall_t between = {.run = push_between, .nth = 1};
        stall_arm(STALL_remote_linked, &between);
        remote_push(&remote, block_push(0, &blocks[0], guard->key), guard, sizeof(block_t));
        stall_arm(STALL_remote_linked, NULL);
        cr_assert(load_relaxed(&between.visits) > 1 && remote_blocks(&remote) == 2);
        cr_assert(next_block() == &blocks[0] && next_block() == &blocks[1] && !next_block());
    }
}

static pthread_barrier_t start;
static _Atomic unsigned pushing;
static _Atomic size_t takes;

static void *push_many(void *arg)
{
    unsigned first = *(unsigned *)arg * CHAINS * LONGEST;
    pthread_barrier_wait(&start);
    for (unsigned i = 0; i < CHAINS; i++) {
        /* So that taking begins while there is more to come, on one processor too. */
        while (i == CHAINS / 4 && !takes) sched_yield();
        chain_t chain = 0;
        for (unsigned k = 0; k < 1 + i % LONGEST; k++)
            chain = block_push(chain, &blocks[first + i * LONGEST + k], guard->key);
        remote_push(&remote, chain, guard, sizeof(block_t));
    }
    atomic_fetch_sub(&pushing, 1u);
    return NULL;
}

/* Returns how many. */
static size_t take_all(void)
{
    size_t count = 0;
    for (block_t *block; (block = next_block()) != NULL; count++)
        atomic_fetch_add(&taken[block - blocks], (unsigned char)1);
    return count;
}

static void push_and_take(unsigned level)
{
    guard = &guards[level];
    memset((void *)taken, 0, sizeof taken);
    pthread_t threads[PUSHERS];
    unsigned numbers[PUSHERS];
    pthread_barrier_init(&start, NULL, PUSHERS + 1);
    pushing = PUSHERS;
    takes = 0;
    for (unsigned i = 0; i < PUSHERS; i++) {
        numbers[i] = i;
        cr_assert(pthread_create(&threads[i], NULL, push_many, &numbers[i]) == 0);
    }
    pthread_barrier_wait(&start);
    size_t total = 0;
    while (pushing) {
        size_t got = take_all();
        if (got) takes++;
        else sched_yield();
        total += got;
    }
    for (unsigned i = 0; i < PUSHERS; i++) pthread_join(threads[i], NULL);
    total += take_all();
    pthread_barrier_destroy(&start);
    size_t pushed = 0;
    for (unsigned i = 0; i < BLOCKS; i++) {
        bool was_pushed = i % LONGEST < 1 + i / LONGEST % CHAINS % LONGEST;
        pushed += was_pushed;
        cr_assert(taken[i] == was_pushed, "block %u: taken %u times", i, taken[i]);
    }
    cr_assert(total == pushed, "%zu of %zu", total, pushed);
    cr_assert(remote_blocks(&remote) == 0, "%zu left in the count", remote_blocks(&remote));
    cr_assert(takes > 0);
}

Test(cold, several_push_while_one_takes)
{
    push_and_take(0);
    push_and_take(1);
}

static child_result_t child;

static void push_damaged(void *arg)
{
    (void)arg;
    chain_t chain = block_push(block_push(0, &blocks[0], guards[1].key), &blocks[1], guards[1].key);
    blocks[0].word[0]++;
    remote_push(&remote, chain, &guards[1], 96);
}

Test(cold, a_damaged_chain_is_not_pushed)
{
    child_run(&child, push_damaged, NULL);
    cr_assert(child_aborted(&child, "CORRUPT", "free"), "signal %d: %s", child.signal, child.text);
    cr_assert(strstr(child.text, "class=96"), "%s", child.text);
}

/* ---- The budget ---- */

Test(cold, a_budget_is_never_overdrawn)
{
    budget_t budget = {1000};
    cr_assert(budget_take(&budget, 600));
    cr_assert(!budget_take(&budget, 401));
    cr_assert(budget.room == 400);
    cr_assert(budget_take(&budget, 400));
    cr_assert(!budget_take(&budget, 1));
    cr_assert(budget_take(&budget, 0));
    budget_put(&budget, 7);
    cr_assert(budget.room == 7);
    cr_assert(!budget_take(&budget, SIZE_MAX / 2) && budget.room == 7);
}

static budget_t shared = {10000};
static _Atomic int64_t out_now;
static _Atomic bool overdrawn;

static void *take_and_put(void *arg)
{
    randoms_t randoms = {*(unsigned *)arg};
    for (unsigned i = 0; i < 30000; i++) {
        size_t bytes = 1 + random_below(&randoms, 6000);
        if (!budget_take(&shared, bytes)) continue;
        if (atomic_fetch_add(&out_now, (int64_t)bytes) + (int64_t)bytes > 10000) overdrawn = true;
        if (i % 64 == 0) sched_yield();
        atomic_fetch_sub(&out_now, (int64_t)bytes);
        budget_put(&shared, bytes);
    }
    return NULL;
}

Test(cold, threads_share_a_budget)
{
    pthread_t threads[3];
    unsigned seeds[3] = {1, 2, 3};
    for (unsigned i = 0; i < 3; i++)
        cr_assert(pthread_create(&threads[i], NULL, take_and_put, &seeds[i]) == 0);
    for (unsigned i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    cr_assert(!overdrawn);
    cr_assert(shared.room == 10000, "%ld left", (long)shared.room);
}
