/* hakheap level 3: registry - pointer -> owner, class and run; the table that every free trusts */
#ifndef HAK_REGISTRY_H
#define HAK_REGISTRY_H

#include "sizeclass.h"

/*
 * Role: decides for any 64-bit value whether it lies in a heap, in which one, and in blocks of
 * which class, without touching it or any header. Callers: api, ladders, validate. Memory: one
 * dense table for each GiB of address space that holds anything of ours, mapped when needed and
 * kept for ever, so a lookup can never fault.
 *
 *   pointer   63    47 46           30 29            14 13       4 3    0
 *            +--------+---------------+----------------+----------+------+
 *            | 0 else | GiB           | granule        | offset   | 0    |
 *            |foreign | registry_top  | gib_t.entry    | in 16 B  |      |
 *            +--------+---------------+----------------+----------+------+
 *   Rotated right by 4, the index into registry_top is below 2^17 only for aligned pointers of the
 *   user half.
 *
 *   entry     63                      23 22 21    16 15     8 7       1  0
 *            +--------------------------+---+--------+--------+---------+---+
 *            | owner: heap address / 64 | C | gran.  | home   | class   | 0 |
 *            |                          |   | before |        | code    |   |   C: the heap is CHECKED
 *            +--------------------------+---+--------+--------+---------+---+
 *                                                     <------ tag ------->
 *   Entry xor owner is below 2^23 exactly for the owner's granules, and below 2^22 where the owner
 *   is FAST besides, so that one comparison is all that a free of a FAST heap spends on both. The
 *   class code * 2 is then the name of the class's slot in an area, "granules before" leads to the
 *   start of the run, and the home is the index of the CPU that the slab's blocks come from and go
 *   back to. The tag says all that a push has to know; the magazine that takes such blocks carries
 *   the same.
 *
 * Thread-safety: entries are written by the holder of the run (from taking it until giving it back)
 * and read by anyone. A reader that races with a writer holds a pointer into a run that is being
 * given back: a bug of the caller, which is named by whichever entry is read. Only the home changes
 * under a live run: it says where a free is cheapest, and a stale one is as correct.
 */
enum {
    GIB_SHIFT = 30,
    GIB_GRANULES = 1 << (GIB_SHIFT - GRANULE_SHIFT),
    GIB_SUPERSLABS = 1 << (GIB_SHIFT - SUPERSLAB_SHIFT),
    ADDRESS_BITS = 47,
    REGISTRY_TOP = 1 << (ADDRESS_BITS - GIB_SHIFT),
    BLOCKS_SHIFT = GRANULE_SHIFT - 4, /* a granule in 16 bytes */
    ENTRY_CODE_SHIFT = 1,
    ENTRY_HOME_SHIFT = 8,
    ENTRY_BACK_SHIFT = 16,
    ENTRY_OWNER_SHIFT = 23,
    ENTRY_CHECKED = 1 << (ENTRY_OWNER_SHIFT - 1),
    ENTRY_SLOT_MASK = 0xff, /* its lowest bit is always 0 */
    ENTRY_BACK_MASK = 0x3f,
    HOME_NONE = (1 << (ENTRY_BACK_SHIFT - ENTRY_HOME_SHIFT)) -
                1, /* also of CPUs whose index is not below it */
    HOME_LOOK =
        HOME_NONE - 1, /* no CPU's either: a free has to look at the slab; see slab_tell_home */
};

/* Class codes: the size classes, then what is no size class. Codes up to SLOT_COUNT have a slot in
 * every area. */
enum {
    CODE_MID = CLASS_COUNT, /* a run of granules that is one block */
    CODE_REGION,            /* blocks of all small sizes; "granules before" is the region's index */
    CODE_RELEASED,          /* given back by the owner; the owner may still hold stale pointers */
    SLOT_COUNT,
    CODE_DEAD = SLOT_COUNT, /* given back by a heap that was reset or destroyed; owner 0 */
    CODE_META,              /* the library's own records; owner 0 */
    CODE_CHECKED = 1 << 7,  /* or-ed to a code: the owner is CHECKED */
};

typedef uint64_t entry_t;

struct superslab;
struct large;

typedef struct gib {
    char lead
        /* unused: entries begin at no page's start, so registry_top is never 0 by chance */
        [HAK_LINE];
    _Atomic entry_t entry[GIB_GRANULES];
    struct superslab *_Atomic superslab[GIB_SUPERSLABS]; /* NULL: not ours */
    /* The large block that covers these 2 MiB; see large.h. A page of its own, which goes back to
     * the kernel with a block that covered all of the GiB. */
    struct large *_Atomic range[GIB_SUPERSLABS] __attribute__((aligned(HAK_PAGE)));
} gib_t;

