/* examples/sqlite_preload.c: the system's shell of SQLite, unchanged, on one heap. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support_run.h"

static run_result_t result;

static void run_shell(const char *level)
{
    setenv("HAKHEAP_LEVEL", level, 1);
    run_program(&result, 500,
                (const char *const[]){"scripts/sqlite_shell.sh", HAK_TEST_BUILD, NULL});
    cr_assert(result.status == 0, "%d: %s", result.status, result.text);
    cr_assert(strstr(result.text, "output, the dump and both databases are the same\n"), "%s",
              result.text);
}

Test(programs, sqlite_shell_on_a_fast_heap, .timeout = 600) { run_shell("fast"); }
Test(programs, sqlite_shell_on_a_checked_heap, .timeout = 600) { run_shell("checked"); }

/* A program without SQLite, such as a child of the shell, does not notice. */
Test(programs, sqlite_preload_lets_others_be, .timeout = 60)
{
    if (run_is_instrumented()) cr_skip_test("an instrument's runtime would have to come first");
    setenv("LD_PRELOAD", HAK_TEST_BUILD "/examples/sqlite_preload.so", 1);
    run_program(&result, 30, (const char *const[]){"echo", "itself", NULL});
    unsetenv("LD_PRELOAD");
    cr_assert(result.status == 0 && strcmp(result.text, "itself\n") == 0, "%d: %s", result.status,
              result.text);
}
