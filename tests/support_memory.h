/* What the kernel says of memory: whether it can be read, whether it is resident. Nothing here
 * faults. */
#ifndef HAK_SUPPORT_MEMORY_H
#define HAK_SUPPORT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

bool memory_is_readable(const void *at);
/* Whether the page at a page's address is in memory. False for what is not mapped. */
bool memory_is_resident(const void *page);
bool memory_is_zero(const void *at, size_t bytes);
/* The process's address space in bytes. */
size_t memory_mapped(void);

#endif
