/* base: the lock, its ranks, the fatal line. */
#define _GNU_SOURCE
#include "base.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "os.h"
#include "support_child.h"
#include "tls.h"

TestSuite(base, .timeout = 600);

static hak_lock_t lock;
static child_result_t child;

/* ---- Mutual exclusion ---- */

enum { THREADS = 4, ROUNDS = 20000 };

static unsigned long guarded;     /* plain: torn or lost updates are what the test looks for */
static _Atomic unsigned inside;   /* threads that hold the lock */
static _Atomic unsigned together; /* times that there was more than one */

static void *count_up(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        lock_acquire(&lock, RANK_HEAP);
        if (atomic_fetch_add(&inside, 1u) != 0) atomic_fetch_add(&together, 1u);
        unsigned long before = guarded;
        /* Now and then the holder loses its CPU, so that others wait in the kernel. */
        if (i % 512 == 0) sched_yield();
        guarded = before + 1;
        atomic_fetch_sub(&inside, 1u);
        lock_release(&lock, RANK_HEAP);
    }
    return NULL;
}

Test(base, lock_excludes)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        cr_assert(pthread_create(&threads[i], NULL, count_up, NULL) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    cr_assert(guarded == (unsigned long)THREADS * ROUNDS, "%lu updates of %lu", guarded,
              (unsigned long)THREADS * ROUNDS);
    cr_assert(together == 0, "%u times two held the lock", (unsigned)together);
    cr_assert(!lock_is_held(&lock));
}

static _Atomic bool acquired;

static void *wait_for_lock(void *arg)
{
    (void)arg;
    lock_acquire(&lock, RANK_HEAP);
    acquired = true;
    lock_release(&lock, RANK_HEAP);
    return NULL;
}

/* Who waits in the kernel says so in the word, and is woken by the release. */
Test(base, lock_wakes_who_waits)
{
    pthread_t thread;
    lock_acquire(&lock, RANK_HEAP);
    cr_assert(pthread_create(&thread, NULL, wait_for_lock, NULL) == 0);
    while (lock.word != 2) sched_yield();
    cr_assert(!acquired);
    lock_release(&lock, RANK_HEAP);
    pthread_join(thread, NULL);
    cr_assert(acquired);
    cr_assert(!lock_is_held(&lock));
}

/* The lock is not fair: who takes it again at once mostly gets it. After a pass it is the other's
 * turn. */
Test(base, a_pass_lets_who_waits_go_first)
{
    enum { TIMES = 20 };
    int first = 0;
    for (int i = 0; i < TIMES; i++) {
        pthread_t thread;
        acquired = false;
        lock_acquire(&lock, RANK_HEAP);
        cr_assert(pthread_create(&thread, NULL, wait_for_lock, NULL) == 0);
        while (lock.word != 2) sched_yield();
        lock_pass(&lock, RANK_HEAP);
        lock_acquire(&lock, RANK_HEAP);
        first += acquired;
        lock_release(&lock, RANK_HEAP);
        pthread_join(thread, NULL);
    }
    cr_assert(first >= TIMES / 2, "%d of %d", first, TIMES);
    lock_acquire(&lock, RANK_HEAP);
    lock_pass(&lock, RANK_HEAP);
    cr_assert(!lock_is_held(&lock), "nobody waits");
}

static _Atomic bool stop_taking;

static void *take_again_and_again(void *arg)
{
    (void)arg;
    while (!stop_taking) {
        lock_acquire(&lock, RANK_HEAP);
        acquired = true;
        lock_release(&lock, RANK_HEAP);
    }
    return NULL;
}

/* A thread that shares a CPU with one that always wants the lock is not kept from it for whole
 * slices of time: 200 would be near a second. By the CPU time of this process, which is the same
 * whatever runs beside. */
