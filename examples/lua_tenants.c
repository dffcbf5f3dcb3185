/*
 * Lua for many tenants behind a line server: a state and a heap for each, with a hard quota. A
 * script that runs away gets Lua's own "not enough memory", its neighbours do not notice, and its
 * state goes on: Lua has collected. The end of a tenant is one call, whatever its state holds.
 *
 *   lua_tenants serve [port [quota]]   a server on 127.0.0.1; port 0: any; the first line says which
 *   lua_tenants runaway                100 runaway scripts: how they end, and what neighbours see
 *   lua_tenants                        requests a second and memory, of a server in this process
 *
 *   printf 'EVAL anna x = 7; return x * 6\nSTATS anna\nQUIT\n' | nc 127.0.0.1 7007
 *
 * One command a line, one line of answer; each connection has a thread. A tenant begins with its
 * first EVAL.
 *   EVAL tenant script     STATS tenant     TRIM tenant     KILL tenant     QUIT
 *
 * --allocator system serves the states by malloc, with a counter for a quota: see measure.h.
 */
#define _GNU_SOURCE
#include "measure.h"

#include <arpa/inet.h>
#include <hakheap/lua.h>
#include <lauxlib.h>
#include <lualib.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    TENANTS = 64,
    NAME = 32,
    LINE = 16384,
    ANSWER = LINE,
    SLICE = 10000,      /* steps of Lua's virtual machine between two chances for others */
    MOST_SLICES = 10000 /* that a script may take */
};

typedef struct tenant {
    pthread_mutex_t lock; /* one script at a time; taken before `names` */
    char name[NAME];      /* "": free; under `names` */
    hak_heap_t *heap;     /* NULL: malloc serves */
    size_t used;          /* by malloc */
    lua_State *lua;       /* NULL: not begun */
    unsigned slices;      /* that the script has taken */
} tenant_t;

static pthread_mutex_t names = PTHREAD_MUTEX_INITIALIZER;
static tenant_t tenants[TENANTS];
static size_t quota = 8 << 20;
static measure_options_t options;

static void die(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

/* ---- States ---- */

/* What a program does that has no heaps. */
static void *counted_alloc(void *ud, void *ptr, size_t osize, size_t nsize)
{
    tenant_t *tenant = ud;
    size_t before = ptr ? osize : 0;
    if (nsize > before && nsize - before > quota - tenant->used) return NULL;
    void *block = NULL;
    if (nsize == 0) free(ptr);
    else if (!(block = realloc(ptr, nsize))) return nsize <= before ? ptr : NULL;
    tenant->used += nsize - before;
    return block;
}

/* Scripts get no files, no processes and no compiled code. */
static int open_libraries(lua_State *lua)
{
    static const luaL_Reg libraries[] = {
        {LUA_GNAME, luaopen_base},       {LUA_COLIBNAME, luaopen_coroutine},
        {LUA_TABLIBNAME, luaopen_table}, {LUA_STRLIBNAME, luaopen_string},
        {LUA_MATHLIBNAME, luaopen_math}, {LUA_UTF8LIBNAME, luaopen_utf8}};
    static const char *const withheld[] = {"load", "loadfile", "dofile"};
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        luaL_requiref(lua, libraries[i].name, libraries[i].func, 1);
        lua_pop(lua, 1);
    }
    for (size_t i = 0; i < sizeof withheld / sizeof *withheld; i++) {
        lua_pushnil(lua);
        lua_setglobal(lua, withheld[i]);
    }
    return 0;
}

/* All of a tenant goes; with a heap without a walk over what it holds. */
static void end(tenant_t *tenant)
{
    if (tenant->heap) hak_heap_destroy(tenant->heap);
    else if (tenant->lua) lua_close(tenant->lua);
    tenant->heap = NULL;
    tenant->lua = NULL;
}

static bool begin(tenant_t *tenant)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = tenant->name;
    config.live_limit = quota;
    tenant->used = 0;
    tenant->heap = options.system ? NULL : hak_heap_create(&config);
    if (tenant->heap) tenant->lua = lua_newstate(hak_lua_alloc, tenant->heap);
    else if (options.system) tenant->lua = lua_newstate(counted_alloc, tenant);
    if (tenant->lua) {
        *(tenant_t **)lua_getextraspace(tenant->lua) = tenant; /* coroutines have it, too */
        lua_pushcfunction(tenant->lua, open_libraries);
        lua_gc(tenant->lua, LUA_GCINC, 150, 0, 0); /* early, because there is a quota */
        if (lua_pcall(tenant->lua, 0, 0, 0) == LUA_OK) return true;
    }
    end(tenant);
    return false;
}

