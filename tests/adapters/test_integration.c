/* The table of scripts/integration.sh: medians and quartiles, and pairs of one round. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "support_run.h"

/* Rounds of which the second was slow for both: pairs do not show that, and medians ignore it. */
static const char *const raw = "round,program,allocator,seconds,rate,peak_kib,idle_kib\n"
                               "1,work,hakheap,1.0,100,2048,1024\n"
                               "1,work,system,1.1,90,3072,2048\n"
                               "1,work,other,3.0,30,1024,1024\n"
                               "2,work,system,11.0,9,3072,2048\n"
                               "2,work,hakheap,10.0,10,2048,1024\n"
                               "2,work,other,1.0,99,1024,1024\n"
                               "3,work,other,3.0,30,1024,1024\n"
                               "3,work,hakheap,1.0,100,2048,1024\n"
                               "3,work,system,1.1,90,3072,2048\n";

Test(programs, integration_table_pairs_rounds, .timeout = 60)
{
    static run_result_t result;
    char path[] = "/tmp/integration-XXXXXX";
    int file = mkstemp(path);
    cr_assert(file >= 0 && write(file, raw, strlen(raw)) == (ssize_t)strlen(raw));
    close(file);
    run_program(&result, 30, (const char *const[]){"scripts/integration_table.py", path, NULL});
    unlink(path);
    cr_assert(result.status == 0, "%s", result.text);
    static const char *const rows[] = {
        "work, 3 rounds (fewer than 9: shows that it runs, compares nothing)",
        "hakheap    1.000 [1.000 5.500]        100 [55 100]                   2.0 [2.0 2.0]",
        "system     1.100 [1.100 6.050]", "other      3.000 [2.000 3.000]",
        "best peer / hakheap: 1.100 [1.100 1.100] (system); above 1: hakheap is faster"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        cr_assert(strstr(result.text, rows[i]), "%s in:\n%s", rows[i], result.text);
}

/* Nothing runs, and the script says so, where what it is told makes no sense. */
Test(programs, integration_refuses_what_it_does_not_know, .timeout = 60)
{
    static const char *const wrong[][2] = {{"--only", "no_such_program"},
                                           {"--only", "sqlite_preload"},
                                           {"--rounds", "0"},
                                           {"--rounds", "many"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        static run_result_t result;
        run_program(&result, 30,
                    (const char *const[]){"scripts/integration.sh", "--no-install", wrong[i][0],
                                          wrong[i][1], NULL});
        cr_assert(result.status == 2, "%s %s: %d, %s", wrong[i][0], wrong[i][1], result.status,
                  result.text);
        cr_assert(strstr(result.text, wrong[i][1]), "%s", result.text);
    }
}
