/* examples/tenants.c over real sockets: who takes too much is told so, and nobody else notices. */
#include "support_server.h"

TestSuite(tenants, .timeout = 300);

static void start(const char *budget, const char *each)
{
    server_start((const char *const[]){"tenants", "0", budget, each, NULL});
}

typedef struct figures {
    size_t live, tree, limit, committed, keys, refused;
} figures_t;

static figures_t figures_of(FILE *stream, const char *command)
{
    figures_t of;
    const char *line = server_ask(stream, command);
    cr_assert(sscanf(line, "STATS live %zu tree %zu limit %zu committed %zu keys %zu refused %zu",
                     &of.live, &of.tree, &of.limit, &of.committed, &of.keys, &of.refused) == 6,
              "%s", line);
    return of;
}

static void require_refused(FILE *stream, const char *command, const char *who)
{
    char name[64];
    size_t used, limit;
    const char *line = server_ask(stream, command);
    cr_assert(sscanf(line, "ERROR %63[^ ] has used %zu of %zu bytes", name, &used, &limit) == 3,
              "%s", line);
    cr_assert(strcmp(name, who) == 0 && used <= limit && limit - used < 8192, "%s", line);
}

Test(tenants, a_tenant_that_takes_too_much_is_told, .fini = server_stop)
{
    start("16000000", "4000000");
    FILE *anna = server_dial(), *greedy = server_dial();
    server_require(anna, "SET anna colour dark blue", "OK");
    server_require(anna, "GET anna colour", "VALUE dark blue");
    server_require(greedy, "SET greedy a b", "OK");
    require_refused(greedy, "FILL greedy 1000", "greedy");
    figures_t full = figures_of(greedy, "STATS greedy");
    cr_assert(full.limit == 4000000 && full.tree <= full.limit && full.keys > 2000);
    cr_assert(full.refused > 0 && full.live <= full.committed);
    /* A neighbour goes on, and so does the tenant itself once it deletes something. */
    server_require(anna, "SET anna colour red", "OK");
    server_require(greedy, "GET greedy a", "VALUE b");
    server_require(greedy, "DEL greedy fill-7", "OK");
    server_require(greedy, "SET greedy fill-7 new", "OK");
    server_require(greedy, "LIMIT greedy 1000", "ERROR more is in use");
    server_require(greedy, "LIMIT greedy 8000000", "OK");
    require_refused(greedy, "FILL greedy 5000", "greedy");
    server_require(greedy, "KILL greedy", "OK");
    cr_assert(figures_of(anna, "STATS").tree < 200000);
    cr_assert(strncmp(server_ask(anna, "TRIM"), "OK ", 3) == 0);
    server_require(anna, "GET anna colour", "VALUE red");
    server_require(anna, "GET greedy a", "NONE");
    fclose(anna);
    fclose(greedy);
}

/* The budget of all is used up by many that each keep to their own. */
Test(tenants, the_server_has_a_budget_too, .fini = server_stop)
{
    start("4000000", "1500000");
    FILE *stream = server_dial();
    char command[64];
    for (int i = 0; i < 3; i++) {
        snprintf(command, sizeof command, "SET t%d k v", i);
        server_require(stream, command, "OK");
        snprintf(command, sizeof command, "FILL t%d 700", i);
        const char *line = server_ask(stream, command);
        cr_assert(strncmp(line, i < 2 ? "ERROR t" : "ERROR the server", i < 2 ? 7 : 16) == 0, "%s",
                  line);
    }
    cr_assert(figures_of(stream, "STATS").tree <= 4000000);
    server_require(stream, "KILL t0", "OK");
    server_require(stream, "SET t2 more room", "OK");
    fclose(stream);
}

/* A hundred times: the runaway is stopped at its limit each time, its neighbour is served each
 * time. */
Test(tenants, a_runaway_is_stopped_every_time, .fini = server_stop)
{
    start("16000000", "1000000");
    FILE *anna = server_dial(), *greedy = server_dial();
    server_require(anna, "SET anna k v", "OK");
    for (int i = 0; i < 100; i++) {
        server_require(greedy, "SET greedy k v", "OK");
        require_refused(greedy, i % 2 ? "FILL greedy 100" : "FILL greedy 3000", "greedy");
        server_require(anna, "GET anna k", "VALUE v");
        server_require(anna, "SET anna k v", "OK");
        server_require(greedy, "KILL greedy", "OK");
    }
    figures_t left = figures_of(anna, "STATS");
    cr_assert(left.tree < 100000, "%zu bytes are left", left.tree);
    fclose(anna);
    fclose(greedy);
}

Test(tenants, what_makes_no_sense_is_answered, .fini = server_stop)
{
    start("16000000", "4000000");
    FILE *stream = server_dial();
    server_require(stream, "HELLO", "ERROR no such command");
    server_require(stream, "SET a b", "ERROR words are missing");
    server_require(stream, "", "ERROR no such command");
    server_require(stream, "SET 0123456789012345678901234567890123456789 k v",
                   "ERROR no room for a tenant of this name");
    server_require(stream, "FILL nobody 100", "ERROR no such tenant, or no such size");
    server_require(stream, "KILL nobody", "NONE");
    server_require(stream, "STATS nobody", "NONE");
    fprintf(stream, "QUIT\n");
    fflush(stream);
    cr_assert(fgetc(stream) == EOF);
    fclose(stream);
    /* A line that never ends is dropped, and the server goes on. */
    stream = server_dial();
    for (int i = 0; i < 70000 && fputc('x', stream) != EOF; i++) {
    }
    (void)fflush(stream);
    fclose(stream);
    stream = server_dial();
    server_require(stream, "SET a b c", "OK");
    fclose(stream);
}
