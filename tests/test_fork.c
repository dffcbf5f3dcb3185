/* fork: a child of busy threads finds every heap whole, and allocates, frees, flushes, trims,
 * checks and destroys. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hakheap.h"
#include "sizeclass.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_random.h"

TestSuite(fork, .timeout = 600);

enum { HEAPS = 4, THREADS = 8, SLOTS = 100 };

static hak_heap_t *heaps[HEAPS];
static _Atomic bool stop;
static _Atomic int
    started; /* threads that are past what starts a thread, the sanitizer's malloc among it */
static child_result_t result;

static size_t some_size(randoms_t *randoms)
{
    unsigned dice = random_below(randoms, 1000);
    if (dice < 3) return HAK_MIB + random_below(randoms, 1000000);
    if (dice < 40) return SMALL_MAX + random_below(randoms, 200000);
    return random_below(randoms, dice < 300 ? 10000 : 300);
}

static void *be_busy(void *arg)
{
    randoms_t randoms = {(uint64_t)(uintptr_t)arg};
    void *slots[SLOTS] = {NULL};
    started++;
    while (!stop) {
        void **slot = &slots[random_below(&randoms, SLOTS)];
        hak_free(*slot);
        *slot = hak_heap_malloc(heaps[random_below(&randoms, HEAPS)], some_size(&randoms));
        if (random_below(&randoms, 2000) == 0)
            (void)hak_heap_flush(heaps[random_below(&randoms, HEAPS)]);
        /* Busy, but not so that the children get no CPU. */
        if (random_below(&randoms, 200) == 0) usleep(300);
    }
    for (int i = 0; i < SLOTS; i++) hak_free(slots[i]);
    return NULL;
}

/* Heaps come and go while the process forks. */
static void *make_and_destroy(void *arg)
{
    (void)arg;
    started++;
    while (!stop) {
        hak_heap_t *heap = contract_heap(1, "brief");
        for (size_t size = 1; heap && size < 4 * HAK_MIB; size *= 5)
            if (!hak_heap_malloc(heap, size)) break;
        if (heap) (void)hak_heap_destroy(heap);
        usleep(500);
    }
    return NULL;
}

/* Uses a heap for all it can do. 0, or the line of what was wrong. */
static int use_heap(hak_heap_t *heap, uint64_t seed)
{
    enum { BLOCKS = 60 };
    void *blocks[BLOCKS];
    size_t sizes[BLOCKS];
    randoms_t randoms = {seed};
    for (unsigned i = 0; i < BLOCKS; i++) {
        sizes[i] = some_size(&randoms);
        if (!(blocks[i] = hak_heap_malloc(heap, sizes[i]))) return __LINE__;
        contract_fill(blocks[i], sizes[i], i);
    }
    for (unsigned i = 0; i < BLOCKS; i++) {
        if (!contract_holds(blocks[i], sizes[i], i)) return __LINE__;
        if (i % 2) hak_free(blocks[i]);
        else hak_heap_free(heap, blocks[i]);
    }
    return 0;
}

/* What vanished threads held is live for ever; all else is as in any process. */
static int use_inherited(hak_heap_t *heap, uint64_t seed)
{
    if (hak_heap_check(heap) != 0) return __LINE__;
    int line = use_heap(heap, seed);
    if (line) return line;
    if (hak_heap_check(heap) != 0) return __LINE__;
    (void)hak_heap_flush(heap);
    hak_heap_stats_t stats = contract_stats(heap);
    if (contract_cached(&stats)) return __LINE__;
    if (contract_sum(&stats) != stats.committed_bytes) return __LINE__;
    (void)hak_heap_trim(heap, 0);
    if (hak_heap_check(heap) != 0) return __LINE__;
    if ((line = use_heap(heap, seed + 1)) != 0) return line;
    if (hak_heap_reset(heap) != 0) return __LINE__;
    if ((line = contract_unsound(heap, 0)) != 0) return line;
    if ((line = use_heap(heap, seed + 2)) != 0) return line;
    return hak_heap_destroy(heap) == 0 ? 0 : __LINE__;
}

static void fail_in_child(int line)
{
    if (!line) return;
    fprintf(stderr, "line %d\n", line);
    _exit(1);
}

static void *use_in_thread(void *arg)
{
    fail_in_child(use_heap(arg, 5));
    return NULL;
}

