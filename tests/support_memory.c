#define _GNU_SOURCE
#include "support_memory.h"

#include <stdio.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

/* The kernel reads for us, and says EFAULT where a load would be a signal. */
bool memory_is_readable(const void *at)
{
    char byte;
    struct iovec to = {&byte, 1};
    struct iovec from = {(void *)(size_t)at, 1};
    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

bool memory_is_resident(const void *page)
{
    unsigned char state;
    return mincore((void *)(size_t)page, 1, &state) == 0 && (state & 1);
}

bool memory_is_zero(const void *at, size_t bytes)
{
    const char *from = at;
    for (size_t i = 0; i < bytes; i++)
        if (from[i]) return false;
    return true;
}

size_t memory_mapped(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file) return 0;
    if (fscanf(file, "%lu", &pages) != 1) pages = 0;
    fclose(file);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}
