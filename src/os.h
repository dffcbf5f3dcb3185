/* hakheap level 2: os - what the library asks of the kernel, behind one table */
#ifndef HAK_OS_H
#define HAK_OS_H

#include "base.h"
#include "hakheap.h"
#include "tls.h"

/*
 * Role: address space, memory, fences and the CPU's number. Nothing above this level makes a system
 * call. Callers: registry, superslab, reserve, large, percpu, validate. Thread-safe; no lock, no
 * state.
 *
 * The calls go through a table, so that tests can refuse the k-th of them. Every call may fail;
 * none leaves half of its work behind. unmap, resize and move take a mapping whole, as reserve,
 * map, resize, move or split made it: LeakSanitizer knows it by its start and size. What was moved
 * into a longer range is part of that one.
 */
typedef struct os_table {
    /* Reserves address space that can be neither read nor written, aligned; NULL where refused. */
    void *(*reserve)(size_t bytes, size_t alignment);
    /* Makes reserved pages readable and writable; they read as zero until written. */
    bool (*commit)(void *at, size_t bytes);
    /* Gives pages back to the kernel and keeps the range: it reads as zero afterwards. */
    bool (*purge)(void *at, size_t bytes);
    /* Makes committed pages what reserve() made them: gone, unreadable, and charged to no
     * process. */
    bool (*decommit)(void *at, size_t bytes);
    /* Maps zeroed memory, aligned (0: to a page); NULL where refused. */
    void *(*map)(size_t bytes, size_t alignment);
    /* Unmaps. False where the kernel refuses, for instance because the process has too many
     * mappings. */
    bool (*unmap)(void *at, size_t bytes);
    /* Lets pages go that the process has locked (mlockall): they stay, and count as locked no
     * more. */
    bool (*unlock)(void *at, size_t bytes);
    /* Grows or shrinks a mapping where it is. */
    bool (*resize)(void *at, size_t bytes, size_t wanted);
    /* Moves a mapping's pages, and grows it, into a range from reserve(). */
    bool (*move)(void *from, size_t bytes, void *to, size_t wanted);
    /* Tells that a mapping is two from here on, the first of so many bytes. The kernel is not
     * asked. */
    void (*split)(void *at, size_t bytes, size_t first);
    /* Takes that back. */
    void (*join)(void *at, size_t bytes, size_t first);
    /* Bytes of a page: the smallest unit that purge takes. */
    size_t (*page_size)(void);
    /* Milliseconds since some time in the past, about; cheap, and never less than before. */
    uint64_t (*milliseconds)(void);
    /* Threads that the process has; 0 where the system does not say. */
    size_t (*threads)(void);
    /* Asks for the right to fence; once a process. */
    bool (*fence_register)(void);
    /* Aborts every rseq section now running in this process, and orders memory across its
     * CPUs. */
    bool (*fence)(void);
} os_table_t;

extern const os_table_t os_kernel;
extern const os_table_t *os; /* written by tests only, before any other thread runs */

/* The given table, or where that is NULL the process's. */
HAK_INLINE const os_table_t *os_or(const os_table_t *own) { return own ? own : os; }

/* purge of such a table; a refusal is told by hak_last_error(). */
HAK_INLINE bool os_purge_by(const os_table_t *own, void *at, size_t bytes)
{
    if (os_or(own)->purge(at, bytes)) return true;
    hak_tls.last_error = HAK_ERROR_PURGE;
    return false;
}
/* A function that others point to, which need not be inline everywhere. */
static inline bool os_purge(void *at, size_t bytes) { return os_purge_by(NULL, at, bytes); }

/* Bytes of the machine's memory; 0 where the system does not say. */
size_t os_memory(void);
/* What RLIMIT_AS grants; SIZE_MAX: no limit. */
size_t os_address_space(void);
unsigned os_cpu_count(
    void); /* one more than the highest number of a CPU that the machine has, on-line or not */
unsigned os_cpu(void);     /* the CPU the thread runs on, or ran on an instant ago */
uint32_t os_process(void); /* the process's id */
bool os_on_signal_stack(
    void); /* whether this is a handler on a stack of its own; async-signal-safe */
void os_random(void *out, size_t bytes);
/* Bytes of the rseq area that the kernel maintains; 20 where it does not say. */
size_t os_rseq_feature_size(void);
const char *os_environment(const char *name); /* NULL in set-uid programs */
/* Whether another module of the process (a plugin, the program, a shared library) has a copy of
 * this library; gives its path, cut to `bytes`. Slow. Async-signal-safe; false where the kernel
 * does not say. */
bool os_other_copy(char *path, size_t bytes);
/* Writes on standard error. No cancellation point, and errno stays as it was. */
void os_print(const char *text, size_t bytes);
/* Keeps the module that holds `symbol` mapped for ever, also where a plugin that links us
 * statically is closed. */
void os_pin_module(const void *symbol);

#endif