static void in_child(void *arg)
{
    uint64_t seed = *(const unsigned *)arg;
    /* What vanished threads were counted as must not keep a fork of the child waiting. */
    pid_t grandchild = fork();
    if (grandchild == 0) _exit(hak_heap_check(heaps[0]) == 0 ? 0 : 1);
    int status = -1;
    if (grandchild < 0 || waitpid(grandchild, &status, 0) != grandchild || status != 0)
        fail_in_child(__LINE__);
    for (unsigned i = 0; i < HEAPS; i++) fail_in_child(use_inherited(heaps[i], seed * 10 + i));
    hak_heap_t *heap = contract_heap((int)(seed & 1), "child's");
    if (!heap) _exit(2);
    fail_in_child(use_heap(heap, seed));
    /* Threads of the child's own. Not where the sanitizer's malloc, which starting a thread calls, may
     * be locked by a thread that vanished. */
    pthread_t threads[2];
    int count = CONTRACT_SANITIZED ? 0 : 2;
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, use_in_thread, heap) != 0) _exit(3);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    fail_in_child(contract_unsound(heap, 0));
    if (hak_heap_destroy(heap) != 0) _exit(4);
}

Test(fork, children_of_busy_threads)
{
    pthread_t threads[THREADS], maker;
    for (int i = 0; i < HEAPS; i++) cr_assert((heaps[i] = contract_heap(i & 1, "shared")) != NULL);
    for (uintptr_t i = 0; i < THREADS; i++)
        cr_assert(pthread_create(&threads[i], NULL, be_busy, (void *)i) == 0);
    cr_assert(pthread_create(&maker, NULL, make_and_destroy, NULL) == 0);
    /* A sanitizer's malloc is not fork-safe: a child would wait for ever for a lock of a thread
     * that has just begun. */
    while (started != THREADS + 1) usleep(1000);
    unsigned forks = (unsigned)contract_work(80);
    for (unsigned i = 0; i < forks; i++) {
        child_run(&result, in_child, &i);
        cr_assert(result.status == 0 && result.signal == 0, "fork %u: status %d, signal %d: %s", i,
                  result.status, result.signal, result.text);
    }
    stop = true;
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_join(maker, NULL);
    /* The parent never noticed. */
    for (int i = 0; i < HEAPS; i++) {
        int line = contract_unsound(heaps[i], 0);
        cr_assert(line == 0, "parent, heap %d: support_contract.c:%d", i, line);
        cr_assert(hak_heap_destroy(heaps[i]) == 0);
    }
}

/* ---- Many heaps ---- */

enum { MANY = 1000 };
static hak_heap_t *many[MANY];
static void *theirs[MANY];

static void use_many(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < MANY; i++) {
        if (!contract_holds(theirs[i], 100, i)) fail_in_child(__LINE__);
        hak_heap_free(many[i], theirs[i]);
        void *ptr = hak_heap_malloc(many[i], 100);
        if (!ptr || hak_heap_of(ptr) != many[i]) fail_in_child(__LINE__);
        if (i % 10 == 0 && hak_heap_check(many[i]) != 0) fail_in_child(__LINE__);
        if (hak_heap_destroy(many[i]) != 0) fail_in_child(__LINE__);
    }
}

Test(fork, with_a_thousand_heaps)
{
    for (unsigned i = 0; i < MANY; i++) {
        cr_assert((many[i] = contract_heap((int)(i & 1), "one of many")) != NULL);
        cr_assert((theirs[i] = hak_heap_malloc(many[i], 100)) != NULL);
        contract_fill(theirs[i], 100, i);
    }
    for (int i = 0; i < 5; i++) {
        child_run(&result, use_many, NULL);
        cr_assert(result.status == 0 && result.signal == 0, "status %d, signal %d: %s",
                  result.status, result.signal, result.text);
    }
    for (unsigned i = 0; i < MANY; i++) {
        cr_assert(contract_holds(theirs[i], 100, i), "a child wrote into its parent");
        cr_assert(contract_unsound(many[i], 1) == 0);
        cr_assert(hak_heap_destroy(many[i]) == 0);
    }
}

/* ---- Generations ---- */

