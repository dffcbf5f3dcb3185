/*
 * What every benchmark program has beside its workload: who the allocator is, and the proof that it
 * is the one that runs. Included once, after ADAPTER; the contract of adapters is in larson.c.
 * Thread-safety: called before threads start and after they have ended.
 */
#ifndef HAK_BENCH_PROGRAM_H
#define HAK_BENCH_PROGRAM_H

#include "harness.h"

#include <getopt.h>
#include <sys/mman.h>

enum { LEVELS = 2 };
static const char *const level_names[LEVELS] = {"fast", "checked"};

static char program_library[256]; /* base name of the file that the allocator's calls go to */

/* Ends the program where that is not the allocator named: its result would be worse than none. */
static inline void program_prove_library(void)
{
    harness_library_of(alloc_symbol(), program_library, sizeof program_library);
    if (strncmp(program_library, alloc_library(), strlen(alloc_library())) != 0)
        harness_exit(HARNESS_FAILED, "%s comes from %s, which is not %s", alloc_symbol(),
                     program_library, alloc_name());
}

static inline void program_print_identity(void)
{
    char version[32];
    alloc_version(version, sizeof version);
    printf("allocator=%s version=%s library=%s mode=%s has_heaps=%d", alloc_name(), version,
           program_library, alloc_mode(), alloc_has_heaps());
}

/* A heap has to exist before an allocator can say how its caches are reached. */
static inline void program_print_info(const char *level)
{
    alloc_heap_t *heap = alloc_heap_create(level, 0);
    program_print_identity();
    putchar('\n');
    alloc_heap_destroy(heap);
}

/* ---- The command line: one table row for each option; --info and --help are every program's.
 * ---- */

typedef enum program_kind {
    OPTION_U32,
    OPTION_U64,
    OPTION_SIZE,
    OPTION_SECONDS,
    OPTION_CHOICE,
    OPTION_LEVEL
} program_kind_t;

typedef struct program_option {
    const char *name;
    program_kind_t kind;
    void *value; /* uint32_t, uint64_t, size_t, uint64_t in nanoseconds, uint32_t, const char * */
    const char *words;        /* what it is for */
    double min, max;          /* numbers and seconds */
    const char *const *names; /* OPTION_CHOICE: `count` of them */
    unsigned count;
} program_option_t;

#define PROGRAM_LEVEL(at)                                     \
    {                                                         \
        .name = "level", .kind = OPTION_LEVEL, .value = (at), \
        .words = "fast or checked; for hakheap"               \
    }

#define PROGRAM_SEED(at)                                                                     \
    {                                                                                        \
        .name = "seed", .kind = OPTION_U64, .value = (at), .words = "of all random numbers", \
        .max = 0x1p64                                                                        \
    }

static inline void program_usage(const char *purpose, const program_option_t *known, unsigned count)
{
    printf("Usage: %s [option...]\n%s. Allocator: %s. Prints one line of key=value pairs.\n",
           program_invocation_short_name, purpose, alloc_name());
    for (unsigned i = 0; i < count; i++) {
        printf("  --%-12s %s", known[i].name, known[i].words);
        switch (known[i].kind) {
        case OPTION_U32: printf(" (%u)\n", *(uint32_t *)known[i].value); break;
        case OPTION_U64:
            printf(" (%llu)\n", (unsigned long long)*(uint64_t *)known[i].value);
            break;
        case OPTION_SIZE: printf(" (%zu)\n", *(size_t *)known[i].value); break;
        case OPTION_SECONDS: printf(" (%g)\n", (double)*(uint64_t *)known[i].value / 1e9); break;
        case OPTION_CHOICE: printf(" (%s)\n", known[i].names[*(uint32_t *)known[i].value]); break;
        case OPTION_LEVEL: printf(" (%s)\n", *(const char **)known[i].value); break;
        }
    }
    printf("  --%-12s %s\n", "info", "print name, version, library file and mode, and run nothing");
}

static inline void program_set(const program_option_t *option, const char *text)
{
    uint64_t min = (uint64_t)option->min,
             max = option->max >= 0x1p64 ? UINT64_MAX : (uint64_t)option->max;
    switch (option->kind) {
    case OPTION_U32:
        *(uint32_t *)option->value = (uint32_t)harness_number(option->name, text, min, max);
        break;
    case OPTION_U64:
        *(uint64_t *)option->value = harness_number(option->name, text, min, max);
        break;
    case OPTION_SIZE:
        *(size_t *)option->value = harness_number(option->name, text, min, max);
        break;
    case OPTION_SECONDS:
        *(uint64_t *)option->value = harness_seconds(option->name, text, option->min, option->max);
        break;
    case OPTION_CHOICE:
        *(uint32_t *)option->value =
            harness_choice(option->name, text, option->names, option->count);
        break;
    case OPTION_LEVEL:
        *(const char **)option->value =
            level_names[harness_choice(option->name, text, level_names, LEVELS)];
        break;
    }
}

/* Reads the command line; ends the program for --help, --info and what makes no sense. */
static inline void program_read_options(int argc, char **argv, const char *purpose,
                                        const program_option_t *known, unsigned count)
{
    enum { MOST = 24, INFO = 100, HELP };
    struct option all[MOST + 3] = {{0}};
    const char *level = level_names[0];
    if (count > MOST) harness_exit(HARNESS_FAILED, "%u options are too many", count);
    for (unsigned i = 0; i < count; i++)
        all[i] = (struct option){known[i].name, required_argument, NULL, (int)i + 1};
    all[count] = (struct option){"info", no_argument, NULL, INFO};
    all[count + 1] = (struct option){"help", no_argument, NULL, HELP};
    for (int code; (code = getopt_long(argc, argv, "", all, NULL)) != -1;) {
        if (code == INFO) program_print_info(level);
        else if (code >= 1 && (unsigned)code <= count) program_set(&known[code - 1], optarg);
        else program_usage(purpose, known, count);
        if (code == INFO || code == HELP) exit(0);
        if (code < 1 || (unsigned)code > count) exit(HARNESS_USAGE);
    }
    if (optind < argc)
        harness_exit(HARNESS_USAGE, "'%s' is not an option; --help lists them", argv[optind]);
}

/* How a program starts: proves the library, then reads the command line. */
static inline void program_begin(int argc, char **argv, const char *purpose,
                                 const program_option_t *known, unsigned count)
{
    program_prove_library();
    program_read_options(argc, argv, purpose, known, count);
}

/* The same for a workload of heaps. */
static inline void program_begin_heaps(int argc, char **argv, const char *purpose,
                                       const program_option_t *known, unsigned count)
{
    program_begin(argc, argv, purpose, known, count);
    if (!alloc_has_heaps()) harness_exit(HARNESS_USAGE, "%s has no heaps", alloc_name());
}

/*
 * A heap, or the end of the program. Allocators without heaps give NULL. An adapter may have fewer
 * heaps than are asked for: that is no failure of the allocator.
 */
static inline alloc_heap_t *program_heap(const char *level, unsigned index)
{
    errno = 0;
    alloc_heap_t *heap = alloc_heap_create(level, index);
    if (heap || !alloc_has_heaps()) return heap;
    if (errno) harness_exit(HARNESS_FAILED, "cannot create heap %u: %m", index);
    harness_exit(HARNESS_USAGE, "%s has only %u heaps", alloc_name(), index);
}

/* Memory of the program's own, which the allocator is not charged for. */
static inline void *program_map(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        harness_exit(HARNESS_FAILED, "no memory for %zu bytes of the program's own", bytes);
    return at;
}

#endif
