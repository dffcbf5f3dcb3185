/* hakheap level 4: region - blocks of all small sizes side by side, by a map of a granule's units */
#ifndef HAK_REGION_H
#define HAK_REGION_H

#include "block.h"
#include "registry.h"
#include "superslab.h"

/*
 * Role: the blocks of size classes that have few blocks in a heap. Size classes need many blocks
 * each before they are dense; here blocks of any size lie next to each other, neighbours that are
 * freed are one hole again, and a page without blocks is seen at once. Callers: the ladders, life,
 * validate, report. Memory: a granule, which others give and take; the map lies out of line, in the
 * heap's records, for as long as the heap lives. No lock, and no fork gate: any thread, and any
 * signal handler, takes and puts blocks at any time.
 *
 *   granule   | unit | unit | unit | ...                         1024 units of 16 bytes
 *   map word  63              32 31               0
 *            +------------------+------------------+
 *            | start, 32 units  | used, 32 units   |            32 words
 *            +------------------+------------------+
 *
 *   start used   a unit is
 *     0    0     free
 *     1    1     the first of a block,
 *     0    1     another one of it: a block ends before the first unit that is none such
 *     1    0     held by the library: of a page that is not open, or is on its way to the kernel; of
 *                a record; the first of a block whose free is under way
 *
 * A block of one word is taken by one compare-and-swap and freed by one atomic operation, whose old
 * value says whether the unit was a block's first: so a second free, or that of an inner address,
 * is known, also where two threads try at once. A block over several words is taken from its first
 * word to its last: the part that is there is in nobody's hands yet, and is taken back where the
 * rest is refused. It is freed from its last word to its first; until then its first unit is held,
 * so that no block before it seems to go on in it, and nothing is taken in front of a rest.
 *
 * A page is open once its units may be taken. It is opened by the thread that sets its bit, and
 * closed by one that holds all its units: so no block can be in it. The granule is given back when
 * all its pages are held. The map stays, closed, until the heap puts it over another granule. A
 * thread that was about to take a unit when that happened takes one that is free now, and reads the
 * granule's address afterwards.
 *
 * In a CHECKED heap each free unit of an open page carries a seal, which is proved when it is
 * taken.
 *
 * Bitmaps of units and their neighbours' merging: "bitmapped fits", Wilson, Johnstone, Neely,
 * Boles: "Dynamic Storage Allocation", 1995. First fit by address, because it keeps a small heap
 * dense through churn.
 */
enum {
    REGION_UNIT = BLOCK_ALIGN,
    WORD_UNITS = 32,
    REGION_UNITS = GRANULE / REGION_UNIT,
    REGION_WORDS = REGION_UNITS / WORD_UNITS,
    PAGE_WORDS = REGION_WORDS / GRANULE_PAGES,
    REGION_LONGEST = 8 * WORD_UNITS,                 /* units of a block */
    REGION_BLOCK_MAX = REGION_LONGEST * REGION_UNIT, /* bytes of it */
    REGION_CLASSES = 48,                             /* the size classes up to that */
    PAGES_OPEN = (1 << GRANULE_PAGES) - 1,
    REGION_ROOM = 2 * WORD_UNITS, /* what no hint is above: a longer hole says this */
};

#define EIGHT_BYTES UINT64_C(0x0101010101010101) /* times n: eight bytes of n */

/*
 * Hints of where there is room, for 32 places: none of a place's holes has more units than its byte
 * says. Any thread writes them, relaxed, and they may lag: then a hole is looked for where none is,
 * or not found before region_look_again. Bytes are written one by one and read eight at a time.
 */
typedef union rooms {
    _Atomic uint8_t of[REGION_WORDS];
    _Atomic uint64_t eight[REGION_WORDS / 8];
} rooms_t;

/* The first place from one on with a hole of n units, or REGION_WORDS; those from `end` on have
 * none. No byte has its upper bit, so that a difference keeps it where the byte is n or more. */
