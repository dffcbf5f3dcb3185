/* hakheap level 1: stall - the table of armed points */
#include "stall.h"

#if HAK_DEBUG
stall_t *_Atomic stall_armed[STALL_COUNT];

void stall_reached(stall_t *stall)
{
    if (add_relaxed(&stall->visits, 1u) + 1 == stall->nth) stall->run(stall->ctx);
}
#endif
