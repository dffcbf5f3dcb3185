/* gate: re-entry, closing for a fork, what a child finds. */
#define _GNU_SOURCE
#include "gate.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os.h"
#include "support_realtime.h"
#include "tls.h"

/* No test makes a heap: the fork handlers that count here are those that a test registers. */
TestSuite(gate, .timeout = 600);

static _Atomic unsigned children;
static void in_child(void) { children++; }

static void start(void) { cr_assert(gate_start_process(in_child)); }

/* Forks, runs `check` in the child and returns what it returned; -1 where the child hung or
 * died. */
static int fork_and_ask(int (*check)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        alarm(300);
        _exit(check());
    }
    int status;
    if (pid < 0) return -1;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(gate, a_thread_enters_once)
{
    start();
    for (unsigned i = 0; i < 3; i++) {
        cr_assert(hak_tls.depth == 0);
        cr_assert(gate_enter(i % 2) == GATE_IN);
        cr_assert(hak_tls.depth == 1);
        cr_assert(gate_enter(true) == GATE_REENTERED);
        cr_assert(gate_enter(false) == GATE_REENTERED);
        cr_assert(hak_tls.depth == 1, "a refused entry changes nothing");
        gate_leave();
    }
}

static gate_entry_t in_handler;
static void enter_in_handler(int number)
{
    (void)number;
    in_handler = gate_enter(false);
    if (in_handler == GATE_IN) gate_leave();
}

Test(gate, a_signal_handler_is_told_where_it_interrupted)
{
    start();
    signal(SIGUSR1, enter_in_handler);
    cr_assert(gate_enter(true) == GATE_IN);
    raise(SIGUSR1);
    cr_assert(in_handler == GATE_REENTERED);
    gate_leave();
    raise(SIGUSR1);
    cr_assert(in_handler == GATE_IN);
    cr_assert(hak_tls.depth == 0);
}

static void *enter_and_leave(void *arg)
{
    gate_entry_t *entry = arg;
    *entry = gate_enter(true);
    if (*entry == GATE_IN) gate_leave();
    return NULL;
}

Test(gate, threads_do_not_keep_each_other_out)
{
    start();
    cr_assert(gate_enter(true) == GATE_IN);
    gate_entry_t entry = GATE_CLOSED;
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, enter_and_leave, &entry) == 0);
    pthread_join(thread, NULL);
    cr_assert(entry == GATE_IN);
    gate_leave();
}

/* ---- Fork ---- */

static int can_enter(void)
{
    if (children != 1) return 2;
    if (gate_enter(false) != GATE_IN) return 3;
    if (gate_enter(false) != GATE_REENTERED) return 4;
    gate_leave();
    if (gate_enter(true) != GATE_IN) return 5;
    gate_leave();
    return hak_tls.depth == 0 && lock_ranks() == 0 ? 0 : 6;
}

static int forks_again(void)
{
    int status = can_enter();
    if (status) return status;
    children = 0;
    return fork_and_ask(can_enter);
}

Test(gate, a_child_finds_the_gate_open)
{
    start();
    cr_assert(fork_and_ask(forks_again) == 0);
    cr_assert(children == 0, "the parent is no child");
    cr_assert(gate_enter(false) == GATE_IN);
    gate_leave();
    cr_assert(lock_ranks() == 0);
}

enum { THREADS = 4, FORKS = 40 };
static _Atomic bool end;
static _Atomic unsigned inside; /* threads between entry and leaving */
static _Atomic unsigned entries, closed;

static void *come_and_go(void *arg)
{
    bool may_wait = *(bool *)arg;
    while (!end) {
        gate_entry_t entry = gate_enter(may_wait);
        if (entry != GATE_IN) {
            closed++;
            sched_yield();
            continue;
        }
        inside++;
        entries++;
        if (entries % 64 == 0) sched_yield();
        inside--;
        gate_leave();
    }
    return NULL;
}

static int nobody_is_inside(void)
{
    if (inside != 0) return 10;
    return can_enter();
}