HAK_INLINE unsigned rooms_next(const rooms_t *rooms, unsigned at, unsigned end, unsigned n)
{
    uint64_t mask = ~UINT64_C(0) << at % 8 * 8;
    for (unsigned i = at / 8; i * 8 < end; i++, mask = ~UINT64_C(0)) {
        uint64_t eight = load_relaxed(&((rooms_t *)(uintptr_t)rooms)->eight[i]);
        if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__) eight = __builtin_bswap64(eight);
        uint64_t hits =
            ((eight | 0x80 * EIGHT_BYTES) - n * EIGHT_BYTES) & 0x80 * EIGHT_BYTES & mask;
        if (hits) return i * 8 + (unsigned)__builtin_ctzll(hits) / 8;
    }
    return REGION_WORDS;
}
HAK_INLINE void rooms_raise(rooms_t *rooms, unsigned at, unsigned units)
{
    unsigned most = (unsigned)hak_min(units, REGION_ROOM);
    if (load_relaxed(&rooms->of[at]) < most) store_relaxed(&rooms->of[at], (uint8_t)most);
}
HAK_INLINE void rooms_lower(rooms_t *rooms, unsigned at, unsigned units)
{
    store_relaxed(&rooms->of[at], (uint8_t)units);
}

/* The most of all places, byte by byte the larger of eight each. */
HAK_INLINE unsigned rooms_most(const rooms_t *rooms)
{
    uint64_t most = 0, other;
    for (unsigned i = 0; i < REGION_WORDS / 8 + 3; i++) {
        other = i < REGION_WORDS / 8 ? load_relaxed(&((rooms_t *)(uintptr_t)rooms)->eight[i])
                                     : most >> (32 >> (i - REGION_WORDS / 8));
        uint64_t is_most = ((most | 0x80 * EIGHT_BYTES) - other) >> 7 & EIGHT_BYTES;
        most = (most & is_most * UINT8_MAX) | (other & ~(is_most * UINT8_MAX));
    }
    return (uint8_t)most;
}
/* All places. */
HAK_INLINE void rooms_set(rooms_t *rooms, unsigned units)
{
    for (unsigned i = 0; i < REGION_WORDS / 8; i++)
        store_relaxed(&rooms->eight[i], units * EIGHT_BYTES);
}

typedef struct region {
    /* The granule. Written while all is held; release pairs with the acquire of what reads it after
     * it has taken a unit or a page's bit. */
    char *_Atomic base;
    uint16_t record, record_end; /* const: units of the heap's own record, from, to before */
    /* Hints, as rooms: from here to before there are no blocks, and the pages are open. */
    _Atomic uint16_t tail, tail_end;
    _Atomic uint8_t open; /* bits of pages that are open, or being opened or closed */
    _Atomic uint8_t room; /* hint: of all words */
    rooms_t rooms;        /* of each word, but for the tail */
    /* Acquire to take units, release to free them. The units of the last word are always held. */
    _Atomic uint64_t word[REGION_WORDS + 1];
} region_t;

/* What a unit belongs to. */
typedef enum unit_state { UNIT_FREE, UNIT_START, UNIT_INSIDE, UNIT_HELD } unit_state_t;

HAK_INLINE unsigned region_unit(const void *ptr)
{
    return (unsigned)((uintptr_t)ptr % GRANULE / REGION_UNIT);
}

/* Whether an address lies in what the heap itself has of its cradle. */
HAK_INLINE bool region_is_record(const region_t *region, const void *ptr)
{
    unsigned unit = region_unit(ptr);
    return unit >= region->record && unit < region->record_end;
}

/* A map without a granule. `record` units from the first on are never free. */
void region_init(region_t *region, unsigned record, unsigned record_end);
/* Lays the map over a granule; its pages are not open, but those of the record. */
void region_attach(region_t *region, char *base);
/* Frees every block at once; no other thread uses the region. The granule stays. */
void region_clear(region_t *region, const guard_t *guard);
/* Takes the granule away from whatever is in it; no other thread uses the region. */
void region_detach(region_t *region);
HAK_INLINE bool region_is_attached(const region_t *region)
{
    return load_relaxed(&((region_t *)(uintptr_t)region)->base) != NULL;
}

/* Forgets what the hints say. */
HAK_INLINE void region_look_again(region_t *region)
{
    rooms_set(&region->rooms, REGION_ROOM);
    store_relaxed(&region->room, (uint8_t)REGION_ROOM);
}
/* A block of so many units that begins at a multiple of `alignment` units, a power of two, in the
 * lowest hole; NULL: the open pages have no such hole, or other threads took it. */
void *region_take(region_t *region, unsigned units, unsigned alignment, const guard_t *guard);
/* The same at the tail, behind all blocks. */
void *region_append(region_t *region, unsigned units, const guard_t *guard);
void *region_append_aligned(region_t *region, unsigned units, unsigned alignment,
                            const guard_t *guard);
