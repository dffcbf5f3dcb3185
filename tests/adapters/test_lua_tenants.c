/* examples/lua_tenants.c over real sockets: scripts that run away end in an answer, and nobody else
 * notices; the end of a tenant gives its memory back. */
#include <stdlib.h>

#include "support_contract.h"
#include "support_server.h"

static const char *const program = HAK_TEST_BUILD "/examples/lua_tenants";

static void start(const char *quota, const char *level)
{
    setenv("HAKHEAP_LEVEL", level, 1);
    server_start((const char *const[]){"lua_tenants", "serve", "0", quota, NULL});
}

static size_t used_by(FILE *stream, const char *command)
{
    size_t used = 0, quota = 0;
    const char *line = server_ask(stream, command);
    cr_assert(sscanf(line, "STATS used %zu quota %zu", &used, &quota) == 2 && used <= quota, "%s",
              line);
    return used;
}

static long resident_kib(void)
{
    char path[64], line[256];
    long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)server);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status)) sscanf(line, "VmRSS: %ld", &kib);
    if (status) fclose(status);
    return kib;
}

Test(programs, lua_tenants_have_states_of_their_own, .fini = server_stop, .timeout = 300)
{
    start("2000000", "checked");
    FILE *one = server_dial(), *two = server_dial();
    server_require(one, "STATS anna", "ERROR no such tenant, or no room for it");
    server_require(one, "EVAL anna x = 7; return x * 6", "OK 42");
    server_require(two, "EVAL anna return x, 1", "OK 7");
    server_require(two, "EVAL bert return x", "OK nil");
    server_require(one, "EVAL anna return 'a\\nb'", "OK a b");
    server_require(one, "EVAL anna error('no')", "ERROR script:1: no");
    server_require(one, "EVAL anna error({})", "ERROR an object");
    server_require(one, "EVAL anna x =", "ERROR script:1: unexpected symbol near <eof>");
    /* Nothing that reaches outside of the state. */
    server_require(one,
                   "EVAL anna return io or os or require or load or loadfile or dofile or debug",
                   "OK nil");
    server_require(one, "KILL bert", "OK");
    server_require(one, "KILL bert", "ERROR no such tenant, or no room for it");
    server_require(two, "EVAL bert return x", "OK nil");
    server_require(two, "EVAL a-name-of-more-than-thirty-one-bytes return 1",
                   "ERROR no such tenant, or no room for it");
    server_require(one, "FROB anna", "ERROR no such command");
    server_require(one, "", "ERROR no such tenant, or no room for it");
    cr_assert(strncmp(server_ask(one, "TRIM anna"), "OK ", 3) == 0);
    server_require(one, "EVAL anna return x", "OK 7");
    fclose(one);
    fclose(two);
}

Test(programs, lua_tenants_runaways_are_stopped, .fini = server_stop, .timeout = 300)
{
    start("2000000", "checked");
    FILE *greedy = server_dial(), *anna = server_dial();
    server_require(anna, "EVAL anna kept = ('k'):rep(1000) return #kept", "OK 1000");
    for (int i = 0; i < 10; i++) {
        server_require(greedy, "EVAL greedy local t = {} while true do t = {t} end",
                       "ERROR not enough memory");
        server_require(greedy, "EVAL greedy local s = 'x' while true do s = s .. s end",
                       "ERROR not enough memory");
        cr_assert(used_by(greedy, "STATS greedy") < 500000, "%s",
                  server_ask(greedy, "STATS greedy"));
        server_require(greedy, "EVAL greedy return #('y'):rep(100000)", "OK 100000");
        server_require(anna, "EVAL anna return #kept", "OK 1000");
    }
    /* What keeps its own error from itself, and what needs no memory, is stopped by its steps. */
    server_require(greedy, "EVAL greedy while true do end", "ERROR the script takes too long");
    server_require(greedy, "EVAL greedy while true do pcall(function() while true do end end) end",
                   "ERROR the script takes too long");
    server_require(greedy, "EVAL greedy return #('x'):rep(900000)", "OK 900000");
    server_require(greedy, "EVAL greedy return #('x'):rep(2000000)", "ERROR not enough memory");
    /* A state whose globals fill it ends by KILL. */
    server_require(greedy, "EVAL greedy t = {} while true do t = {t} end",
                   "ERROR not enough memory");
    cr_assert(used_by(greedy, "STATS greedy") > 1900000);
    server_require(greedy, "KILL greedy", "OK");
    server_require(greedy, "EVAL greedy return t", "OK nil");
    server_require(anna, "EVAL anna return #kept", "OK 1000");
    fclose(greedy);
    fclose(anna);
}

Test(programs, lua_tenants_end_at_once, .fini = server_stop, .timeout = 300)
{
    start("100000000", "fast");
    FILE *client = server_dial();
    server_require(client, "EVAL small return 1", "OK 1");
    long before = resident_kib();
    for (int i = 0; i < 3; i++) {
        server_require(client, "EVAL large t = {} for i = 1, 400000 do t[i] = {i} end return #t",
                       "OK 400000");
        long full = resident_kib();
        server_require(client, "KILL large", "OK");
        long after = resident_kib();
        if (!CONTRACT_SANITIZED)
            cr_assert(full > before + 25000 && after < before + 4000,
                      "%ld KiB, with the tenant %ld, after it %ld", before, full, after);
    }
    fclose(client);
}

Test(programs, lua_tenants_are_as_many_as_there_is_room_for, .fini = server_stop, .timeout = 300)
{
    start("1000000", "checked");
    FILE *client = server_dial();
    char command[64];
    for (int i = 0; i < 64; i++) {
        snprintf(command, sizeof command, "EVAL t%d return %d", i, i);
        cr_assert(atoi(server_ask(client, command) + 3) == i);
    }
    server_require(client, "EVAL more return 1", "ERROR no such tenant, or no room for it");
    server_require(client, "KILL t9", "OK");
    server_require(client, "EVAL more return 1", "OK 1");
    fclose(client);
}

/* ---- Its measurements, as scripts/integration.sh runs them ---- */

static run_result_t result;

Test(programs, lua_tenants_runaway_is_stopped_every_time, .timeout = 600)
{
    RUN_ONCE();
    run_program(&result, 300, (const char *const[]){program, "runaway", "--quick", NULL});
    cr_assert(result.status == 0, "%d: %s", result.status, result.text);
    cr_assert(strstr(result.text, "stopped at its quota 100 times of 100, went on 100 times; "
                                  "neighbours' p99 "),
              "%s", result.text);
}

Test(programs, lua_tenants_measures_itself, .timeout = 600)
{
    static const char *const sides[] = {"hakheap", "system"};
    for (int side = 0; side < 2; side++) {
        run_program(&result, 300,
                    (const char *const[]){program, "--quick", "--allocator", sides[side], NULL});
        cr_assert(result.status == 0, "%d: %s", result.status, result.text);
        double seconds, rate;
        long peak, idle;
        const char *line = strstr(result.text, "RESULT ");
        cr_assert(line && sscanf(line, "RESULT seconds=%lf rate=%lf peak_kib=%ld idle_kib=%ld",
                                 &seconds, &rate, &peak, &idle) == 4,
                  "%s", result.text);
        cr_assert(seconds > 0 && rate > 0 && peak >= idle && idle > 0, "%s", line);
    }
}
