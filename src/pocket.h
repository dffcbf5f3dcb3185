/* hakheap level 5: pocket - four freed blocks of a class that regions serve, in one word */
#ifndef HAK_POCKET_H
#define HAK_POCKET_H

#include "region.h"

/*
 * Role: what a magazine is for slabs, for the classes of a busy heap that regions serve. Callers:
 * refill, drain, trim; pointer, report, validate look. Memory: the heap's record. No lock, and no
 * fork gate: each operation is one compare-and-swap on a word that says all, by any thread and in
 * any signal handler; a fork sees it before or after.
 *
 *   word      63         48 47         32 31         16 15 14    10 9       0
 *            +-------------+-------------+-------------+--+--------+---------+
 *            | oldest      |             |             | 1| region | unit    |   newest; 0: none
 *            +-------------+-------------+-------------+--+--------+---------+
 *
 * The newest is taken first. Where there are four, a put shifts the oldest out, and the caller frees
 * it. A region's map knows nothing of pockets: to it a block in one lives. So what asks the map for
 * a live block asks the pocket of its class, too. A second free of a block is known, because its
 * pocket names it. While the caller frees one that was shifted out neither says that it is free: a
 * FAST heap misses a second free of it in that moment, a CHECKED heap knows it by its seal, which
 * each unit of a block in a pocket carries.
 *
 * Invariant: a block is named once, by the pocket of its class.
 */
enum {
    POCKET_CLASSES = 32, /* those of blocks up to LOOKUP_MAX have one */
    POCKET_MOST = 4,
    POCKET_BITS = 16,
    POCKET_LONG = 32, /* units: of longer blocks a pocket has one, of those above half of it two */
    POCKET_REGION_SHIFT = 10,
    POCKET_NAMED = 1 << 15, /* set in each of a word's blocks */
};
#define POCKET_ONES UINT64_C(0x0001000100010001) /* times n: four times n */

_Static_assert(REGION_UNITS == 1 << POCKET_REGION_SHIFT && POCKET_MOST * POCKET_BITS == 64,
               "a word has four blocks");

typedef struct pocket {
    _Atomic uint64_t word; /* release by what frees a block pairs with acquire by what takes it */
} pocket_t;

/* The newest block of a word, or one that is asked for: its number, region and unit. */
HAK_INLINE uint64_t pocket_name(unsigned region, const void *ptr)
{
    return POCKET_NAMED | region << POCKET_REGION_SHIFT | region_unit(ptr);
}
HAK_INLINE unsigned pocket_region(uint64_t word)
{
    return (unsigned)word % POCKET_NAMED >> POCKET_REGION_SHIFT;
}
HAK_INLINE unsigned pocket_unit(uint64_t word) { return (unsigned)word % REGION_UNITS; }

HAK_INLINE unsigned pocket_count(uint64_t word)
{
    return word ? POCKET_MOST - (unsigned)__builtin_clzll(word) / POCKET_BITS : 0;
}
/* How many blocks of so many units a pocket has at most. */
HAK_INLINE unsigned pocket_most(unsigned units)
{
    return units > POCKET_LONG ? 1 : units > POCKET_LONG / 2 ? POCKET_MOST / 2 : POCKET_MOST;
}
/* Whether a word names a block. The lowest sixteen bits that are the name are the first that are
 * zero here, and a borrow goes upwards only. */
HAK_INLINE bool pocket_names(uint64_t word, uint64_t name)
{
    uint64_t other = word ^ name * POCKET_ONES;
    return (other - POCKET_ONES) & ~other & POCKET_NAMED * POCKET_ONES;
}

HAK_INLINE uint64_t pocket_look(const pocket_t *pocket)
{
    return load_relaxed(&((pocket_t *)(uintptr_t)pocket)->word);
}
/* The word whose newest block is the caller's now; 0: there is none. */
HAK_INLINE uint64_t pocket_take(pocket_t *pocket)
{
    uint64_t word = load_relaxed(&pocket->word);
    /* Acquire: pairs with the release in pocket_put. */
    while (word && HAK_UNLIKELY(!cas_acquire(&pocket->word, &word, word >> POCKET_BITS))) {
    }
    return word;
}
/* Of a block of so many units. False: the pocket has it. *oldest: what is the caller's instead; 0:
 * nothing. */
HAK_INLINE bool pocket_put(pocket_t *pocket, uint64_t name, unsigned units, uint64_t *oldest)
{
    unsigned shift = (pocket_most(units) - 1) * POCKET_BITS;
    uint64_t word = load_relaxed(&pocket->word), next;
    do {
        if (HAK_UNLIKELY(pocket_names(word, name))) return false;
        next = (word & (((uint64_t)1 << shift) - 1)) << POCKET_BITS | name;
        /* Release: pairs with the acquires here and in pocket_take. Acquire: the oldest block is
         * freed by this thread. */
    } while (HAK_UNLIKELY(!cas_acq_rel(&pocket->word, &word, next)));
    *oldest = word >> shift;
    return true;
}
/* All of them: a word. */
HAK_INLINE uint64_t pocket_empty(pocket_t *pocket)
{
    /* Acquire: as in pocket_take. */
    return load_relaxed(&pocket->word) ? exchange_acquire(&pocket->word, 0) : 0;
}

#endif
