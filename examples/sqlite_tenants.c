/*
 * SQLite for many tenants in one process: a connection and a heap for each, and each call on a
 * connection in the scope of its heap. So the memory of each connection is known, one that asks too
 * much gets SQLite's own "out of memory" and no other does, and what an idle one holds goes back.
 * Without heaps SQLite has one limit, and one sum, for all connections together.
 *
 *   sqlite_tenants [--allocator hakheap|system] [--quick]        see measure.h
 */
#define _GNU_SOURCE
#include "measure.h"

#include <hakheap/sqlite.h>
#include <pthread.h>
#include <unistd.h>

enum {
    TENANTS = 32,
    WORKERS = 2,
    ROWS = 3000, /* of a tenant's table at the start */
    REQUESTS = 60000,
    QUICK_REQUESTS = 2000,
    QUOTA = 4 << 20
};

typedef struct tenant {
    pthread_mutex_t lock; /* one call at a time */
    hak_heap_t *heap;     /* NULL: malloc serves */
    sqlite3 *db;
    sqlite3_stmt *insert, *total, *change;
} tenant_t;

static hak_heap_t *common; /* what belongs to no connection */
static tenant_t tenants[TENANTS];
static char directory[] = "/tmp/sqlite_tenants-XXXXXX";
static measure_options_t options;

static void die(const char *what)
{
    fprintf(stderr, "sqlite_tenants: %s\n", what);
    exit(EXIT_FAILURE);
}

static void must(bool good, const char *what, tenant_t *tenant)
{
    if (good) return;
    fprintf(stderr, "sqlite_tenants: %s: %s\n", what, sqlite3_errmsg(tenant->db));
    exit(EXIT_FAILURE);
}

static hak_heap_t *heap_of(const char *name, size_t limit)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = name;
    config.live_limit = limit;
    hak_heap_t *heap = hak_heap_create(&config);
    if (!heap) die("no heap");
    return heap;
}

/* ---- Calls on a connection ---- */

/* All that a tenant does runs here: alone on its connection, and in the scope of its heap. */
static int call(tenant_t *tenant, int (*what)(tenant_t *, unsigned), unsigned argument)
{
    pthread_mutex_lock(&tenant->lock);
    hak_heap_t *outer = hak_scope_enter(tenant->heap);
    int result = what(tenant, argument);
    hak_scope_leave(outer);
    pthread_mutex_unlock(&tenant->lock);
    return result;
}

static void path_of(unsigned number, char *path, size_t room)
{
    snprintf(path, room, "%s/%u.db", directory, number);
}

static void prepare(tenant_t *tenant, sqlite3_stmt **statement, const char *sql)
{
    must(sqlite3_prepare_v3(tenant->db, sql, -1, SQLITE_PREPARE_PERSISTENT, statement, NULL) ==
             SQLITE_OK,
         sql, tenant);
}

static int begin(tenant_t *tenant, unsigned number)
{
    char path[64], sql[512];
    path_of(number, path, sizeof path);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    must(sqlite3_open_v2(path, &tenant->db, flags, NULL) == SQLITE_OK, "open", tenant);
    snprintf(sql, sizeof sql,
             "pragma synchronous = off; pragma journal_mode = memory;"
             "create table sale(id integer primary key, customer int, price int, note text);"
             "with recursive n(i) as (values(1) union all select i + 1 from n limit %d)"
             "insert into sale select i, i * 7 %% 100, i %% 997, printf('note %%.*c', i %% 99, 'x')"
             "from n; create index of_customer on sale(customer);",
             ROWS);
    must(sqlite3_exec(tenant->db, sql, NULL, NULL, NULL) == SQLITE_OK, "schema", tenant);
    prepare(tenant, &tenant->insert,
            "insert into sale(customer, price, note) values"
            "(?1 % 100, ?1 % 997, printf('note %.*c', ?1 % 99, 'y'))");
    prepare(tenant, &tenant->total,
            "select sum(price), count(*), max(note) from sale "
            "where customer = ?1 % 100");
    prepare(tenant, &tenant->change, "update sale set price = price + 1 where id = ?1 % 3000");
    return SQLITE_OK;
}

static int request(tenant_t *tenant, unsigned number)
{
    sqlite3_stmt *statement = number % 8 == 0   ? tenant->insert
                              : number % 8 == 1 ? tenant->change
                                                : tenant->total;
    sqlite3_bind_int(statement, 1, (int)(number & 0xffffff));
    int result = sqlite3_step(statement);
    sqlite3_reset(statement);
    must(result == SQLITE_ROW || result == SQLITE_DONE, "a request", tenant);
    return result;
}

