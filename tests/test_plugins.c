/* plugins: modules that bring their own copy of the library, many in one process; and musl. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support_contract.h"
#include "support_run.h"

TestSuite(plugins, .timeout = 180);

static run_result_t result;
static char place[] = "/tmp/hakheap_plugins_XXXXXX";

static void run(unsigned seconds, const char *const argv[])
{
    run_program(&result, seconds, argv);
    cr_assert(result.status == 0, "%s ended with status %d:\n%s", argv[0], result.status,
              result.text);
}
#define RUN(...) run(100, (const char *const[]){__VA_ARGS__, NULL})

static char *at(char *out, const char *name)
{
    snprintf(out, 128, "%s/%s", place, name);
    return out;
}

static char host[128], plugin[128], alone[128];

static void clean(void)
{
    if (place[strlen(place) - 1] != 'X')
        run_program(&result, 30, (const char *const[]){"rm", "-rf", place, NULL});
}

/* A host, and a plugin that holds this archive. */
static void build(const char *compiler, const char *archive)
{
    cr_assert(mkdtemp(place) != NULL);
    at(host, "host"), at(plugin, "plugin.so"), at(alone, "alone");
    RUN(compiler, "-x", "c", "tests/plugin_user.inc", "-o", host, "-ldl", "-pthread");
    RUN(compiler, "-DPLUGIN", "-Iinclude", "-fPIC", "-shared", "-x", "c", "tests/plugin_user.inc",
        "-x", "none", archive, "-pthread", "-o", plugin);
}

/* The loader knows a file again, so that each copy of the library is a file of its own. They share
 * what a process sets aside for the thread-local data of modules that are loaded late. */
Test(plugins, many_copies_of_the_library_load, .fini = clean)
{
    enum { COPIES = 50 };
    if (run_is_instrumented()) cr_skip_test("a plugin with a sanitizer needs a host with it");
    build("gcc", HAK_TEST_BUILD "/libhakheap.a");
    static char copies[COPIES][128];
    const char *argv[COPIES + 3] = {host, "4"};
    for (unsigned i = 0; i < COPIES; i++) {
        char name[32];
        snprintf(name, sizeof name, "copy%u.so", i);
        argv[i + 2] = at(copies[i], name);
        RUN("cp", plugin, copies[i]);
    }
    run(100, argv);
}

/* Threads that end there take their stack and thread-local data along before the kernel has heard
 * of it. */
Test(plugins, musl_gets_a_library_that_works, .fini = clean)
{
#define MUSL_ARCHIVE "build/musl-gcc-release/libhakheap.a"
    RUN_ONCE();
    run_program(&result, 30, (const char *const[]){"musl-gcc", "--version", NULL});
    if (result.status != 0) cr_skip_test("musl-gcc is not installed");
    RUN("env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "-s", "CC=musl-gcc", "DEBUG=0",
        "COUNTERS=0", "SANITIZE=", MUSL_ARCHIVE, "build/musl-gcc-release/libhakheap.so");
    build("musl-gcc", MUSL_ARCHIVE);
    RUN("musl-gcc", "-DALONE", "-Iinclude", "-x", "c", "tests/plugin_user.inc", "-x", "none",
        MUSL_ARCHIVE, "-pthread", "-o", alone);
    RUN(alone, "5000");
    RUN(host, "5000", plugin);
}
