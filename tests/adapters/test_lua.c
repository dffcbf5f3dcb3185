/* include/hakheap/lua.h under the real Lua: its contract, quotas, errors, and the end of a state. */
#include <criterion/criterion.h>
#include <hakheap/lua.h>
#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>
#include <string.h>

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

/* What luaL_dostring() tells as true or false, in full. */
static int status_of(lua_State *lua, const char *script)
{
    int status = luaL_loadstring(lua, script);
    return status != LUA_OK ? status : lua_pcall(lua, 0, 0, 0);
}

static void run(lua_State *lua, const char *script)
{
    int status = status_of(lua, script);
    cr_assert(status == LUA_OK, "%s", lua_tostring(lua, -1));
}

static hak_heap_t *quota_of(int level, size_t bytes)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "quota";
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.live_limit = bytes;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    return heap;
}

static void require_empty(hak_heap_t *heap)
{
    cr_assert(contract_unsound(heap, 0) == 0, "line %d", contract_unsound(heap, 0));
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Tables, strings of all sizes, closures, coroutines, metatables, sorts and errors. */
static const char *const everything =
    "local t = {} for i = 1, 3000 do t[i] = ('x'):rep(i % 300) .. i end\n"
    "table.sort(t) local joined = table.concat(t, ',')\n"
    "local words = {} for w in joined:gmatch('%d+') do words[w] = #w end\n"
    "local weak = setmetatable({}, {__mode = 'v'})\n"
    "for i = 1, 1000 do weak[i] = {i, function() return i end} end\n"
    "local sum = 0\n"
    "for i = 1, 300 do\n"
    "  local c = coroutine.wrap(function(n) for k = 1, n do coroutine.yield(k) end return 0 end)\n"
    "  sum = sum + c(i) if i > 1 then sum = sum + c() end\n"
    "end\n"
    "for i = 1, 100 do pcall(error, {('e'):rep(i * 10)}) end\n"
    "local big = ('y'):rep(3000000) big = big:upper():sub(5, -5)\n"
    "collectgarbage() result = sum + #big";

Test(lua, a_state_lies_in_its_heap_and_leaves_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "lua");
        lua_State *lua = state_in(heap);
        cr_assert(hak_heap_of(lua) == heap);
        run(lua, everything);
        lua_getglobal(lua, "result");
        cr_assert(lua_tointeger(lua, -1) == 300 + 299 * 2 + 2999992);
        cr_assert(hak_heap_check(heap) == 0);
        cr_assert(contract_stats(heap).live_bytes >= (size_t)lua_gc(lua, LUA_GCCOUNT) << 10);
        lua_close(lua);
        require_empty(heap);
    }
}

/* Each kind of collection moves, shrinks and frees blocks at other points of the program. */
Test(lua, every_collector_works)
{
    static const char *const modes[] = {"generational", "incremental"};
    for (int mode = 0; mode < 2; mode++) {
        hak_heap_t *heap = contract_heap(mode, "lua");
        lua_State *lua = state_in(heap);
        lua_pushstring(lua, modes[mode]);
        lua_setglobal(lua, "mode");
        run(lua, "collectgarbage(mode) collectgarbage('setpause', 100)");
        for (size_t i = 0; i < contract_work(2); i++) run(lua, everything);
        lua_close(lua);
        require_empty(heap);
    }
}

/* The function by itself, in the words of Lua's manual. */
Test(lua, it_keeps_the_contract_of_lua_Alloc)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "lua");
        cr_assert(hak_lua_alloc(heap, NULL, 0, 0) == NULL);
        cr_assert(hak_lua_alloc(heap, NULL, LUA_TTABLE, 0) == NULL);
        /* Of a block that does not exist the size is a kind of object, however large or small. */
        char *block = hak_lua_alloc(heap, NULL, LUA_TTHREAD, 5000);
        cr_assert(hak_heap_of(block) == heap && hak_usable_size(block) >= 5000);
        memset(block, 'x', 5000);
        for (size_t size = 5000, next = 400000; next > 0; size = next, next /= 3) {
            block = hak_lua_alloc(heap, block, size, next);
            cr_assert(block && hak_usable_size(block) >= next);
            cr_assert(block[0] == 'x' && block[(next < 5000 ? next : 5000) - 1] == 'x');
        }
        cr_assert(hak_lua_alloc(heap, block, 1, 0) == NULL);
        /* A size that cannot be had leaves the block. */
        block = hak_lua_alloc(heap, NULL, 0, 100);
        block[99] = 'y';
        cr_assert(hak_lua_alloc(heap, NULL, 0, PTRDIFF_MAX) == NULL);
        cr_assert(hak_lua_alloc(heap, block, 100, PTRDIFF_MAX) == NULL && block[99] == 'y');
        cr_assert(hak_lua_alloc(heap, block, 100, 0) == NULL);
        require_empty(heap);
    }
}