/* ---- Tenants ---- */

static tenant_t *find(const char *name, bool may_begin)
{
    tenant_t *found = NULL, *room = NULL;
    pthread_mutex_lock(&names);
    for (size_t i = 0; i < TENANTS && !found; i++) {
        if (strcmp(tenants[i].name, name) == 0) found = &tenants[i];
        else if (!tenants[i].name[0] && !room) room = &tenants[i];
    }
    if (!found && may_begin && room) strcpy((found = room)->name, name);
    pthread_mutex_unlock(&names);
    return found;
}

static void forget(tenant_t *tenant)
{
    end(tenant);
    pthread_mutex_lock(&names);
    tenant->name[0] = '\0';
    pthread_mutex_unlock(&names);
}

static bool is_named(const tenant_t *tenant, const char *name)
{
    pthread_mutex_lock(&names);
    bool same = strcmp(tenant->name, name) == 0;
    pthread_mutex_unlock(&names);
    return same;
}

static void release(tenant_t *tenant) { pthread_mutex_unlock(&tenant->lock); }

/* A tenant that no other thread uses until it is released; NULL where there is none. A busy one
 * makes those wait that ask for it, and no one else. */
static tenant_t *acquire(const char *name, bool may_begin)
{
    if (!*name || strlen(name) >= NAME) return NULL;
    tenant_t *tenant = find(name, may_begin);
    if (!tenant) return NULL;
    pthread_mutex_lock(&tenant->lock);
    /* Killed while this thread has waited, and perhaps someone else's by now. */
    bool good = is_named(tenant, name);
    if (good && !tenant->lua && !begin(tenant)) {
        forget(tenant);
        good = false;
    }
    if (good) return tenant;
    release(tenant);
    return NULL;
}

/* ---- Scripts ---- */

typedef struct job {
    const char *script;
    char *answer;
} job_t;

/* A script that takes long lets those go first that wait for its CPU. One that takes too long fails
 * at each further step, so that no pcall of its own holds that up. */
static void end_slice(lua_State *lua, lua_Debug *at)
{
    (void)at;
    tenant_t *tenant = *(tenant_t **)lua_getextraspace(lua);
    if (tenant->slices++ < MOST_SLICES) {
        sched_yield();
        return;
    }
    lua_sethook(lua, end_slice, LUA_MASKCOUNT, 1);
    luaL_error(lua, "the script takes too long");
}

/* Everything that may fail for lack of memory is inside of one protected call. */
static int run_job(lua_State *lua)
{
    job_t *job = lua_touserdata(lua, 1);
    if (luaL_loadbufferx(lua, job->script, strlen(job->script), "=script", "t") != LUA_OK)
        return lua_error(lua);
    lua_sethook(lua, end_slice, LUA_MASKCOUNT, SLICE);
    lua_call(lua, 0, 1);
    snprintf(job->answer, ANSWER, "OK %s", luaL_tolstring(lua, -1, NULL));
    return 0;
}

static void eval(tenant_t *tenant, const char *script, char *answer)
{
    job_t job = {script, answer};
    lua_State *lua = tenant->lua;
    tenant->slices = 0;
    lua_pushcfunction(lua, run_job);
    lua_pushlightuserdata(lua, &job);
    if (lua_pcall(lua, 1, 0, 0) != LUA_OK) {
        const char *why = lua_type(lua, -1) == LUA_TSTRING ? lua_tostring(lua, -1) : "an object";
        snprintf(answer, ANSWER, "ERROR %s", why);
        lua_settop(lua, 0);
        lua_gc(lua, LUA_GCCOLLECT); /* what the script has left */
    }
    for (char *at = answer; (at = strchr(at, '\n')) != NULL;) *at = ' ';
}

/* ---- Commands ---- */

static size_t trim(tenant_t *tenant)
{
    lua_gc(tenant->lua, LUA_GCCOLLECT);
    return tenant->heap ? hak_heap_trim(tenant->heap, 0) : 0;
}

static void tell(const tenant_t *tenant, char *answer)
{
    hak_usage_t usage = {.struct_size = sizeof usage, .live_bytes = tenant->used};
    if (tenant->heap) (void)hak_heap_usage(tenant->heap, &usage);
    snprintf(answer, ANSWER, "STATS used %zu quota %zu committed %zu refused %zu", usage.live_bytes,
             quota, usage.committed_bytes, usage.refusals);
}

