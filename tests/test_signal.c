/*
 * Signals: a handler that allocates and frees while it interrupts threads that do the same. It
 * never deadlocks (the timeout would tell), malloc gives a good block or EDEADLK, and in the end
 * everything balances.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "hakheap.h"
#include "sizeclass.h"
#include "support_contract.h"
#include "support_random.h"

TestSuite(signal, .timeout = 600);

enum { WORKERS = 4, SLOTS = 200, HANDLER_SLOTS = 32 };

typedef struct pool {
    void *blocks[SLOTS];
    size_t sizes[SLOTS];
    randoms_t randoms;
} pool_t;

typedef struct worker {
    pthread_t thread;
    pool_t pool;         /* the thread's */
    pool_t handler_pool; /* the handler's on this thread; nobody else touches it */
    _Atomic bool running;
} worker_t;

static worker_t workers[WORKERS];
static _Thread_local worker_t *self;
static hak_heap_t *heaps[2];
static _Atomic bool stop;
static _Atomic size_t signals, answered, reentered;
static _Atomic int wrong_line; /* of the first thing that was wrong; handlers cannot assert */

static void require(bool good, int line)
{
    int none = 0;
    if (!good) atomic_compare_exchange_strong(&wrong_line, &none, line);
}

static size_t some_size(randoms_t *randoms)
{
    unsigned dice = random_below(randoms, 1000);
    if (dice < 4) return HAK_MIB + random_below(randoms, 500000);
    if (dice < 40) return SMALL_MAX + random_below(randoms, 100000);
    return random_below(randoms, dice < 300 ? 9000 : 200);
}

/* One step on a pool of blocks: frees one or allocates one. `interrupted`: EDEADLK is an answer. */
static void step(pool_t *pool, unsigned slots, bool interrupted)
{
    unsigned at = random_below(&pool->randoms, slots);
    hak_heap_t *heap = heaps[random_below(&pool->randoms, 2)];
    if (pool->blocks[at]) {
        require(contract_holds(pool->blocks[at], pool->sizes[at], at), __LINE__);
        int before = errno;
        hak_free(pool->blocks[at]);
        require(errno == before, __LINE__);
        pool->blocks[at] = NULL;
        return;
    }
    size_t size = some_size(&pool->randoms);
    errno = 0;
    void *ptr = random_below(&pool->randoms, 8) ? hak_heap_malloc(heap, size)
                                                : hak_heap_calloc(heap, 1, size);
    if (!ptr) {
        require(interrupted && errno == EDEADLK && hak_last_error() == HAK_ERROR_REENTERED,
                __LINE__);
        atomic_fetch_add(&reentered, 1);
        return;
    }
    if (interrupted) atomic_fetch_add(&answered, 1);
    contract_fill(ptr, size, at);
    pool->sizes[at] = size;
    pool->blocks[at] = ptr;
}

static void control_step(hak_heap_t *heap, unsigned what)
{
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    int error = 0;
    switch (what) {
    case 0: error = hak_heap_stats(heap, &stats); break;
    case 1: error = hak_heap_check(heap); break;
    case 2: (void)hak_heap_flush(heap); break;
    case 3: (void)hak_heap_trim(heap, 0); break;
    case 4: error = hak_reserve_set_limit(SIZE_MAX); break;
    default: (void)hak_reserve_trim(); break;
    }
    require(error == 0 || error == EDEADLK, __LINE__);
}

static void handler(int number)
{
    (void)number;
    worker_t *worker = self;
    if (!worker || !worker->running) return;
    int before = errno;
    atomic_fetch_add(&signals, 1);
    for (int i = 0; i < 4; i++) step(&worker->handler_pool, HANDLER_SLOTS, true);
    if (random_below(&worker->handler_pool.randoms, 64) == 0)
        control_step(heaps[0], random_below(&worker->handler_pool.randoms, 6));
    errno = before;
}

static void empty(pool_t *pool)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        if (!pool->blocks[i]) continue;
        require(contract_holds(pool->blocks[i], pool->sizes[i], i), __LINE__);
        hak_free(pool->blocks[i]);
        pool->blocks[i] = NULL;
    }
}

static void *work(void *arg)
{
    worker_t *worker = arg;
    self = worker;
    worker->running = true;
    while (!stop) {
        step(&worker->pool, SLOTS, false);
        if (random_below(&worker->pool.randoms, 2000) == 0)
            control_step(heaps[random_below(&worker->pool.randoms, 2)],
                         random_below(&worker->pool.randoms, 6));
    }
    worker->running = false;
    return NULL;
}

