/* examples/lua_tenants.c over real sockets: scripts that run away end in an answer, and nobody else
 * notices; the end of a tenant gives its memory back. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support_contract.h"
#include "support_run.h"

static const char *const program = HAK_TEST_BUILD "/examples/lua_tenants";
static pid_t server;
static unsigned port;

static void start(const char *quota, const char *level)
{
    int ends[2];
    cr_assert(pipe(ends) == 0);
    server = fork();
    if (server == 0) {
        dup2(ends[1], STDOUT_FILENO);
        alarm(250);
        setenv("HAKHEAP_LEVEL", level, 1);
        execl(program, "lua_tenants", "serve", "0", quota, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    FILE *output = fdopen(ends[0], "r");
    cr_assert(server > 0 && output != NULL);
    cr_assert(fscanf(output, "listening at 127.0.0.1:%u", &port) == 1);
    fclose(output);
}

static void stop(void)
{
    if (server <= 0) return;
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
}

static FILE *dial(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(client >= 0 && connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    FILE *stream = fdopen(client, "r+");
    cr_assert(stream != NULL);
    return stream;
}

/* One command, and its line. */
static const char *ask(FILE *stream, const char *command)
{
    static char line[1 << 15];
    cr_assert(fprintf(stream, "%s\n", command) > 0 && fflush(stream) == 0);
    fseek(stream, 0, SEEK_CUR);
    cr_assert(fgets(line, sizeof line, stream) != NULL, "no answer to %s", command);
    line[strcspn(line, "\n")] = '\0';
    return line;
}

static void require(FILE *stream, const char *command, const char *answer)
{
    const char *line = ask(stream, command);
    cr_assert(strcmp(line, answer) == 0, "%s: %s, not %s", command, line, answer);
}

static size_t used_by(FILE *stream, const char *command)
{
    size_t used = 0, quota = 0;
    const char *line = ask(stream, command);
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

Test(programs, lua_tenants_have_states_of_their_own, .fini = stop, .timeout = 300)
{
    start("2000000", "checked");
    FILE *one = dial(), *two = dial();
    require(one, "STATS anna", "ERROR no such tenant, or no room for it");
    require(one, "EVAL anna x = 7; return x * 6", "OK 42");
    require(two, "EVAL anna return x, 1", "OK 7");
    require(two, "EVAL bert return x", "OK nil");
    require(one, "EVAL anna return 'a\\nb'", "OK a b");
    require(one, "EVAL anna error('no')", "ERROR script:1: no");
    require(one, "EVAL anna error({})", "ERROR an object");
    require(one, "EVAL anna x =", "ERROR script:1: unexpected symbol near <eof>");
    /* Nothing that reaches outside of the state. */
    require(one, "EVAL anna return io or os or require or load or loadfile or dofile or debug",
            "OK nil");
    require(one, "KILL bert", "OK");
    require(one, "KILL bert", "ERROR no such tenant, or no room for it");
    require(two, "EVAL bert return x", "OK nil");
    require(two, "EVAL a-name-of-more-than-thirty-one-bytes return 1",
            "ERROR no such tenant, or no room for it");
    require(one, "FROB anna", "ERROR no such command");
    require(one, "", "ERROR no such tenant, or no room for it");
    cr_assert(strncmp(ask(one, "TRIM anna"), "OK ", 3) == 0);
    require(one, "EVAL anna return x", "OK 7");
    fclose(one);
    fclose(two);
}

Test(programs, lua_tenants_runaways_are_stopped, .fini = stop, .timeout = 300)
{
    start("2000000", "checked");
    FILE *greedy = dial(), *anna = dial();
    require(anna, "EVAL anna kept = ('k'):rep(1000) return #kept", "OK 1000");
    for (int i = 0; i < 10; i++) {
        require(greedy, "EVAL greedy local t = {} while true do t = {t} end",
                "ERROR not enough memory");
        require(greedy, "EVAL greedy local s = 'x' while true do s = s .. s end",
                "ERROR not enough memory");
        cr_assert(used_by(greedy, "STATS greedy") < 500000, "%s", ask(greedy, "STATS greedy"));
        require(greedy, "EVAL greedy return #('y'):rep(100000)", "OK 100000");
        require(anna, "EVAL anna return #kept", "OK 1000");
    }
    /* What keeps its own error from itself, and what needs no memory, is stopped by its steps. */
    require(greedy, "EVAL greedy while true do end", "ERROR the script takes too long");
    require(greedy, "EVAL greedy while true do pcall(function() while true do end end) end",
            "ERROR the script takes too long");
    require(greedy, "EVAL greedy return #('x'):rep(900000)", "OK 900000");
    require(greedy, "EVAL greedy return #('x'):rep(2000000)", "ERROR not enough memory");
    /* A state whose globals fill it ends by KILL. */
    require(greedy, "EVAL greedy t = {} while true do t = {t} end", "ERROR not enough memory");
    cr_assert(used_by(greedy, "STATS greedy") > 1900000);
    require(greedy, "KILL greedy", "OK");
    require(greedy, "EVAL greedy return t", "OK nil");
    require(anna, "EVAL anna return #kept", "OK 1000");
    fclose(greedy);
    fclose(anna);
}

Test(programs, lua_tenants_end_at_once, .fini = stop, .timeout = 300)
{
    start("100000000", "fast");
    FILE *client = dial();
    require(client, "EVAL small return 1", "OK 1");
    long before = resident_kib();
    for (int i = 0; i < 3; i++) {
        require(client, "EVAL large t = {} for i = 1, 400000 do t[i] = {i} end return #t",
                "OK 400000");
        long full = resident_kib();
        require(client, "KILL large", "OK");
        long after = resident_kib();
        if (!CONTRACT_SANITIZED)
            cr_assert(full > before + 25000 && after < before + 4000,
                      "%ld KiB, with the tenant %ld, after it %ld", before, full, after);
    }
    fclose(client);
}

Test(programs, lua_tenants_are_as_many_as_there_is_room_for, .fini = stop, .timeout = 300)
{
    start("1000000", "checked");
    FILE *client = dial();
    char command[64];
    for (int i = 0; i < 64; i++) {
        snprintf(command, sizeof command, "EVAL t%d return %d", i, i);
        cr_assert(atoi(ask(client, command) + 3) == i);
    }
    require(client, "EVAL more return 1", "ERROR no such tenant, or no room for it");
    require(client, "KILL t9", "OK");
    require(client, "EVAL more return 1", "OK 1");
    fclose(client);
}

/* ---- Its measurements, as scripts/integration.sh runs them ---- */

static run_result_t result;

Test(programs, lua_tenants_runaway_is_stopped_every_time, .timeout = 600)
{
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
