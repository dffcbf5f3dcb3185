/* hakheap level 1: sizeclass - request size -> class -> block size, slab size */
#ifndef HAK_SIZECLASS_H
#define HAK_SIZECLASS_H

#include "base.h"

/*
 * Role: all arithmetic on sizes. Pure; no state.
 *
 * Classes: steps of 16 bytes to 128, then 8 per doubling to 32 KiB, so a block wastes at most 12.5
 * % of what was asked for (the scheme of jemalloc, with 8 instead of 4 per doubling). A class is a
 * number; slot = class * 2 names its place in an area of magazines.
 *
 * A slab of a class is `granules` of 16 KiB: the fewest that hold 8 blocks and leave at most 1/16
 * over. A class's first slabs may be shorter: see refill.c.
 */
enum {
    GRANULE_SHIFT = 14,
    GRANULE = 1 << GRANULE_SHIFT,
    SUPERSLAB_SHIFT = 21,
    SUPERSLAB = 1 << SUPERSLAB_SHIFT,
    SUPERSLAB_GRANULES = SUPERSLAB / GRANULE,
    BLOCK_ALIGN = 16,
    CLASS_COUNT = 72,
    SMALL_MAX = 32 * 1024,   /* the largest block that lives in a slab */
    MID_MAX = SUPERSLAB / 2, /* the largest block that lives in a run of granules of its own */
    LOOKUP_MAX = 1024,       /* sizes up to here are looked up, larger ones computed */
};

/* X(block bytes, granules a slab) in the order of the classes. */
/* clang-format off */
#define SIZE_CLASSES(X) \
    X(16, 1) X(32, 1) X(48, 1) X(64, 1) X(80, 1) X(96, 1) X(112, 1) X(128, 1) X(144, 1) X(160, 1) X(176, 1) \
    X(192, 1) X(208, 1) X(224, 1) X(240, 1) X(256, 1) X(288, 1) X(320, 1) X(352, 1) X(384, 1) X(416, 1)     \
    X(448, 1) X(480, 1) X(512, 1) X(576, 1) X(640, 1) X(704, 1) X(768, 1) X(832, 1) X(896, 1) X(960, 1)     \
    X(1024, 1) X(1152, 1) X(1280, 1) X(1408, 1) X(1536, 1) X(1664, 2) X(1792, 1) X(1920, 1) X(2048, 1)      \
    X(2304, 2) X(2560, 2) X(2816, 2) X(3072, 2) X(3328, 3) X(3584, 2) X(3840, 2) X(4096, 2) X(4608, 3)      \
    X(5120, 3) X(5632, 4) X(6144, 3) X(6656, 5) X(7168, 4) X(7680, 4) X(8192, 4) X(9216, 6) X(10240, 5)     \
    X(11264, 7) X(12288, 6) X(13312, 9) X(14336, 7) X(15360, 8) X(16384, 8) X(18432, 9) X(20480, 10)        \
    X(22528, 11) X(24576, 12) X(26624, 13) X(28672, 14) X(30720, 15) X(32768, 16)
/* clang-format on */

typedef struct size_class {
    uint32_t bytes;    /* a block */
    uint16_t blocks;   /* in a slab */
    uint16_t granules; /* in a slab */
} size_class_t;

extern const size_class_t size_classes[CLASS_COUNT];

/* Classes by size up to LOOKUP_MAX: a table, and its marked copy. */
enum {
    LOOKUP_ENTRIES = LOOKUP_MAX / BLOCK_ALIGN + 1,
    CLASSES_PLAIN = BLOCK_ALIGN - 1, /* added to a size before it is divided: rounds it up; */
    CLASSES_MARKED = CLASSES_PLAIN + LOOKUP_ENTRIES * BLOCK_ALIGN, /* and chooses the copy */
    SLOT_MARK = 1, /* what a heap wants to know when it has the slot, without a load of its own */
};
extern const uint8_t
    size_class_slots[2 * LOOKUP_ENTRIES]; /* the class times 2: what sections call the slot */

/* `table` is CLASSES_PLAIN or CLASSES_MARKED; also 0, what a heap that is gone may
 * read, stays inside the tables. */
HAK_INLINE size_t sizeclass_slot(size_t table, size_t size)
{
    return size_class_slots[(table + size) / BLOCK_ALIGN];
}
HAK_INLINE unsigned sizeclass_lookup(size_t table, size_t size)
{
    return (unsigned)sizeclass_slot(table, size) / 2;
}

/* The class of any size up to SMALL_MAX: the three bits below the highest one of (size - 1) choose
 * within a doubling. */
HAK_INLINE unsigned sizeclass_of(size_t size)
{
    if (size <= 128) return size == 0 ? 0 : (unsigned)(size - 1) / 16;
    unsigned top = 63u - (unsigned)__builtin_clzll(size - 1);
    return (top - 6) * 8 + (unsigned)((size - 1) >> (top - 3)) - 8;
}

#endif
