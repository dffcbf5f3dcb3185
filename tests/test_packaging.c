/* The library as others get it: installed, found by pkg-config and CMake, carried as one file; and
 * its interface, against the one that is committed. scripts/packaging_check.sh does the work. */
#include "support_run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(packaging, .timeout = 300);

static run_result_t result;

static void must_hold(const char *const argv[])
{
    run_program(&result, 200, argv);
    cr_assert(result.status == 0, "%s %s ended with status %d:\n%s", argv[0], argv[1],
              result.status, result.text);
}

/* Standard error is the tests' own: what is not there is said where a reader of the log sees it. */
static void skip_aloud(void)
{
    fputs(result.text, stderr);
    cr_skip_test("%s", result.text);
}

static bool present(const char *program)
{
    run_program(&result, 60, (const char *const[]){program, "--version", NULL});
    if (result.status != 0) snprintf(result.text, sizeof result.text, "no %s\n", program);
    return result.status == 0;
}

static void check(const char *name, const char *compiler)
{
    RUN_ONCE();
    if (run_is_instrumented()) cr_skip_test("what an instrument has compiled needs its library");
    const char *const argv[] = {"scripts/packaging_check.sh", HAK_TEST_BUILD, name, compiler, NULL};
    run_program(&result, 200, argv);
    if (result.status == 77) skip_aloud();
    cr_assert(result.status == 0, "status %d:\n%s", result.status, result.text);
}

/* What is installed where, and that nothing is left of it. */
Test(packaging, files_below_a_staged_root) { check("files_staged", "gcc"); }
Test(packaging, files_below_a_prefix) { check("files_prefix", "gcc"); }
Test(packaging, manual_pages) { check("pages", "gcc"); }

/* README's first program, built by each way in. */
Test(packaging, pkg_config_shared_gcc) { check("pkg_config_shared", "gcc"); }
Test(packaging, pkg_config_shared_clang) { check("pkg_config_shared", "clang"); }
Test(packaging, pkg_config_static_gcc) { check("pkg_config_static", "gcc"); }
Test(packaging, pkg_config_static_clang) { check("pkg_config_static", "clang"); }
Test(packaging, cmake_shared_and_static_gcc) { check("cmake", "gcc"); }
Test(packaging, cmake_shared_and_static_clang) { check("cmake", "clang"); }
Test(packaging, an_installation_that_was_moved) { check("moved", "gcc"); }
Test(packaging, one_file_gcc) { check("one_file", "gcc"); }
Test(packaging, one_file_clang) { check("one_file", "clang"); }

Test(packaging, the_one_file_script_can_fail)
{
    if (!present("python3")) skip_aloud();
    must_hold((const char *const[]){"scripts/single.py", "--self-test", NULL});
}

/* Status 2: nothing was compared, for want of the tools or of debug information. */
Test(packaging, the_interface_is_the_committed_one)
{
    if (run_is_instrumented()) cr_skip_test("an instrument adds to the interface");
    const char *const argv[] = {"scripts/abi.sh", "check", HAK_TEST_BUILD "/libhakheap.so", NULL};
    run_program(&result, 60, argv);
    if (result.status == 2) skip_aloud();
    cr_assert(result.status == 0, "status %d:\n%s", result.status, result.text);
}

/* In a copy of the tree: an object that is missing is made again, and an install makes what it
 * installs. */
Test(packaging, make_and_make_install)
{
    RUN_ONCE();
    must_hold((const char *const[]){
        "env", "-u", "MAKEFLAGS", "-u", "MFLAGS", "-u", "MAKELEVEL", "bash", "-ec",
        "dir=$(mktemp -d); trap 'rm -rf \"$dir\"' EXIT\n"
        "cp -r Makefile LICENSE *.md src include packaging docs examples \"$dir\"; cd \"$dir\"\n"
        "make -s CFLAGS=-O0\n"
        "rm build/release/obj/block.o; make -s CFLAGS=-O0\n"
        "test -e build/release/obj/block.o\n"
        "rm -r build/release/obj/block.o build/libhakheap.so\n"
        "make -s CFLAGS=-O0 install PREFIX=/usr DESTDIR=\"$dir/to\"\n"
        "cmp build/release/libhakheap.so to/usr/lib/libhakheap.so\n",
        NULL});
}
