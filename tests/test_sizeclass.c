/* sizeclass: the table, the lookup and the arithmetic agree, for every size and every offset. */
#include "sizeclass.h"

#include <criterion/criterion.h>

TestSuite(sizeclass, .timeout = 600);

Test(sizeclass, the_lookup_is_what_is_computed)
{
    for (size_t size = 0; size <= LOOKUP_MAX; size++)
        cr_assert(sizeclass_lookup(CLASSES_PLAIN, size) == sizeclass_of(size),
                  "%zu bytes: %u looked up, %u computed", size,
                  sizeclass_lookup(CLASSES_PLAIN, size), sizeclass_of(size));
}

/* The marked copy is the same table; what a heap that is gone reads (0) has no mark. */
Test(sizeclass, marks_change_no_class)
{
    for (size_t size = 0; size <= LOOKUP_MAX; size++) {
        unsigned slot = (unsigned)sizeclass_slot(CLASSES_PLAIN, size);
        cr_assert(!(slot & SLOT_MARK) && sizeclass_slot(CLASSES_MARKED, size) == slot + SLOT_MARK);
        cr_assert(sizeclass_lookup(CLASSES_MARKED, size) == slot / 2);
        cr_assert(!(sizeclass_slot(0, size) & SLOT_MARK));
    }
}

/* The class of a size is the first that holds it. */
Test(sizeclass, every_size_fits_its_class_best)
{
    unsigned first = 0;
    for (size_t size = 0; size <= SMALL_MAX; size++) {
        while (size_classes[first].bytes < size) first++;
        cr_assert(sizeclass_of(size) == first, "%zu bytes: class %u, not %u", size,
                  sizeclass_of(size), first);
    }
    cr_assert(first == CLASS_COUNT - 1);
}

Test(sizeclass, little_is_wasted)
{
    for (size_t size = 1; size <= SMALL_MAX; size++) {
        size_t waste = size_classes[sizeclass_of(size)].bytes - size;
        if (size <= 128) cr_assert(waste < BLOCK_ALIGN, "%zu bytes waste %zu", size, waste);
        else cr_assert(waste * 8 <= size, "%zu bytes waste %zu", size, waste);
    }
}

Test(sizeclass, blocks_ascend_and_are_aligned)
{
    cr_assert(size_classes[0].bytes == BLOCK_ALIGN);
    cr_assert(size_classes[CLASS_COUNT - 1].bytes == SMALL_MAX);
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        uint32_t bytes = size_classes[cls].bytes;
        cr_assert(bytes % BLOCK_ALIGN == 0, "class %u", cls);
        cr_assert(cls == 0 || bytes > size_classes[cls - 1].bytes, "class %u", cls);
        cr_assert(sizeclass_of(bytes) == cls, "class %u", cls);
        if (cls + 1 < CLASS_COUNT) cr_assert(sizeclass_of(bytes + 1) == cls + 1, "class %u", cls);
    }
}

/* Slabs begin at a granule. So a size that is a multiple of an alignment gets an aligned block of
 * the first class that holds it. */
Test(sizeclass, multiples_of_an_alignment_have_classes_that_are_multiples)
{
    for (size_t alignment = BLOCK_ALIGN; alignment <= GRANULE; alignment *= 2)
        for (size_t size = alignment; size <= SMALL_MAX; size += alignment) {
            size_t bytes = size_classes[sizeclass_of(size)].bytes;
            cr_assert(bytes % alignment == 0, "%zu bytes, aligned to %zu: %zu", size, alignment,
                      bytes);
        }
}

static bool slab_is_good(size_t granules, size_t bytes)
{
    size_t blocks = granules * GRANULE / bytes;
    return blocks >= 8 && (granules * GRANULE - blocks * bytes) * 16 <= granules * GRANULE;
}

/* The fewest granules that hold 8 blocks and leave at most a sixteenth over. */
Test(sizeclass, slabs_are_the_smallest_good_ones)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        const size_class_t *row = &size_classes[cls];
        size_t granules = 1;
        while (!slab_is_good(granules, row->bytes)) granules++;
        cr_assert(row->granules == granules, "class %u: %u granules, not %zu", cls, row->granules,
                  granules);
        cr_assert(row->blocks == granules * GRANULE / row->bytes, "class %u: %u blocks", cls,
                  row->blocks);
        cr_assert(granules <= SUPERSLAB_GRANULES);
    }
}

Test(sizeclass, units_fit_each_other)
{
    cr_assert(SUPERSLAB_GRANULES == 128);
    cr_assert(GRANULE == 16384 && SUPERSLAB == 2097152);
    cr_assert((size_t)SUPERSLAB_GRANULES * GRANULE == SUPERSLAB);
    cr_assert(MID_MAX == SUPERSLAB / 2);
}
