/* hakheap level 13: life - a heap is created, emptied and destroyed */
#ifndef HAK_LIFE_H
#define HAK_LIFE_H

#include "heap.h"

/*
 * Role: the beginning and the end of a heap. Callers: api, inside the gate. Reset and destroy take
 * everything at once, by SuperSlabs and mappings, not by blocks; what the heap needs for that is
 * its own data.
 */

/* What an empty heap has in use, at least. */
size_t life_least(void);
/* NULL, and an errno value in *error, where the config or memory is refused. */
hak_heap_t *life_create(const hak_heap_config_t *config, int *error);
/* Every block gone; the heap stays. */
void life_reset(hak_heap_t *heap);
/* Every block gone, the heap too; its magic word is taken back already. */
void life_destroy(hak_heap_t *heap);

#endif
