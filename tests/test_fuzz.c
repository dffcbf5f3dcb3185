/* Sequences of operations against the model (tests/fuzz): those that found something or reach what
 * others do not are in tests/fuzz/corpus. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "support_run.h"

TestSuite(fuzz, .timeout = 600);

static const char fuzz[] = HAK_TEST_BUILD "/tests/fuzz";

Test(fuzz, every_sequence_of_the_corpus_ends_well)
{
    static run_result_t result;
    const char *const command[] = {fuzz, "--replay", HAK_TEST_ROOT "/tests/fuzz/corpus", NULL};
    run_program(&result, 500, command);
    cr_assert(result.status == 0, "status %d:\n%s", result.status, result.text);
    cr_assert(strstr(result.text, " 0 failed"), "%s", result.text);
}

Test(fuzz, the_same_seed_gives_the_same_calls)
{
    static run_result_t first, second;
    const char *const command[] = {fuzz,    "--episodes", "2", "--operations",
                                   "20000", "--seed",     "5", NULL};
    run_program(&first, 300, command);
    run_program(&second, 300, command);
    cr_assert(first.status == 0 && strstr(first.text, "2 passed, 0 failed"), "%s", first.text);
    cr_assert_str_eq(first.text, second.text);
}

Test(fuzz, what_is_no_option_and_no_file_fails)
{
    static run_result_t result;
    const char *const missing[] = {fuzz, "--replay", "/nowhere", NULL};
    run_program(&result, 60, missing);
    cr_assert(result.status == 1, "status %d:\n%s", result.status, result.text);
    const char *const unknown[] = {fuzz, "--nothing", NULL};
    run_program(&result, 60, unknown);
    cr_assert(result.status == 2, "status %d:\n%s", result.status, result.text);
    const char *const nothing[] = {fuzz, "--threads", "0", NULL};
    run_program(&result, 60, nothing);
    cr_assert(result.status == 2, "status %d:\n%s", result.status, result.text);
}
