/*
 * A key-value server for several tenants that share one budget: a heap for each tenant below one
 * heap for all, and a heap for each request. A tenant that takes too much is told so in one line,
 * keeps what it has, and goes on as soon as it deletes something; its neighbours do not notice.
 *
 *   tenants [port [bytes of all [bytes a tenant]]]      port 0: any; the first line says which
 *
 *   printf 'SET anna colour blue\nGET anna colour\nSTATS anna\nQUIT\n' | nc 127.0.0.1 7007
 *
 * One command a line, one line of answer. A tenant begins with its first SET or LIMIT.
 *   SET tenant key value     GET tenant key      DEL tenant key
 *   FILL tenant bytes        stores values of so many bytes until the budget refuses one
 *   STATS [tenant]           LIMIT tenant bytes  TRIM [tenant]   KILL tenant   QUIT
 */
#define _GNU_SOURCE
#include <hakheap.h>

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "options.h"

enum {
    TENANTS = 64,
    CONNECTIONS = 64,
    LINE = 65536,
    ANSWER = LINE + 256,
    REQUEST = 2 << 20, /* bytes of one request */
    BUCKETS = 256,
    NAME = 32
};

typedef struct entry {
    struct entry *next;
    char *value;
    char key[];
} entry_t;

/* All of it lies in the tenant's heap, but for the record itself. */
typedef struct tenant {
    char name[NAME]; /* "": free */
    hak_heap_t *heap;
    entry_t **buckets;
    size_t keys, refused;
} tenant_t;

typedef struct connection {
    int socket; /* -1: free */
    size_t used;
    char line[LINE];
} connection_t;

/* What one request has: a heap, which goes with its end, and its words. */
typedef struct request {
    hak_heap_t *heap;
    char *word[4]; /* the last one goes to the end of the line */
    char *answer;
} request_t;

static hak_heap_t *all;
static size_t tenant_limit;
static tenant_t tenants[TENANTS];
static connection_t connections[CONNECTIONS];
static int poller;

static void die(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static hak_heap_t *heap_of(const char *name, hak_heap_t *parent, size_t limit)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = name;
    config.parent = parent;
    config.live_limit = limit;
    return hak_heap_create(&config);
}

/* ---- Tenants ---- */

static tenant_t *find(const char *name)
{
    for (size_t i = 0; i < TENANTS; i++)
        if (*name && strcmp(tenants[i].name, name) == 0) return &tenants[i];
    return NULL;
}

static tenant_t *begin(const char *name)
{
    tenant_t *tenant = NULL;
    for (size_t i = 0; i < TENANTS && !tenant; i++)
        if (!tenants[i].name[0]) tenant = &tenants[i];
    if (!tenant || strlen(name) >= NAME || !*name) return NULL;
    *tenant = (tenant_t){.heap = heap_of(name, all, tenant_limit)};
    if (!tenant->heap) return NULL;
    tenant->buckets = hak_heap_calloc(tenant->heap, BUCKETS, sizeof(entry_t *));
    if (!tenant->buckets) {
        hak_heap_destroy(tenant->heap);
        return NULL;
    }
    strcpy(tenant->name, name);
    return tenant;
}

static void end(tenant_t *tenant)
{
    hak_heap_destroy(tenant->heap); /* with all its entries */
    tenant->name[0] = '\0';
}

static entry_t **place_of(tenant_t *tenant, const char *key)
{
    unsigned hash = 2166136261u; /* FNV-1a */
    for (const char *at = key; *at; at++) hash = (hash ^ (unsigned char)*at) * 16777619u;
    entry_t **place = &tenant->buckets[hash % BUCKETS];
    while (*place && strcmp((*place)->key, key) != 0) place = &(*place)->next;
    return place;
}

/* False: refused, and nothing has changed. */
static bool store(tenant_t *tenant, const char *key, const char *value, size_t bytes)
{
    entry_t **place = place_of(tenant, key), *entry = *place;
    char *copy = hak_heap_malloc(tenant->heap, bytes + 1);
    if (copy && !entry) entry = hak_heap_malloc(tenant->heap, sizeof *entry + strlen(key) + 1);
    if (!copy || !entry) {
        hak_heap_free(tenant->heap, copy);
        tenant->refused++;
        return false;
    }
    memcpy(copy, value, bytes);
    copy[bytes] = '\0';
    if (!*place) {
        *entry = (entry_t){NULL, NULL};
        strcpy(entry->key, key);
        *place = entry;
        tenant->keys++;
    }
    hak_heap_free(tenant->heap, entry->value);
    entry->value = copy;
    return true;
}

/* ---- Commands ---- */

