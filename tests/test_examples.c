/* The examples run, and say what they promise. */
#include "support_run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

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
