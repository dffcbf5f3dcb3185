/*
 * A server in miniature: one heap for its sessions, one for its cache, and one for each query,
 * which is destroyed with whatever the query left in it. When the server falls idle it trims the
 * long-lived heaps and prints what each gave back to the operating system.
 */
#include <hakheap.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SESSIONS = 2000, ENTRIES = 4000, QUERIES = 200, ROWS = 500, SURVIVORS = 20 };

typedef struct session {
    unsigned id;
    char *user;
} session_t;

typedef struct entry {
    size_t bytes;
    unsigned char data[];
} entry_t;

typedef struct row {
    struct row *next;
    unsigned key;
} row_t;

static session_t *sessions[SESSIONS];
static entry_t *cache[ENTRIES];

static void die(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static void *checked(void *block, const char *what)
{
    if (!block) die(what);
    return block;
}

static hak_heap_t *heap_named(const char *name)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = name;
    return checked(hak_heap_create(&config), name);
}

/* The same numbers in every run. */
static unsigned next_random(void)
{
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static void session_close(hak_heap_t *heap, session_t **at)
{
    if (!*at) return;
    hak_heap_free(heap, (*at)->user);
    hak_heap_free(heap, *at);
    *at = NULL;
}

static void session_open(hak_heap_t *heap, session_t **at, unsigned id)
{
    session_close(heap, at);
    *at = checked(hak_heap_calloc(heap, 1, sizeof **at), "a session");
    (*at)->id = id;
    (*at)->user = checked(hak_heap_malloc(heap, 24 + id % 200), "a session's user");
    snprintf((*at)->user, 24, "user-%u", id);
}

static void cache_store(hak_heap_t *heap, entry_t **at, size_t bytes)
{
    /* A failed realloc leaves the old entry whole; a cache that must not fail could go on with
     * it. */
    *at = checked(hak_heap_realloc(heap, *at, sizeof **at + bytes), "a cache entry");
    (*at)->bytes = bytes;
    memset((*at)->data, 0x5a, bytes);
}

/* Frees none of its rows: destroying the heap does, in one step. Returns the bytes that were still
 * live. */
static size_t query_run(unsigned number)
{
    hak_heap_t *heap = heap_named("query");
    row_t *rows = NULL;
    for (unsigned i = 0; i < ROWS; i++) {
        row_t *row = checked(hak_heap_malloc(heap, sizeof *row + i % 100), "a row");
        *row = (row_t){rows, number ^ i};
        rows = row;
    }
    unsigned *sorted = checked(hak_heap_calloc(heap, ROWS, sizeof *sorted), "a sort buffer");
    unsigned count = 0;
    for (row_t *row = rows; row; row = row->next) sorted[count++] = row->key;

    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    if (count != ROWS || hak_heap_stats(heap, &stats) != 0) die("a query");
    if (hak_heap_destroy(heap) != 0) die("destroying a query's heap");
    return stats.live_bytes;
}

static void serve(hak_heap_t *session_heap, hak_heap_t *cache_heap)
{
    size_t query_bytes = 0;
    for (unsigned i = 0; i < QUERIES; i++) {
        for (unsigned n = 0; n < 50; n++)
            session_open(session_heap, &sessions[next_random() % SESSIONS], next_random());
        for (unsigned n = 0; n < 100; n++)
            cache_store(cache_heap, &cache[next_random() % ENTRIES], 64 + next_random() % 2000);
        query_bytes += query_run(i);
    }
    printf("busy: %d queries used %zu bytes in heaps of their own, gone with them\n", QUERIES,
           query_bytes);
}

/* Nearly all sessions end, and nearly all of the cache expires. */
static void fall_idle(hak_heap_t *session_heap, hak_heap_t *cache_heap)
{
    for (unsigned i = SURVIVORS; i < SESSIONS; i++) session_close(session_heap, &sessions[i]);
    for (unsigned i = SURVIVORS; i < ENTRIES; i++) {
        hak_heap_free(cache_heap, cache[i]);
        cache[i] = NULL;
    }
}

static void trim_and_tell(hak_heap_t *heap, const char *name)
{
    hak_heap_stats_t before = {.struct_size = sizeof before};
    hak_heap_stats_t after = {.struct_size = sizeof after};
    if (hak_heap_stats(heap, &before) != 0) die(name);
    size_t returned = hak_heap_trim(heap, 0);
    if (hak_heap_stats(heap, &after) != 0) die(name);
    printf("%-10s %12zu %12zu %12zu %12zu\n", name, after.live_bytes, before.resident_bytes,
           after.resident_bytes, returned);
}

int main(void)
{
    hak_heap_t *session_heap = heap_named("sessions");
    hak_heap_t *cache_heap = heap_named("cache");

    serve(session_heap, cache_heap);
    fall_idle(session_heap, cache_heap);
    printf("idle: %5s %12s %12s %12s %12s\n", "", "live", "resident", "after trim", "given back");
    trim_and_tell(session_heap, "sessions");
    trim_and_tell(cache_heap, "cache");
    /* The queries' heaps are gone; what the process keeps of them for the next heap goes back
     * too. */
    printf("%-10s %51zu\n", "reserve", hak_reserve_trim());

    if (hak_heap_destroy(session_heap) != 0 || hak_heap_destroy(cache_heap) != 0)
        die("destroying a heap");
    return 0;
}