__attribute__((format(printf, 2, 3))) static void answer(request_t *request, const char *format,
                                                         ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(request->answer, ANSWER - 1, format, arguments);
    va_end(arguments);
}

static hak_usage_t usage_of(const hak_heap_t *heap)
{
    hak_usage_t usage = {.struct_size = sizeof usage};
    (void)hak_heap_usage(heap, &usage);
    return usage;
}

/* Which budget is used up: the tenant's own, or that of all. */
static void answer_refused(request_t *request, const tenant_t *tenant)
{
    bool own = hak_heap_refused_by(tenant->heap) == tenant->heap;
    hak_usage_t usage = usage_of(own ? tenant->heap : all);
    answer(request, "ERROR %s has used %zu of %zu bytes", own ? tenant->name : "the server",
           usage.tree_bytes, usage.live_limit);
}

static void do_set(request_t *request)
{
    tenant_t *tenant = find(request->word[1]);
    if (!tenant) tenant = begin(request->word[1]);
    if (!tenant) answer(request, "ERROR no room for a tenant of this name");
    else if (store(tenant, request->word[2], request->word[3], strlen(request->word[3])))
        answer(request, "OK");
    else answer_refused(request, tenant);
}

static void do_get(request_t *request)
{
    tenant_t *tenant = find(request->word[1]);
    entry_t *entry = tenant ? *place_of(tenant, request->word[2]) : NULL;
    if (entry) answer(request, "VALUE %s", entry->value);
    else answer(request, "NONE");
}

static void do_del(request_t *request)
{
    tenant_t *tenant = find(request->word[1]);
    entry_t **place = tenant ? place_of(tenant, request->word[2]) : NULL;
    if (!place || !*place) {
        answer(request, "NONE");
        return;
    }
    entry_t *entry = *place;
    *place = entry->next;
    tenant->keys--;
    hak_heap_free(tenant->heap, entry->value);
    hak_heap_free(tenant->heap, entry);
    answer(request, "OK");
}

/* A tenant out of control. */
static void do_fill(request_t *request)
{
    tenant_t *tenant = find(request->word[1]);
    size_t bytes = strtoul(request->word[2], NULL, 10), stored = 0;
    char *value = bytes <= 1 << 20 ? hak_heap_calloc(request->heap, 1, bytes + 1) : NULL;
    if (!tenant || !value || !bytes) {
        answer(request, "ERROR no such tenant, or no such size");
        return;
    }
    memset(value, 'x', bytes);
    for (char key[32];; stored++) {
        snprintf(key, sizeof key, "fill-%zu", stored);
        if (!store(tenant, key, value, bytes)) break;
    }
    answer_refused(request, tenant);
}

static void do_stats(request_t *request)
{
    tenant_t *tenant = find(request->word[1]);
    hak_usage_t usage = usage_of(tenant ? tenant->heap : all);
    if (tenant || !request->word[1][0])
        answer(request, "STATS live %zu tree %zu limit %zu committed %zu keys %zu refused %zu",
               usage.live_bytes, usage.tree_bytes, usage.live_limit, usage.committed_bytes,
               tenant ? tenant->keys : 0, tenant ? tenant->refused : usage.refusals);
    else answer(request, "NONE");
}

static void do_limit(request_t *request)
{
    tenant_t *tenant = find(request->word[1]);
    hak_limits_t limits = {.struct_size = sizeof limits,
                           .live_limit = strtoul(request->word[2], NULL, 10)};
    if (!tenant) tenant = begin(request->word[1]);
    int error = tenant && limits.live_limit ? hak_heap_set_limits(tenant->heap, &limits) : EINVAL;
    if (error) answer(request, "ERROR %s", error == EBUSY ? "more is in use" : strerror(error));
    else answer(request, "OK");
}

static void do_trim(request_t *request)
{
    size_t bytes = 0;
    for (size_t i = 0; i < TENANTS; i++)
        if (tenants[i].name[0] && (!request->word[1][0] || find(request->word[1]) == &tenants[i]))
            bytes += hak_heap_trim(tenants[i].heap, 0);
    if (!request->word[1][0]) bytes += hak_reserve_trim();
    answer(request, "OK %zu", bytes);
}

static void do_kill(request_t *request)
{
    tenant_t *tenant = find(request->word[1]);
    if (tenant) end(tenant);
    answer(request, tenant ? "OK" : "NONE");
}

static const struct command {
    const char *name;
    int words;
    void (*run)(request_t *request);
} commands[] = {{"SET", 4, do_set},   {"GET", 3, do_get},     {"DEL", 3, do_del},
                {"FILL", 3, do_fill}, {"STATS", 1, do_stats}, {"LIMIT", 3, do_limit},
                {"TRIM", 1, do_trim}, {"KILL", 2, do_kill}};

