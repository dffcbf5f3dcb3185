/* mimalloc's heaps, of version 3.3 and later: every thread may allocate from every heap. */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "adapter_mimalloc_instance.h"

_Static_assert(MI_MALLOC_VERSION >= 30300, "the header is not that of mimalloc 3");

static inline const char *alloc_name(void) { return "mimalloc3"; }

#endif