_Static_assert(sizeof(((gib_t *)0)->range) == HAK_PAGE, "a page is purged with nothing else on it");

/*
 * By code: whether a number n of 16 bytes leads to a block, of d times 16 bytes, that its slab has.
 * The product of n and c = ceil(2^32 / d), modulo 2^32, is below c exactly where d divides n
 * (Lemire, Kaser, Kurz: "Faster remainder by direct computation", 2019; exact here because n < 2^16
 * and d <= 2^11), and then it is n / d times what d * c exceeds 2^32 by. So the last block's
 * product is the highest that may be. Where d is a power of two nothing is exceeded, and no slab
 * has a rest; for d = 1 the ceiling is 2^32, stored as 0. What is no size class has {0, 2^32 - 1}:
 * everything passes, and is refused by its slot, whose limit stays 0.
 */
typedef struct divisor {
    uint32_t multiply, most;
} divisor_t;
extern const divisor_t registry_divisors[SLOT_COUNT];

/*
 * For each GiB the address at which the entry of address 0 would lie, were its table as long as
 * that; 0: it has no table. So the granule's number in the whole address space is the index, and
 * nothing has to be masked.
 */
extern _Atomic uintptr_t registry_top[REGISTRY_TOP];

/* The tables of the GiB that an address lies in; NULL: there are none. */
HAK_INLINE gib_t *registry_gib(uintptr_t at)
{
    if (at >> ADDRESS_BITS) return NULL;
    size_t index = at >> GIB_SHIFT;
    uintptr_t origin = load_acquire(&registry_top[index]);
    return origin
               ? (gib_t *)(origin + index * GIB_GRANULES * sizeof(entry_t) - offsetof(gib_t, entry))
               : NULL;
}

/* The pointer rotated: below 2^43 where it is aligned to 16 and in the user half. */
HAK_INLINE uint64_t registry_rotate(const void *ptr)
{
    return (uint64_t)(uintptr_t)ptr >> 4 | (uint64_t)(uintptr_t)ptr << 60;
}

/* The pointer again, where it was aligned. */
HAK_INLINE uint64_t registry_unrotate(uint64_t rotated) { return rotated << 4; }

/* The entry for a rotated pointer; 0 where nothing of ours is near. One branch for each way not to
 * be ours. */
HAK_INLINE entry_t registry_entry(uint64_t rotated)
{
    uint64_t top =
        rotated >>
        (GIB_SHIFT -
         4); /* what a misaligned or high pointer has in its top bits is out of range here */
    if (HAK_UNLIKELY(top >= REGISTRY_TOP)) return 0;
    /* Acquire: pairs with the release in registry_cover; the table is zeroed before it is
     * linked. */
    uintptr_t origin = load_acquire(&registry_top[top]);
    if (HAK_UNLIKELY(!origin)) return 0;
    /* Relaxed: the pointer itself came from the thread that wrote the entry, through whatever
     * handed the block over. */
    return load_relaxed(
        (_Atomic entry_t *)(origin + (rotated >> (GRANULE_SHIFT - 4)) * sizeof(entry_t)));
}

/* The entry for any pointer, aligned or not. */
HAK_INLINE entry_t registry_lookup(const void *ptr)
{
    return registry_entry(registry_rotate((const void *)((uintptr_t)ptr & ~(uintptr_t)15)));
}

HAK_INLINE entry_t entry_owner_bits(const void *heap)
{
    return (uint64_t)(uintptr_t)heap << (ENTRY_OWNER_SHIFT - 6);
}
HAK_INLINE void *entry_heap(entry_t entry)
{
    return (void *)(uintptr_t)(entry >> ENTRY_OWNER_SHIFT << 6);
}
HAK_INLINE unsigned entry_code(entry_t entry)
{
    return (unsigned)(entry & ENTRY_SLOT_MASK) >> ENTRY_CODE_SHIFT;
}
HAK_INLINE unsigned entry_back(entry_t entry)
{
    return (unsigned)(entry >> ENTRY_BACK_SHIFT) & ENTRY_BACK_MASK;
}
HAK_INLINE unsigned entry_home(entry_t entry)
{
    return (unsigned)(entry >> ENTRY_HOME_SHIFT) & HOME_NONE;
}
/* Of an entry xor the owner bits of a heap: whether it is that heap's. */
HAK_INLINE bool entry_is_owned(entry_t mine) { return mine < (entry_t)1 << ENTRY_OWNER_SHIFT; }
/* The same: whether it is that heap's, and the heap is FAST. */
HAK_INLINE bool entry_is_fast(entry_t mine) { return mine < ENTRY_CHECKED; }
/* The code times 2, which is what sections call the slot (PERCPU_HOT), from an entry whose owner
 * bits are gone. */
