/* examples/tenants.c over real sockets: who takes too much is told so, and nobody else notices. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support_run.h"

TestSuite(tenants, .timeout = 300);

static pid_t server;
static FILE *output;
static unsigned port;

static void start(const char *budget, const char *each)
{
    int ends[2];
    cr_assert(pipe(ends) == 0);
    server = fork();
    if (server == 0) {
        dup2(ends[1], STDOUT_FILENO);
        alarm(200);
        execl(HAK_TEST_BUILD "/examples/tenants", "tenants", "0", budget, each, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    output = fdopen(ends[0], "r");
    cr_assert(server > 0 && output != NULL);
    cr_assert(fscanf(output, "listening at 127.0.0.1:%u", &port) == 1);
}

static void stop(void)
{
    if (server > 0) {
        kill(server, SIGKILL);
        waitpid(server, NULL, 0);
    }
    if (output) fclose(output);
}

static FILE *dial(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(client >= 0 && connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    FILE *stream = fdopen(client, "r+");
    cr_assert(stream != NULL);
    setvbuf(stream, NULL, _IOLBF, 1 << 16);
    return stream;
}

/* One command, and its line. */
static const char *ask(FILE *stream, const char *command)
{
    static char line[1 << 17];
    cr_assert(fprintf(stream, "%s\n", command) > 0 && fflush(stream) == 0);
    fseek(stream, 0, SEEK_CUR);
    cr_assert(fgets(line, sizeof line, stream) != NULL, "no answer to %s", command);
    line[strcspn(line, "\n")] = '\0';
    return line;
}
#define ASK(stream, command, answer)                                                \
    cr_assert(strcmp(ask(stream, command), answer) == 0, "%s: %s, not %s", command, \
              ask(stream, command), answer)

typedef struct figures {
    size_t live, tree, limit, committed, keys, refused;
} figures_t;

static figures_t figures_of(FILE *stream, const char *command)
{
    figures_t of;
    const char *line = ask(stream, command);
    cr_assert(sscanf(line, "STATS live %zu tree %zu limit %zu committed %zu keys %zu refused %zu",
                     &of.live, &of.tree, &of.limit, &of.committed, &of.keys, &of.refused) == 6,
              "%s", line);
    return of;
}

static void require_refused(FILE *stream, const char *command, const char *who)
{
    char name[64];
    size_t used, limit;
    const char *line = ask(stream, command);
    cr_assert(sscanf(line, "ERROR %63[^ ] has used %zu of %zu bytes", name, &used, &limit) == 3,
              "%s", line);
    cr_assert(strcmp(name, who) == 0 && used <= limit && limit - used < 8192, "%s", line);
}

Test(tenants, a_tenant_that_takes_too_much_is_told, .fini = stop)
{
    start("16000000", "4000000");
    FILE *anna = dial(), *greedy = dial();
    ASK(anna, "SET anna colour dark blue", "OK");
    ASK(anna, "GET anna colour", "VALUE dark blue");
    ASK(greedy, "SET greedy a b", "OK");
    require_refused(greedy, "FILL greedy 1000", "greedy");
    figures_t full = figures_of(greedy, "STATS greedy");
    cr_assert(full.limit == 4000000 && full.tree <= full.limit && full.keys > 2000);
    cr_assert(full.refused > 0 && full.live <= full.committed);
    /* A neighbour goes on, and so does the tenant itself once it deletes something. */
    ASK(anna, "SET anna colour red", "OK");
    ASK(greedy, "GET greedy a", "VALUE b");
    ASK(greedy, "DEL greedy fill-7", "OK");
    ASK(greedy, "SET greedy fill-7 new", "OK");
    ASK(greedy, "LIMIT greedy 1000", "ERROR more is in use");
    ASK(greedy, "LIMIT greedy 8000000", "OK");
    require_refused(greedy, "FILL greedy 5000", "greedy");
    ASK(greedy, "KILL greedy", "OK");
    cr_assert(figures_of(anna, "STATS").tree < 200000);
    cr_assert(strncmp(ask(anna, "TRIM"), "OK ", 3) == 0);
    ASK(anna, "GET anna colour", "VALUE red");
    ASK(anna, "GET greedy a", "NONE");
    fclose(anna);
    fclose(greedy);
}

/* The budget of all is used up by many that each keep to their own. */
Test(tenants, the_server_has_a_budget_too, .fini = stop)
{
    start("4000000", "1500000");
    FILE *stream = dial();
    char command[64];
    for (int i = 0; i < 3; i++) {
        snprintf(command, sizeof command, "SET t%d k v", i);
        ASK(stream, command, "OK");
        snprintf(command, sizeof command, "FILL t%d 700", i);
        const char *line = ask(stream, command);
        cr_assert(strncmp(line, i < 2 ? "ERROR t" : "ERROR the server", i < 2 ? 7 : 16) == 0, "%s",
                  line);
    }
    cr_assert(figures_of(stream, "STATS").tree <= 4000000);
    ASK(stream, "KILL t0", "OK");
    ASK(stream, "SET t2 more room", "OK");
    fclose(stream);
}

/* A hundred times: the runaway is stopped at its limit each time, its neighbour is served each
 * time. */
Test(tenants, a_runaway_is_stopped_every_time, .fini = stop)
{
    start("16000000", "1000000");
    FILE *anna = dial(), *greedy = dial();
    ASK(anna, "SET anna k v", "OK");
    for (int i = 0; i < 100; i++) {
        ASK(greedy, "SET greedy k v", "OK");
        require_refused(greedy, i % 2 ? "FILL greedy 100" : "FILL greedy 3000", "greedy");
        ASK(anna, "GET anna k", "VALUE v");
        ASK(anna, "SET anna k v", "OK");
        ASK(greedy, "KILL greedy", "OK");
    }
    figures_t left = figures_of(anna, "STATS");
    cr_assert(left.tree < 100000, "%zu bytes are left", left.tree);
    fclose(anna);
    fclose(greedy);
}

Test(tenants, what_makes_no_sense_is_answered, .fini = stop)
{
    start("16000000", "4000000");
    FILE *stream = dial();
    ASK(stream, "HELLO", "ERROR no such command");
    ASK(stream, "SET a b", "ERROR words are missing");
    ASK(stream, "", "ERROR no such command");
    ASK(stream, "SET 0123456789012345678901234567890123456789 k v",
        "ERROR no room for a tenant of this name");
    ASK(stream, "FILL nobody 100", "ERROR no such tenant, or no such size");
    ASK(stream, "KILL nobody", "NONE");
    ASK(stream, "STATS nobody", "NONE");
    fprintf(stream, "QUIT\n");
    fflush(stream);
    cr_assert(fgetc(stream) == EOF);
    fclose(stream);
    /* A line that never ends is dropped, and the server goes on. */
    stream = dial();
    for (int i = 0; i < 70000 && fputc('x', stream) != EOF; i++) {
    }
    (void)fflush(stream);
    fclose(stream);
    stream = dial();
    ASK(stream, "SET a b c", "OK");
    fclose(stream);
}
