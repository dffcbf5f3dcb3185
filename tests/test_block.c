/* block: chain words, seals, keys. */
#include "block.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "support_child.h"

TestSuite(block, .timeout = 600);

enum { BLOCKS = 300 };
static struct {
    block_t block;
    char rest[16];
} blocks[BLOCKS] __attribute__((aligned(16)));

static const uint64_t keys[] = {0, 0x123456789abcdef1ull};
static const guard_t guards[] = {{0, "fast"}, {0x123456789abcdef1ull, "checked"}};

Test(block, the_empty_chain_is_zero)
{
    cr_assert(chain_count(0) == 0);
    cr_assert(chain_block(0) == NULL);
}

/* Pushed one by one, a chain leads back through the same blocks, its count one less at each. */
Test(block, chains_keep_order_and_count)
{
    for (unsigned level = 0; level < 2; level++) {
        chain_t chain = 0;
        for (unsigned i = 0; i < BLOCKS; i++) {
            chain_t before = chain;
            chain = block_push(chain, &blocks[i], keys[level]);
            cr_assert(chain_block(chain) == &blocks[i].block, "push %u", i);
            cr_assert(chain_count(chain) == i + 1, "push %u: count %zu", i, chain_count(chain));
            cr_assert(block_link(&blocks[i].block, keys[level]) == before, "push %u", i);
        }
        for (unsigned i = BLOCKS; i-- > 0;) {
            cr_assert(chain_block(chain) == &blocks[i].block, "block %u", i);
            cr_assert(chain_count(chain) == i + 1, "block %u: count %zu", i, chain_count(chain));
            chain = block_next(chain, &guards[level], "test", sizeof blocks[0]);
        }
        cr_assert(chain == 0);
    }
}

Test(block, a_push_writes_two_words_at_most)
{
    block_push(0, &blocks[1], 0);
    blocks[1].block.word[1] = 77;
    memset(blocks[1].rest, 0x5a, sizeof blocks[1].rest);
    block_push(0, &blocks[1], 0);
    cr_assert(blocks[1].block.word[1] == 77, "a FAST heap's block has no seal");
    block_push(0, &blocks[1], keys[1]);
    cr_assert(blocks[1].block.word[0] == (keys[1] ^ (uintptr_t)&blocks[1]));
    for (unsigned i = 0; i < sizeof blocks[1].rest; i++) cr_assert(blocks[1].rest[i] == 0x5a);
}

Test(block, counts_go_up_to_the_field)
{
    static block_t many[CHAIN_MAX];
    chain_t chain = 0;
    for (unsigned i = 0; i < CHAIN_MAX; i++) chain = block_push(chain, &many[i], 0);
    cr_assert(chain_count(chain) == CHAIN_MAX);
    cr_assert(chain_block(chain) == &many[CHAIN_MAX - 1]);
}

/* A block on the stack lies at the top of the user half: no bit of its address is lost. */
Test(block, high_addresses_survive)
{
    block_t high[2] __attribute__((aligned(16)));
    chain_t chain = block_push(block_push(0, &high[0], 1), &high[1], 1);
    cr_assert(chain_block(chain) == &high[1]);
    cr_assert(chain_block(block_link(&high[1], 1)) == &high[0]);
}

Test(block, seals_prove_link_key_and_address)
{
    chain_t chain = block_push(block_push(0, &blocks[0], keys[1]), &blocks[1], keys[1]);
    block_t *block = chain_block(chain);
    chain_t link = block_link(block, keys[1]);
    cr_assert(block_is_sealed(block, link, keys[1]));
    cr_assert(!block_is_sealed(block, link ^ 1, keys[1]));
    cr_assert(!block_is_sealed(block, link, keys[1] ^ 2));
    blocks[2].block = *block;
    cr_assert(!block_is_sealed(&blocks[2].block, link, keys[1]), "a copy elsewhere is not sealed");
    block_unseal(block);
    cr_assert(!block_is_sealed(block, link, keys[1]), "an unsealed block is not sealed");
}

/* ---- Keys ---- */

static int compare(const void *a, const void *b)
{
    uint64_t left, right;
    memcpy(&left, a, sizeof left);
    memcpy(&right, b, sizeof right);
    return (left > right) - (left < right);
}

Test(block, keys_differ_and_are_never_zero)
{
    enum { SERIALS = 20000, PROCESSES = 3 };
    static uint64_t found[SERIALS * PROCESSES];
    static const uint64_t processes[PROCESSES] = {0, 1, 0xfedcba9876543210ull};
    size_t count = 0;
    for (unsigned p = 0; p < PROCESSES; p++)
        for (uint64_t serial = 0; serial < SERIALS; serial++)
            found[count++] = block_key(processes[p], serial);
    qsort(found, count, sizeof found[0], compare);
    cr_assert(found[0] != 0);
    for (size_t i = 1; i < count; i++) cr_assert(found[i] != found[i - 1], "key %zu twice", i);
    cr_assert(block_key(5, 6) == block_key(5, 6));
}

/* ---- Damage ---- */

static child_result_t child;

static void follow(void *arg)
{
    const guard_t *guard = arg;
    chain_t chain = block_push(block_push(0, &blocks[0], guard->key), &blocks[1], guard->key);
    blocks[1].block.word[0] ^= 1;
    _exit(block_next(chain, guard, "malloc", 32) == block_link(&blocks[1].block, guard->key) ? 5
                                                                                             : 6);
}

static void follow_damaged_link(void *arg)
{
    const guard_t *guard = arg;
    chain_t chain = block_push(block_push(0, &blocks[0], guard->key), &blocks[1], guard->key);
    blocks[1].block.word[guard->key != 0] += 1 << CHAIN_SHIFT;
    (void)block_next(chain, guard, "flush", 48);
}

static void hand_out_damaged(void *arg)
{
    const guard_t *guard = arg;
    (void)block_push(0, &blocks[0], guard->key);
    blocks[0].block.word[0] ^= 1;
    block_hand_out(&blocks[0].block, 0, guard, 64);
}

Test(block, a_block_is_handed_out_whole_and_without_its_seal)
{
    guard_t guard = guards[1];
    (void)block_push(0, &blocks[2], guard.key);
    block_hand_out(&blocks[2].block, 0, &guard, 64);
    cr_assert(!block_is_sealed(&blocks[2].block, 0, guard.key));
    child_run(&child, hand_out_damaged, &guard);
    cr_assert(child_aborted(&child, "CORRUPT", "malloc"), "signal %d: %s", child.signal,
              child.text);
}

Test(block, a_damaged_block_ends_a_checked_process)
{
    guard_t guard = guards[1];
    child_run(&child, follow, &guard);
    cr_assert(child_aborted(&child, "CORRUPT", "malloc"), "signal %d: %s", child.signal,
              child.text);
    char wanted[64];
    snprintf(wanted, sizeof wanted,
             "ptr=0x%zx heap=\"checked\" class=32: ", (size_t)(uintptr_t)&blocks[1]);
    cr_assert(strstr(child.text, wanted), "%s", child.text);

    child_run(&child, follow_damaged_link, &guard);
    cr_assert(child_aborted(&child, "CORRUPT", "flush"), "signal %d: %s", child.signal, child.text);
    cr_assert(strstr(child.text, "heap=\"checked\" class=48: "), "%s", child.text);
}

Test(block, a_fast_heap_looks_at_no_seal)
{
    guard_t guard = guards[0];
    child_run(&child, follow, &guard);
    cr_assert(child.status == 5, "status %d, signal %d: %s", child.status, child.signal,
              child.text);
}
