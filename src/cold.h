/* hakheap level 5: cold - chains that the CPUs of a heap share: budget, cold chains, remote list */
#ifndef HAK_COLD_H
#define HAK_COLD_H

#include "block.h"

/*
 * Role: the second level of the two-level magazine. Callers: ladders, validate, report. Memory: the
 * array is given by the caller. A free block's two words are both taken (link and seal), so chains
 * are not linked through blocks: their words stand in a bounded array, each with the CPU that it
 * came from. A CPU takes its own chains first and steals the oldest of another's last: blocks
 * smaller than a cache line that wander between CPUs share lines.
 *
 * cold_*: lock: the class's. remote_*: lock-free. budget_*: atomic.
 * Invariant: blocks == sum of chain_count(chain[i]), i < count.
 */
enum { COLD_CHAINS = 16 };

typedef struct cold {
    chain_t chain[COLD_CHAINS]; /* oldest first */
    uint16_t cpu[COLD_CHAINS];
    bool old[COLD_CHAINS]; /* there at the last cold_age */
    uint32_t count;
    uint32_t blocks;
} cold_t;

/* Adds a chain. Returns the oldest one where the array is full, else the empty chain. */
chain_t cold_put(cold_t *cold, chain_t chain, unsigned cpu);
/* The newest chain of `cpu`, or the empty chain. */
chain_t cold_take(cold_t *cold, unsigned cpu);
/* Chains of one CPU become another's. */
void cold_move(cold_t *cold, unsigned from, unsigned to);
/* A chain of `cpu` that was there when its chains last aged, or the empty chain. */
chain_t cold_take_old(cold_t *cold, unsigned cpu);
/* The chains of `cpu` are old from now on. */
void cold_age(cold_t *cold, unsigned cpu);
/* The oldest chain of all, or the empty chain. */
chain_t cold_steal(cold_t *cold);

/*
 * A remote list: blocks whose lock was busy when they were freed. Push by compare-and-swap, from
 * anywhere; taken whole by exchange and then handed on one by one by the holder of the lock, so
 * that a block that comes back meanwhile (ABA) does no harm and no call has to take more than a
 * few. One word tells address and number of what is on it, so that a fork sees both or neither.
 *
 * Invariant: chain_count(head) + chain_count(taken) == blocks on the list, where each of the two is
 * below CHAIN_MAX; a part that was longer once counts CHAIN_MAX until it is empty. Links between
 * the chains it was made of, and their counts, mean nothing but an address.
 */
typedef struct remote {
    _Atomic chain_t head; /* what was pushed; release pairs with the exchange in remote_next */
    /* what was taken off it and waits; lock: the owner's; relaxed: read by anybody */
    _Atomic chain_t taken;
} remote_t;

void remote_push(remote_t *remote, chain_t chain, const guard_t *guard, size_t bytes);
/* One block; NULL: there is none. Lock: the owner's. */
block_t *remote_next(remote_t *remote, const guard_t *guard, size_t bytes);
/* Blocks that wait, as far as they are counted. Relaxed: a figure. */
HAK_INLINE size_t remote_blocks(const remote_t *remote)
{
    remote_t *at = (remote_t *)(uintptr_t)remote;
    return chain_count(load_relaxed(&at->head)) + chain_count(load_relaxed(&at->taken));
}

/* Bytes that a heap's magazines may still take for themselves. */
typedef struct budget {
    _Atomic int64_t room;
} budget_t;

bool budget_take(budget_t *budget, size_t bytes);
HAK_INLINE void budget_put(budget_t *budget, size_t bytes)
{
    if (bytes) add_relaxed(&budget->room, (int64_t)bytes);
}

#endif
