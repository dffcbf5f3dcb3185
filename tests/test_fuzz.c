/* Sequences of operations against the model (tests/fuzz): those that found something or reach what
 * others do not are in tests/fuzz/corpus. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
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

Test(fuzz, a_failure_is_cut_down_to_what_still_fails)
{
    static run_result_t result;
    char directory[] = "/tmp/hak-fuzz-XXXXXX";
    cr_assert(mkdtemp(directory));
    const char *const command[] = {fuzz, "--trap", "--seed", "3", "--save", directory, NULL};
    run_program(&result, 300, command);
    cr_assert(result.status == 1 && strstr(result.text, "FAILED: seed 3000000"), "%s", result.text);
    /* Two operations are left, the second of which is the last. */
    cr_assert(strstr(result.text, "     0  burst"), "%s", result.text);
    cr_assert(strstr(result.text, "     1  trim"), "%s", result.text);
    cr_assert(!strstr(result.text, "     2  "), "%s", result.text);
    char path[64];
    snprintf(path, sizeof path, "%s/fuzz-3000000.ops", directory);
    const char *const again[] = {fuzz, "--trap", "--replay", path, NULL};
    run_program(&result, 60, again);
    cr_assert(result.status == 1, "%s", result.text);
    const char *const without[] = {fuzz, "--replay", path, NULL};
    run_program(&result, 60, without);
    cr_assert(result.status == 0, "%s", result.text);
    remove(path);
    remove(directory);
}
