/* Programs as users build them: compiled here, with flags of their own, against the archive. */
#include "support_contract.h"
#include "support_run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

TestSuite(programs, .timeout = 600);

#define ARCHIVE HAK_TEST_BUILD "/libhakheap.a"

static run_result_t result;

/* Runs a script of bash: `$1` is the archive, `$dir` a directory that ends with the script. */
static void script(const char *text)
{
    if (run_is_instrumented()) cr_skip_test("what an instrument has compiled needs its library");
    static const char begin[] =
        "set -e; dir=$(mktemp -d); trap 'rm -rf \"$dir\"' EXIT\n"
        "build() { gcc -Wall -Wextra -Werror -Iinclude \"$@\" -pthread; }\n";
    char whole[4096];
    snprintf(whole, sizeof whole, "%s%s", begin, text);
    run_program(&result, 300, (const char *const[]){"bash", "-c", whole, "bash", ARCHIVE, NULL});
}

Test(programs, a_fortified_program_uses_all_of_each_block)
{
    script("build -O2 -D_FORTIFY_SOURCE=3 -x c tests/fortify_user.inc -x none \"$1\" -o "
           "\"$dir/program\"\n"
           "\"$dir/program\"\n");
    cr_assert(result.status == 0 && strcmp(result.text, "used\n") == 0, "status %d:\n%s",
              result.status, result.text);
}

/* ---- Two copies of the library ---- */

#define COPIES                                                                          \
    "user() { build -O1 -x c tests/copies_user.inc -x none \"$@\"; }\n"                 \
    "plugin() { user -DPLUGIN -fPIC -shared -o \"$dir/plugin.so\" \"$@\"; }\n"          \
    "program() { user -o \"$dir/program\" \"$@\" -ldl; }\n"                             \
    "shared=${1%/*}/libhakheap.so; ln -s \"$shared\" \"$dir/libhakheap.so.0\"; export " \
    "LD_LIBRARY_PATH=$dir\n"

static void must_say(const char *words, bool found)
{
    cr_assert((strstr(result.text, words) != NULL) == found, "\"%s\" in:\n%s", words, result.text);
}

Test(programs, a_block_of_another_copy_is_told_by_the_copy)
{
    script(COPIES "plugin \"$1\"; program \"$1\"\n\"$dir/program\" \"$dir/plugin.so\"\n");
    cr_assert(result.status != 0);
    must_say("two copies\n", true);
    must_say("hakheap: FOREIGN: free ptr=", true);
    must_say(": no heap has this address; another copy of hakheap is loaded: \"/", true);
    must_say("/plugin.so\"\n", true);
}

Test(programs, the_shared_library_is_a_copy_too)
{
    script(COPIES "plugin \"$shared\"; program \"$1\"\n\"$dir/program\" \"$dir/plugin.so\"\n");
    cr_assert(result.status != 0);
    must_say("another copy of hakheap is loaded: \"/", true);
    must_say("libhakheap.so\"\n", true);
}

Test(programs, one_shared_library_serves_all)
{
    script(COPIES "plugin \"$shared\"; program \"$shared\"\n\"$dir/program\" \"$dir/plugin.so\"\n");
    cr_assert(result.status == 0, "status %d:\n%s", result.status, result.text);
    must_say("one copy\n", true);
    script(
        COPIES
        "plugin \"$shared\"; program \"$shared\"\n\"$dir/program\" \"$dir/plugin.so\" foreign\n");
    must_say(": no heap has this address\n", true);
    must_say("another copy", false);
}

/* ---- LeakSanitizer ---- */

/* A program with the given instrument; `$2` is handed to it. */
static void leaks(const char *instrument, const char *argument)
{
    char text[1024];
    snprintf(
        text, sizeof text,
        "build -g -O1 -fsanitize=%s -x c tests/leaks_user.inc -x none \"$1\" -o \"$dir/program\"\n"
        "ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS=exitcode=23 \"$dir/program\" %s\n",
        instrument, argument);
    script(text);
    /* It stops the program as a debugger does. */
    if (strstr(result.text, "LeakSanitizer has encountered a fatal error") ||
        strstr(result.text, "LeakSanitizer does not work under ptrace"))
        cr_skip_test("LeakSanitizer may not look at processes here");
}

Test(programs, what_blocks_point_to_is_no_leak)
{
    static const char *const instruments[] = {"address", "leak"};
    for (unsigned i = 0; i < 2; i++) {
        leaks(instruments[i], "");
        cr_assert(result.status == 0 && strcmp(result.text, "done\n") == 0, "%s: status %d:\n%s",
                  instruments[i], result.status, result.text);
        leaks(instruments[i], "lose");
        cr_assert(result.status == 23, "%s: status %d:\n%s", instruments[i], result.status,
                  result.text);
        must_say("Direct leak of 2003 byte(s) in 1 object(s)", true);
        must_say("SUMMARY: ", true);
        must_say(": 2003 byte(s) leaked in 1 allocation(s).", true);
    }
}
