/**
 * @file libuv.h
 * @brief libuv on heaps: hak_libuv_install() once, then a scope around calls.
 *
 * **Which heap.** libuv's hook is one for the process and carries no context. A request is served
 * by the scope of the thread that makes it (hak_scope_enter()), else by the process's default
 * (hak_scope_set_default()). A free finds the heap by itself, in whatever scope.
 * **Ownership.** Heaps stay the caller's. One goes only after every loop, handle and request that
 * allocated in it is closed. The default stays: libuv keeps memory of its own in it until
 * uv_library_shutdown().
 * **Threads.** A scope holds for its own thread. Threads of libuv's pool are in none: what they
 * allocate comes from the default.
 * **Refusal.** A refused request is UV_ENOMEM. In a few places libuv calls abort() in its place:
 * where the table of a loop's watched files or the pool of threads grows. So a limit bounds what a
 * loop's bug can take; it is no quota to run into.
 * **Traps.** Install first, before any other call of libuv. Callbacks run in the scope that
 * uv_run() was called in: what they allocate belongs to it, for whomever they work, unless they
 * enter one of their own. The result of uv_fs_realpath() comes from malloc, and libuv frees it by
 * the hook: so a block of no heap goes to free(), and is not reported as FOREIGN.
 */
#ifndef HAKHEAP_LIBUV_H
#define HAKHEAP_LIBUV_H

#include <hakheap.h>
#include <stdlib.h>
#include <uv.h>

#ifdef __cplusplus
extern "C" {
#endif

/** uv_free_func over scopes. @param ptr a block of any heap or of malloc, or NULL. */
static inline void hak_libuv_free(void *ptr)
{
    if (hak_heap_of(ptr)) hak_free(ptr);
    else free(ptr);
}

/**
 * Has libuv allocate by hak_scope_malloc() and its kind. Call it once, before anything else of
 * libuv, while no other thread uses it.
 * @return 0; UV_EINVAL: the process has no default heap, and nothing has changed.
 */
static inline int hak_libuv_install(void)
{
    hak_heap_t *outer = hak_scope_enter(NULL);
    hak_heap_t *of_process = hak_scope_heap();
    hak_scope_leave(outer);
    if (!of_process) return UV_EINVAL;
    return uv_replace_allocator(hak_scope_malloc, hak_scope_realloc, hak_scope_calloc,
                                hak_libuv_free);
}

#ifdef __cplusplus
}
#endif

#endif
