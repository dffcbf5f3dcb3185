/* hakheap level 10: walk - chains and sums of a class */
#include "walk.h"

void walk_chains(const hak_heap_t *heap, const class_state_t *state, walk_fn visit, void *ctx)
{
    remote_t *remote = (remote_t *)(uintptr_t)&state->remote;
    FOR_AREAS (at, &heap->percpu)
        FOR_WORDS (kind, at)
            visit(ctx, (walk_place_t)kind, load_relaxed(area_word(at, state->cls, kind)));
    for (uint32_t i = 0; state->cold && i < state->cold->count; i++)
        visit(ctx, WALK_COLD, state->cold->chain[i]);
    /* Acquire: pairs with the release in remote_push. */
    visit(ctx, WALK_REMOTE, load_acquire(&remote->head));
    visit(ctx, WALK_REMOTE, load_relaxed(&remote->taken));
}

typedef struct count {
    size_t *blocks;
    uint64_t key;
} count_t;

/* A remote list gets no shorter while the class's lock is held, so its links may be followed. */
static size_t blocks_of_list(chain_t list, uint64_t key)
{
    if (HAK_LIKELY(chain_count(list) < CHAIN_MAX)) return chain_count(list);
    size_t blocks = 0;
    for (; chain_block(list); list = block_link(chain_block(list), key)) blocks++;
    return blocks;
}

size_t walk_waiting(const hak_heap_t *heap, const class_state_t *state)
{
    hak_assert(lock_is_held((hak_lock_t *)(uintptr_t)&state->lock));
    remote_t *remote = (remote_t *)(uintptr_t)&state->remote;
    /* Acquire: as in walk_chains. */
    return blocks_of_list(load_acquire(&remote->head), heap->key) +
           blocks_of_list(load_relaxed(&remote->taken), heap->key);
}

static void count_chain(void *ctx, walk_place_t place, chain_t chain)
{
    count_t *count = ctx;
    count->blocks[place] +=
        place == WALK_REMOTE ? blocks_of_list(chain, count->key) : chain_count(chain);
}

void walk_count(const hak_heap_t *heap, const class_state_t *state, size_t blocks[WALK_PLACES])
{
    count_t count = {blocks, heap->key};
    memset(blocks, 0, WALK_PLACES * sizeof *blocks);
    walk_chains(heap, state, count_chain, &count);
}

walk_sums_t walk_sums(class_state_t *state)
{
    walk_sums_t sums = {0};
    FOR_SETS (set, state) {
        sums.slabs += set->slabs;
        sums.granules += set->granules;
        sums.blocks += set->blocks;
        sums.pages += set->pages;
        sums.outside += set->outside;
        sums.carved += set->carved;
    }
    return sums;
}
