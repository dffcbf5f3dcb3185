/* examples/nghttp2_sessions.c: the program counts what each client gets; the same connections come and
 * go on heaps of both levels and on malloc. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "support_run.h"

static run_result_t result;

static void run(const char *level, const char *allocator)
{
    setenv("HAKHEAP_LEVEL", level, 1);
    run_program(&result, 380,
                (const char *const[]){HAK_TEST_BUILD "/examples/nghttp2_sessions", "--quick",
                                      "--allocator", allocator, NULL});
    cr_assert(result.status == 0, "%d: %s", result.status, result.text);
    cr_assert(strstr(result.text, "9671 requests; 75 idle connections"), "%s", result.text);
}

Test(programs, nghttp2_sessions_on_fast_heaps, .timeout = 400) { run("fast", "hakheap"); }
Test(programs, nghttp2_sessions_on_checked_heaps, .timeout = 400) { run("checked", "hakheap"); }
Test(programs, nghttp2_sessions_on_malloc, .timeout = 400) { run("fast", "system"); }
