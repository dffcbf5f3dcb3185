/* examples/pmr_queries.cpp: the answers, which the program itself proves, on heaps of both levels and
 * on malloc; and as other languages and compilers build it. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "support_run.h"

static run_result_t result;

static void run(const char *level, const char *allocator)
{
    setenv("HAKHEAP_LEVEL", level, 1);
    run_program(&result, 380,
                (const char *const[]){HAK_TEST_BUILD "/examples/pmr_queries", "--quick",
                                      "--allocator", allocator, NULL});
    cr_assert(result.status == 0, "%d: %s", result.status, result.text);
    cr_assert(strstr(result.text, "40 queries, 3483991 bytes of answers\nRESULT "), "%s",
              result.text);
}

Test(programs, pmr_queries_on_fast_heaps, .timeout = 400) { run("fast", "hakheap"); }
Test(programs, pmr_queries_on_checked_heaps, .timeout = 400) { run("checked", "hakheap"); }
Test(programs, pmr_queries_on_malloc, .timeout = 400) { run("fast", "system"); }

/* hakheap.hpp at work in the other language and compiler: the example answers as it should. */
static void queries_run(const char *compiler, const char *standard)
{
    static const char script[] =
        "dir=$(mktemp -d) && trap 'rm -r \"$dir\"' EXIT\n"
        "\"$@\" -O1 -Wall -Wextra -Wconversion -pedantic -Werror -pthread -Iinclude"
        " examples/pmr_queries.cpp \"$HAK_BUILD/libhakheap.a\" -o \"$dir/queries\" &&\n"
        "    \"$dir/queries\" --quick && \"$dir/queries\" --quick --allocator system";
    RUN_ONCE();
    run_program(&result, 10, (const char *const[]){compiler, "--version", NULL});
    if (result.status != 0) cr_skip_test("%s is not installed", compiler);
    if (run_is_instrumented()) cr_skip_test("the library needs a sanitizer's runtime");
    setenv("HAK_BUILD", HAK_TEST_BUILD, 1);
    run_program(&result, 380,
                (const char *const[]){"bash", "-c", script, "bash", compiler, standard, NULL});
    cr_assert(result.status == 0, "%s", result.text);
    cr_assert(strstr(result.text, "RESULT ") != NULL, "%s", result.text);
}

Test(programs, pmr_queries_cpp17_gcc, .timeout = 400) { queries_run("g++", "-std=c++17"); }
Test(programs, pmr_queries_cpp17_clang, .timeout = 400) { queries_run("clang++", "-std=c++17"); }
Test(programs, pmr_queries_cpp20_gcc, .timeout = 400) { queries_run("g++", "-std=c++20"); }
Test(programs, pmr_queries_cpp20_clang, .timeout = 400) { queries_run("clang++", "-std=c++20"); }
