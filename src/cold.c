/* hakheap level 5: cold - the array, the list and the budget */
#include "cold.h"

#include "stall.h"

static chain_t remove_at(cold_t *cold, uint32_t at)
{
    chain_t chain = cold->chain[at];
    cold->count--;
    cold->blocks -= (uint32_t)chain_count(chain);
    memmove(&cold->chain[at], &cold->chain[at + 1], (cold->count - at) * sizeof cold->chain[0]);
    memmove(&cold->cpu[at], &cold->cpu[at + 1], (cold->count - at) * sizeof cold->cpu[0]);
    memmove(&cold->old[at], &cold->old[at + 1], (cold->count - at) * sizeof cold->old[0]);
    return chain;
}

chain_t cold_put(cold_t *cold, chain_t chain, unsigned cpu)
{
    chain_t overflow = cold->count == COLD_CHAINS ? remove_at(cold, 0) : 0;
    cold->chain[cold->count] = chain;
    cold->cpu[cold->count] = (uint16_t)cpu;
    cold->old[cold->count] = false;
    cold->count++;
    cold->blocks += (uint32_t)chain_count(chain);
    return overflow;
}

chain_t cold_take(cold_t *cold, unsigned cpu)
{
    for (uint32_t at = cold->count; at-- > 0;)
        if (cold->cpu[at] == (uint16_t)cpu) return remove_at(cold, at);
    return 0;
}

chain_t cold_take_old(cold_t *cold, unsigned cpu)
{
    for (uint32_t at = 0; at < cold->count; at++)
        if (cold->cpu[at] == (uint16_t)cpu && cold->old[at]) return remove_at(cold, at);
    return 0;
}

void cold_age(cold_t *cold, unsigned cpu)
{
    for (uint32_t at = 0; at < cold->count; at++)
        if (cold->cpu[at] == (uint16_t)cpu) cold->old[at] = true;
}

void cold_move(cold_t *cold, unsigned from, unsigned to)
{
    for (uint32_t at = 0; at < cold->count; at++)
        if (cold->cpu[at] == (uint16_t)from) cold->cpu[at] = (uint16_t)to;
}

chain_t cold_steal(cold_t *cold) { return cold->count ? remove_at(cold, 0) : 0; }

/* The word of a list that begins with a chain and goes on with `more` blocks. */
static chain_t longer(chain_t chain, size_t more)
{
    return (chain & ~(chain_t)CHAIN_MAX) | hak_min(chain_count(chain) + more, CHAIN_MAX);
}

void remote_push(remote_t *remote, chain_t chain, const guard_t *guard, size_t bytes)
{
    block_t *tail = chain_block(chain);
    for (chain_t next; (next = block_next(chain_address(tail), guard, "free", bytes)) != 0;)
        tail = chain_block(next);
    chain_t head = load_relaxed(&remote->head);
    do {
        block_set_link(tail, head, guard->key);
        STALL(remote_linked);
        /* Release: pairs with the exchange in remote_next, which then reads these blocks' words. */
    } while (!cas_release(&remote->head, &head, longer(chain, chain_count(head))));
}

block_t *remote_next(remote_t *remote, const guard_t *guard, size_t bytes)
{
    chain_t taken = load_relaxed(&remote->taken);
    if (!taken && load_relaxed(&remote->head)) taken = exchange_acquire(&remote->head, 0);
    if (!taken) return NULL;
    STALL(remote_taken);
    chain_t next = block_next(taken, guard, "free", bytes);
    size_t left = chain_count(taken) < CHAIN_MAX ? chain_count(taken) - 1 : CHAIN_MAX;
    store_relaxed(&remote->taken, chain_block(next) ? chain_address(chain_block(next)) | left : 0);
    return chain_block(taken);
}

bool budget_take(budget_t *budget, size_t bytes)
{
    int64_t room = load_relaxed(&budget->room);
    do {
        if (room < (int64_t)bytes) return false;
    } while (!cas_relaxed(&budget->room, &room, room - (int64_t)bytes));
    return true;
}
