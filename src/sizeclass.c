/* hakheap level 1: sizeclass - the table of classes */
#include "sizeclass.h"

#define ROW(bytes, granules) {bytes, (granules)*GRANULE / (bytes), granules},

const size_class_t size_classes[CLASS_COUNT] = {SIZE_CLASSES(ROW)};

/* A slab holds 8 blocks or more and leaves at most a sixteenth over. */
#define FITS(bytes, granules)                                                                   \
    _Static_assert((granules)*GRANULE / (bytes) >= 8, "a slab holds at least 8 blocks");        \
    _Static_assert((granules)*GRANULE % (bytes)*16 <= (granules)*GRANULE, "at most 1/16 over"); \
    _Static_assert((bytes) % BLOCK_ALIGN == 0, "blocks are aligned");
SIZE_CLASSES(FITS)

#define ONE(cls, mark)  (2 * (cls) + (mark))
#define TWO(cls, mark)  ONE(cls, mark), ONE(cls, mark)
#define FOUR(cls, mark) TWO(cls, mark), TWO(cls, mark)

/* clang-format off */
#define LOOKUP(mark) \
    TWO(0, mark), ONE(1, mark), ONE(2, mark), ONE(3, mark), ONE(4, mark), ONE(5, mark), ONE(6, mark), \
    ONE(7, mark), ONE(8, mark), ONE(9, mark), ONE(10, mark), ONE(11, mark), ONE(12, mark), ONE(13, mark), \
    ONE(14, mark), ONE(15, mark), TWO(16, mark), TWO(17, mark), TWO(18, mark), TWO(19, mark), TWO(20, mark), \
    TWO(21, mark), TWO(22, mark), TWO(23, mark), FOUR(24, mark), FOUR(25, mark), FOUR(26, mark), FOUR(27, mark), \
    FOUR(28, mark), FOUR(29, mark), FOUR(30, mark), FOUR(31, mark)
/* clang-format on */

const uint8_t size_class_slots[2 * LOOKUP_ENTRIES] = {LOOKUP(0), LOOKUP(SLOT_MARK)};