/* ---- Requests ---- */

static int split(char *line, char *word[4])
{
    static char none[1];
    int count = 0;
    for (int i = 0; i < 4; i++) {
        line += strspn(line, " ");
        word[i] = *line ? line : none;
        count += *line != '\0';
        char *end = i < 3 ? strchr(line, ' ') : NULL;
        line = end ? end + 1 : line + strlen(line);
        if (end) *end = '\0';
    }
    return count;
}

static void run(request_t *request, const char *line)
{
    char *copy = hak_heap_malloc(request->heap, strlen(line) + 1);
    if (!copy) {
        answer(request, "ERROR no memory");
        return;
    }
    int words = split(strcpy(copy, line), request->word);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(request->word[0], commands[i].name) != 0) continue;
        if (words >= commands[i].words) commands[i].run(request);
        else answer(request, "ERROR words are missing");
        return;
    }
    answer(request, "ERROR no such command");
}

/* Answers come one after another; a client that does not read them is dropped. */
static bool send_all(int socket, const char *text, size_t length)
{
    for (size_t sent = 0; sent < length;) {
        ssize_t now = send(socket, text + sent, length - sent, MSG_NOSIGNAL);
        if (now <= 0) return false;
        sent += (size_t)now;
    }
    return true;
}

/* A request has a budget of its own: what tenants have used up does not silence the server. False:
 * hang up. */
static bool serve(int socket, const char *line)
{
    if (strcmp(line, "QUIT") == 0) return false;
    request_t request = {.heap = heap_of("request", NULL, REQUEST)};
    request.answer = request.heap ? hak_heap_malloc(request.heap, ANSWER) : NULL;
    bool sent = false;
    if (request.answer) {
        run(&request, line);
        strcat(request.answer, "\n");
        sent = send_all(socket, request.answer, strlen(request.answer));
    }
    if (request.heap) hak_heap_destroy(request.heap); /* with all that the request left */
    return sent;
}

/* ---- Connections ---- */

static void drop(connection_t *connection)
{
    close(connection->socket);
    connection->socket = -1;
}

static void accept_one(int listener)
{
    int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    connection_t *connection = NULL;
    for (size_t i = 0; i < CONNECTIONS && !connection; i++)
        if (connections[i].socket < 0) connection = &connections[i];
    struct timeval patience = {.tv_sec = 2};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (socket < 0 || !connection ||
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0 ||
        epoll_ctl(poller, EPOLL_CTL_ADD, socket, &event) != 0) {
        if (socket >= 0) close(socket);
        return;
    }
    connection->socket = socket;
    connection->used = 0;
}

/* Serves each whole line that has come. */
static void read_some(connection_t *connection)
{
    size_t room = LINE - 1 - connection->used;
    ssize_t got = recv(connection->socket, connection->line + connection->used, room, 0);
    if (got <= 0) {
        drop(connection);
        return;
    }
    connection->used += (size_t)got;
    connection->line[connection->used] = '\0';
    char *line = connection->line;
    for (char *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = '\0';
        if (end > line && end[-1] == '\r') end[-1] = '\0';
        if (!serve(connection->socket, line)) {
            drop(connection);
            return;
        }
    }
    connection->used -= (size_t)(line - connection->line);
    memmove(connection->line, line, connection->used);
    if (connection->used == LINE - 1) drop(connection);
}

static int listen_at(unsigned short port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t length = sizeof at;
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 64) != 0 ||
        getsockname(listener, (struct sockaddr *)&at, &length) != 0)
        die("listen");
    printf("listening at 127.0.0.1:%u\n", ntohs(at.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char *argv[])
{
    static const char usage[] = "tenants [port [bytes of all [bytes a tenant]]]";
    if (argc > 4) options_refuse(usage, argv[4]);
    size_t port = argc > 1 ? options_number(usage, argv[1], UINT16_MAX) : 7007;
    size_t budget = argc > 2 ? options_number(usage, argv[2], SIZE_MAX) : 64 << 20;
    tenant_limit = argc > 3 ? options_number(usage, argv[3], SIZE_MAX) : budget / 4;
    all = heap_of("all tenants", NULL, budget);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!all || poller < 0) die("start");
    for (size_t i = 0; i < CONNECTIONS; i++) connections[i].socket = -1;
    int listener = listen_at((unsigned short)port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) != 0) die("epoll");
    for (;;) {
        if (epoll_wait(poller, &event, 1, -1) < 1) continue;
        if (event.data.ptr) read_some(event.data.ptr);
        else accept_one(listener);
    }
}
