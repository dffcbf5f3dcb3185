/* include/hakheap/lua.h under the real Lua: its contract, quotas, errors, and the end of a state. */
#include <criterion/criterion.h>
#include <hakheap/lua.h>
#include <lauxlib.h>
#include <lualib.h>

#include "support_contract.h"

TestSuite(lua, .timeout = 120);

/* A state that knows Lua's own libraries. */
static lua_State *state_in(hak_heap_t *heap)
{
    lua_State *lua = lua_newstate(hak_lua_alloc, heap);
    cr_assert(lua != NULL);
    luaL_openlibs(lua);
    return lua;
}

static void run(lua_State *lua, const char *script)
{
    int status = luaL_dostring(lua, script);
    cr_assert(status == LUA_OK, "%s", lua_tostring(lua, -1));
}

Test(lua, a_state_lies_in_its_heap_and_leaves_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "lua");
        lua_State *lua = state_in(heap);
        cr_assert(hak_heap_of(lua) == heap);
        run(lua,
            "local t = {} for i = 1, 1000 do t[i] = ('x'):rep(i) end result = #table.concat(t)");
        lua_getglobal(lua, "result");
        cr_assert(lua_tointeger(lua, -1) == 500500);
        lua_close(lua);
        cr_assert(contract_unsound(heap, 0) == 0, "line %d", contract_unsound(heap, 0));
        hak_heap_destroy(heap);
    }
}
