/* What the tests of the public contract share: heaps by level, figures of a heap and of the
 * process, how much to do. */
#ifndef HAK_SUPPORT_CONTRACT_H
#define HAK_SUPPORT_CONTRACT_H

#include <stdbool.h>
#include <stddef.h>

#include "hakheap.h"

/* Instrumented code is slow, and holds memory of its own: loops are shorter there, and resident
 * memory proves nothing. */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||       \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(undefined_behavior_sanitizer)
#define CONTRACT_SANITIZED 1
#else
#define CONTRACT_SANITIZED 0
#endif

#define CONTRACT_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Both levels, as an index: 0 FAST, 1 CHECKED. */
enum { CONTRACT_LEVELS = 2 };

/* A heap of that level; NULL where it is refused. */
hak_heap_t *contract_heap(int level, const char *name);

/* How often to repeat something: `most`, or an eighth where HAK_TEST_QUICK is set or the build is
 * instrumented. */
size_t contract_work(size_t most);
/* Whether magazines are reached by the locked twin, which needs no fence. */
bool contract_is_locked(void);

hak_heap_stats_t contract_stats(const hak_heap_t *heap);
/* Bytes of a heap's cradle that the heap's own record does not have: what stays committed beside
 * records where nothing is in use. */
size_t contract_cradle(const hak_heap_t *heap);
/* Blocks that the slabs of a class have room for. */
size_t contract_room(const hak_heap_t *heap, unsigned cls);
/* First in a test, or in a suite's .init: small blocks of all heaps lie in slabs from the first on,
 * and none in regions. */
void contract_slabs_only(void);
/* What the balance says must be committed. */
size_t contract_sum(const hak_heap_stats_t *stats);
/* Free bytes in magazines. */
size_t contract_cached(const hak_heap_stats_t *stats);
/* Of a heap that no thread uses now: whether its cache budget has been charged for exactly what its
 * caches hold and may hold. */
bool contract_is_charged(const hak_heap_t *heap);
/*
 * Looks at a heap that no thread uses now: 0 where hak_heap_check() finds nothing, the balance is
 * exact, the budget too, and as many blocks live as given; else the source line of what is wrong.
 */
int contract_unsound(const hak_heap_t *heap, size_t live_blocks);

/* Of this process: resident bytes, and mappings. 0 where the kernel does not say. */
size_t contract_resident(void);
size_t contract_mappings(void);

/* Whether every one of `bytes` is zero. */
bool contract_is_zero(const void *at, size_t bytes);
/* Fills a block by size and seed, and tells whether it still holds that. */
void contract_fill(void *at, size_t bytes, unsigned seed);
bool contract_holds(const void *at, size_t bytes, unsigned seed);

/* The CPUs this process may run on, at most `most`; returns how many. */
size_t contract_cpus(int *out, size_t most);
/* Moves the calling thread to a CPU; false where the kernel refuses. */
bool contract_move_to(int cpu);

#endif