Test(base, a_pass_on_one_cpu_takes_a_moment)
{
    enum { TIMES = 200 };
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(os_cpu(), &one);
    cr_assert(sched_setaffinity(0, sizeof one, &one) == 0);
    pthread_t thread;
    lock_acquire(&lock, RANK_HEAP);
    cr_assert(pthread_create(&thread, NULL, take_again_and_again, NULL) == 0);
    while (lock.word != 2) sched_yield();
    struct timespec begin, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    for (int i = 0; i < TIMES; i++) {
        lock_pass(&lock, RANK_HEAP);
        lock_acquire(&lock, RANK_HEAP);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    lock_release(&lock, RANK_HEAP);
    stop_taking = true;
    pthread_join(thread, NULL);
    double seconds =
        (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    cr_assert(acquired && seconds < 0.3, "%.3f s for %d passes", seconds, TIMES);
}

static void *try_elsewhere(void *arg)
{
    bool *got = arg;
    *got = lock_try(&lock, RANK_HEAP);
    if (*got) lock_release(&lock, RANK_HEAP);
    return NULL;
}

static bool another_gets_it(void)
{
    bool got = false;
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, try_elsewhere, &got) == 0);
    pthread_join(thread, NULL);
    return got;
}

Test(base, try_takes_only_what_is_free)
{
    cr_assert(!lock_is_held(&lock));
    cr_assert(another_gets_it());
    cr_assert(lock_try(&lock, RANK_HEAP));
    cr_assert(lock_is_held(&lock));
    cr_assert(!another_gets_it());
    cr_assert(!lock_try(&lock, RANK_HEAP));
    lock_release(&lock, RANK_HEAP);
    cr_assert(!lock_is_held(&lock));
    cr_assert(another_gets_it());
}

Test(base, enter_waits_only_where_it_may)
{
    cr_assert(lock_enter(&lock, RANK_HEAP, false));
    cr_assert(lock_is_held(&lock));
    cr_assert(!lock_enter(&lock, RANK_HEAP, false));
    lock_release(&lock, RANK_HEAP);
    cr_assert(lock_enter(&lock, RANK_HEAP, true));
    cr_assert(lock_is_held(&lock) && !another_gets_it());
    lock_release(&lock, RANK_HEAP);
    cr_assert(!lock_is_held(&lock));
}

/* ---- Ranks ---- */

static const lock_rank_t order[] = {RANK_GATE_CLOSE, RANK_TRIM, RANK_AREAS,   RANK_CLASS,
                                    RANK_HEAP,       RANK_META, RANK_RESERVE, RANK_REGISTRY};
enum { RANKS = sizeof order / sizeof order[0] };
static hak_lock_t locks[RANKS];

Test(base, ranks_are_the_documented_order)
{
    for (unsigned i = 1; i < RANKS; i++) cr_assert(order[i] > order[i - 1], "rank %u", i);
}

Test(base, locks_nest_upwards)
{
    for (unsigned i = 0; i < RANKS; i++) lock_acquire(&locks[i], order[i]);
    cr_assert(!HAK_DEBUG || __builtin_popcount(lock_ranks()) == RANKS);
    for (unsigned i = RANKS; i-- > 0;) lock_release(&locks[i], order[i]);
    cr_assert(lock_ranks() == 0);
    /* A failed try leaves no rank behind: the lock below may still be taken. */
    locks[6].word = 1;
    cr_assert(!lock_try(&locks[6], order[6]));
    lock_acquire(&locks[0], order[0]);
    lock_release(&locks[0], order[0]);
    cr_assert(lock_ranks() == 0);
}

static void take_against(void *arg)
{
    const unsigned *pair = arg;
    lock_acquire(&locks[0], order[pair[0]]);
    lock_acquire(&locks[1], order[pair[1]]);
}

static void try_against(void *arg)
{
    const unsigned *pair = arg;
    lock_acquire(&locks[0], order[pair[0]]);
    (void)lock_try(&locks[1], order[pair[1]]);
}

static void must_assert(const char *what)
{
    if (!HAK_DEBUG) {
        cr_assert(child.signal == 0 && child.status == 0,
                  "%s: a build without asserts went by signal %d", what, child.signal);
        return;
    }
    cr_assert(child_aborted(&child, "ASSERT", "assert"), "%s: signal %d, status %d, text: %s", what,
              child.signal, child.status, child.text);
}

