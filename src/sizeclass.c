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

#define ONE(cls)   (4 * (cls))
#define TWO(cls)   ONE(cls), ONE(cls)
#define FOUR(cls)  TWO(cls), TWO(cls)
#define EIGHT(cls) FOUR(cls), FOUR(cls)

const uint16_t size_class_slots[2 * LOOKUP_ENTRIES] = {
    /* coarse: 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024 */
    TWO(0),
    ONE(1),
    ONE(2),
    ONE(3),
    TWO(5),
    TWO(7),
    FOUR(11),
    FOUR(15),
    EIGHT(19),
    EIGHT(23),
    EIGHT(27),
    EIGHT(27),
    EIGHT(31),
    EIGHT(31),
    /* fine */
    TWO(0),
    ONE(1),
    ONE(2),
    ONE(3),
    ONE(4),
    ONE(5),
    ONE(6),
    ONE(7),
    ONE(8),
    ONE(9),
    ONE(10),
    ONE(11),
    ONE(12),
    ONE(13),
    ONE(14),
    ONE(15),
    TWO(16),
    TWO(17),
    TWO(18),
    TWO(19),
    TWO(20),
    TWO(21),
    TWO(22),
    TWO(23),
    FOUR(24),
    FOUR(25),
    FOUR(26),
    FOUR(27),
    FOUR(28),
    FOUR(29),
    FOUR(30),
    FOUR(31),
};
