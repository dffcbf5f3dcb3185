/* hakheap level 9: home - whose slabs are whose, and how a home changes */
#include "home.h"

#include "stall.h"

void home_move(class_state_t *state, slab_t *slab, unsigned home)
{
    hak_assert(lock_is_held(&state->lock));
    slab_move(home_set(state, slab->home), home_set(state, home), slab);
    slab->home = (uint8_t)home;
    STALL(home_moving);
    slab_tell_home(slab);
}

bool home_is_idle(hak_heap_t *heap, class_state_t *state, unsigned home)
{
    hak_assert(lock_is_held(&state->lock) && home < state->homes);
    home_t *at = &state->at_home[home];
    area_t *area = percpu_running(&heap->percpu, home);
    if (!area) return true;
    /* Relaxed: a look at what another CPU writes, for no more than whether it does. */
    chain_t now = load_relaxed(&area->hot[state->cls].word);
    magazine_t *outbox = load_acquire(&area->outbox); /* pairs with area_outbox */
    /* Where the class returns its blocks, frees go there. */
    if (outbox && load_relaxed(&area->hot[state->cls].tag) == TAG_NONE)
        now ^= load_relaxed(&outbox[state->cls].word);
    at->still = now == at->seen ? at->still + 1 : 0;
    at->seen = now;
    return at->still >= HOME_STILL;
}

void home_take_over(class_state_t *state, unsigned from, unsigned to)
{
    slab_set_t *set = home_set(state, from);
    hak_assert(lock_is_held(&state->lock) && set != home_set(state, to));
    size_t left = HOME_AT_ONCE;
    for (unsigned bin = SLAB_BINS; bin-- > 0;)
        for (; set->bin[bin] && left; left--) home_move(state, set->bin[bin], to);
    STALL(home_taken_over);
    if (state->cold) cold_move(state->cold, from, to);
}

/* Sets for at least `homes` homes. What the class shared while the heap was small goes to
 * `home`. */
static bool make_homes(hak_heap_t *heap, class_state_t *state, unsigned home, bool may_wait)
{
    unsigned homes = state->homes ? state->homes : FEWEST_HOMES;
    while (homes <= home) homes *= 2;
    if (homes > HOME_LOOK) homes = HOME_LOOK;
    if (!lock_enter(&heap->lock, RANK_HEAP, may_wait)) return false;
    home_t *sets = record_take(heap, homes * sizeof *sets, may_wait);
    lock_release(&heap->lock, RANK_HEAP);
    if (!sets) return false;
    bool first = state->homes == 0;
    if (!first) memcpy(sets, state->at_home, state->homes * sizeof *sets);
    state->at_home = sets;
    state->homes = (uint16_t)homes;
    for (unsigned bin = 0; first && bin < SLAB_BINS; bin++)
        while (state->shared.bin[bin]) home_move(state, state->shared.bin[bin], home);
    return true;
}

unsigned home_of(hak_heap_t *heap, class_state_t *state, int index, bool may_wait)
{
    /* Relaxed: as home_is_divided. From the moment it is due, so that what is taken meanwhile need
     * not be moved. */
    unsigned home = load_relaxed(&heap->divided) ? registry_home(index) : HOME_NONE;
    if (home == HOME_NONE || home < state->homes || make_homes(heap, state, home, may_wait))
        return home;
    return HOME_NONE;
}

void home_divide_soon(hak_heap_t *heap)
{
    uint32_t undivided = UNDIVIDED;
    if (load_relaxed(&heap->divided) != UNDIVIDED) return;
    (void)cas_once_relaxed(&heap->divided, &undivided, (uint32_t)DUE);
}

void home_note_taker(hak_heap_t *heap, class_state_t *state, int index)
{
    hak_assert(lock_is_held(&state->lock));
    size_t before = state->taker == index ? state->one_way : 0;
    state->one_way = (uint8_t)hak_min(before + 1, DIVIDE_ONE_WAY);
    state->taker = (int16_t)index;
    if (state->one_way >= DIVIDE_ONE_WAY) home_divide_soon(heap);
}

void home_divide(hak_heap_t *heap, int index)
{
    uint32_t due = DUE;
    if (HAK_LIKELY(load_relaxed(&heap->divided) != DUE)) return;
    if (!cas_once_relaxed(&heap->divided, &due, (uint32_t)DIVIDED)) return;
    FOR_CLASSES (cls, &heap->made) {
        class_state_t *state = heap_class_made(heap, cls);
        lock_acquire(&state->lock, RANK_CLASS);
        (void)home_of(heap, state, index, true);
        lock_release(&state->lock, RANK_CLASS);
    }
}