/* The same where it lies within one word, in a FAST heap; NULL also where it does not. */
HAK_INLINE void *region_append_word(region_t *region, unsigned units, const guard_t *guard)
{
    unsigned unit = load_relaxed(&region->tail), bit = unit % WORD_UNITS;
    if (bit + units > WORD_UNITS || key_seals(guard->key)) return NULL;
    uint64_t used = (((uint64_t)1 << units) - 1) << bit;
    _Atomic uint64_t *word = &region->word[unit / WORD_UNITS];
    uint64_t old = load_relaxed(word);
    /* Behind the pages that are open all units are held. Acquire, both: as in claim_word and
     * region_take. */
    if (old & (used | used << WORD_UNITS) ||
        !cas_acquire(word, &old, old | used | (uint64_t)1 << (WORD_UNITS + bit)))
        return NULL;
    store_relaxed(&region->tail, (uint16_t)(unit + units));
    return load_acquire(&region->base) + unit * REGION_UNIT;
}
HAK_INLINE bool region_has_tail(const region_t *region)
{
    region_t *at = (region_t *)(uintptr_t)region;
    return load_relaxed(&at->tail) < load_relaxed(&at->tail_end);
}
/* Blocks go on in another region: what is left of the tail is a hole, where it is a long one. A
 * short one is not worth that blocks which fit look for holes again. */
void region_leave(region_t *region);
/* Units of the longest hole, about, but for the tail. */
HAK_INLINE unsigned region_room(const region_t *region)
{
    return load_relaxed(&((region_t *)(uintptr_t)region)->room);
}
HAK_INLINE bool region_may_open(const region_t *region)
{
    return load_relaxed(&((region_t *)(uintptr_t)region)->open) != PAGES_OPEN;
}
/* Opens the first page that is not; false: there is none. */
bool region_open(region_t *region, const guard_t *guard);
/* Units of the block that begins there; 0: none does. */
unsigned region_length_far(const region_t *region, unsigned unit);
HAK_INLINE unsigned region_length(const region_t *region, unsigned unit)
{
    unsigned bit = unit % WORD_UNITS;
    /* Relaxed: as in region_put. */
    uint64_t word = load_relaxed(&((region_t *)(uintptr_t)region)->word[unit / WORD_UNITS]) >> bit;
    if (HAK_UNLIKELY(!(word & word >> WORD_UNITS & 1))) return 0;
    uint64_t ends = (uint64_t)(UINT32_MAX >> bit & ~(word & ~(word >> WORD_UNITS))) >> 1;
    return HAK_LIKELY(ends) ? 1 + (unsigned)__builtin_ctzll(ends) : region_length_far(region, unit);
}
/* Frees a block. Returns its units; 0: no block begins there, and nothing has changed. *hole: as a
 * hint, units of the hole that it leaves; it may have fewer. */
unsigned region_put(region_t *region, void *ptr, const guard_t *guard, unsigned *hole);
/* The block that an address lies in, and its units; NULL: in none. */
char *region_find(const region_t *region, const void *ptr, unsigned *units);
/* In a CHECKED heap: what free units carry, for a block that its owner has given up; then proved,
 * and taken away. */
void region_seal(void *ptr, unsigned units, const guard_t *guard);
void region_unseal(void *ptr, unsigned units, const guard_t *guard);
/* Whether each of them carries it; of a live block no first one does. */
bool region_is_sealed(const void *ptr, unsigned units, const guard_t *guard);
/* Makes a live block longer, where what follows is free, or shorter. False: nothing has changed. */
bool region_resize(region_t *region, void *ptr, unsigned units, unsigned wanted,
                   const guard_t *guard);

/* Holds all of a granule without blocks, which the caller may then give back by region_detach;
 * false: there are some, or another thread opens or closes a page. */
bool region_close(region_t *region);
/* Gives back pages without blocks to the kernel by `purge`, which says false where that refuses; the
 * first `keep` of them stay, and are taken off it. `unopened`: also those that were written before
 * the granule was this region's. Returns pages. */
size_t region_release(region_t *region, bool unopened, size_t *keep, bool (*purge)(void *, size_t));

/* What is in an attached region. Each unit counts once; while other threads work, each word is of a
 * moment of its own. */
typedef struct region_sums {
    size_t blocks, live, free, held, untouched; /* blocks; units */
} region_sums_t;
region_sums_t region_sums(const region_t *region);
/* Blocks of each size class, added to what is in the array. */
void region_count(const region_t *region, size_t blocks[REGION_CLASSES]);
/* Proves that the map can be, and every seal of free units; NULL, or what is wrong, at *ptr. Other
 * threads may work. */
const char *region_check(region_t *region, const guard_t *guard, const void **ptr);

#endif