/* Whatever the threads do, a child sees none of them in the middle, and can use the gate. */
Test(gate, forks_while_threads_come_and_go)
{
    start();
    pthread_t threads[THREADS];
    static bool may_wait[THREADS] = {true, false, true, false};
    for (unsigned i = 0; i < THREADS; i++)
        cr_assert(pthread_create(&threads[i], NULL, come_and_go, &may_wait[i]) == 0);
    for (unsigned i = 0; i < FORKS; i++) {
        unsigned before = entries;
        while (entries - before < 100) sched_yield();
        int status = fork_and_ask(i % 4 ? nobody_is_inside : forks_again);
        cr_assert(status == 0, "fork %u: status %d", i, status);
    }
    unsigned before = entries;
    while (entries - before < 1000) sched_yield();
    end = true;
    for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    cr_assert(inside == 0);
    cr_assert(gate_enter(true) == GATE_IN);
    gate_leave();
}

/* ---- While it is closed ---- */

/*
 * Handlers that run inside of the library's: one registered before has its `prepare` run after, its
 * `parent` and `child` before.
 */
static struct {
    pthread_t waiter;
    gate_entry_t without_waiting, own;
    _Atomic bool waiting, waited;
    bool held;
} closing;

static void *try_to_enter(void *arg)
{
    gate_entry_t *entry = arg;
    *entry = gate_enter(false);
    if (*entry == GATE_IN) gate_leave();
    return NULL;
}

static void *wait_to_enter(void *arg)
{
    (void)arg;
    closing.waiting = true;
    if (gate_enter(true) == GATE_IN) {
        closing.waited = true;
        gate_leave();
    }
    return NULL;
}

static void while_closed(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, try_to_enter, &closing.without_waiting);
    pthread_join(thread, NULL);
    pthread_create(&closing.waiter, NULL, wait_to_enter, NULL);
    while (!closing.waiting) sched_yield();
    usleep(20000);
    closing.held = !closing.waited;
    closing.own = gate_enter(false);
    if (closing.own == GATE_IN) gate_leave();
}

Test(gate, while_closed_nobody_enters)
{
    closing.without_waiting = closing.own = GATE_IN;
    cr_assert(pthread_atfork(while_closed, NULL, NULL) == 0);
    start();
    cr_assert(fork_and_ask(can_enter) == 0);
    cr_assert(closing.without_waiting == GATE_CLOSED, "entered a closed gate: %d",
              closing.without_waiting);
    cr_assert(closing.held, "entered a closed gate by waiting");
    cr_assert(closing.own == GATE_REENTERED, "the thread that forks must not wait for itself: %d",
              closing.own);
    pthread_join(closing.waiter, NULL);
    cr_assert(closing.waited, "who waited gets in when the gate opens");
}

static _Atomic bool is_in, is_out;

static void *stay_inside(void *arg)
{
    (void)arg;
    if (gate_enter(true) != GATE_IN) return NULL;
    is_in = true;
    usleep(50000);
    is_out = true;
    gate_leave();
    return NULL;
}

static int was_waited_for(void) { return is_out ? can_enter() : 11; }

Test(gate, closing_waits_for_who_is_inside)
{
    start();
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, stay_inside, NULL) == 0);
    while (!is_in) sched_yield();
    cr_assert(fork_and_ask(was_waited_for) == 0);
    pthread_join(thread, NULL);
}

/* ---- A fork in a handler that interrupted a slow path ---- */

static int still_inside(void)
{
    if (hak_tls.depth != 1 || children != 1) return 12;
    if (gate_enter(false) != GATE_REENTERED) return 13;
    gate_leave();
    if (gate_enter(true) != GATE_IN) return 14;
    gate_leave();
    children = 0;
    return fork_and_ask(can_enter); /* closes again, which waits for all counts to be 0 */
}

Test(gate, a_fork_from_inside_does_not_wait_for_itself)
{
    start();
    cr_assert(gate_enter(true) == GATE_IN);
    cr_assert(fork_and_ask(still_inside) == 0);
    cr_assert(hak_tls.depth == 1);
    gate_leave();
    cr_assert(gate_enter(true) == GATE_IN);
    gate_leave();
    cr_assert(fork_and_ask(can_enter) == 0);
}

static _Atomic bool may_leave;

