/*
 * What every benchmark program has beside its workload: who the allocator is, and the proof that it is the one that runs.
 * Included once, after ADAPTER; the contract of adapters is in larson.c. Thread-safety: called before threads start and after
 * they have ended.
 */
#ifndef HAK_BENCH_PROGRAM_H
#define HAK_BENCH_PROGRAM_H

#include "harness.h"

#include <sys/mman.h>

enum { LEVELS = 2 };
static const char *const level_names[LEVELS] = {"fast", "checked"};

static char program_library[256]; /* base name of the file that the allocator's calls go to */

/* Ends the program where that is not the allocator named: its result would be worse than none. */
static inline void program_prove_library(void)
{
    harness_library_of(alloc_symbol(), program_library, sizeof program_library);
    if (strncmp(program_library, alloc_library(), strlen(alloc_library())) != 0)
        harness_exit(HARNESS_FAILED, "%s comes from %s, which is not %s", alloc_symbol(), program_library,
                     alloc_name());
}

static inline void program_print_identity(void)
{
    char version[32];
    alloc_version(version, sizeof version);
    printf("allocator=%s version=%s library=%s mode=%s has_heaps=%d", alloc_name(), version, program_library,
           alloc_mode(), alloc_has_heaps());
}

/* A heap has to exist before an allocator can say how its caches are reached. */
static inline void program_print_info(const char *level)
{
    alloc_heap_t *heap = alloc_heap_create(level, 0);
    program_print_identity();
    putchar('\n');
    alloc_heap_destroy(heap);
}

/* A heap, or the end of the program. Allocators without heaps give NULL. */
static inline alloc_heap_t *program_heap(const char *level, unsigned index)
{
    alloc_heap_t *heap = alloc_heap_create(level, index);
    if (!heap && alloc_has_heaps()) harness_exit(HARNESS_FAILED, "cannot create heap %u: %m", index);
    return heap;
}

/* Memory of the program's own, which the allocator is not charged for. */
static inline void *program_map(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) harness_exit(HARNESS_FAILED, "no memory for %zu bytes of the program's own", bytes);
    return at;
}

#endif
