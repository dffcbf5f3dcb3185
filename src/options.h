/* hakheap level 3: options - one row for each option: field, default, range, environment name */
#ifndef HAK_OPTIONS_H
#define HAK_OPTIONS_H

#include "base.h"
#include "hakheap.h"

/*
 * Role: turns a caller's config into settings, or refuses it. Callers: heap.
 *
 * X(field, default, lowest, highest, environment name, what it is). A field that is 0 takes the
 * environment's number, where that is one in range, else the default.
 */
#define OPTIONS(X)                                                                   \
    X(cache_bytes, 32 * HAK_MIB, 1, HAK_GIB, "HAKHEAP_CACHE_BYTES",                  \
      "bytes all magazines of a heap may hold")                                      \
    X(large_cache_bytes, 64 * HAK_GIB, 1, 64 * HAK_GIB, "HAKHEAP_LARGE_CACHE_BYTES", \
      "bytes of freed large blocks that a heap leaves to the process")               \
    X(region_bytes, 32 * HAK_KIB, 1, HAK_MIB, "HAKHEAP_REGION_BYTES",                \
      "bytes of blocks of a class that regions hold")

enum { NAME_BYTES = 32 };

typedef struct settings {
    char name[NAME_BYTES];
    hak_level_t level; /* FAST or CHECKED */
    size_t cache_bytes;
    size_t large_cache_bytes;
    size_t region_bytes;
    hak_heap_t *parent;  /* read by create only, as is `limits` */
    bool counts;         /* what it has live, and in use: it has a limit, or a place in a tree */
    hak_limits_t limits; /* where it counts; each a number; HAK_NO_LIMIT: none */
    hak_pressure_fn on_pressure;
    void *pressure_ctx;
} settings_t;

/* Reads the environment: once a process, before the first heap. A later setenv would race with
 * getenv. */
void options_start_process(void);
/* Bytes that the process's reserve may keep: HAKHEAP_RESERVE_BYTES, else `otherwise`. While the
 * process starts. */
size_t options_reserve_bytes(size_t otherwise);
/* While the process starts: a variable's value is not known. Nothing is written yet. */
void options_unknown(const char *name, const char *value, const char *taken_for, const char *known);
/* Names each such variable on standard error, in a line each, once a process. With no lock held:
 * the reader of standard error may be slow. */
void options_tell_unknown(void);
/* 0, EINVAL or ENOTSUP, and where it is known better, *why. `config` may be NULL. */
int options_read(const hak_heap_config_t *config, settings_t *out, hak_error_t *why);
/* Limits of which 0 is none. EINVAL and *why: one of them could never be met. `heard`: there is a
 * callback. */
int options_limits(const hak_limits_t *given, bool heard, hak_limits_t *out, hak_error_t *why);
/* Whether the first `struct_size` bytes are a struct this version understands: long enough, and
 * zero beyond what it knows. */
bool options_struct_is_known(const void *of, size_t struct_size, size_t least, size_t known);

#endif
