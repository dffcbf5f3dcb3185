/* The tree itself: levels, documents, the public header, the library's exports, scripts'
 * manners. */
#include <string.h>

#include "support_compile.h"

TestSuite(tree, .timeout = 600);

static run_result_t result;

static void must_pass(const char *const argv[])
{
    run_program(&result, 300, argv);
    cr_assert(result.status == 0, "%s %s ended with status %d:\n%s", argv[0], argv[1],
              result.status, result.text);
}

#define RUN(...)                                             \
    do {                                                     \
        RUN_ONCE();                                          \
        must_pass((const char *const[]){__VA_ARGS__, NULL}); \
    } while (0)

Test(tree, includes_hold_to_the_levels) { RUN("scripts/levels.sh", "src"); }
Test(tree, the_level_check_can_fail) { RUN("scripts/levels.sh", "--self-test"); }
Test(tree, documents_name_what_exists) { RUN("scripts/docs_check.sh", "."); }
Test(tree, the_document_check_can_fail) { RUN("scripts/docs_check.sh", "--self-test"); }
Test(tree, mutants_can_be_applied)
{
    compile_needs("python3");
    RUN("scripts/mutants.py", "check");
}
Test(tree, the_mutant_check_can_fail)
{
    compile_needs("python3");
    RUN("scripts/mutants.py", "self-test");
}

Test(tree, functions_are_short)
{
    RUN("scripts/functions_check.sh", "src", "tests", "bench", "examples");
}
Test(tree, the_function_check_can_fail) { RUN("scripts/functions_check.sh", "--self-test"); }

/* The public header is whole by itself, in both languages, however strict its user is. */
static void header_compiles(const char *compiler, const char *language, const char *standard)
{
    compile_strictly(strcmp(language, "c") == 0 ? "\"$@\" -Wstrict-prototypes tests/header_user.inc"
                                                : "\"$@\" -Wold-style-cast tests/header_user.inc",
                     compiler, language, standard);
}

/* The first program of README.md, in both languages. */
static const char *const first_program =
    "awk '/^```c$/ { on = 1; next } /^```$/ && on { exit } on' README.md | \"$@\" -";

#define EACH(name, ...)                                         \
    Test(tree, header_##name) { header_compiles(__VA_ARGS__); } \
    Test(tree, first_program_##name) { compile_strictly(first_program, __VA_ARGS__); }
COMPILE_EACH(EACH)

/* The Makefile's switches have defaults in the sources, for builds by anything else. */
Test(tree, sources_compile_without_switches)
{
    RUN("bash", "-c",
        "gcc -std=gnu11 -fsyntax-only -Wall -Wextra -Wundef -Werror -Iinclude src/*.c");
}

/* What the header declares, and nothing else, can be linked to. */
Test(tree, the_library_has_the_headers_names_only)
{
    must_pass((const char *const[]){"scripts/library_check.sh", HAK_TEST_BUILD, NULL});
}

static void larson_refuses(const char *argument, const char *listed)
{
    run_program(&result, 300, (const char *const[]){"bench/larson.sh", argument, NULL});
    cr_assert(result.status == 2, "status %d:\n%s", result.status, result.text);
    cr_assert(strstr(result.text, argument), "does not name what it refuses:\n%s", result.text);
    cr_assert(strstr(result.text, listed), "does not list what there is:\n%s", result.text);
}

Test(tree, larson_refuses_an_unknown_profile) { larson_refuses("no_such_profile", "hop256"); }
Test(tree, larson_refuses_an_unknown_option) { larson_refuses("--no-such-option", "--csv"); }
