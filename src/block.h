/* hakheap level 1: block - the words of a free block, chains of them, and what proves them */
#ifndef HAK_BLOCK_H
#define HAK_BLOCK_H

#include "base.h"

/*
 * Role: every touch of a free block's own memory that is not an rseq section. Callers: percpu, cold, slab, ladders.
 * No memory of its own, no lock: whoever holds a chain owns its blocks.
 *
 *   chain word   63                                16 15        0
 *               +------------------------------------+-----------+
 *               |  address of the newest free block  |   count   |      0: the empty chain
 *               +------------------------------------+-----------+
 *
 *   free block  +0  link: the chain word as it was before this block was pushed
 *               +8  seal: link ^ key ^ address, in CHECKED heaps only
 *
 * The count rides along with the address, so taking or installing a whole chain is one store. It sits in the low bits
 * so that the address comes out by one shift, whose zero flag is the test for "empty".
 *
 * Invariant: chain_count(w) == 0 exactly where w == 0, and following the links of w visits chain_count(w) blocks.
 */
typedef uint64_t chain_t;

enum { CHAIN_SHIFT = 16, CHAIN_MAX = 0xffff, LINK_OUT = 1 /* no chain's word: a block, and no address */ };

typedef struct block {
    uint64_t link;
    uint64_t seal;
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

_Noreturn void block_corrupt(const guard_t *guard, const char *operation, const void *block, size_t bytes);

HAK_INLINE bool block_is_sealed(const block_t *block, uint64_t link, uint64_t key)
{
    return block->seal == (link ^ key ^ (uintptr_t)block);
}

/*
 * Marks a block as handed out: what is its seal no longer proves it free. The link is written, not the seal, because that
 * is where most callers write first: on the processors we measured, stores to both words of a 16-byte chunk cost much more
 * than two stores to one of them.
 */
HAK_INLINE void block_unseal(block_t *block) { block->link = LINK_OUT; }

HAK_INLINE chain_t block_push(chain_t chain, void *ptr, uint64_t key)
{
    block_t *block = ptr;
    block->link = chain;
    if (key) block->seal = chain ^ key ^ (uintptr_t)block;
    return chain_address(block) | (chain_count(chain) + 1);
}

/* The link of a chain's newest block, proved where the heap has seals. */
HAK_INLINE chain_t block_next(chain_t chain, const guard_t *guard, const char *operation, size_t bytes)
{
    block_t *block = chain_block(chain);
    chain_t link = block->link;
    if (guard->key && HAK_UNLIKELY(!block_is_sealed(block, link, guard->key)))
        block_corrupt(guard, operation, block, bytes);
    return link;
}

/* A key of a heap: never 0, different for each serial, unknown to who does not know the process key. */
uint64_t block_key(uint64_t process_key, uint64_t serial);

#endif
