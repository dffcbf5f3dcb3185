/* A block of a region as a heap takes one. */
#ifndef HAK_SUPPORT_REGION_H
#define HAK_SUPPORT_REGION_H

#include "region.h"

/* From a hole, else from the tail, within one word or over several. */
static inline char *support_region_take(region_t *region, unsigned units, unsigned alignment,
                                        const guard_t *guard)
{
    char *ptr = region_take(region, units, alignment, guard);
    if (!ptr && alignment == 1) ptr = region_append_word(region, units, guard);
    if (!ptr && alignment == 1) ptr = region_append(region, units, guard);
    return ptr ? ptr : region_append_aligned(region, units, alignment, guard);
}

#endif
