/* hakheap level 14: report - one snapshot of a heap, as structs and as text */
#ifndef HAK_REPORT_H
#define HAK_REPORT_H

#include "heap.h"

/*
 * Role: statistics. Inside the gate (report_write enters it itself, because its callback runs
 * outside). Nothing is counted on the fast path: what is live is what left the slabs and is in no
 * cache. Figures are taken without stopping any thread, each class under its lock, so while others
 * run they are each true of some moment, and clamped to make sense. No chain is followed and no
 * SuperSlab visited: every figure is a sum that is kept. Locks: AREAS once, each class's and HEAP.
 */
void report_stats(hak_heap_t *heap, hak_heap_stats_t *out);
void report_class(hak_heap_t *heap, unsigned cls, hak_class_stats_t *out);
/* 0, EINVAL, EDEADLK or ECANCELED. */
int report_write(const hak_heap_t *heap, hak_write_fn write, void *ctx);

#endif
