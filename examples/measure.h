/*
 * What the programs of `make integration` share: --allocator and --quick, the clock, the memory of
 * this process, and the line of results that scripts/integration.sh reads. C and C++.
 *
 *   program [--allocator hakheap|system] [--quick] ...
 *
 * `system` is malloc, which LD_PRELOAD may replace: so every other allocator runs the same program.
 */
#ifndef HAK_EXAMPLE_MEASURE_H
#define HAK_EXAMPLE_MEASURE_H

#include <hakheap.h>

#include <dlfcn.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "options.h"

typedef struct measure_options {
    bool system; /* serve the workload by malloc */
    bool quick;  /* a small part of the work, for tests */
} measure_options_t;

static inline bool measure_is_system(const char *usage, const char *name)
{
    bool is_system = strcmp(name, "system") == 0;
    if (!is_system && strcmp(name, "hakheap") != 0) options_refuse(usage, name);
    return is_system;
}

/* Takes the two options out of the command line, and leaves at most `most` other words. */
static inline measure_options_t measure_read_options(int *argc, char **argv, const char *usage,
                                                     int most)
{
    measure_options_t options = {false, false};
    int kept = 1;
    for (int i = 1; i < *argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) options.quick = true;
        else if (strcmp(argv[i], "--allocator") == 0 && i + 1 < *argc)
            options.system = measure_is_system(usage, argv[++i]);
        else if (kept > most || strcmp(argv[i], "--help") == 0) options_refuse(usage, argv[i]);
        else argv[kept++] = argv[i];
    }
    argv[ *argc = kept] = NULL;
    return options;
}

static inline double measure_seconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* A line of /proc/self/status: "VmRSS:" resident memory, "VmHWM:" its peak, in KiB; 0: unknown. */
static inline long measure_kib(const char *field)
{
    char line[256];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "re");
    while (status && fgets(line, sizeof line, status))
        if (strncmp(line, field, strlen(field)) == 0) kib = strtol(line + strlen(field), NULL, 10);
    if (status) fclose(status);
    return kib;
}

/* Asks whichever malloc serves this process to give back what is free, as its manual says; heaps of
 * hakheap are trimmed by who owns them. */
static inline void measure_trim_malloc(void)
{
    void *purge = dlsym(RTLD_DEFAULT, "mallctl"), *collect = dlsym(RTLD_DEFAULT, "mi_collect");
    int (*mallctl_call)(const char *, void *, size_t *, void *, size_t);
    void (*collect_call)(bool force);
    memcpy(&mallctl_call, &purge, sizeof purge);
    memcpy(&collect_call, &collect, sizeof collect);
    if (mallctl_call) {
        (void)mallctl_call("thread.tcache.flush", NULL, NULL, NULL, 0);
        (void)mallctl_call("arena.4096.purge", NULL, NULL, NULL, 0); /* 4096: all arenas */
    } else if (collect_call) collect_call(true);
    else malloc_trim(0);
}

/* Trims malloc and what no heap holds, then prints the results: call it when the work is done, and
 * the heaps that are left have been trimmed. */
static inline void measure_print_to(FILE *to, double seconds, double rate)
{
    measure_trim_malloc();
    hak_reserve_trim();
    long peak = measure_kib("VmHWM:"), idle = measure_kib("VmRSS:");
    /* The kernel brings its counts together now and then only. */
    fprintf(to, "RESULT seconds=%.4f rate=%.1f peak_kib=%ld idle_kib=%ld\n", seconds, rate,
            peak > idle ? peak : idle, idle);
    fflush(to);
}

static inline void measure_print(double seconds, double rate)
{
    measure_print_to(stdout, seconds, rate);
}

#endif
