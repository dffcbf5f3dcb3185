#define _GNU_SOURCE
#include "support_child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void in_child(int output, void (*run)(void *arg), void *arg)
{
    const struct rlimit no_core = {0, 0};
    dup2(output, STDERR_FILENO);
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGABRT, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGALRM, SIG_DFL);
    alarm(CHILD_SECONDS);
    run(arg);
    _exit(0);
}

void child_run(child_result_t *out, void (*run)(void *arg), void *arg)
{
    *out = (child_result_t){.status = -1};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    pid_t pid = fork();
    if (pid == 0) in_child(ends[1], run, arg);
    close(ends[1]);
    size_t used = 0;
    while (pid > 0 && used < sizeof out->text - 1) {
        ssize_t n = read(ends[0], out->text + used, sizeof out->text - 1 - used);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        used += (size_t)n;
    }
    close(ends[0]);
    int status;
    if (pid <= 0 || waitpid(pid, &status, 0) != pid) return;
    if (WIFEXITED(status)) out->status = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) out->signal = WTERMSIG(status);
}

bool child_aborted(const child_result_t *result, const char *code, const char *operation)
{
    char begins[128];
    int length = snprintf(begins, sizeof begins, "hakheap: %s: %s ", code, operation);
    return result->signal == SIGABRT && length > 0 &&
           strncmp(result->text, begins, (size_t)length) == 0;
}
