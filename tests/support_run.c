#define _GNU_SOURCE
#include "support_run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "support_contract.h"

extern char **environ;

unsigned run_number(const char *name, unsigned otherwise)
{
    const char *text = getenv(name);
    unsigned long number = text ? strtoul(text, NULL, 10) : 0;
    return number > 0 && number < 100000 ? (unsigned)number : otherwise;
}

unsigned run_seconds(void) { return run_number("HAK_TEST_SECONDS", 2); }

/* The output goes to a file in memory, not a pipe: nobody needs to read while the child runs. */
static pid_t start(const char *const argv[], int output)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, HAK_TEST_ROOT);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
    /* A process group of its own, so that whatever the child starts is killed with it. */
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);

    pid_t pid = -1;
    if (posix_spawnp(&pid, argv[0], &actions, &attributes, (char *const *)(uintptr_t)argv,
                     environ) != 0)
        pid = -1;
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
}

static int wait_for(pid_t pid, unsigned seconds)
{
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    struct timespec began, now;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (;;) {
        int status;
        pid_t ended = waitpid(pid, &status, WNOHANG);
        if (ended == pid) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (ended < 0 && errno != EINTR) return RUN_NOT_STARTED;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec - began.tv_sec >= (time_t)seconds) break;
        nanosleep(&pause, NULL);
    }
    kill(-pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return RUN_TIMEOUT;
}

void run_program(run_result_t *out, unsigned seconds, const char *const argv[])
{
    *out = (run_result_t){.status = RUN_NOT_STARTED};
    int output = memfd_create("output", MFD_CLOEXEC);
    if (output < 0) return;

    pid_t pid = start(argv, output);
    if (pid > 0) out->status = wait_for(pid, seconds);

    size_t used = 0;
    while (used < sizeof out->text - 1) {
        ssize_t n = pread(output, out->text + used, sizeof out->text - 1 - used, (off_t)used);
        if (n <= 0) break;
        used += (size_t)n;
    }
    close(output);
}

bool run_is_instrumented(void)
{
    return CONTRACT_SANITIZED || strstr(HAK_TEST_BUILD, "undefined") != NULL;
}
