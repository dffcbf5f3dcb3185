/* The documents: their code compiles and runs, their commands and links exist; the site is looked at. */
#include "support_run.h"

#include <criterion/criterion.h>
#include <string.h>

TestSuite(docs, .timeout = 600);

static run_result_t result;

static void must_pass(const char *const argv[])
{
    RUN_ONCE();
    run_program(&result, 30, (const char *const[]){"python3", "--version", NULL});
    if (result.status != 0) cr_skip_test("python3 is not installed");
    run_program(&result, 500, argv);
    cr_assert(result.status == 0, "status %d:\n%s", result.status, result.text);
}

#define RUN(...) must_pass((const char *const[]){"scripts/docs_code.py", __VA_ARGS__, NULL})

Test(docs, code_compiles_and_runs) { RUN("--archive", HAK_TEST_BUILD "/libhakheap.a", "."); }

Test(docs, the_check_can_fail) { RUN("--self-test"); }

/* Pages that are too wide, lack something or link to nothing, in Chromium: each is found. */
Test(docs, the_look_can_fail)
{
    must_pass((const char *const[]){"scripts/docs_look.py", "--self-test", NULL});
    if (strstr(result.text, "SKIPPED:")) cr_skip_test("chromium is not installed");
    cr_assert(strstr(result.text, "self-test holds"), "%s", result.text);
}
