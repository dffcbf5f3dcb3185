/* hakheap level 8: record - memory for a heap's own records */
#ifndef HAK_RECORD_H
#define HAK_RECORD_H

#include "heap.h"

/*
 * Role: zeroed memory that lives as long as the heap: class records, areas, cold arrays, sets of
 * homes, maps of regions, records of large blocks. Callers: home, area, runs and the ladders.
 * Memory: pages of meta. Lock: HEAP, around every call but record_class and record_cradle. Records
 * are never given back one by one.
 *
 * Invariant: metadata_bytes of the heap == its pages * 4 KiB + what runs.c charges for granules.
 */

/* NULL and hak_last_error() where memory is refused. `may_wait` false, for a free: NULL, and no
 * error, rather than wait for a lock or ask the kernel. */
void *record_take(hak_heap_t *heap, size_t bytes, bool may_wait);
/* The record of a class, made where there is none; NULL where memory is refused. No lock is
 * held. */
class_state_t *record_class(hak_heap_t *heap, unsigned cls);
/* Whole granules for a heap that begins, with whatever is in them; NULL and hak_last_error() where
 * refused, and only then. No lock needed. */
char *record_cradle(size_t granules);

#endif
