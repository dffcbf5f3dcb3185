/*
 * What it costs to give memory back, of allocators that have heaps. One line of key=value pairs.
 *
 * A heap is filled with `blocks` blocks of one size; then half of them, chosen at random, are
 * freed, so that caches and slabs hold something. One operation follows, and is timed: flush, trim,
 * reset (hakheap's alone; others print -) or destroy, with the other half still in place. Each time
 * is of a filling of its own; figures are medians over rounds. Destroy with live blocks goes beyond
 * the adapters' contract in larson.c, and is asked of those with heaps only.
 *
 * One more filling, whose first half is freed in order, so that there is much to give back in one
 * piece, is trimmed while another thread allocates and frees blocks of three sizes in the same
 * heap, of slabs and of more than a slab. beside_us is the longest of its calls: how long a
 * server's request waits for a trim; - where a heap is one thread's. What the system takes from the
 * thread in a call counts as well, as in latency.c.
 *
 * Besides, `heaps` idle heaps with one cached block each are flushed one after another, all of them
 * again when nothing is cached any more, and trimmed: idle_..._ms are for all together.
 *
 * With --threads above 1 the threads share the work of each filling and of each touch of the idle
 * heaps, and sleep while the main thread times; so several CPUs have caches. With --busy 1 they run
 * instead, and a flush has to stop them.
 */
#define _GNU_SOURCE

#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include ADAPTER
#include "program.h"

enum { MOST_ROUNDS = 1000, MOST_THREADS = 64, IDLE_BLOCK = 64 };

#ifdef ALLOC_ONE_THREAD
enum { USABLE_THREADS = 1 };
#else
enum { USABLE_THREADS = MOST_THREADS };
#endif

typedef enum operation { FLUSH, TRIM, RESET, DESTROY, OPERATIONS } operation_t;
typedef enum idle { IDLE_FLUSH, IDLE_AGAIN, IDLE_TRIM, IDLES } idle_t;

static struct {
    size_t blocks, size, heaps;
    uint32_t threads, rounds, busy;
    uint64_t seed;
    const char *level;
} options = {100000, 64, 1, 1, 9, 0, 1, "fast"};

/* ---- Reset: not part of the adapters' contract, because only one has it. ---- */

#ifdef HAKHEAP_H
enum { HAS_RESET = true };
static void reset(alloc_heap_t *heap)
{
    if (hak_heap_reset(heap) != 0) harness_exit(HARNESS_FAILED, "cannot reset");
}
#else
enum { HAS_RESET = false };
static void reset(alloc_heap_t *heap) { (void)heap; }
#endif

/* ---- Work that threads share ---- */

typedef enum task { TASK_FILL, TASK_FREE, TASK_TOUCH, TASK_LEAVE, TASK_END } task_t;

static struct {
    pthread_barrier_t begin,
        end; /* of a task; what the main thread writes between is seen by all after */
    task_t task;
    alloc_heap_t *heap; /* FILL, FREE */
    char **block;       /* in the order of freeing */
    alloc_heap_t **idle;
    atomic_uint generation; /* relaxed: tasks begun; ends the busy waiting of those who run */
} shared;

static uint32_t part_of(size_t count, uint32_t thread)
{
    return (uint32_t)(count * thread / options.threads);
}

static char *must_malloc(alloc_heap_t *heap, size_t size)
{
    char *block = alloc_malloc(heap, size);
    if (!block) harness_exit(HARNESS_FAILED, "malloc of %zu bytes failed: %m", size);
    return block;
}

static void fill(uint32_t thread)
{
    for (uint32_t i = part_of(options.blocks, thread); i < part_of(options.blocks, thread + 1);
         i++) {
        shared.block[i] = must_malloc(shared.heap, options.size);
        memset(shared.block[i], 1, options.size);
    }
}

/* The first half of what fill's threads have made, after the shuffle. */
static void free_half(uint32_t thread)
{
    size_t half = options.blocks / 2;
    for (uint32_t i = part_of(half, thread); i < part_of(half, thread + 1); i++)
        alloc_free(shared.heap, shared.block[i]);
}

/* Every thread touches every heap. */
static void touch(void)
{
    for (size_t i = 0; i < options.heaps; i++) {
        char *block = must_malloc(shared.idle[i], IDLE_BLOCK);
        *(volatile char *)block = 1;
        alloc_free(shared.idle[i], block);
    }
}

/* A heap that is destroyed is in no other thread's keeping. */
static void leave(uint32_t thread)
{
    if (thread) alloc_thread_end();
}

static void work(uint32_t thread)
{
    switch (shared.task) {
    case TASK_FILL: fill(thread); break;
    case TASK_FREE: free_half(thread); break;
    case TASK_TOUCH: touch(); break;
    case TASK_LEAVE: leave(thread); break;
    case TASK_END: break;
    }
}

