/* jemalloc's control calls as both of its adapters use them. */
#ifndef HAK_BENCH_ADAPTER_JEMALLOC_CONTROL_H
#define HAK_BENCH_ADAPTER_JEMALLOC_CONTROL_H

#include "harness.h"

#include <jemalloc/jemalloc.h>

/* "5.3.0-0-g54eaed1d..." without the commit. */
static inline void alloc_version(char *text, size_t size)
{
    const char *version = "unknown";
    size_t length = sizeof version;
    mallctl("version", &version, &length, NULL, 0);
    snprintf(text, size, "%.*s", (int)strcspn(version, "-"), version);
}

/* Runs the command `arena.<index>.<verb>`. */
static inline void jemalloc_arena_command(unsigned index, const char *verb)
{
    char name[64];
    snprintf(name, sizeof name, "arena.%u.%s", index, verb);
    int error = mallctl(name, NULL, NULL, NULL, 0);
    if (error) harness_exit(HARNESS_FAILED, "jemalloc refuses %s: %s", name, strerror(error));
}

#endif
