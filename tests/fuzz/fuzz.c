/*
 * Random operations against the model, each episode in a process of its own; sequences from files;
 * and one process that runs for long. A sequence that fails is cut down to what still fails.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "run.h"
#include "support_contract.h"

enum { HANGS_AFTER = 120, EPISODE_SECONDS = 5, SHRINK_SECONDS = 60 };

typedef struct options {
    unsigned seconds, threads;
    uint64_t seed;
    size_t operations; /* of an episode with one thread */
    unsigned episodes; /* 0: as many as the time allows */
    bool soak, replay, print;
    const char *save; /* the directory for sequences that fail */
} options_t;

static options_t options = {
    .seconds = 10, .threads = 1, .seed = 1, .operations = 200000, .save = "."};
static unsigned passed, failed;
static uint64_t calls;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* ---- One run in a child ---- */

typedef struct task {
    const fuzz_sequence_t *sequence; /* NULL: random, by seed */
    uint64_t seed;
    bool quiet;
} task_t;

static void in_child(const task_t *task)
{
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    if (task->quiet && !freopen("/dev/null", "w", stderr)) _exit(1);
    world_set_up();
    if (task->sequence) fuzz_run_sequence(task->sequence);
    else
        (void)fuzz_run_random(options.threads, task->seed,
                              options.threads == 1 ? options.operations : 0, EPISODE_SECONDS);
    atomic_store(&progress->calls, world.calls);
    _exit(0);
}

/* Waits for the child, and kills it where it comes no further. */
static int wait_for(pid_t pid)
{
    int status = 0;
    uint64_t before = 0;
    double since = now();
    while (waitpid(pid, &status, WNOHANG) == 0) {
        uint64_t number = atomic_load(&progress->number);
        if (number != before) {
            before = number;
            since = now();
        } else if (now() - since > HANGS_AFTER) {
            kill(pid, SIGKILL);
            snprintf(progress->message, sizeof progress->message, "it hangs");
            since = now();
        }
        const struct timespec nap = {0, 1000000};
        nanosleep(&nap, NULL);
    }
    return status;
}

/* Whether the run fails. progress tells where and why. */
static bool fails(const task_t *task)
{
    memset(progress, 0, sizeof *progress);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) in_child(task);
    if (pid < 0) return false;
    int status = wait_for(pid);
    if (status == 0) return false;
    if (!progress->message[0])
        snprintf(progress->message, sizeof progress->message, "%s %d",
                 WIFSIGNALED(status) ? "ended by signal" : "ended with status",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return true;
}

/* ---- What fails is made small ---- */

static bool fails_without(const fuzz_sequence_t *sequence, size_t from, size_t count,
                          fuzz_operation_t *room)
{
    fuzz_sequence_t rest = {sequence->header, room, sequence->count - count};
    memcpy(room, sequence->operations, from * sizeof *room);
    memcpy(room + from, sequence->operations + from + count,
           (sequence->count - from - count) * sizeof *room);
    return fails(&(task_t){.sequence = &rest, .quiet = true});
}

/* Cuts parts out, large ones first, for as long as the rest still fails (Zeller, Hildebrandt:
 * Simplifying and isolating failure-inducing input, 2002). */
static void shrink(fuzz_sequence_t *sequence, fuzz_operation_t *operations, double until)
{
    fuzz_operation_t *room = malloc((sequence->count + 1) * sizeof *room);
    if (!room) return;
    size_t before = 0;
    for (size_t part = sequence->count; part >= 1 && now() < until;) {
        for (size_t from = 0; from + part <= sequence->count && now() < until;) {
            if (!fails_without(sequence, from, part, room)) {
                from += part;
                continue;
            }
            sequence->count -= part;
            if (progress->number < sequence->count) sequence->count = progress->number;
            memcpy(operations, room, sequence->count * sizeof *room);
        }
        /* What could not go alone may go once others have. */
        if (part == 1 && sequence->count != before) {
            before = sequence->count;
            part = sequence->count;
        }
        part /= 2;
    }
    free(room);
}

static void save(const fuzz_sequence_t *sequence, uint64_t seed)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/fuzz-%llu.ops", options.save, (unsigned long long)seed);
    FILE *file = fopen(path, "wb");
    if (!file) {
        perror(path);
        return;
    }
    fwrite(&sequence->header, sizeof sequence->header, 1, file);
    fwrite(sequence->operations, sizeof *sequence->operations, sequence->count, file);
    fclose(file);
    printf("saved: %s; again: %s --replay %s\n", path, program_invocation_name, path);
}

static void print_sequence(const fuzz_sequence_t *sequence)
{
    fuzz_print_header(stdout, &sequence->header);
    for (size_t i = 0; i < sequence->count; i++) fuzz_print(stdout, i, &sequence->operations[i]);
}

static void explain(uint64_t seed)
{
    size_t count = progress->number;
    printf("FAILED: seed %llu, at operation %zu: %s\n", (unsigned long long)seed, count,
           progress->message);
    if (options.threads > 1) return;
    fuzz_operation_t *operations = malloc((count + 1) * sizeof *operations);
    if (!operations) return;
    fuzz_sequence_t sequence;
    fuzz_random_sequence(&sequence, seed, operations, count);
    if (fails(&(task_t){.sequence = &sequence, .quiet = true})) {
        shrink(&sequence, operations, now() + SHRINK_SECONDS);
        print_sequence(&sequence);
    } else {
        printf("the same operations do not fail again\n");
    }
    save(&sequence, seed);
    free(operations);
}

/* ---- The ways to run ---- */

static bool may_go_on(double until)
{
    return options.episodes ? passed < options.episodes : now() < until;
}