/* A query that wants far more than the tenant may have. */
static int ask_too_much(tenant_t *tenant, unsigned unused)
{
    (void)unused;
    return sqlite3_exec(tenant->db,
                        "select length(group_concat(a.note || b.note)) from sale a, sale b", NULL,
                        NULL, NULL);
}

/* What an idle connection can do without: the pages that it has cached, and free memory. */
static int make_idle(tenant_t *tenant, unsigned unused)
{
    (void)unused;
    int result = sqlite3_db_release_memory(tenant->db);
    if (tenant->heap) (void)hak_heap_trim(tenant->heap, 0);
    return result;
}

static int end(tenant_t *tenant, unsigned unused)
{
    (void)unused;
    sqlite3_finalize(tenant->insert);
    sqlite3_finalize(tenant->total);
    sqlite3_finalize(tenant->change);
    return sqlite3_close(tenant->db);
}

/* ---- The work ---- */

/* xorshift */
static unsigned next_random(unsigned *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

static void *work(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    int most = (options.quick ? QUICK_REQUESTS : REQUESTS) / WORKERS;
    for (int i = 0; i < most; i++)
        (void)call(&tenants[next_random(&state) % TENANTS], request, next_random(&state));
    return NULL;
}

static double serve_all(void)
{
    pthread_t workers[WORKERS];
    double start = measure_seconds();
    for (uintptr_t i = 0; i < WORKERS; i++)
        if (pthread_create(&workers[i], NULL, work, (void *)(i + 1)) != 0) die("no thread");
    for (unsigned i = 0; i < WORKERS; i++) pthread_join(workers[i], NULL);
    return measure_seconds() - start;
}

/* ---- What heaps tell ---- */

static size_t committed_of(const tenant_t *tenant)
{
    hak_usage_t usage = {.struct_size = sizeof usage};
    (void)hak_heap_usage(tenant->heap, &usage);
    return usage.committed_bytes;
}

static void show_refusal(void)
{
    int result = call(&tenants[0], ask_too_much, 0);
    printf("tenant 0 asks too much: %s; its neighbour: %s\n", sqlite3_errstr(result),
           sqlite3_errstr(call(&tenants[1], request, 2)));
    if (result != SQLITE_NOMEM) die("nothing was refused");
    (void)call(&tenants[0], request, 2); /* goes on */
}

static void make_all_idle(void)
{
    size_t busy = 0, idle = 0;
    for (unsigned i = 0; i < TENANTS; i++) {
        size_t before = options.system ? 0 : committed_of(&tenants[i]);
        (void)call(&tenants[i], make_idle, 0);
        size_t after = options.system ? 0 : committed_of(&tenants[i]);
        if (i < 3 && !options.system)
            printf("tenant %u: %zu KiB busy, %zu KiB idle\n", i, before >> 10, after >> 10);
        busy += before;
        idle += after;
    }
    if (!options.system)
        printf("%d connections: %zu KiB busy, %zu KiB idle\n", TENANTS, busy >> 10, idle >> 10);
}

/* ---- Start and end ---- */

static void begin_all(void)
{
    if (!mkdtemp(directory)) die("no directory");
    if (options.system) sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0); /* as hak_sqlite_config() */
    else if (hak_sqlite_config(common = heap_of("common", 0)) != SQLITE_OK) die("SQLite runs");
    for (unsigned i = 0; i < TENANTS; i++) {
        char name[32];
        snprintf(name, sizeof name, "tenant %u", i);
        pthread_mutex_init(&tenants[i].lock, NULL);
        tenants[i].heap = options.system ? NULL : heap_of(name, QUOTA);
        (void)call(&tenants[i], begin, i);
    }
}

/* A connection that is closed has left nothing in its heap. */
static void end_all(void)
{
    for (unsigned i = 0; i < TENANTS; i++) {
        char path[64];
        path_of(i, path, sizeof path);
        must(call(&tenants[i], end, 0) == SQLITE_OK, "close", &tenants[i]);
        if (tenants[i].heap && hak_heap_destroy_if_empty(tenants[i].heap, NULL) != 0)
            die("a connection has left something");
        unlink(path);
    }
    rmdir(directory);
    sqlite3_shutdown();
}

int main(int argc, char *argv[])
{
    options = measure_read_options(&argc, argv,
                                   "sqlite_tenants [--allocator hakheap|system] [--quick]", 0);
    begin_all();
    double seconds = serve_all();
    make_all_idle();
    measure_print(seconds, (options.quick ? QUICK_REQUESTS : REQUESTS) / seconds);
    if (!options.system) show_refusal();
    end_all();
    return EXIT_SUCCESS;
}
