/* include/hakheap/sqlite.h under the real SQLite: its methods, what lies where, and how memory that
 * is refused reaches SQL. Each test is a process of its own, so each configures SQLite anew. */
#include <criterion/criterion.h>
#include <hakheap/sqlite.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "support_contract.h"
#include "support_run.h"

TestSuite(sqlite, .timeout = 120);

static hak_heap_t *base; /* serves what no scope does */

static void begin(int level)
{
    base = contract_heap(level, "sqlite");
    cr_assert(hak_sqlite_config(base) == SQLITE_OK);
    cr_assert(sqlite3_initialize() == SQLITE_OK);
}

static void end(void)
{
    cr_assert(sqlite3_shutdown() == SQLITE_OK);
    cr_assert(contract_unsound(base, 0) == 0, "line %d", contract_unsound(base, 0));
    cr_assert(hak_scope_set_default(NULL) == 0);
    cr_assert(hak_heap_destroy(base) == 0);
}

static int run(sqlite3 *db, const char *sql) { return sqlite3_exec(db, sql, NULL, NULL, NULL); }

static sqlite3 *open_in(hak_heap_t *heap)
{
    sqlite3 *db = NULL;
    hak_heap_t *outer = hak_scope_enter(heap);
    cr_assert(sqlite3_open(":memory:", &db) == SQLITE_OK);
    hak_scope_leave(outer);
    cr_assert(hak_heap_of(db) == (heap ? heap : base));
    return db;
}

#define FILL                                                                    \
    "create table if not exists t(a integer primary key, b text);"              \
    "with recursive n(i) as (values(1) union all select i + 1 from n limit %d)" \
    "insert into t(b) select printf('%%.*c', 200, 'x') from n;"

static int fill(sqlite3 *db, hak_heap_t *heap, int rows)
{
    char sql[512];
    snprintf(sql, sizeof sql, FILL, rows);
    hak_heap_t *outer = hak_scope_enter(heap);
    int status = run(db, sql);
    hak_scope_leave(outer);
    return status;
}

static int count(sqlite3 *db)
{
    sqlite3_stmt *query;
    cr_assert(sqlite3_prepare_v2(db, "select count(*) from t", -1, &query, NULL) == SQLITE_OK);
    cr_assert(sqlite3_step(query) == SQLITE_ROW);
    int rows = sqlite3_column_int(query, 0);
    sqlite3_finalize(query);
    return rows;
}

Test(sqlite, all_its_memory_lies_in_the_heap_and_goes_at_the_end)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        begin(level);
        sqlite3 *db = open_in(NULL);
        cr_assert(fill(db, NULL, 1000) == SQLITE_OK);
        cr_assert(run(db, "create index i on t(b); select * from t a join t b on a.b > b.a limit 9;"
                          "delete from t where a % 2; vacuum") == SQLITE_OK);
        cr_assert(count(db) == 500);
        cr_assert(contract_stats(base).live_bytes > 100000);
        cr_assert(hak_heap_check(base) == 0);
        cr_assert(sqlite3_close(db) == SQLITE_OK);
        end();
    }
}

/* The methods by themselves, in the words of SQLite's manual. */
Test(sqlite, methods_keep_their_contract)
{
    begin(0);
    for (int bytes = 1; bytes < 300000; bytes += 1 + bytes / 7) {
        int rounded = hak_sqlite_roundup(bytes);
        cr_assert(rounded >= bytes && rounded % 8 == 0 && hak_sqlite_roundup(rounded) == rounded);
        char *block = sqlite3_malloc(bytes);
        cr_assert(hak_heap_of(block) == base && sqlite3_msize(block) >= (unsigned)bytes);
        memset(block, 1, sqlite3_msize(block));
        char *grown = sqlite3_realloc(block, 2 * bytes);
        cr_assert(grown[0] == 1 && grown[bytes - 1] == 1);
        grown = sqlite3_realloc(grown, 1);
        cr_assert(grown && grown[0] == 1);
        sqlite3_free(grown);
    }
    cr_assert(sqlite3_malloc(0) == NULL && sqlite3_malloc(-1) == NULL && sqlite3_msize(NULL) == 0);
    sqlite3_free(NULL);
    /* The largest sizes of type int. */
    cr_assert(hak_sqlite_roundup(0x7fffffff) == 0x7ffffff8);
    cr_assert(hak_sqlite_usable(NULL) == 0 && hak_sqlite_malloc(-1) == NULL);
    void *most = sqlite3_malloc64(0x7ffffeff);
    if (most) cr_assert(sqlite3_msize(most) >= 0x7ffffeff && sqlite3_msize(most) <= 0x7fffffff);
    sqlite3_free(most);
    end();
}

