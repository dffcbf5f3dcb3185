/* Wraps the stress programs: each tests/stress_<name>.c is one test, stress/<name>. */
#include "support_run.h"

#include <criterion/criterion.h>
#include <stdio.h>

/* A day: the program's own limit is the one that ends a run, whatever HAK_TEST_SECONDS says. */
#define NEVER 86400

/* Unused where the tree holds no stress program. */
__attribute__((unused)) static void run_stress(const char *path)
{
    char seconds[16];
    snprintf(seconds, sizeof seconds, "%u", run_seconds());
    /* Instrumented runs take several times as long to start and to end. */
    unsigned limit = 4 * run_seconds() + 120;

    static run_result_t result;
    run_program(&result, limit, (const char *const[]){path, "--seconds", seconds, NULL});
    cr_assert(result.status != RUN_TIMEOUT, "%s did not end within %u s:\n%s", path, limit,
              result.text);
    cr_assert(result.status == 0, "%s ended with status %d:\n%s", path, result.status, result.text);
}

#define STRESS(name) \
    Test(stress, name, .timeout = NEVER) { run_stress(HAK_TEST_BUILD "/tests/stress_" #name); }
HAK_TEST_STRESS(STRESS)
