/* hakheap level 9: home - which CPU a slab belongs to, and how that changes */
#ifndef HAK_HOME_H
#define HAK_HOME_H

#include "record.h"

/*
 * Role: keeps CPUs apart. The home of a slab is the CPU that its blocks come from and go back to.
 * Callers: area and the ladders. Memory: a set of slabs for each home, a record of the heap. Lock:
 * CLASS, around every call that takes a class, but where a call says so.
 *
 * Blocks of two CPUs in one cache line, or in two that a prefetcher fetches together, cost each of
 * them a miss whenever the other writes. So in a heap of more than a few runs each CPU takes blocks
 * from slabs of its own, and blocks go back to their slab's home. (mimalloc keeps threads apart in
 * the same way, by pages that a thread owns; here a home is a hint in the granule's entry.) A small
 * heap is not divided: its CPUs share slabs, because few blocks in many slabs cost more in pages
 * than they save in lines. All classes are divided at once: a free whose branch meets slabs with
 * and without a home in turn is guessed wrong half the time.
 *
 *   the heap     UNDIVIDED --home_divide_soon--> DUE --home_divide, by the next allocation that misses--> DIVIDED, for ever
 *                    it has DIVIDE_RUNS runs, or room for DIVIDE_SLABS slabs of a class, or one CPU took
 *                    what another freed DIVIDE_ONE_WAY times in a row
 *
 *   a slab       HOME_NONE ------------------------> home i -----------------------> home j
 *                 (shared)   make_homes, home_move             home_move: j adopts a slab that i uses less than half of
 *                                                              home_take_over: j has sent blocks
 *                                                              home HOME_STILL times in a row and i
 *                                                              did nothing with the class; a step
 *                                                              at a time
 *
 *   a home that is behind costs a detour: a block is pushed on an outbox and comes home a little
 *   later. No state is wrong by it.
 *
 * Invariant: a slab is in home_set(state, slab->home), and its granules' entries say that home (or
 * HOME_LOOK, see slab_tell_home).
 */
enum {
    FEWEST_HOMES = 2,    /* sets, at first */
    DIVIDE_RUNS = 128,   /* runs with which a heap is divided; */
    DIVIDE_SLABS = 8,    /* or room for the blocks of so many of one class; */
    DIVIDE_ONE_WAY = 32, /* or times that blocks of a class went to one CPU and never back */
    /* Looks at a home, one for each outbox of its blocks that fills up, after which it is idle. A
     * thread that only waits for its turn must not lose its slabs: with 3, two threads that free in
     * batches share half of their cache lines; with 32, 0.3 % (bench/sharing.c). */
    HOME_STILL = 32,
    HOME_AT_ONCE = 32, /* slabs that are taken over in one step: no more than a free may spend */
};

/* The sets of a class one after another, `shared` first. */
HAK_INLINE slab_set_t *home_next_set(class_state_t *state, const slab_set_t *set)
{
    size_t next = set == &state->shared
                      ? 0
                      : (size_t)((const home_t *)(const void *)set - state->at_home) + 1;
    return next < state->homes ? &state->at_home[next].slabs : NULL;
}
#define FOR_SETS(set, state) \
    for (slab_set_t *set = &(state)->shared; set; set = home_next_set((state), set))
HAK_INLINE slab_set_t *home_set(class_state_t *state, unsigned home)
{
    return home < state->homes ? &state->at_home[home].slabs : &state->shared;
}

/* Relaxed: a hint, and never taken back. No lock. */
HAK_INLINE bool home_is_divided(const hak_heap_t *heap)
{
    return load_relaxed(&((hak_heap_t *)(uintptr_t)heap)->divided) == DIVIDED;
}
/* Asks for a division. Any lock may be held. */
void home_divide_soon(hak_heap_t *heap);
/* Divides where that is due: gives all slabs to the CPU that runs. No lock is held. */
void home_divide(hak_heap_t *heap, int index);
/* Notes which CPU took what another had freed. */
void home_note_taker(hak_heap_t *heap, class_state_t *state, int index);
/* The home of what a CPU takes from slabs; HOME_NONE in an undivided heap, and where memory for its
 * set is refused, or would have to be waited for. */
unsigned home_of(hak_heap_t *heap, class_state_t *state, int index, bool may_wait);
/* Whether a home's CPU has done nothing with a class, as far as the last few calls show. */
bool home_is_idle(hak_heap_t *heap, class_state_t *state, unsigned home);
/* Moves a slab to another home. */
void home_move(class_state_t *state, slab_t *slab, unsigned home);
/* Moves what a home has of a class to another: its cold chains, and at most HOME_AT_ONCE slabs. */
void home_take_over(class_state_t *state, unsigned from, unsigned to);

#endif
