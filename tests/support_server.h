/* A server of examples/ as a child process, and clients that ask it line by line. Assertions of
 * Criterion are in it, so it is a header only: what other programs link knows none of them. */
#ifndef HAK_SUPPORT_SERVER_H
#define HAK_SUPPORT_SERVER_H

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support_run.h"

/* A guard against hangs, also of a test that dies and leaves its server behind. */
enum { SERVER_SECONDS = 250 };

static pid_t server;
static unsigned server_port;

/* Runs argv[0] of this build's examples/, which prints the port that it has chosen. Its output is
 * read no further, and stays open. */
static inline void server_start(const char *const argv[])
{
    int ends[2];
    char path[sizeof HAK_TEST_BUILD + 64];
    snprintf(path, sizeof path, HAK_TEST_BUILD "/examples/%s", argv[0]);
    cr_assert(pipe(ends) == 0);
    server = fork();
    if (server == 0) {
        dup2(ends[1], STDOUT_FILENO);
        alarm(SERVER_SECONDS);
        execv(path, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(ends[1]);
    FILE *output = fdopen(ends[0], "r");
    cr_assert(server > 0 && output != NULL);
    cr_assert(fscanf(output, "listening at 127.0.0.1:%u", &server_port) == 1);
}

/* For .fini of a test, whether it started one or not. */
static inline void server_stop(void)
{
    if (server <= 0) return;
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
}

static inline FILE *server_dial(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)server_port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(client >= 0 && connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    FILE *stream = fdopen(client, "r+");
    cr_assert(stream != NULL);
    setvbuf(stream, NULL, _IOLBF, 1 << 16);
    return stream;
}

/* Sends one command and returns its line, which stays until the next one. */
static inline const char *server_ask(FILE *stream, const char *command)
{
    static char line[1 << 17];
    cr_assert(fprintf(stream, "%s\n", command) > 0 && fflush(stream) == 0);
    fseek(stream, 0, SEEK_CUR);
    cr_assert(fgets(line, sizeof line, stream) != NULL, "no answer to %s", command);
    line[strcspn(line, "\n")] = '\0';
    return line;
}

static inline void server_require(FILE *stream, const char *command, const char *answer)
{
    const char *line = server_ask(stream, command);
    cr_assert(strcmp(line, answer) == 0, "%s: %s, not %s", command, line, answer);
}

#endif
