/* hakheap level 10: area - the running CPU's area of a heap: found, made, tagged */
#ifndef HAK_AREA_H
#define HAK_AREA_H

#include "home.h"
#include "record.h"

/*
 * Role: an area is the magazines of one heap on one CPU (percpu.h). Callers: adapt and the ladders,
 * inside the gate but where a call says so. Memory: records of the heap. Locks: AREAS and HEAP,
 * taken inside.
 */

/* The running CPU's area and index; made where there is none. NULL where the thread must go
 * without. */
area_t *area_get(hak_heap_t *heap, int *index, bool may_wait);
/* The same without making one and without a lock, also outside the gate. */
area_t *area_look(hak_heap_t *heap, int *index);
/* Tells a hot magazine which blocks are at home there. */
void area_tag(const hak_heap_t *heap, area_t *area, int index, unsigned cls);
/* An area's outbox, made when it is first wanted; NULL: there is none, and to make it would mean to
 * wait. */
magazine_t *area_outbox(hak_heap_t *heap, area_t *area);
/* Whether the CPU's frees of a class go to the outbox and back to their slabs, past the hot
 * magazine: see adapt.h. */
HAK_INLINE bool area_returns(const area_t *area, unsigned cls)
{
    return load_relaxed(&((area_t *)(uintptr_t)area)->hot[cls].tag) == TAG_NONE;
}

#endif