static void *live(void *argument)
{
    uint32_t thread = (uint32_t)(uintptr_t)argument;
    for (unsigned seen = 0;; seen++) {
        while (options.busy &&
               atomic_load_explicit(&shared.generation, memory_order_relaxed) == seen)
            continue;
        pthread_barrier_wait(&shared.begin);
        if (shared.task == TASK_END) break;
        work(thread);
        pthread_barrier_wait(&shared.end);
    }
    alloc_thread_end();
    return NULL;
}

/* The main thread is thread 0. */
static void run_task(task_t task)
{
    shared.task = task;
    atomic_fetch_add_explicit(&shared.generation, 1, memory_order_relaxed);
    if (options.threads > 1) pthread_barrier_wait(&shared.begin);
    work(0);
    if (options.threads > 1 && task != TASK_END) pthread_barrier_wait(&shared.end);
}

static void start_threads(pthread_t *thread)
{
    pthread_barrier_init(&shared.begin, NULL, options.threads);
    pthread_barrier_init(&shared.end, NULL, options.threads);
    for (uint32_t i = 1; i < options.threads; i++) {
        int error = pthread_create(&thread[i], NULL, live, (void *)(uintptr_t)i);
        if (error) harness_exit(HARNESS_FAILED, "cannot start a thread: %s", strerror(error));
    }
}

static void end_threads(const pthread_t *thread)
{
    run_task(TASK_END);
    for (uint32_t i = 1; i < options.threads; i++) pthread_join(thread[i], NULL);
}

/* ---- One heap ---- */

static void shuffle(harness_rng_t *rng)
{
    for (size_t i = options.blocks; i-- > 1;) {
        size_t other = harness_below((uint32_t)harness_draw(rng), (uint32_t)i + 1);
        char *block = shared.block[i];
        shared.block[i] = shared.block[other];
        shared.block[other] = block;
    }
}

static void perform(operation_t operation)
{
    switch (operation) {
    case FLUSH: alloc_flush(shared.heap); break;
    case TRIM: alloc_trim(shared.heap); break;
    case RESET: reset(shared.heap); break;
    case DESTROY: alloc_heap_destroy(shared.heap); break;
    case OPERATIONS: break;
    }
}

/* Nanoseconds of one operation on a filling of its own. */
static double time_operation(operation_t operation, harness_rng_t *rng)
{
    shared.heap = program_heap(options.level, 0);
    run_task(TASK_FILL);
    shuffle(rng);
    run_task(TASK_FREE);
    if (operation == DESTROY) run_task(TASK_LEAVE);
    uint64_t begin = harness_now();
    perform(operation);
    uint64_t end = harness_now();
    if (operation == DESTROY) return (double)(end - begin);
    run_task(TASK_LEAVE);
    alloc_heap_destroy(shared.heap);
    return (double)(end - begin);
}

/* ---- A trim beside other calls ---- */

static struct {
    atomic_bool stop;
    atomic_bool runs;
    uint64_t longest; /* nanoseconds; read after the thread is joined */
} beside;

static void note_since(uint64_t begin)
{
    uint64_t took = harness_now() - begin;
    if (took > beside.longest) beside.longest = took;
}

static char *timed_malloc(size_t size)
{
    uint64_t begin = harness_now();
    char *block = must_malloc(shared.heap, size);
    note_since(begin);
    return block;
}

static void timed_free(char *block)
{
    uint64_t begin = harness_now();
    alloc_free(shared.heap, block);
    note_since(begin);
}

static void *call_beside(void *argument)
{
    enum { HELD = 1024 };
    static const size_t sizes[] = {64, 20000, 200000};
    static char *held[HELD];
    harness_rng_t rng = {*(const uint64_t *)argument};
    beside.longest = 0;
    for (size_t i = 0; !atomic_load(&beside.stop); i++) {
        size_t size = sizes[i % 3];
        char **slot = &held[harness_below((uint32_t)harness_draw(&rng), HELD)];
        if (*slot) timed_free(*slot);
        *slot = timed_malloc(size);
        memset(*slot, 1, sizeof(uint64_t));
        if (i != HELD) continue;
        /* What came before has warmed up. */
        beside.longest = 0;
        atomic_store(&beside.runs, true);
    }
    for (size_t i = 0; i < HELD; i++) {
        if (held[i]) alloc_free(shared.heap, held[i]);
        held[i] = NULL;
    }
    alloc_thread_end();
    return NULL;
}

/* Microseconds of the longest call that another thread makes while a heap is trimmed. */
static double time_beside(void)
{
    pthread_t thread;
    shared.heap = program_heap(options.level, 0);
    run_task(TASK_FILL);
    run_task(TASK_FREE);
    beside.stop = beside.runs = false;
    int error = pthread_create(&thread, NULL, call_beside, &options.seed);
    if (error) harness_exit(HARNESS_FAILED, "cannot start a thread: %s", strerror(error));
    while (!atomic_load(&beside.runs)) sched_yield();
    alloc_trim(shared.heap);
    atomic_store(&beside.stop, true);
    pthread_join(thread, NULL);
    run_task(TASK_LEAVE);
    alloc_heap_destroy(shared.heap);
    return (double)beside.longest / 1e3;
}

