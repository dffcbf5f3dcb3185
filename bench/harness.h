/*
 * What every benchmark program here shares: time, random numbers, resident memory, option values,
 * and the proof of which library file a symbol comes from.
 *
 * Callers: one program is one translation unit, so everything is static inline. Nothing here
 * allocates, because the allocator under test would be charged for it. Thread-safety: a generator
 * belongs to one thread; every other function may be called from any thread.
 */
#ifndef HAK_BENCH_HARNESS_H
#define HAK_BENCH_HARNESS_H

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Exit codes: a run that cannot go on, and a command line that makes no sense. */
enum { HARNESS_FAILED = 1, HARNESS_USAGE = 2 };

/* Prints "<program>: <words>" and ends the process at once: a benchmark that is in doubt has no
 * result. */
__attribute__((noreturn, cold, format(printf, 2, 3))) static inline void
harness_exit(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

/* ---- Time: monotonic nanoseconds. ---- */

static inline uint64_t harness_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void harness_sleep_until(uint64_t when)
{
    struct timespec at = {.tv_sec = (time_t)(when / 1000000000u),
                          .tv_nsec = (long)(when % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) continue;
}

/* ---- Random numbers: splitmix64 (Steele, Lea, Flood 2014). Draws depend on each other by one
 * addition only, so the generator stays out of the way of the calls that are timed. ---- */

typedef struct harness_rng {
    uint64_t state;
} harness_rng_t;

static inline uint64_t harness_draw(harness_rng_t *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Maps 32 random bits to 0 .. bound - 1 by a multiplication (Lemire): a division would cost more
 * than a malloc. */
static inline uint32_t harness_below(uint32_t bits, uint32_t bound)
{
    return (uint32_t)(((uint64_t)bits * bound) >> 32);
}

/* ---- Resident memory ---- */

/*
 * The process's resident memory in KiB at this moment, 0 where the kernel does not say.
 * smaps_rollup walks the page tables; ru_maxrss is a maximum that includes warm-up, and statm lags
 * behind by per-CPU counter batches.
 */
static inline size_t harness_resident_kib(void)
{
    char text[1024];
    int file = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return 0;
    text[length] = '\0';
    const char *rss = strstr(text, "\nRss:");
    return rss ? (size_t)strtoull(rss + strlen("\nRss:"), NULL, 10) : 0;
}

/* A field of /proc/self/status, such as "VmRSS:", in KiB. */
static inline size_t harness_status_kib(const char *field)
{
    char text[4096];
    int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) close(file);
    if (length <= 0) harness_exit(HARNESS_FAILED, "cannot read /proc/self/status");
    text[length] = '\0';
    const char *at = strstr(text, field);
    if (!at) harness_exit(HARNESS_FAILED, "the kernel does not tell %s", field);
    return (size_t)strtoull(at + strlen(field), NULL, 10);
}

/* Resident memory and its page tables. */
static inline size_t harness_cost_kib(void)
{
    return harness_status_kib("VmRSS:") + harness_status_kib("VmPTE:");
}

/* ---- Processors ---- */

/* Moves the calling thread to a CPU. Where there are fewer CPUs than threads, some share one. */
static inline void harness_stay_on(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % (unsigned)sysconf(_SC_NPROCESSORS_ONLN), &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

/* ---- Figures of several rounds ---- */

static inline void harness_sink(uint64_t *numbers, size_t at, size_t count)
{
    for (size_t child; (child = at * 2 + 1) < count; at = child) {
        if (child + 1 < count && numbers[child + 1] > numbers[child]) child++;
        if (numbers[at] >= numbers[child]) return;
        uint64_t number = numbers[at];
        numbers[at] = numbers[child];
        numbers[child] = number;
    }
}

/* Ascending. Heapsort: qsort may allocate. */
static inline void harness_sort(uint64_t *numbers, size_t count)
{
    for (size_t i = count / 2; i > 0; i--) harness_sink(numbers, i - 1, count);
    for (size_t last = count; last-- > 1;) {
        uint64_t number = numbers[0];
        numbers[0] = numbers[last];
        numbers[last] = number;
        harness_sink(numbers, 0, last);
    }
}

/* Sorts the values, of which there are few. */
static inline double harness_median(double *values, size_t count)
{
    for (size_t i = 1; i < count; i++)
        for (size_t k = i; k > 0 && values[k - 1] > values[k]; k--) {
            double swap = values[k];
            values[k] = values[k - 1];
            values[k - 1] = swap;
        }
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

/* ---- Which library file is really loaded ---- */

/* Copies the base name of the file that defines `symbol`, as the dynamic linker resolves it for
 * this program. */
static inline void harness_library_of(const char *symbol, char *name, size_t size)
{
    Dl_info info;
    void *address = dlsym(RTLD_DEFAULT, symbol);
    if (!address || !dladdr(address, &info) || !info.dli_fname)
        harness_exit(HARNESS_FAILED, "no loaded file defines %s", symbol);
    const char *slash = strrchr(info.dli_fname, '/');
    snprintf(name, size, "%s", slash ? slash + 1 : info.dli_fname);
}

/* ---- Option values ---- */

/* A whole number in [min, max], or a usage error that names the option and the range. */
static inline uint64_t harness_number(const char *option, const char *text, uint64_t min,
                                      uint64_t max)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value < min || value > max)
        harness_exit(HARNESS_USAGE, "--%s takes a whole number from %llu to %llu, not '%s'", option,
                     (unsigned long long)min, (unsigned long long)max, text);
    return value;
}

/* Seconds with a fraction, in nanoseconds. */
static inline uint64_t harness_seconds(const char *option, const char *text, double min, double max)
{
    char *end;
    double value = strtod(text, &end);
    if (*text < '0' || *text > '9' || *end || !(value >= min && value <= max))
        harness_exit(HARNESS_USAGE, "--%s takes a number of seconds from %g to %g, not '%s'",
                     option, min, max, text);
    return (uint64_t)(value * 1e9);
}

/* The index of `text` in `names`, or a usage error that lists them. */
static inline unsigned harness_choice(const char *option, const char *text,
                                      const char *const *names, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (strcmp(text, names[i]) == 0) return i;
    fprintf(stderr, "%s: --%s takes one of", program_invocation_short_name, option);
    for (unsigned i = 0; i < count; i++) fprintf(stderr, " %s", names[i]);
    fprintf(stderr, ", not '%s'\n", text);
    exit(HARNESS_USAGE);
}

#endif