/* Every pair of ranks: fine where the second is above the first, else the end in debug builds. */
Test(base, locks_against_the_order_abort)
{
    for (unsigned first = 0; first < RANKS; first++) {
        for (unsigned second = 0; second < RANKS; second++) {
            unsigned pair[2] = {first, second};
            child_run(&child, take_against, pair);
            if (second > first)
                cr_assert(child.status == 0, "%u then %u: %s", first, second, child.text);
            else must_assert("acquire");
        }
    }
    unsigned down[2] = {3, 2};
    child_run(&child, try_against, down);
    must_assert("try");
}

Test(base, an_order_violation_ends_by_abort, .signal = HAK_DEBUG ? SIGABRT : 0)
{
    lock_acquire(&locks[0], RANK_HEAP);
    lock_acquire(&locks[1], RANK_CLASS);
}

static void take_next_below(void *arg)
{
    (void)arg;
    lock_acquire(&locks[0], RANK_HEAP);
    lock_acquire_next(&locks[1], RANK_CLASS);
}

Test(base, locks_of_one_rank_by_next)
{
    lock_acquire(&locks[0], RANK_AREAS);
    lock_acquire(&locks[1], RANK_CLASS);
    lock_acquire_next(&locks[2], RANK_CLASS);
    lock_acquire_next(&locks[3], RANK_CLASS);
    cr_assert(lock_is_held(&locks[1]) && lock_is_held(&locks[2]) && lock_is_held(&locks[3]));
    lock_release_next(&locks[3]);
    lock_release_next(&locks[2]);
    lock_release(&locks[1], RANK_CLASS);
    lock_release(&locks[0], RANK_AREAS);
    for (unsigned i = 0; i < 4; i++) cr_assert(!lock_is_held(&locks[i]));

    child_run(&child, take_next_below, NULL);
    must_assert("next");
}

static void release_free_lock(void *arg)
{
    (void)arg;
    lock_release(&locks[0], RANK_HEAP);
}

Test(base, releasing_a_free_lock_asserts)
{
    child_run(&child, release_free_lock, NULL);
    must_assert("release");
}

/* ---- The line ---- */

static void end_with(void *arg) { hak_fatal(arg); }

static void must_say(const hak_fault_t *fault, const char *line)
{
    child_run(&child, end_with, (void *)(uintptr_t)fault);
    cr_assert(child.signal == SIGABRT, "signal %d", child.signal);
    cr_assert(strcmp(child.text, line) == 0, "said:   %swanted: %s", child.text, line);
}

Test(base, fatal_line_names_everything)
{
    must_say(&(hak_fault_t){.code = "DOUBLE_FREE",
                            .operation = "free",
                            .ptr = (const void *)0x7f0012345670,
                            .heap = "sessions",
                            .class_bytes = 1152,
                            .words = "the block is free already"},
             "hakheap: DOUBLE_FREE: free ptr=0x7f0012345670 heap=\"sessions\" class=1152: the "
             "block is free already\n");
    must_say(&(hak_fault_t){.code = "WRONG_HEAP",
                            .operation = "realloc",
                            .ptr = (const void *)UINTPTR_MAX,
                            .heap = "a",
                            .other = "b",
                            .class_bytes = SIZE_MAX,
                            .words = "the block belongs to heap"},
             "hakheap: WRONG_HEAP: realloc ptr=0xffffffffffffffff heap=\"a\" "
             "class=18446744073709551615: the block "
             "belongs to heap \"b\"\n");
    must_say(
        &(hak_fault_t){.code = "FOREIGN", .operation = "free", .words = "no heap has this address"},
        "hakheap: FOREIGN: free ptr=0x0 heap=\"\" class=0: no heap has this address\n");
}

