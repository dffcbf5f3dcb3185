/**
 * @file lua.h
 * @brief A Lua state in a heap of its own: lua_Alloc over hakheap. Needs Lua 5.1 to 5.4.
 *
 *     lua_State *L = lua_newstate(hak_lua_alloc, heap);
 *
 * With a `live_limit` the heap is a quota: what exceeds it makes Lua collect its garbage, and where
 * that does not help the script gets Lua's own error "not enough memory". hak_heap_destroy() without
 * lua_close() ends a state at once; then no `__gc` metamethod runs, so files and sockets that the
 * script has open stay so.
 *
 * Lua's buffers (`string.rep`, `table.concat`, a file's `read` with long results) report that error
 * without a collection before. So a state with a quota should collect early, for instance when half
 * as much as was live is added: lua_gc(L, LUA_GCINC, 150, 0, 0).
 */
#ifndef HAKHEAP_LUA_H
#define HAKHEAP_LUA_H

#include <hakheap.h>
#include <lua.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Serves a Lua state from a heap.
 * @param ud the heap.
 * @param ptr the block, or NULL for one that does not exist yet.
 * @param osize the size of the block; where `ptr` is NULL, what kind of object Lua makes.
 * @param nsize bytes; 0 frees the block.
 * @return the block; NULL where `nsize` is 0, or where memory is refused: then `ptr` is whole. Lua
 *         counts on it that a block never fails to shrink, so one that the heap cannot make smaller
 *         stays as it is.
 */
static inline void *hak_lua_alloc(void *ud, void *ptr, size_t osize, size_t nsize)
{
    hak_heap_t *heap = (hak_heap_t *)ud;
    if (nsize == 0) {
        hak_heap_free(heap, ptr);
        return NULL;
    }
    if (!ptr) return hak_heap_malloc(heap, nsize);
    void *block = hak_heap_realloc(heap, ptr, nsize);
    return block || nsize > osize ? block : ptr;
}

#ifdef __cplusplus
}
#endif

#endif
