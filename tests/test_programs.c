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
    if (CONTRACT_SANITIZED || strstr(HAK_TEST_BUILD, "undefined"))
        cr_skip_test("what an instrument has compiled needs its library");
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
