/**
 * @file sqlite.h
 * @brief SQLite in heaps: its memory methods over hakheap's scopes. Needs SQLite 3.6 or later.
 *
 *     hak_sqlite_config(heap); // before SQLite's first call
 *     ...
 *     hak_heap_t *outer = hak_scope_enter(tenant);
 *     sqlite3_step(statement); // takes its memory from the tenant's heap
 *     hak_scope_leave(outer);
 *
 * SQLite's hooks are the process's and name no connection: so the heap is that of the calling
 * thread's scope, and outside of every scope the one given at the start. A block that grows stays in
 * its heap, and is freed in whatever scope. Where each call on a connection is made in the scope of
 * one heap, all memory of the connection lies there: its pages, its statements, its lookaside. What
 * connections share does too, if they are the first to need it: so two heaps should not open the
 * same file, nor share a cache. Close a connection before its heap is destroyed.
 */
#ifndef HAKHEAP_SQLITE_H
#define HAKHEAP_SQLITE_H

#include <hakheap.h>
#include <sqlite3.h>

#ifdef __cplusplus
extern "C" {
#endif

/** @cond internal */
/* SQLite's sizes are of type int, and a multiple of eight. */
static inline int hak_sqlite_size(size_t bytes)
{
    return bytes > 0x7ffffff8 ? 0x7ffffff8 : (int)bytes;
}

static inline void *hak_sqlite_malloc(int bytes)
{
    return bytes > 0 ? hak_scope_malloc((size_t)bytes) : NULL;
}

static inline void hak_sqlite_free(void *ptr) { hak_free(ptr); }

static inline void *hak_sqlite_realloc(void *ptr, int bytes)
{
    return hak_scope_realloc(ptr, (size_t)bytes);
}

static inline int hak_sqlite_usable(void *ptr) { return hak_sqlite_size(hak_usable_size(ptr)); }

static inline int hak_sqlite_roundup(int bytes)
{
    return hak_sqlite_size(hak_good_size((size_t)bytes));
}

static inline int hak_sqlite_init(void *heap)
{
    return hak_scope_set_default((hak_heap_t *)heap) == 0 ? SQLITE_OK : SQLITE_MISUSE;
}

/* The heap may be destroyed from here on: the default of the process must not be left at it. */
static inline void hak_sqlite_shutdown(void *heap)
{
    hak_heap_t *outer = hak_scope_enter(NULL);
    if (hak_scope_heap() == (hak_heap_t *)heap) (void)hak_scope_set_default(NULL);
    hak_scope_leave(outer);
}
/** @endcond */

/**
 * Makes SQLite take its memory from heaps, and leaves its memory statistics off, which would take a
 * mutex for each block: heaps count by themselves.
 * @param heap serves threads that are in no scope, from sqlite3_initialize() on: it becomes the
 *        process's default heap, see hak_scope_set_default(). It must live until after
 *        sqlite3_shutdown(), which leaves the process without a default, unless another was named
 *        meanwhile.
 * @return SQLITE_OK; SQLITE_MISUSE where SQLite is initialised already, or `heap` is NULL.
 */
static inline int hak_sqlite_config(hak_heap_t *heap)
{
    if (!heap) return SQLITE_MISUSE;
    sqlite3_mem_methods methods = {
        hak_sqlite_malloc,  hak_sqlite_free, hak_sqlite_realloc,  hak_sqlite_usable,
        hak_sqlite_roundup, hak_sqlite_init, hak_sqlite_shutdown, heap};
    int error = sqlite3_config(SQLITE_CONFIG_MALLOC, &methods);
    return error != SQLITE_OK ? error : sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
}

#ifdef __cplusplus
}
#endif

#endif
