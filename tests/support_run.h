/* Runs programs from tests: the stress programs, the examples, scripts. */
#ifndef HAK_SUPPORT_RUN_H
#define HAK_SUPPORT_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

/* HAK_TEST_ROOT, HAK_TEST_BUILD: the tree, and the directory of this build of it. Written by the
 * Makefile. */
#include "test_build.h"

enum {
    RUN_NOT_STARTED = -1, /* no such program, or no process to be had */
    RUN_TIMEOUT = -2      /* killed at its limit */
};

typedef struct run_result {
    int status; /* exit status, 128 + the number of the signal that ended it, or RUN_... */
    char text[64 *
              /* what it wrote on standard output and error, terminated; the first part where it is
          * long */
              1024];
} run_result_t;

/*
 * Runs argv[0] (looked up in PATH, in the directory `HAK_TEST_ROOT` if it is a path) and waits for
 * its end, at most `seconds`: a child that hangs is killed, so that no process outlives the tests.
 * Standard input is empty.
 */
void run_program(run_result_t *out, unsigned seconds, const char *const argv[]);

/* Whether this build needs a sanitizer's runtime, which programs that a test builds would lack. gcc
 * says nothing of UndefinedBehaviorSanitizer, but the directory does. */
bool run_is_instrumented(void);

/* Skips a test that is the same in each mode and build, such as one that reads texts or starts
 * compilers: runs of the suites that are told to be quick (HAK_TEST_QUICK), and those with an
 * instrument, leave it to the one that is neither. */
#define RUN_ONCE()                                             \
    do                                                         \
        if (getenv("HAK_TEST_QUICK") || run_is_instrumented()) \
            cr_skip_test("left to the run that is not quick"); \
    while (0)

/* Skips a test of what knows no mode in runs that ask for one (HAKHEAP_RSEQ): each build has a run
 * by the best mode. */
#define RUN_IN_ONE_MODE()                                                             \
    do                                                                                \
        if (getenv("HAKHEAP_RSEQ")) cr_skip_test("left to the run by the best mode"); \
    while (0)

/* A number of the environment, or another one where it says none. */
unsigned run_number(const char *name, unsigned otherwise);
/* HAK_TEST_SECONDS of the environment, else 2: how long a test that runs for a time should do
 * so. */
unsigned run_seconds(void);

#endif
