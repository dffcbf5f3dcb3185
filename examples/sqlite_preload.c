/*
 * Any program that uses the shared library of SQLite, unchanged, on one heap: to be preloaded. Debian's
 * own shell, for instance:
 *
 *   LD_PRELOAD=build/examples/sqlite_preload.so sqlite3 shop.db < script.sql
 *
 * The constructor runs before main, and so before SQLite's first call, when it can still be told where
 * its memory comes from. At the end of the program two lines on standard error say what it took.
 *
 * SQLITE_ALLOCATOR=system leaves SQLite to malloc, for comparison: see measure.h.
 */
/* Also preloaded are the children of such a program, which need not have SQLite. */
#pragma weak sqlite3_config

#include "measure.h"

#include <hakheap/sqlite.h>

static hak_heap_t *heap; /* NULL: malloc serves */
static double start;

static bool is_system(void)
{
    const char *wanted = getenv("SQLITE_ALLOCATOR");
    return wanted && strcmp(wanted, "system") == 0;
}

__attribute__((constructor)) static void begin(void)
{
    start = measure_seconds();
    if (!sqlite3_config) return;
    if (is_system()) {
        (void)sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0); /* as hak_sqlite_config() does */
        return;
    }
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "sqlite";
    heap = hak_heap_create(&config);
    if (!heap || hak_sqlite_config(heap) != SQLITE_OK) {
        fputs("sqlite_preload: SQLite keeps to malloc\n", stderr);
        heap = NULL;
    }
}

__attribute__((destructor)) static void end(void)
{
    if (!sqlite3_config) return;
    double seconds = measure_seconds() - start;
    if (heap) {
        hak_heap_stats_t stats = {.struct_size = sizeof stats};
        (void)hak_heap_stats(heap, &stats);
        size_t trimmed = hak_heap_trim(heap, 0);
        fprintf(stderr,
                "heap \"sqlite\": peak %zu KiB, live at the end %zu bytes in %zu blocks, "
                "trimmed %zu KiB\n",
                stats.peak_bytes >> 10, stats.live_bytes, stats.live_blocks, trimmed >> 10);
    }
    measure_print_to(stderr, seconds, 1 / seconds);
}
