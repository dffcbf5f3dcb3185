/* The tree itself: levels, documents, the public header, the library's exports, scripts'
 * manners. */
#include "support_run.h"

#include <criterion/criterion.h>
#include <string.h>

TestSuite(tree, .timeout = 120);

static run_result_t result;

static void must_pass(const char *const argv[])
{
    run_program(&result, 60, argv);
    cr_assert(result.status == 0, "%s %s ended with status %d:\n%s", argv[0], argv[1],
              result.status, result.text);
}

static bool present(const char *program)
{
    run_program(&result, 30, (const char *const[]){program, "--version", NULL});
    return result.status == 0;
}

#define RUN(...) must_pass((const char *const[]){__VA_ARGS__, NULL})

Test(tree, includes_hold_to_the_levels) { RUN("scripts/levels.sh", "src"); }
Test(tree, the_level_check_can_fail) { RUN("scripts/levels.sh", "--self-test"); }
Test(tree, documents_name_what_exists) { RUN("scripts/docs_check.sh", "."); }
Test(tree, the_document_check_can_fail) { RUN("scripts/docs_check.sh", "--self-test"); }

/* The public header is whole by itself, in both languages, however strict its user is. */
static void header_compiles(const char *compiler, const char *language, const char *standard)
{
    if (!present(compiler)) cr_skip_test("%s is not installed", compiler);
    RUN(compiler, "-x", language, standard, "-fsyntax-only", "-Wall", "-Wextra", "-pedantic",
        "-Wconversion", "-Werror", "-Iinclude", "tests/header_user.inc");
}

Test(tree, header_c11_gcc) { header_compiles("gcc", "c", "-std=c11"); }
Test(tree, header_c11_clang) { header_compiles("clang", "c", "-std=c11"); }
Test(tree, header_cpp17_gcc) { header_compiles("g++", "c++", "-std=c++17"); }
Test(tree, header_cpp17_clang) { header_compiles("clang++", "c++", "-std=c++17"); }

/* What the header declares, and nothing else, can be linked to. */
Test(tree, only_hak_symbols_are_exported)
{
    RUN("nm", "-D", "--defined-only", "--format=posix", HAK_TEST_BUILD "/libhakheap.so");
    unsigned count = 0;
    char *rest = result.text;
    for (char *line = strtok_r(rest, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        cr_assert(strncmp(line, "hak_", 4) == 0, "exported: %s", line);
        count++;
    }
    cr_assert(count > 0, "nothing is exported");
}

static void larson_refuses(const char *argument, const char *listed)
{
    run_program(&result, 60, (const char *const[]){"bench/larson.sh", argument, NULL});
    cr_assert(result.status == 2, "status %d:\n%s", result.status, result.text);
    cr_assert(strstr(result.text, argument), "does not name what it refuses:\n%s", result.text);
    cr_assert(strstr(result.text, listed), "does not list what there is:\n%s", result.text);
}

Test(tree, larson_refuses_an_unknown_profile) { larson_refuses("no_such_profile", "hop256"); }
Test(tree, larson_refuses_an_unknown_option) { larson_refuses("--no-such-option", "--csv"); }