/* ---- Idle heaps ---- */

static double time_all(void (*call)(alloc_heap_t *))
{
    uint64_t begin = harness_now();
    for (size_t i = 0; i < options.heaps; i++) call(shared.idle[i]);
    return (double)(harness_now() - begin) / 1e6;
}

static void time_idle(double (*cost)[MOST_ROUNDS], uint32_t round)
{
    run_task(TASK_TOUCH);
    cost[IDLE_FLUSH][round] = time_all(alloc_flush);
    cost[IDLE_AGAIN][round] = time_all(alloc_flush);
    run_task(TASK_TOUCH);
    cost[IDLE_TRIM][round] = time_all(alloc_trim);
}

/* ---- The program ---- */

static double cost[OPERATIONS][MOST_ROUNDS], beside_us[MOST_ROUNDS], idle_cost[IDLES][MOST_ROUNDS];

static void measure(void)
{
    harness_rng_t rng = {options.seed};
    shared.block = program_map(options.blocks * sizeof(char *));
    shared.idle = program_map(options.heaps * sizeof(alloc_heap_t *));
    /* The first round warms up; the second takes its place. */
    for (uint32_t i = 0; i <= options.rounds; i++)
        for (operation_t operation = 0; operation < OPERATIONS; operation++)
            if (operation != RESET || HAS_RESET)
                cost[operation][i ? i - 1 : 0] = time_operation(operation, &rng);
    for (uint32_t i = 0; i <= options.rounds; i++)
        if (USABLE_THREADS > 1) beside_us[i ? i - 1 : 0] = time_beside();
    for (size_t i = 0; i < options.heaps; i++)
        shared.idle[i] = program_heap(options.level, (unsigned)i);
    for (uint32_t i = 0; i <= options.rounds; i++) time_idle(idle_cost, i ? i - 1 : 0);
}

static void print_line(void)
{
    char reset_ns[32] = "-", longest_us[32] = "-";
    double median[OPERATIONS], idle[IDLES];
    for (operation_t i = 0; i < OPERATIONS; i++)
        median[i] = harness_median(cost[i], options.rounds);
    for (idle_t i = 0; i < IDLES; i++) idle[i] = harness_median(idle_cost[i], options.rounds);
    if (HAS_RESET) snprintf(reset_ns, sizeof reset_ns, "%.0f", median[RESET]);
    if (USABLE_THREADS > 1)
        snprintf(longest_us, sizeof longest_us, "%.0f", harness_median(beside_us, options.rounds));
    program_print_identity();
    printf(" level=%s blocks=%zu size=%zu threads=%u busy=%u rounds=%u seed=%llu flush_ns=%.0f "
           "trim_ns=%.0f reset_ns=%s "
           "destroy_ns=%.0f beside_us=%s heaps=%zu idle_flush_ms=%.3f idle_again_ms=%.3f "
           "idle_trim_ms=%.3f\n",
           options.level, options.blocks, options.size, options.threads, options.busy,
           options.rounds, (unsigned long long)options.seed, median[FLUSH], median[TRIM], reset_ns,
           median[DESTROY], longest_us, options.heaps, idle[IDLE_FLUSH], idle[IDLE_AGAIN],
           idle[IDLE_TRIM]);
}

static const program_option_t known[] = {
    {.name = "blocks",
     .kind = OPTION_SIZE,
     .value = &options.blocks,
     .words = "a filling",
     .min = 1,
     .max = 1e8},
    {.name = "size",
     .kind = OPTION_SIZE,
     .value = &options.size,
     .words = "bytes each",
     .min = 1,
     .max = 1 << 20},
    {.name = "heaps",
     .kind = OPTION_SIZE,
     .value = &options.heaps,
     .words = "idle heaps",
     .min = 1,
     .max = 1e6},
    {.name = "threads",
     .kind = OPTION_U32,
     .value = &options.threads,
     .words = "who fill and touch",
     .min = 1,
     .max = USABLE_THREADS},
    {.name = "busy",
     .kind = OPTION_U32,
     .value = &options.busy,
     .words = "1: threads run while the main thread is timed",
     .max = 1},
    {.name = "rounds",
     .kind = OPTION_U32,
     .value = &options.rounds,
     .words = "fillings of each operation",
     .min = 1,
     .max = MOST_ROUNDS},
    PROGRAM_SEED(&options.seed),
    PROGRAM_LEVEL(&options.level),
};

int main(int argc, char **argv)
{
    static pthread_t thread[MOST_THREADS];
    program_begin_heaps(argc, argv, "What it costs to give memory back", known,
                        sizeof known / sizeof known[0]);
    start_threads(thread);
    measure();
    end_threads(thread);
    for (size_t i = 0; i < options.heaps; i++) alloc_heap_destroy(shared.idle[i]);
    print_line();
    return 0;
}
