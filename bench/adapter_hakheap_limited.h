/* hakheap with limits: each heap counts, has a limit of its own, and is below a parent that has one.
 * No limit is reached. */
#define HAK_BENCH_LIMITED 1
#include "adapter_hakheap.h"