static void descend(void *arg)
{
    unsigned depth = *(unsigned *)arg;
    fail_in_child(use_heap(heaps[0], depth));
    if (hak_heap_check(heaps[0]) != 0) fail_in_child(__LINE__);
    if (depth == 0) return;
    pthread_t busy;
    stop = false;
    heaps[1] = heaps[2] = heaps[3] = heaps[0];
    if (pthread_create(&busy, NULL, be_busy, NULL) != 0) _exit(2);
    depth--;
    child_result_t child;
    for (int i = 0; i < 3; i++) {
        child_run(&child, descend, &depth);
        if (child.status != 0 || child.signal != 0) {
            fprintf(stderr, "depth %u: status %d, signal %d: %s", depth, child.status, child.signal,
                    child.text);
            _exit(5);
        }
    }
    stop = true;
    pthread_join(busy, NULL);
    if (hak_heap_check(heaps[0]) != 0) fail_in_child(__LINE__);
}

Test(fork, children_of_children)
{
    cr_assert((heaps[0] = contract_heap(1, "inherited")) != NULL);
    unsigned depth = 3;
    child_run(&result, descend, &depth);
    cr_assert(result.status == 0 && result.signal == 0, "status %d, signal %d: %s", result.status,
              result.signal, result.text);
    cr_assert(contract_unsound(heaps[0], 0) == 0);
}

/* ---- From a thread that is not the first ---- */

static void *fork_here(void *arg)
{
    unsigned seed = 3;
    child_run(arg, in_child, &seed);
    return NULL;
}

Test(fork, from_two_threads_at_once)
{
    static child_result_t results[2];
    pthread_t threads[2];
    for (int i = 0; i < HEAPS; i++) cr_assert((heaps[i] = contract_heap(i & 1, "shared")) != NULL);
    for (size_t round = 0; round < contract_work(24); round++) {
        for (int i = 0; i < 2; i++)
            cr_assert(pthread_create(&threads[i], NULL, fork_here, &results[i]) == 0);
        for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
        for (int i = 0; i < 2; i++)
            cr_assert(results[i].status == 0 && results[i].signal == 0, "status %d, signal %d: %s",
                      results[i].status, results[i].signal, results[i].text);
    }
    for (int i = 0; i < HEAPS; i++) cr_assert(contract_unsound(heaps[i], 0) == 0);
}

/* ---- Frees that meet the gate ---- */

enum { UNCACHED = 4000 };
static hak_heap_t *uncached;

/* A heap without caches: each free takes the slow path, so that many meet the closed gate. */
static void *free_uncached(void *unused)
{
    while (!stop) {
        void *blocks[UNCACHED];
        for (unsigned i = 0; i < UNCACHED; i++) blocks[i] = hak_heap_malloc(uncached, 64);
        for (unsigned i = 0; i < UNCACHED; i++) hak_heap_free(uncached, blocks[i]);
    }
    return unused;
}

static void figures_are_exact(void *unused)
{
    (void)unused;
    fail_in_child(contract_is_charged(uncached) ? 0 : __LINE__);
    (void)hak_heap_flush(uncached);
    fail_in_child(contract_is_charged(uncached) ? 0 : __LINE__);
    hak_heap_stats_t stats = contract_stats(uncached);
    fail_in_child(contract_cached(&stats) ? __LINE__ : 0);
    fail_in_child(contract_sum(&stats) == stats.committed_bytes ? 0 : __LINE__);
    fail_in_child(hak_heap_check(uncached) == 0 ? 0 : __LINE__);
}

Test(fork, a_child_counts_no_block_that_is_on_no_list, .timeout = 300)
{
    enum { FREERS = 3 };
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.cache_bytes = 1;
    cr_assert((uncached = hak_heap_create(&config)) != NULL);
    stop = false;
    pthread_t threads[FREERS];
    for (unsigned i = 0; i < FREERS; i++)
        cr_assert(pthread_create(&threads[i], NULL, free_uncached, NULL) == 0);
    size_t forks = contract_work(480);
    for (size_t i = 0; i < forks; i++) {
        child_result_t child;
        child_run(&child, figures_are_exact, NULL);
        cr_assert(child.status == 0, "child %zu: status %d, signal %d: %s", i, child.status,
                  child.signal, child.text);
    }
    stop = true;
    for (unsigned i = 0; i < FREERS; i++) pthread_join(threads[i], NULL);
    cr_assert(hak_heap_destroy(uncached) == 0);
}
