/* Runs a function in a forked child: how it ended and what it wrote on standard error. For tests of
 * what ends a process. */
#ifndef HAK_SUPPORT_CHILD_H
#define HAK_SUPPORT_CHILD_H

#include <stdbool.h>

/* A guard against hangs and no measure: other processes may take most of the machine meanwhile. */
enum { CHILD_SECONDS = 300 };

typedef struct child_result {
    /* exit status, 0 where the function returned; -1 where a signal ended it or no child was had */
    int status;
    int signal;      /* what ended it, else 0 */
    char text[4096]; /* standard error, terminated */
} child_result_t;

/* The child is killed after CHILD_SECONDS. `run` may _exit(); it must not assert, which only works in the
 * test's own process. */
void child_run(child_result_t *out, void (*run)(void *arg), void *arg);

/* Whether a child ended by abort() after a line that begins "hakheap: <code>: <operation> ". */
bool child_aborted(const child_result_t *result, const char *code, const char *operation);

#endif