Test(base, fatal_line_is_cut_not_overrun)
{
    static char words[2000];
    memset(words, 'w', sizeof words - 1);
    child_run(&child, end_with,
              &(hak_fault_t){.code = "CODE", .operation = "op", .heap = words, .words = words});
    cr_assert(child.signal == SIGABRT);
    size_t length = strlen(child.text);
    cr_assert(length == sizeof hak_fatal_line - 1, "%zu bytes", length);
    cr_assert(child.text[length - 1] == '\n' && child.text[length - 2] == 'w');
    cr_assert(strncmp(child.text, "hakheap: CODE: op ptr=0x0 heap=\"www", 35) == 0, "%s",
              child.text);
}

/* Written here by a child with its error output lost: the line stays in memory, and nothing else
 * happens. */
static void complain_into_nothing(void *arg)
{
    (void)arg;
    close(STDERR_FILENO);
    hak_complain(&(hak_fault_t){
        .code = "CORRUPT", .operation = "check", .heap = "h", .class_bytes = 16, .words = "w"});
    _exit(strcmp(hak_fatal_line, "hakheap: CORRUPT: check ptr=0x0 heap=\"h\" class=16: w\n") == 0
              ? 7
              : 8);
}

static void complain(void *arg)
{
    hak_complain(arg);
    _exit(9);
}

Test(base, complaining_returns)
{
    child_run(&child, complain,
              &(hak_fault_t){.code = "A", .operation = "b", .heap = "c", .words = "d"});
    cr_assert(child.status == 9, "status %d, signal %d", child.status, child.signal);
    cr_assert(strcmp(child.text, "hakheap: A: b ptr=0x0 heap=\"c\" class=0: d\n") == 0, "%s",
              child.text);
    child_run(&child, complain_into_nothing, NULL);
    cr_assert(child.status == 7, "status %d, signal %d", child.status, child.signal);
}

static _Atomic bool complained;

static void *complain_cancelled(void *arg)
{
    pthread_cancel(pthread_self());
    hak_complain(&(hak_fault_t){.code = "A", .operation = "b", .words = "c"});
    complained = true;
    return arg;
}

static void complain_in_thread(void *arg)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, complain_cancelled, arg) != 0) _exit(1);
    pthread_join(thread, NULL);
    _exit(complained ? 9 : 2);
}

/* Locks may be held where something is said. */
Test(base, complaining_is_no_cancellation_point)
{
    child_run(&child, complain_in_thread, NULL);
    cr_assert(child.status == 9, "status %d, signal %d", child.status, child.signal);
}

static void fail_assert(void *arg)
{
    (void)arg;
    hak_assert_failed("a == b", "src/some.c", 1203);
}

static void fail_long_assert(void *arg)
{
    char *text = arg;
    hak_assert_failed(text, text, 1);
}

Test(base, failed_assert_names_its_place)
{
    child_run(&child, fail_assert, NULL);
    cr_assert(child.signal == SIGABRT);
    cr_assert(
        strcmp(child.text,
               "hakheap: ASSERT: assert ptr=0x0 heap=\"\" class=0: src/some.c:1203 a == b\n") == 0,
        "%s", child.text);
    static char text[1000];
    memset(text, 'f', sizeof text - 1);
    child_run(&child, fail_long_assert, text);
    cr_assert(child_aborted(&child, "ASSERT", "assert"), "signal %d: %s", child.signal, child.text);
    cr_assert(strstr(child.text, "fff:1 fff"), "%s", child.text);
}

Test(base, rounding)
{
    cr_assert(hak_round_up(0, 16) == 0);
    cr_assert(hak_round_up(1, 16) == 16);
    cr_assert(hak_round_up(16, 16) == 16);
    cr_assert(hak_round_up(4097, HAK_PAGE) == 8192);
    cr_assert(hak_min(2, 3) == 2 && hak_min(3, 2) == 2);
    cr_assert(hak_max(2, 3) == 3 && hak_max(3, 2) == 3);
    cr_assert((size_t)1 << HAK_PAGE_SHIFT == HAK_PAGE);
}