/* False: hang up. */
static bool serve(char *line, char *answer)
{
    char *command = strsep(&line, " "), *name = line ? strsep(&line, " ") : NULL;
    if (strcmp(command, "QUIT") == 0) return false;
    bool is_eval = strcmp(command, "EVAL") == 0;
    tenant_t *tenant = name ? acquire(name, is_eval) : NULL;
    if (!tenant) {
        strcpy(answer, "ERROR no such tenant, or no room for it");
        return true;
    }
    strcpy(answer, "OK");
    if (is_eval) eval(tenant, line ? line : "", answer);
    else if (strcmp(command, "STATS") == 0) tell(tenant, answer);
    else if (strcmp(command, "TRIM") == 0) sprintf(answer, "OK %zu", trim(tenant));
    else if (strcmp(command, "KILL") == 0) forget(tenant);
    else strcpy(answer, "ERROR no such command");
    release(tenant);
    if (strcmp(command, "KILL") == 0) (void)hak_reserve_trim();
    return true;
}

/* ---- Connections ---- */

static bool send_line(int to, char *text)
{
    size_t length = strlen(text);
    text[length++] = '\n';
    for (size_t sent = 0; sent < length;) {
        ssize_t some = send(to, text + sent, length - sent, MSG_NOSIGNAL);
        if (some <= 0) return false;
        sent += (size_t)some;
    }
    return true;
}

typedef struct reader {
    int from;
    size_t used, taken; /* bytes in `text`, and of them those of lines that were read */
    char text[LINE];
} reader_t;

/* The next line, without its end; NULL at the end of the connection or for too long a line. */
static char *read_line(reader_t *reader)
{
    for (;;) {
        char *line = reader->text + reader->taken;
        char *end = memchr(line, '\n', reader->used - reader->taken);
        if (end) {
            *end = '\0';
            reader->taken = (size_t)(end + 1 - reader->text);
            return line;
        }
        memmove(reader->text, line, reader->used -= reader->taken);
        reader->taken = 0;
        ssize_t some = recv(reader->from, reader->text + reader->used, LINE - reader->used, 0);
        if (some <= 0) return NULL;
        reader->used += (size_t)some;
    }
}

static void *converse(void *socket)
{
    reader_t reader = {.from = (int)(intptr_t)socket};
    char answer[ANSWER + 1];
    for (char *line; (line = read_line(&reader)) != NULL;)
        if (!serve(line, answer) || !send_line(reader.from, answer)) break;
    close(reader.from);
    return NULL;
}

static void no_delay(int socket)
{
    int yes = 1;
    (void)setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static void *accept_all(void *listener)
{
    for (;;) {
        int client = accept4((int)(intptr_t)listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) continue;
        no_delay(client);
        pthread_t thread;
        if (pthread_create(&thread, NULL, converse, (void *)(intptr_t)client) != 0) close(client);
        else pthread_detach(thread);
    }
    return NULL;
}

/* Returns the socket, and its port in `at`. */
static int listen_at(struct sockaddr_in *at)
{
    socklen_t length = sizeof *at;
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(listener, (struct sockaddr *)at, sizeof *at) != 0 || listen(listener, 64) != 0 ||
        getsockname(listener, (struct sockaddr *)at, &length) != 0)
        die("listen");
    for (size_t i = 0; i < TENANTS; i++) pthread_mutex_init(&tenants[i].lock, NULL);
    return listener;
}

static struct sockaddr_in local_port(unsigned port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return at;
}

/* ---- Clients, for the measurements ---- */

static struct sockaddr_in server; /* in this process */

static void start_server(void)
{
    server = local_port(0);
    pthread_t thread;
    int listener = listen_at(&server);
    if (pthread_create(&thread, NULL, accept_all, (void *)(intptr_t)listener) != 0) die("thread");
    pthread_detach(thread);
}

static reader_t *dial(void)
{
    reader_t *client = calloc(1, sizeof *client);
    if (!client) die("client");
    client->from = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->from < 0 || connect(client->from, (struct sockaddr *)&server, sizeof server) != 0)
        die("connect");
    no_delay(client->from);
    return client;
}

static void hang_up(reader_t *client)
{
    close(client->from);
    free(client);
}

__attribute__((format(printf, 2, 3))) static const char *ask(reader_t *client, const char *format,
                                                             ...)
{
    char text[LINE + 1];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, LINE, format, arguments);
    va_end(arguments);
    const char *line = send_line(client->from, text) ? read_line(client) : NULL;
    if (!line) die("the server");
    return line;
}