static void run_episodes(void)
{
    double until = now() + options.seconds;
    for (uint64_t seed = options.seed * 1000000; may_go_on(until); seed++) {
        if (fails(&(task_t){.seed = seed})) {
            failed++;
            explain(seed);
            return;
        }
        passed++;
        calls += progress->calls;
    }
}

static void replay_file(const char *path)
{
    static _Alignas(fuzz_operation_t) char bytes[16 << 20];
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        failed++;
        return;
    }
    size_t length = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    fuzz_sequence_t sequence;
    if (!fuzz_parse(&sequence, bytes, length)) return;
    if (options.print) print_sequence(&sequence);
    bool bad = fails(&(task_t){.sequence = &sequence});
    if (bad)
        printf("FAILED: %s, at operation %llu: %s\n", path, (unsigned long long)progress->number,
               progress->message);
    failed += bad;
    passed += !bad;
    calls += progress->calls;
}

static void replay(const char *path)
{
    DIR *directory = opendir(path);
    if (!directory) {
        replay_file(path);
        return;
    }
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char inside[8192];
        if (entry->d_name[0] == '.') continue;
        snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name);
        replay_file(inside);
    }
    closedir(directory);
}

/* The slope of a line through the samples, in units an hour. */
typedef struct slope {
    double n, t, v, tt, tv;
} slope_t;

static void slope_add(slope_t *slope, double t, double v)
{
    slope->n++;
    slope->t += t;
    slope->v += v;
    slope->tt += t * t;
    slope->tv += t * v;
}

static double slope_of(const slope_t *slope)
{
    double width = slope->n * slope->tt - slope->t * slope->t;
    return width > 0 ? (slope->n * slope->tv - slope->t * slope->v) / width : 0;
}

/* One process for all the time: what it holds between two rounds must not grow. The first tenth is
 * not counted, in which records are made that stay. */
static void soak(void)
{
    slope_t resident = {0}, mappings = {0};
    double began = now(), until = began + options.seconds;
    world_set_up();
    for (uint64_t seed = options.seed * 1000000; now() < until; seed++) {
        calls += fuzz_run_random(options.threads, seed, 0, EPISODE_SECONDS);
        passed++;
        double hours = (now() - began) / 3600;
        if (now() - began < options.seconds / 10.0) continue;
        slope_add(&resident, hours, (double)contract_resident() / 1024);
        slope_add(&mappings, hours, (double)contract_mappings());
        if (passed % 12 == 0)
            printf("%.0f s: resident %zu KiB, mappings %zu\n", now() - began,
                   contract_resident() / 1024, contract_mappings());
        fflush(stdout);
    }
    printf("resident %+.1f KiB an hour, mappings %+.1f an hour, from %.0f samples\n",
           slope_of(&resident), slope_of(&mappings), resident.n);
}

/* ---- Options ---- */

static const char usage[] =
    "  --seconds N      how long (10)\n"
    "  --seed N         of all random numbers (1)\n"
    "  --threads N      that share the heaps (1)\n"
    "  --operations N   of an episode of one thread (200000)\n"
    "  --episodes N     so many, however long they take\n"
    "  --save DIR       where sequences that fail are written (.)\n"
    "  --soak           one process for all the time; prints how its memory grows\n"
    "  --replay PATH... runs sequences from files, or all of a directory\n"
    "  --print          with --replay: prints them\n"
    "  --trap           fails at a trim after a burst, to show how a failure is cut down\n";

enum { OPTION_SOAK = 256, OPTION_REPLAY, OPTION_PRINT, OPTION_TRAP };

static const struct option long_options[] = {
    {"seconds", required_argument, NULL, 's'},
    {"seed", required_argument, NULL, 'e'},
    {"threads", required_argument, NULL, 't'},
    {"operations", required_argument, NULL, 'o'},
    {"episodes", required_argument, NULL, 'n'},
    {"save", required_argument, NULL, 'd'},
    {"soak", no_argument, NULL, OPTION_SOAK},
    {"replay", no_argument, NULL, OPTION_REPLAY},
    {"print", no_argument, NULL, OPTION_PRINT},
    {"trap", no_argument, NULL, OPTION_TRAP},
    {NULL, 0, NULL, 0},
};

static void take_option(int option, const char *text, const char *program)
{
    unsigned long long number = text ? strtoull(text, NULL, 0) : 0;
    switch (option) {
    case 's': options.seconds = (unsigned)number; break;
    case 'e': options.seed = number; break;
    case 't': options.threads = (unsigned)number; break;
    case 'o': options.operations = number; break;
    case 'n': options.episodes = (unsigned)number; break;
    case 'd': options.save = text; break;
    case OPTION_SOAK: options.soak = true; break;
    case OPTION_REPLAY: options.replay = true; break;
    case OPTION_TRAP: fuzz_trap = true; break;
    case OPTION_PRINT: options.print = true; break;
    default: fprintf(stderr, "Usage: %s [option...]\n%s", program, usage); exit(2);
    }
}

int main(int argc, char *argv[])
{
    for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
        take_option(option, optarg, argv[0]);
    if (options.threads < 1 || options.threads > 64 || options.operations < 1 ||
        (options.replay ? optind == argc : optind != argc))
        take_option('?', NULL, argv[0]);
    progress =
        mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (progress == MAP_FAILED) return 2;
    if (options.replay)
        for (int i = optind; i < argc; i++) replay(argv[i]);
    else if (options.soak) soak();
    else run_episodes();
    printf("%llu calls, seed %llu, %u threads: %u passed, %u failed\n", (unsigned long long)calls,
           (unsigned long long)options.seed, options.threads, passed, failed);
    return failed || !passed ? 1 : 0;
}