Test(sqlite, it_is_refused_once_sqlite_runs)
{
    begin(0);
    cr_assert(hak_sqlite_config(base) == SQLITE_MISUSE);
    end();
}

Test(sqlite, a_destroyed_heap_is_none_to_start_with)
{
    base = contract_heap(0, "gone");
    cr_assert(hak_sqlite_config(base) == SQLITE_OK);
    cr_assert(hak_heap_destroy(base) == 0);
    cr_assert(sqlite3_initialize() == SQLITE_MISUSE);
}

Test(sqlite, no_heap_is_none_to_start_with)
{
    hak_heap_t *before = contract_heap(0, "before");
    cr_assert(hak_scope_set_default(before) == 0);
    cr_assert(hak_sqlite_config(NULL) == SQLITE_MISUSE);
    cr_assert(hak_scope_heap() == before);
    cr_assert(hak_scope_set_default(NULL) == 0 && hak_heap_destroy(before) == 0);
}

/* Its heap may be destroyed after the shutdown, so it must not be left as the process's default; and
 * SQLite starts again with it, or with another. */
Test(sqlite, shutdown_gives_the_default_back)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        base = contract_heap(level, "sqlite");
        cr_assert(hak_sqlite_config(base) == SQLITE_OK);
        for (int i = 0; i < 3; i++) {
            cr_assert(sqlite3_initialize() == SQLITE_OK && hak_scope_heap() == base);
            sqlite3 *db = open_in(NULL);
            cr_assert(fill(db, NULL, 100) == SQLITE_OK && sqlite3_close(db) == SQLITE_OK);
            /* Also in a scope, which is left alone. */
            hak_heap_t *scope = contract_heap(1, "scope"), *outer = hak_scope_enter(scope);
            cr_assert(sqlite3_shutdown() == SQLITE_OK && hak_scope_heap() == scope);
            hak_scope_leave(outer);
            cr_assert(hak_scope_heap() == NULL);
            cr_assert(hak_heap_destroy_if_empty(scope, NULL) == 0);
        }
        cr_assert(hak_heap_destroy_if_empty(base, NULL) == 0);
    }
}

/* A default that the program has named meanwhile is the program's. */
Test(sqlite, shutdown_leaves_another_default)
{
    begin(0);
    hak_heap_t *named = contract_heap(0, "named");
    cr_assert(hak_scope_set_default(named) == 0);
    cr_assert(sqlite3_shutdown() == SQLITE_OK && hak_scope_heap() == named);
    cr_assert(hak_scope_set_default(NULL) == 0);
    cr_assert(hak_heap_destroy(named) == 0 && hak_heap_destroy_if_empty(base, NULL) == 0);
}

