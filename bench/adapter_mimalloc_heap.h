/* mimalloc's heaps, of version 2: only the thread that has created a heap may allocate from it, so
 * this is for workloads of one thread. */
#ifndef HAK_BENCH_ADAPTER_H
#define HAK_BENCH_ADAPTER_H

#include "adapter_mimalloc_instance.h"

#define ALLOC_ONE_THREAD 1 /* no other thread than a heap's creator may use it */

static inline const char *alloc_name(void) { return "mimalloc-heaps"; }

#endif