static void install(int number)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    cr_assert(sigaction(number, &action, NULL) == 0);
}

static void begin(uint64_t seed)
{
    for (int i = 0; i < 2; i++) cr_assert((heaps[i] = contract_heap(i, "signalled")) != NULL);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i].pool.randoms.state = seed + i;
        workers[i].handler_pool.randoms.state = seed * 77 + i;
    }
}

/* Whether handlers have done too little to test anything: on a busy machine it takes longer. */
static bool too_few(void) { return signals <= 100 || answered <= 100; }

static void finish(void)
{
    for (int i = 0; i < WORKERS; i++) {
        empty(&workers[i].pool);
        empty(&workers[i].handler_pool);
    }
    cr_log_info("%zu signals, %zu blocks in handlers, %zu times EDEADLK", (size_t)signals,
                (size_t)answered, (size_t)reentered);
    cr_assert(wrong_line == 0, "test_signal.c:%d", (int)wrong_line);
    for (int i = 0; i < 2; i++) {
        (void)hak_heap_flush(heaps[i]);
        int line = contract_unsound(heaps[i], 0);
        hak_heap_stats_t stats = contract_stats(heaps[i]);
        cr_assert(line == 0, "heap %d: support_contract.c:%d, %zu blocks live", i, line,
                  stats.live_blocks);
        cr_assert(contract_cached(&stats) == 0);
        cr_assert(hak_heap_destroy(heaps[i]) == 0);
    }
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Signals aimed at threads, as fast as they can be sent. */
Test(signal, handlers_of_busy_threads)
{
    begin(5);
    install(SIGUSR1);
    for (int i = 0; i < WORKERS; i++)
        cr_assert(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    double until = seconds_now() + (contract_work(8) < 8 ? 0.75 : 3);
    while (seconds_now() < until || too_few() || reentered == 0)
        for (int i = 0; i < WORKERS; i++) (void)pthread_kill(workers[i].thread, SIGUSR1);
    stop = true;
    for (int i = 0; i < WORKERS; i++) pthread_join(workers[i].thread, NULL);
    finish();
}

/* A timer's signals, which arrive at whatever instruction a single thread is. */
Test(signal, handlers_of_a_timer)
{
    begin(9);
    install(SIGALRM);
    struct itimerval timer = {.it_interval = {0, 50}, .it_value = {0, 50}};
    self = &workers[0];
    workers[0].running = true;
    cr_assert(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    double until = seconds_now() + (contract_work(8) < 8 ? 0.5 : 2);
    while (seconds_now() < until || too_few())
        for (int i = 0; i < 100; i++) step(&workers[0].pool, SLOTS, false);
    timer = (struct itimerval){.it_value = {0, 0}};
    cr_assert(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    workers[0].running = false;
    finish();
}

/* A handler that forks while it has interrupted anything at all. */
static _Atomic int forks_failed, forks_done;
static void forking_handler(int number)
{
    (void)number;
    if (forks_done >= 200) return;
    forks_done++;
    int before = errno;
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    if (pid < 0) forks_failed++;
    errno = before;
}

Test(signal, a_handler_may_fork)
{
    begin(13);
    struct sigaction action = {.sa_handler = forking_handler, .sa_flags = SA_RESTART},
                     ignore = {.sa_handler = SIG_IGN};
    cr_assert(sigaction(SIGCHLD, &ignore, NULL) == 0);
    cr_assert(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval timer = {.it_interval = {0, 2000}, .it_value = {0, 2000}};
    cr_assert(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    while (forks_done < 200)
        for (int i = 0; i < 100; i++) step(&workers[0].pool, SLOTS, false);
    timer = (struct itimerval){.it_value = {0, 0}};
    cr_assert(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    empty(&workers[0].pool);
    cr_assert(wrong_line == 0, "test_signal.c:%d", (int)wrong_line);
    cr_assert(forks_failed == 0, "%d of %d forks failed", (int)forks_failed, (int)forks_done);
    for (int i = 0; i < 2; i++) {
        cr_assert(contract_unsound(heaps[i], 0) == 0);
        cr_assert(hak_heap_destroy(heaps[i]) == 0);
    }
}