HAK_INLINE size_t entry_slot(entry_t mine) { return mine & ENTRY_SLOT_MASK; }
/* What the granules of a slab and the magazine that takes its blocks have in common: the low 16
 * bits of an entry. */
HAK_INLINE uint16_t entry_tag(entry_t entry) { return (uint16_t)entry; }
HAK_INLINE uint16_t registry_tag(unsigned home, unsigned code)
{
    return (uint16_t)(home << ENTRY_HOME_SHIFT | code << ENTRY_CODE_SHIFT);
}
/* A rotated pointer's distance from the start of its run, in 16 bytes. */
HAK_INLINE uint32_t entry_offset(entry_t entry, uint64_t rotated)
{
    uint32_t back = (uint32_t)(entry >> (ENTRY_BACK_SHIFT - BLOCKS_SHIFT)) & ENTRY_BACK_MASK
                                                                                 << BLOCKS_SHIFT;
    return back | (uint32_t)(rotated & ((1 << BLOCKS_SHIFT) - 1));
}
/* How many blocks of a class, or parts of one, lie in `offset` times 16 bytes: exact where offset <
 * 2^16. */
HAK_INLINE uint32_t registry_quotient(unsigned cls, uint32_t offset)
{
    uint32_t multiply = registry_divisors[cls].multiply;
    return multiply ? (uint32_t)((uint64_t)offset * multiply >> 32) : offset;
}
/* Whether so many times 16 bytes lead to a block that a slab of the class has. */
HAK_INLINE bool divisor_divides(divisor_t divisor, uint32_t offset)
{
    return offset * divisor.multiply <= divisor.most;
}
/* Whether a rotated pointer is at the start of a block that its slab has. */
HAK_INLINE bool entry_divides(entry_t mine, uint64_t rotated)
{
    const divisor_t *divisor =
        (const divisor_t *)(const void *)((const char *)registry_divisors + entry_slot(mine) * 4);
    return divisor_divides(*divisor, entry_offset(mine, rotated));
}
HAK_INLINE void *entry_run_start(entry_t entry, const void *ptr)
{
    return (void *)(((uintptr_t)ptr & ~(uintptr_t)(GRANULE - 1)) -
                    (uintptr_t)entry_back(entry) * GRANULE);
}

/* Makes the tables for a range. False where the system refuses memory; what was made stays,
 * harmless. */
bool registry_cover(const void *base, size_t bytes);
/* For a process that locks all its memory and may lock little (mlockall, RLIMIT_MEMLOCK): unlocks
 * the pages of registry_top that have no entry, which is nearly all of its MiB. Once; false: it was
 * done before. */
bool registry_unlock(void);
/* The home's name in an entry, for the index of a CPU; HOME_NONE where there is none. */
HAK_INLINE unsigned registry_home(int index)
{
    return (unsigned)index < HOME_LOOK ? (unsigned)index : HOME_NONE;
}
/* Writes the entry of a granule that is a region, the heap's `index`th. */
void registry_set_region(const void *base, const void *heap, unsigned code, unsigned index);
/* Gives a run of blocks another home. */
void registry_set_home(const void *base, size_t granules, unsigned home);

/* Writes the entries of a run, which has no home. `heap` NULL: no owner. */
void registry_set_run(const void *base, size_t granules, const void *heap, unsigned code);
/* The same for what is added to a run of `had` granules. */
void registry_extend_run(const void *base, size_t had, size_t granules, const void *heap,
                         unsigned code);
/* Takes the owner from the entries of a run that was given back; they name no
 * heap then, and no heap's free takes the run for its own. */
void registry_disown(const void *base, size_t granules);
/* Marks a run of one block as given back; false where it was already. Of two that free it, one
 * succeeds. */
bool registry_release(const void *start);
/* The SuperSlab that a pointer lies in; NULL where it is not ours. */
HAK_INLINE struct superslab *registry_superslab(const void *ptr)
{
    gib_t *gib = registry_gib((uintptr_t)ptr);
    /* Acquire: pairs with the release in registry_set_superslab. */
    return gib ? load_acquire(
                     &gib->superslab[(uintptr_t)ptr >> SUPERSLAB_SHIFT & (GIB_SUPERSLABS - 1)])
               : NULL;
}
void registry_set_superslab(const void *base, struct superslab *superslab);
/* The record that covers the 2 MiB of ptr, a tombstone, or NULL. */
struct large *registry_range(const void *ptr);
void registry_set_range(const void *base, size_t bytes, struct large *large);
/* The same with NULL, for what no other block covers yet: the tables of each GiB that is covered
 * whole are purged, so that a block of a TiB leaves nothing behind. */
void registry_forget_range(const void *base, size_t bytes);

#endif