static void must(bool good, const char *what, const char *answer)
{
    if (good) return;
    fprintf(stderr, "%s: the server answers %s\n", what, answer);
    exit(EXIT_FAILURE);
}

/* A request as a shop has it: a cart, a total, a text that is kept. */
#define SHOP                                                                          \
    "carts = {} function handle(i) local items, text, total = {}, {}, 0 "             \
    "for k = 1, 40 do items[k] = {name = 'item' .. i * k % 97, count = k % 7, "       \
    "price = (i + k) % 13} end "                                                      \
    "for k, item in ipairs(items) do total = total + item.count * item.price "        \
    "text[k] = string.format('%s: %d at %d', item.name, item.count, item.price) end " \
    "carts[i % 1000] = table.concat(text, ', ') return total end return 'ready'"

static void open_shop(reader_t *client, unsigned tenant)
{
    const char *answer = ask(client, "EVAL shop%u %s", tenant, SHOP);
    must(strcmp(answer, "OK ready") == 0, "a shop", answer);
}

/* One request; returns its time in microseconds. */
static double visit(reader_t *client, unsigned tenant, unsigned i)
{
    double start = measure_seconds();
    const char *answer = ask(client, "EVAL shop%u return handle(%u)", tenant, i);
    must(strncmp(answer, "OK ", 3) == 0 && answer[3] != 'n', "a visit", answer);
    return 1e6 * (measure_seconds() - start);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values. */
static double percentile(double *values, size_t count, double part)
{
    qsort(values, count, sizeof *values, compare);
    return values[(size_t)(part * (double)(count - 1))];
}

/* ---- Requests a second, and memory ---- */

enum { CLIENTS = 2, SHOPS = 32, VISITS = 20000, QUICK_VISITS = 500 };

typedef struct crowd {
    unsigned first; /* of its shops, which no other has */
    unsigned visits;
    double *times;
} crowd_t;

static void *crowd_runs(void *of)
{
    crowd_t *crowd = of;
    reader_t *client = dial();
    for (unsigned i = 0; i < crowd->visits; i++)
        crowd->times[i] = visit(client, crowd->first + i % (SHOPS / CLIENTS), i);
    hang_up(client);
    return NULL;
}

/* The end of the largest tenant there is: how long, and what it gives back. */
static void show_end(reader_t *client)
{
    const char *answer = ask(client, "EVAL large t = {} for i = 1, 60000 do t[i] = {i} end");
    must(strncmp(answer, "OK", 2) == 0, "a large tenant", answer);
    long before = measure_kib("VmRSS:");
    double start = measure_seconds();
    (void)ask(client, "KILL large");
    double seconds = measure_seconds() - start;
    printf("the end of a tenant took %.0f us and gave back %ld KiB\n", seconds * 1e6,
           before - measure_kib("VmRSS:"));
}

static void measure_load(void)
{
    unsigned visits = options.quick ? QUICK_VISITS : VISITS;
    double *times = calloc(CLIENTS * visits, sizeof *times);
    crowd_t crowds[CLIENTS];
    pthread_t threads[CLIENTS];
    start_server();
    reader_t *client = dial();
    for (unsigned i = 0; i < SHOPS; i++) open_shop(client, i);
    double start = measure_seconds();
    for (unsigned i = 0; i < CLIENTS; i++) {
        crowds[i] = (crowd_t){i * (SHOPS / CLIENTS), visits, times + i * visits};
        if (pthread_create(&threads[i], NULL, crowd_runs, &crowds[i]) != 0) die("thread");
    }
    for (unsigned i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
    double seconds = measure_seconds() - start;
    printf("p50 %.0f us, p99 %.0f us\n", percentile(times, CLIENTS * visits, 0.5),
           percentile(times, CLIENTS * visits, 0.99));
    free(times);
    show_end(client);
    for (unsigned i = 0; i < SHOPS; i++) (void)ask(client, "TRIM shop%u", i);
    measure_print(seconds, CLIENTS * visits / seconds);
    hang_up(client);
}

/* ---- The runaway script ---- */

enum { NEIGHBOURS = 4, PAIRS = 50, RUNS = 2, MOST_VISITS = 100000, WARM_VISITS = 500 };

static pthread_barrier_t storm;
static atomic_bool raging;
static int stopped, recovered; /* of PAIRS * RUNS */

/* The tenant out of control: in each storm it runs away so many times, and goes on each time. */
static void *run_away(void *unused)
{
    reader_t *client = dial();
    for (int i = 0; i < PAIRS; i++) {
        pthread_barrier_wait(&storm);
        for (int run = 0; run < RUNS; run++) {
            const char *answer = ask(client, "EVAL greedy local t = {} while true do "
                                             "t[#t + 1] = ('x'):rep(100) .. #t end");
            stopped += strcmp(answer, "ERROR not enough memory") == 0;
            answer = ask(client, "EVAL greedy return #('y'):rep(100000)");
            recovered += strcmp(answer, "OK 100000") == 0;
        }
        atomic_store(&raging, false);
        pthread_barrier_wait(&storm);
    }
    hang_up(client);
    return unused;
}

/* The neighbours' p99 of one window: as long as the storm rages, or of so many visits. */
static double window_of(reader_t *client, double *times, size_t *visits)
{
    size_t done = 0;
    for (; done < MOST_VISITS && (*visits ? done < *visits : atomic_load(&raging)); done++)
        times[done] = visit(client, (unsigned)done % NEIGHBOURS, (unsigned)done);
    *visits = done;
    return done ? percentile(times, done, 0.99) : 0;
}

typedef struct pair {
    double with, without; /* microseconds */
} pair_t;

/* A window with the runaway script and one as long without it, in turns: what else the machine does
 * meets both alike. */
static pair_t measure_pair(reader_t *client, double *times)
{
    size_t visits = 0;
    atomic_store(&raging, true);
    pthread_barrier_wait(&storm);
    double with = window_of(client, times, &visits);
    pthread_barrier_wait(&storm);
    return (pair_t){with, visits ? window_of(client, times, &visits) : 0};
}

static void measure_runaway(void)
{
    double *times = calloc(MOST_VISITS, sizeof *times), ratios[PAIRS], with[PAIRS], without[PAIRS];
    size_t warm = WARM_VISITS;
    pthread_t thread;
    quota = options.quick ? 1 << 20 : 4 << 20;
    start_server();
    reader_t *client = dial();
    for (unsigned i = 0; i < NEIGHBOURS; i++) open_shop(client, i);
    (void)window_of(client, times, &warm);
    pthread_barrier_init(&storm, NULL, 2);
    if (!times || pthread_create(&thread, NULL, run_away, NULL) != 0) die("thread");
    for (int i = 0; i < PAIRS; i++) {
        pair_t pair = measure_pair(client, times);
        with[i] = pair.with;
        without[i] = pair.without;
        ratios[i] = pair.without > 0 ? pair.with / pair.without : 1;
    }
    pthread_join(thread, NULL);
    puts(ask(client, "STATS greedy"));
    printf("the runaway script: stopped at its quota %d times of %d, went on %d times; neighbours' "
           "p99 %.0f us without it, %.0f us with it (medians of %d windows each), within a pair of "
           "windows %.2f x (median; quartiles %.2f and %.2f)\n",
           stopped, PAIRS * RUNS, recovered, percentile(without, PAIRS, 0.5),
           percentile(with, PAIRS, 0.5), PAIRS, percentile(ratios, PAIRS, 0.5),
           percentile(ratios, PAIRS, 0.25), percentile(ratios, PAIRS, 0.75));
    free(times);
    hang_up(client);
    if (stopped != PAIRS * RUNS || recovered != PAIRS * RUNS) exit(EXIT_FAILURE);
}

static const char usage[] = "lua_tenants [--allocator hakheap|system] [--quick] "
                            "[runaway | serve [port [quota]]]";

static void serve_for_ever(const char *port, const char *bytes)
{
    if (bytes) quota = options_number(usage, bytes, SIZE_MAX);
    struct sockaddr_in at =
        local_port(port ? (unsigned)options_number(usage, port, UINT16_MAX) : 7007);
    int listener = listen_at(&at);
    printf("listening at 127.0.0.1:%u\n", ntohs(at.sin_port));
    fflush(stdout);
    accept_all((void *)(intptr_t)listener);
}

int main(int argc, char *argv[])
{
    options = measure_read_options(&argc, argv, usage, 3);
    if (argc == 1) measure_load();
    else if (strcmp(argv[1], "runaway") == 0 && argc == 2) measure_runaway();
    else if (strcmp(argv[1], "serve") == 0) serve_for_ever(argv[2], argc > 3 ? argv[3] : NULL);
    else options_refuse(usage, argv[1]);
    return EXIT_SUCCESS;
}
