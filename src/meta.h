/* hakheap level 5: meta - pages for the library's own records: heaps, areas, class records */
#ifndef HAK_META_H
#define HAK_META_H

#include "superslab.h"

/*
 * Role: 4 KiB pages, one or a few neighbours at a time, in SuperSlabs of their own whose granules
 * are registered with CODE_META. A pointer into them may always be read, so a value that claims to
 * be a heap can be tested. As many pages as a granule has, or more, begin at a granule, and their
 * entries, and the bits of those that were written, are the caller's until it gives them back.
 * Callers: record, life. Thread-safe; lock of rank META. What pages have in them is anybody's
 * guess.
 */
enum { META_TOUCHED = 1024 /* free pages kept with their content, 4 MiB; more are purged */ };

void *meta_take(size_t pages, uint32_t *refused);
/* The same without waiting for a lock or asking the kernel; NULL also where that would be
 * needed. */
void *meta_take_now(size_t pages);
void meta_put(void *at, size_t pages);
/* Purges all free pages. Returns bytes. */
size_t meta_trim(void);
/* So many pages are going to be written. Only for as many as a granule has, or more. */
void meta_note(char *at, size_t pages);

#endif
