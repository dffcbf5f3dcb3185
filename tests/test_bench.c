/* The workloads of heaps' users in bench/: each runs, on hakheap and on the system's malloc, says
 * what it says it does, and refuses what makes no sense. */
#include "support_run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(bench, .timeout = 600);

static run_result_t result;

/*
 * Compiles a workload for an adapter and runs it with options of the shell. `$1` is the shared
 * library; the program finds it beside itself, by its full name.
 */
static void run_workload(const char *workload, const char *adapter, const char *arguments)
{
    RUN_ONCE();
    char text[1024];
    snprintf(text, sizeof text,
             "set -e; dir=$(mktemp -d); trap 'rm -rf \"$dir\"' EXIT\n"
             "ln -s \"$1\" \"$dir/libhakheap.so.0\"\n"
             "gcc -std=gnu11 -O1 -Wall -Wextra -Werror -pthread -Iinclude "
             "-DADAPTER='\"adapter_%s.h\"' bench/%s.c -o \"$dir/program\" \"$1\" -ldl\n"
             "LD_LIBRARY_PATH=$dir \"$dir/program\" %s\n",
             adapter, workload, arguments);
    run_program(
        &result, 300,
        (const char *const[]){"bash", "-c", text, "bash", HAK_TEST_BUILD "/libhakheap.so", NULL});
}

/* The figure of a key in the line; a program that prints none fails the test. */
static double figure(const char *key)
{
    char word[64];
    snprintf(word, sizeof word, " %s=", key);
    const char *at = strstr(result.text, word);
    cr_assert(result.status == 0 && at, "no %s; status %d:\n%s", key, result.status, result.text);
    return at ? strtod(at + strlen(word), NULL) : 0;
}

static void must_be(const char *key, double least, double most)
{
    double value = figure(key);
    cr_assert(value >= least && value <= most, "%s is %g, not %g to %g:\n%s", key, value, least,
              most, result.text);
}

static void must_refuse(const char *workload, const char *arguments, const char *words)
{
    run_workload(workload, "hakheap", arguments);
    cr_assert(result.status == 2, "status %d:\n%s", result.status, result.text);
    cr_assert(strstr(result.text, words), "does not say \"%s\":\n%s", words, result.text);
}

#define ON_BOTH(workload)                                             \
    Test(bench, workload##_on_hakheap) { run_##workload("hakheap"); } \
    Test(bench, workload##_on_the_systems_malloc) { run_##workload("system"); }

/* 252 bytes are the mean of a block: 30 of them are 7.4 KiB. */
static void run_sessions(const char *adapter)
{
    run_workload("sessions", adapter, "--heaps 500 --churn 3");
    must_be("live_kib", 7, 7.8);
    must_be("churned_live_kib", 7, 7.8);
    must_be("filled_kib", figure("live_kib"), 1000);
    must_be("churned_kib", figure("churned_live_kib"), 1000);
    must_be("malloc_ns", 1, 1e9);
    must_be("pair_ns", 1, 1e9);
    must_be("life_us", figure("fill_us"), 1e9);
    must_be("destroy_us", 0.001, 1e9);
}

static void run_queries(const char *adapter)
{
    run_workload("queries", adapter, "--allocations 200 --rounds 5");
    must_be("cycles", 100, 100);
    must_be("cycle_ns", figure("low_ns"), figure("high_ns"));
    must_be("cpu_ns", figure("cpu_low_ns"), figure("cpu_high_ns"));
    must_be("low_ns", 200, 1e9);
    must_be("faults", 0, 1000);
}

static void run_waves(const char *adapter)
{
    run_workload("waves", adapter, "--mib 64 --min 64 --max 4095 --waves 3 --seconds 0.05");
    must_be("wave_ms", figure("low_ms"), figure("high_ms"));
    must_be("cpu_ms", 0.01, 1e6);
    must_be("peak_kib", 64 << 10, 128 << 10);
    must_be("later_kib", 0, 128 << 10);
}

static void run_bulk(const char *adapter)
{
    static const char *const orders[] = {"same", "reverse", "random"};
    run_workload("bulk", adapter, "--blocks 2000 --rounds 3");
    for (int i = 0; i < 3; i++) {
        char key[64];
        snprintf(key, sizeof key, "%s_malloc_ns", orders[i]);
        must_be(key, 0.1, 1e6);
        snprintf(key, sizeof key, "%s_free_ns", orders[i]);
        must_be(key, 0.1, 1e6);
        snprintf(key, sizeof key, "%s_pair_ns", orders[i]);
        must_be(key, 0.2, 2e6);
    }
}

ON_BOTH(sessions)
ON_BOTH(queries)
ON_BOTH(waves)
ON_BOTH(bulk)

/* Three blocks replace each other in 20 slots: 15 to 75 MiB live, each written once at least. */
Test(bench, large_blocks_in_turn)
{
    run_workload("waves", "hakheap", "--large 3");
    must_be("live_kib", 5 << 10, 75 << 10);
    must_be("resident_kib", figure("live_kib") - 1024, 1e6);
    must_be("faults", 1, 1e6);
    must_be("cpu_ms", 0.1, 1e6);
}

Test(bench, one_order_alone)
{
    run_workload("bulk", "hakheap", "--blocks 1000 --rounds 1 --order reverse");
    must_be("reverse_pair_ns", 0.2, 2e6);
    cr_assert(!strstr(result.text, "same_pair_ns"), "%s", result.text);
}

Test(bench, options_that_make_no_sense_are_refused)
{
    must_refuse("sessions", "--heaps 0", "--heaps takes a whole number from 1");
    must_refuse("sessions", "--min 65 --max 64", "--min 65 is more than --max 64");
    must_refuse("queries", "--allocations -1", "--allocations takes a whole number");
    must_refuse("waves", "--mib none", "--mib takes a whole number");
    must_refuse("bulk", "--order sorted", "--order takes one of same reverse random all");
    must_refuse("bulk", "extra", "'extra' is not an option");
}