/* What is worked on in another scope than it was opened in lies in two heaps, and is sound. */
Test(sqlite, a_connection_may_be_used_in_another_scope)
{
    begin(0);
    hak_heap_t *one = contract_heap(0, "one"), *two = contract_heap(1, "two");
    sqlite3 *db = open_in(one);
    cr_assert(fill(db, one, 300) == SQLITE_OK && fill(db, two, 3000) == SQLITE_OK);
    cr_assert(contract_stats(two).live_bytes > 100000);
    cr_assert(run(db, "delete from t where a % 2; vacuum") == SQLITE_OK);
    cr_assert(count(db) == 1650);
    cr_assert(sqlite3_close(db) == SQLITE_OK);
    cr_assert(hak_heap_destroy_if_empty(one, NULL) == 0);
    cr_assert(hak_heap_destroy_if_empty(two, NULL) == 0);
    end();
}

Test(sqlite, a_scope_for_a_connection_holds_all_of_it)
{
    begin(0);
    size_t before = contract_stats(base).live_bytes;
    hak_heap_t *one = contract_heap(0, "one"), *two = contract_heap(1, "two");
    sqlite3 *a = open_in(one), *b = open_in(two);
    cr_assert(fill(a, one, 3000) == SQLITE_OK && fill(b, two, 300) == SQLITE_OK);
    cr_assert(contract_stats(one).live_bytes > 600000);
    cr_assert(contract_stats(two).live_bytes > 60000 && contract_stats(two).live_bytes < 300000);
    cr_assert(contract_stats(base).live_bytes == before);
    /* Closed in another's scope: blocks know their heap. */
    hak_heap_t *outer = hak_scope_enter(two);
    cr_assert(sqlite3_close(a) == SQLITE_OK);
    hak_scope_leave(outer);
    cr_assert(hak_heap_destroy_if_empty(one, NULL) == 0);
    cr_assert(sqlite3_close(b) == SQLITE_OK);
    cr_assert(hak_heap_destroy_if_empty(two, NULL) == 0);
    end();
}

Test(sqlite, a_full_heap_is_an_error_of_sql_and_the_database_goes_on)
{
    begin(0);
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.live_limit = 1 << 20;
    hak_heap_t *quota = hak_heap_create(&config), *free_one = contract_heap(0, "neighbour");
    sqlite3 *db = open_in(quota), *other = open_in(free_one);
    cr_assert(fill(db, quota, 100) == SQLITE_OK);
    for (int i = 0; i < 20; i++) {
        cr_assert(fill(db, quota, 10000) == SQLITE_NOMEM);
        cr_assert(hak_heap_refused_by(quota) == quota);
        cr_assert(fill(other, free_one, 100) == SQLITE_OK);
        hak_heap_t *outer = hak_scope_enter(quota);
        cr_assert(count(db) == 100, "what was refused was rolled back");
        hak_scope_leave(outer);
    }
    cr_assert(count(other) == 2000);
    cr_assert(sqlite3_close(db) == SQLITE_OK && sqlite3_close(other) == SQLITE_OK);
    cr_assert(hak_heap_destroy_if_empty(quota, NULL) == 0);
    cr_assert(hak_heap_destroy_if_empty(free_one, NULL) == 0);
    end();
}

/* ---- Threads, each with a connection ---- */

static void *work(void *heap)
{
    sqlite3 *db = NULL;
    hak_heap_t *outer = hak_scope_enter(heap);
    bool good = sqlite3_open(":memory:", &db) == SQLITE_OK;
    for (size_t i = 0, rounds = contract_work(40); i < rounds && good; i++)
        good =
            fill(db, heap, 500) == SQLITE_OK && run(db, "delete from t where a % 3") == SQLITE_OK;
    good = good && sqlite3_close(db) == SQLITE_OK;
    hak_scope_leave(outer);
    return good ? heap : NULL;
}

Test(sqlite, threads_work_each_in_its_heap)
{
    begin(0);
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    hak_heap_t *heaps[THREADS];
    for (int i = 0; i < THREADS; i++) {
        heaps[i] = contract_heap(i % 2, "thread");
        cr_assert(pthread_create(&threads[i], NULL, work, heaps[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        cr_assert(result == heaps[i]);
        cr_assert(hak_heap_destroy_if_empty(heaps[i], NULL) == 0);
    }
    end();
}