static void *stay_until_told(void *arg)
{
    (void)arg;
    if (gate_enter(true) != GATE_IN) return NULL;
    is_in = true;
    while (!may_leave) sched_yield();
    gate_leave();
    return NULL;
}

/* The other thread was inside too and is gone in the child: its count must not keep the child's
 * gate from closing. */
Test(gate, a_fork_from_inside_forgets_the_others)
{
    start();
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, stay_until_told, NULL) == 0);
    while (!is_in) sched_yield();
    cr_assert(gate_enter(true) == GATE_IN);
    cr_assert(fork_and_ask(still_inside) == 0);
    gate_leave();
    may_leave = true;
    pthread_join(thread, NULL);
}

/* ---- A real-time thread ---- */

static void enter(void) { (void)gate_enter(true); }
static void fork_once(void) { (void)fork_and_ask(can_enter); }

/* Who forks sleeps while it waits for a thread that gets no CPU before. */
Test(gate, a_fork_lets_lower_threads_run)
{
    start();
    double took = realtime_wait(enter, gate_leave, fork_once);
    if (took < 0) cr_skip_test("no real-time priority here");
    cr_assert(took < 0.4, "%.3f s of CPU time", took);
}

/* ---- A handler that forks in a fork that waits for another ---- */

static pid_t parent;
static _Atomic pid_t handlers_child;
static _Atomic bool holder_closed, let_go;

/* In the holder's fork, after it has closed the gate: this handler was registered before. */
static void hold_the_gate(void)
{
    if (getpid() != parent || holder_closed) return;
    holder_closed = true;
    while (!let_go) usleep(1000);
}

static void fork_in_handler(int number)
{
    (void)number;
    pid_t pid = fork();
    if (pid) handlers_child = pid;
    else alarm(60); /* a child that hangs */
}

static void *fork_alone(void *arg)
{
    (void)arg;
    pid_t pid = fork();
    if (pid == 0) _exit(getpid() == parent);
    (void)waitpid(pid, NULL, 0);
    if (getpid() != parent) _exit(can_enter());
    return NULL;
}

Test(gate, a_child_of_a_fork_that_waits_is_not_held_by_another)
{
    pthread_t holder, waiter;
    parent = getpid();
    cr_assert(pthread_atfork(hold_the_gate, NULL, NULL) == 0);
    start();
    signal(SIGUSR1, fork_in_handler);
    cr_assert(pthread_create(&holder, NULL, fork_alone, NULL) == 0);
    while (!holder_closed) usleep(1000);
    cr_assert(pthread_create(&waiter, NULL, fork_alone, NULL) == 0);
    usleep(100000);
    cr_assert(pthread_kill(waiter, SIGUSR1) == 0);
    while (!handlers_child) usleep(1000);
    int status = -1;
    cr_assert(waitpid(handlers_child, &status, 0) == handlers_child && status == 0, "%x", status);
    let_go = true;
    pthread_join(holder, NULL);
    pthread_join(waiter, NULL);
}

/* ---- A handler that forks in a fork that waits for a slow path ---- */

static void fork_and_let_leave(int number)
{
    fork_in_handler(number);
    may_leave = true;
}

static void *signal_when_closed(void *forker)
{
    while (!gate_is_closed()) usleep(1000);
    usleep(20000);
    (void)pthread_kill(*(pthread_t *)forker, SIGUSR1);
    return NULL;
}

/* The thread that was inside is gone in the child, which goes on waiting where its parent did. */
Test(gate, a_child_of_a_fork_that_waits_forgets_whom_it_waits_for)
{
    pthread_t inside_thread, signaller, self = pthread_self();
    parent = getpid();
    start();
    signal(SIGUSR1, fork_and_let_leave);
    cr_assert(pthread_create(&inside_thread, NULL, stay_until_told, NULL) == 0);
    while (!is_in) usleep(1000);
    cr_assert(pthread_create(&signaller, NULL, signal_when_closed, &self) == 0);
    fork_alone(NULL);
    int status = -1;
    cr_assert(waitpid(handlers_child, &status, 0) == handlers_child && status == 0, "%x", status);
    pthread_join(inside_thread, NULL);
    pthread_join(signaller, NULL);
}