/* A closed heap gives no blocks, so a block that would have to move to shrink cannot. */
Test(lua, shrinking_never_fails)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "lua");
        char *block = hak_lua_alloc(heap, NULL, 0, 100000);
        memset(block, 'x', 100000);
        cr_assert(hak_heap_close(heap) == 0);
        cr_assert(hak_lua_alloc(heap, NULL, 0, 10) == NULL);
        cr_assert(hak_lua_alloc(heap, block, 100000, 500000) == NULL);
        for (size_t size = 100000, next; size > 1; size = next) {
            next = size / 2;
            char *less = hak_lua_alloc(heap, block, size, next);
            cr_assert(less != NULL && less[0] == 'x' && less[next - 1] == 'x');
            block = less;
        }
        cr_assert(hak_lua_alloc(heap, block, 1, 0) == NULL);
        require_empty(heap);
    }
}

/* ---- Quotas ---- */

static const char *const runaway =
    "local t = {} while true do t[#t + 1] = ('x'):rep(1000) .. #t end";

Test(lua, a_runaway_script_gets_luas_own_error_every_time)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = quota_of(level, 1 << 20);
        lua_State *lua = state_in(heap);
        for (size_t i = 0; i < contract_work(100); i++) {
            cr_assert(status_of(lua, runaway) == LUA_ERRMEM);
            cr_assert(strcmp(lua_tostring(lua, -1), "not enough memory") == 0);
            lua_settop(lua, 0);
            cr_assert(hak_heap_refused_by(heap) == heap);
            run(lua, "local t = {} for i = 1, 100 do t[i] = ('y'):rep(i) end");
        }
        lua_close(lua);
        require_empty(heap);
    }
}

/* Garbage of many times the quota: each refusal makes Lua collect, and the script sees none. */
Test(lua, garbage_is_no_error)
{
    hak_heap_t *heap = quota_of(0, 1 << 20);
    lua_State *lua = state_in(heap);
    run(lua, "collectgarbage('stop')\n"
             "local z = ('z'):rep(2000) for i = 1, 3000 do local s = z .. i end result = "
             "collectgarbage('count')");
    hak_usage_t usage = {.struct_size = sizeof usage};
    cr_assert(hak_heap_usage(heap, &usage) == 0);
    cr_assert(usage.refusals > 0 && usage.tree_peak_bytes <= 1 << 20);
    lua_close(lua);
    require_empty(heap);
}

/* The script may catch the error itself, and go on. */
Test(lua, a_script_may_catch_it)
{
    hak_heap_t *heap = quota_of(1, 2 << 20);
    lua_State *lua = state_in(heap);
    run(lua,
        "for i = 1, 10 do\n"
        "  local ok, words = pcall(function() local s = 'x' while true do s = s .. s end end)\n"
        "  assert(not ok and words == 'not enough memory', words)\n"
        "  ok, words = pcall(function() local t = {} while true do t = {t} end end)\n"
        "  assert(not ok and words == 'not enough memory', words)\n"
        "  assert(#('x'):rep(100000) == 100000)\n"
        "end");
    lua_close(lua);
    require_empty(heap);
}

Test(lua, a_state_that_does_not_fit_is_none)
{
    for (size_t bytes = 16; bytes < 8000; bytes += 16) {
        hak_heap_t *heap = quota_of(0, bytes);
        lua_State *lua = lua_newstate(hak_lua_alloc, heap);
        if (lua) lua_close(lua);
        cr_assert(lua != NULL || bytes < 6000);
        require_empty(heap);
    }
}

/* ---- The end of a state ---- */

Test(lua, destroy_ends_a_state_and_its_memory_at_once)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "lua");
        (void)hak_reserve_trim();
        size_t before = contract_resident();
        lua_State *lua = state_in(heap);
        run(lua, "keep = {} for i = 1, 300000 do keep[i] = {i} end");
        size_t full = contract_resident();
        cr_assert(hak_heap_destroy(heap) == 0);
        (void)hak_reserve_trim();
        size_t after = contract_resident();
        if (!CONTRACT_SANITIZED)
            cr_assert(full > before + (16 << 20) && after < before + (2 << 20),
                      "%zu, with the state %zu, after it %zu", before, full, after);
    }
}

/* ---- Threads: a state each, of a heap each or of one for all ---- */

static void *work(void *heap)
{
    lua_State *lua = lua_newstate(hak_lua_alloc, heap);
    if (!lua) return NULL;
    luaL_openlibs(lua);
    bool good = true;
    for (size_t i = 0, rounds = contract_work(3); i < rounds && good; i++)
        good = status_of(lua, everything) == LUA_OK;
    lua_close(lua);
    return good ? heap : NULL;
}

Test(lua, states_run_in_threads)
{
    enum { THREADS = 4 };
    for (int shared = 0; shared < 2; shared++) {
        pthread_t threads[THREADS];
        hak_heap_t *heaps[THREADS];
        for (int i = 0; i < THREADS; i++) {
            heaps[i] = shared && i ? heaps[0] : contract_heap(i % 2, "thread");
            cr_assert(pthread_create(&threads[i], NULL, work, heaps[i]) == 0);
        }
        for (int i = 0; i < THREADS; i++) {
            void *result = NULL;
            pthread_join(threads[i], &result);
            cr_assert(result == heaps[i]);
        }
        for (int i = 0; i < (shared ? 1 : THREADS); i++) require_empty(heaps[i]);
    }
}
