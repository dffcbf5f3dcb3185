/* The examples run, and say what they promise. */
#include "support_run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

TestSuite(examples, .timeout = 600);

static run_result_t result;

static void run_example(const char *path)
{
    run_program(&result, 300, (const char *const[]){path, NULL});
    cr_assert(result.status == 0, "%s ended with status %d:\n%s", path, result.status, result.text);
}

Test(examples, hello)
{
    run_example(HAK_TEST_BUILD "/examples/hello");
    cr_assert(strstr(result.text, "hello, heap\n"), "%s", result.text);
    cr_assert(strstr(result.text, "\n2 blocks of "), "%s", result.text);
}

/* One line a heap, as the program writes it. */
typedef struct row {
    size_t live, before, after, returned;
} row_t;

static row_t row_of(const char *table, const char *name)
{
    const char *line = strstr(table, name);
    cr_assert(line != NULL, "no line for %s:\n%s", name, result.text);
    row_t row;
    int fields = sscanf(line + strlen(name), "%zu %zu %zu %zu", &row.live, &row.before, &row.after,
                        &row.returned);
    cr_assert(fields == 4, "the line for %s:\n%s", name, line);
    return row;
}

Test(examples, subsystems)
{
    run_example(HAK_TEST_BUILD "/examples/subsystems");
    const char *idle = strstr(result.text, "idle");
    cr_assert(idle != NULL, "%s", result.text);

    row_t sessions = row_of(idle, "\nsessions");
    row_t cache = row_of(idle, "\ncache");
    cr_assert(sessions.live > 0 && cache.live > 0, "%s", result.text);
    for (const row_t *row = &sessions; row; row = row == &sessions ? &cache : NULL) {
        cr_assert(row->after <= row->before && row->live <= row->after, "%s", result.text);
        cr_assert(row->returned > 0, "%s", result.text);
    }
    cr_assert(strstr(result.text, "busy: 200 queries used "), "%s", result.text);
    cr_assert(strstr(idle, "\nreserve"), "%s", result.text);
}

/* Live bytes depend on nothing but the program; committed bytes also on the CPUs it ran on. */
Test(examples, subsystems_repeats)
{
    size_t live[2];
    for (int i = 0; i < 2; i++) {
        run_example(HAK_TEST_BUILD "/examples/subsystems");
        live[i] = row_of(result.text, "\nsessions").live + row_of(result.text, "\ncache").live;
    }
    cr_assert(live[0] == live[1], "%zu and %zu bytes", live[0], live[1]);
}

/* ---- Command lines ---- */

/* Runs a program whose one stream is looked at; false: it is not built here. */
static bool run_line(const char *stream, const char *const line[3])
{
    char path[256];
    snprintf(path, sizeof path, HAK_TEST_BUILD "/examples/%s", line[0]);
    if (access(path, X_OK) != 0) return false;
    run_program(&result, 60,
                (const char *const[]){"bash", "-c", stream, "bash", path, line[1], line[2], NULL});
    return true;
}

/* Each begins as a server, or goes to work, where it takes the word for something else. */
Test(examples, a_word_that_is_not_known_is_refused)
{
    static const char *const lines[][3] = {{"tenants", "frob"},
                                           {"tenants", "65536"},
                                           {"tenants", "0", "-1"},
                                           {"tenants", "0", "1x"},
                                           {"lua_tenants", "frob"},
                                           {"lua_tenants", "serve", "frob"},
                                           {"lua_tenants", "runaway", "frob"},
                                           {"lua_tenants", "--allocator", "frob"},
                                           {"sqlite_tenants", "frob"},
                                           {"nghttp2_sessions", "frob"},
                                           {"pmr_queries", "frob"},
                                           {"pmr_queries", "--monotonic", "frob"}};
    RUN_IN_ONE_MODE();
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!run_line("exec timeout 30 \"$@\" > /dev/null", lines[i])) continue;
        cr_assert(result.status == 2, "%s %s: %d", lines[i][0], lines[i][1], result.status);
        cr_assert(strncmp(result.text, "usage: ", 7) == 0, "%s", result.text);
    }
}

Test(examples, help_is_no_error)
{
    static const char *const names[] = {"tenants", "lua_tenants", "sqlite_tenants",
                                        "nghttp2_sessions", "pmr_queries"};
    RUN_IN_ONE_MODE();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *const line[3] = {names[i], "--help"};
        if (!run_line("exec timeout 30 \"$@\" 2> /dev/null", line)) continue;
        cr_assert(result.status == 0, "%s: %d", names[i], result.status);
        cr_assert(strncmp(result.text, "usage: ", 7) == 0, "%s", result.text);
        cr_assert(strstr(result.text, names[i]) != NULL, "%s", result.text);
    }
}
