/* hakheap level 1: block - the words of a free block, chains of them, and what proves them */
#ifndef HAK_BLOCK_H
#define HAK_BLOCK_H

#include "base.h"

/*
 * Role: every touch of a free block's own memory that is not an rseq section. Callers: percpu,
 * cold, slab, ladders. No memory of its own, no lock: the holder of a chain owns its blocks.
 *
 *   chain word   63                                16 15        0
 *               +------------------------------------+-----------+
 *               |  address of the newest free block  |   count   |      0: the empty chain
 *               +------------------------------------+-----------+
 *
 *   free block  FAST  +0  link: the chain word as it was before this block was pushed
 *            CHECKED  +0  seal: link ^ key ^ address
 *                     +8  link
 *
 * Handing a block out takes the seal away. It is the first word because that is where most callers
 * write next, and on Zen 3 stores to both words of a 16-byte chunk cost much more than two stores
 * to one of them. Taking the link away instead would not do: a program may write what was a link
 * (0, or an address in the upper bits), but not what was a seal.
 *
 * The count rides along with the address, so taking or installing a whole chain is one store. It
 * sits in the low bits so that the address comes out by one shift, whose zero flag is the test for
 * "empty".
 *
 * Invariant: chain_count(w) == 0 exactly where w == 0, and following the links of w visits
 * chain_count(w) blocks.
 */
typedef uint64_t chain_t;

enum { CHAIN_SHIFT = 16, CHAIN_MAX = 0xffff };

typedef struct block {
    uint64_t word[2];
} block_t;

/* What a layer needs to know of a heap to prove its blocks and to name it where they are broken. */
typedef struct guard {
    uint64_t key;     /* const; 0: FAST, blocks carry no seal */
    const char *name; /* const */
} guard_t;

/* The word of a chain that begins with this block, but for its count. */
HAK_INLINE chain_t chain_address(const void *block) { return (uintptr_t)block << CHAIN_SHIFT; }
HAK_INLINE block_t *chain_block(chain_t chain) { return (block_t *)(chain >> CHAIN_SHIFT); }
HAK_INLINE size_t chain_count(chain_t chain) { return chain & CHAIN_MAX; }

_Noreturn void block_corrupt(const guard_t *guard, const char *operation, const void *block,
                             size_t bytes);

/* Whether blocks of a heap with this key carry seals: the one place that knows how a FAST heap says
 * that they do not. */
HAK_INLINE bool key_seals(uint64_t key) { return key != 0; }

/* The link of a free block. `key`: 0 in a FAST heap. */
HAK_INLINE chain_t block_link(const block_t *block, uint64_t key)
{
    return block->word[key_seals(key)];
}

/* Of a CHECKED heap's block: whether it carries the seal that goes with the link. */
HAK_INLINE bool block_is_sealed(const block_t *block, uint64_t link, uint64_t key)
{
    return block->word[0] == (link ^ key ^ (uintptr_t)block);
}

/* Marks a block as handed out. */
HAK_INLINE void block_unseal(block_t *block) { block->word[0] = 0; }

/* The same after proof of the seal that goes with the link. */
HAK_INLINE void block_hand_out(block_t *block, chain_t link, const guard_t *guard, size_t bytes)
{
    if (HAK_UNLIKELY(!block_is_sealed(block, link, guard->key)))
        block_corrupt(guard, "malloc", block, bytes);
    block_unseal(block);
}

/* Gives a free block its link, and its seal where the heap has seals. */
HAK_INLINE void block_set_link(block_t *block, chain_t link, uint64_t key)
{
    block->word[key_seals(key)] = link;
    if (key_seals(key)) block->word[0] = link ^ key ^ (uintptr_t)block;
}

HAK_INLINE chain_t block_push(chain_t chain, void *ptr, uint64_t key)
{
    block_t *block = ptr;
    block_set_link(block, chain, key);
    return chain_address(block) | (chain_count(chain) + 1);
}

/* The link of a free block, proved where the heap has seals. `key`: the guard's, for those who know
 * it to be 0. */
HAK_INLINE chain_t block_proved_link(const block_t *block, uint64_t key, const guard_t *guard,
                                     const char *operation, size_t bytes)
{
    chain_t link = block_link(block, key);
    if (key_seals(key) && HAK_UNLIKELY(!block_is_sealed(block, link, key)))
        block_corrupt(guard, operation, block, bytes);
    return link;
}

/* The same of a chain's newest block. */
HAK_INLINE chain_t block_next(chain_t chain, const guard_t *guard, const char *operation,
                              size_t bytes)
{
    return block_proved_link(chain_block(chain), guard->key, guard, operation, bytes);
}

/* Asks for the block that a chain hands out next, while no call waits for its link (as a pop of
 * tcmalloc's per-CPU caches does). */
HAK_INLINE void block_fetch(chain_t chain) { __builtin_prefetch(chain_block(chain), 1); }

/* A key of a heap: never 0, different for each serial, unknown without the process
 * key. */
uint64_t block_key(uint64_t process_key, uint64_t serial);
/* Says what all keys of the process follow from; before the first heap. */
void block_start_process(uint64_t process_key);
/* The key of one more heap. */
uint64_t block_next_key(void);

#endif
