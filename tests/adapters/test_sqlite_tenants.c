/* examples/sqlite_tenants.c: what it prints of its connections' memory holds. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support_run.h"

static run_result_t result;

static void run_tenants(const char *allocator)
{
    run_program(&result, 500,
                (const char *const[]){HAK_TEST_BUILD "/examples/sqlite_tenants", "--quick",
                                      "--allocator", allocator, NULL});
    cr_assert(result.status == 0, "%d: %s", result.status, result.text);
    cr_assert(strstr(result.text, "RESULT seconds="), "%s", result.text);
}

static void require_figures(void)
{
    size_t busy = 0, idle = 0;
    const char *line = strstr(result.text, "32 connections: ");
    cr_assert(line && sscanf(line, "32 connections: %zu KiB busy, %zu KiB idle", &busy, &idle) == 2,
              "%s", result.text);
    cr_assert(idle > 0 && idle < busy / 3, "%s", line);
    cr_assert(strstr(result.text,
                     "tenant 0 asks too much: out of memory; its neighbour: another row "
                     "available\n"),
              "%s", result.text);
}

Test(programs, sqlite_tenants_on_fast_heaps, .timeout = 600)
{
    setenv("HAKHEAP_LEVEL", "fast", 1);
    run_tenants("hakheap");
    require_figures();
}

Test(programs, sqlite_tenants_on_checked_heaps, .timeout = 600)
{
    setenv("HAKHEAP_LEVEL", "checked", 1);
    run_tenants("hakheap");
    require_figures();
}

Test(programs, sqlite_tenants_by_malloc, .timeout = 600) { run_tenants("system"); }
