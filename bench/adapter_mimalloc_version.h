/* mimalloc's version as all of its adapters tell it. */
#ifndef HAK_BENCH_ADAPTER_MIMALLOC_VERSION_H
#define HAK_BENCH_ADAPTER_MIMALLOC_VERSION_H

#include <mimalloc.h>
#include <stdio.h>

/* mi_version() has a digit each for major, minor and patch; or, with four and more digits, two for
 * the patch; or, with five, two for the minor as well. */
static inline void alloc_version(char *text, size_t size)
{
    int version = mi_version();
    int major = version >= 10000  ? 10000
                : version >= 1000 ? 1000
                                  : 100,
        minor = version >= 1000 ? 100 : 10;
    snprintf(text, size, "%d.%d.%d", version / major, version % major / minor, version % minor);
}

#endif
