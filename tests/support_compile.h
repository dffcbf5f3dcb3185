/* Whether a source compiles for a user whose compiler is strict, by each compiler and standard. A
 * header only, like support_server.h. */
#ifndef HAK_SUPPORT_COMPILE_H
#define HAK_SUPPORT_COMPILE_H

#include <criterion/criterion.h>

#include "support_run.h"

/* X(name, compiler, language, standard): those that public headers are for. */
#define COMPILE_EACH(X)                            \
    X(c11_gcc, "gcc", "c", "-std=c11")             \
    X(c11_clang, "clang", "c", "-std=c11")         \
    X(c17_gcc, "gcc", "c", "-std=c17")             \
    X(c17_clang, "clang", "c", "-std=c17")         \
    X(cpp17_gcc, "g++", "c++", "-std=c++17")       \
    X(cpp17_clang, "clang++", "c++", "-std=c++17") \
    X(cpp20_gcc, "g++", "c++", "-std=c++20")       \
    X(cpp20_clang, "clang++", "c++", "-std=c++20")

/* Skips the test where a program is not installed. */
static inline void compile_needs(const char *program)
{
    static run_result_t result;
    run_program(&result, 60, (const char *const[]){program, "--version", NULL});
    if (result.status != 0) cr_skip_test("%s is not installed", program);
}

/* Runs a script of bash, whose "$@" is the compiler with its options, in the tree. */
static inline void compile_strictly(const char *script, const char *compiler, const char *language,
                                    const char *standard)
{
    static run_result_t result;
    RUN_ONCE();
    compile_needs(compiler);
    run_program(&result, 300,
                (const char *const[]){"bash",    "-o",        "pipefail",      "-c",
                                      script,    "bash",      compiler,        "-x",
                                      language,  standard,    "-fsyntax-only", "-Wall",
                                      "-Wextra", "-pedantic", "-Wconversion",  "-Wshadow",
                                      "-Wundef", "-Werror",   "-Iinclude",     NULL});
    cr_assert(result.status == 0, "%s\n%s", script, result.text);
}

#endif
