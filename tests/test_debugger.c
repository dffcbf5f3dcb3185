/* debugger: programs that are stepped through, and samples of a profiler. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "gate.h"
#include "hakheap.h"
#include "percpu.h"
#include "support_contract.h"
#include "tls.h"

TestSuite(debugger, .timeout = 60);

/* ---- Steps ---- */

#ifdef __x86_64__
enum { TRAP_FLAG = 0x100, RED_ZONE = 128 };

/* Every instruction from begin_steps to end_steps ends in a trap, as under a debugger that steps;
 * each trap aborts the section that it comes in. */
static volatile long steps, most_steps;

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    /* Gives up, so that a loop that never ends is seen, too. */
    if (++steps > most_steps) ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
}

static void set_trap_flag(void)
{
    __asm__ volatile("leaq -%c0(%%rsp), %%rsp\n pushfq\n orl %1, (%%rsp)\n popfq\n"
                     "leaq %c0(%%rsp), %%rsp"
                     :
                     : "i"(RED_ZONE), "i"(TRAP_FLAG)
                     : "memory", "cc");
}

static void begin_steps(void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    cr_assert(sigaction(SIGTRAP, &action, NULL) == 0);
    set_trap_flag();
}

static void end_steps(void)
{
    __asm__ volatile("leaq -%c0(%%rsp), %%rsp\n pushfq\n andl %1, (%%rsp)\n popfq\n"
                     "leaq %c0(%%rsp), %%rsp"
                     :
                     : "i"(RED_ZONE), "i"(~TRAP_FLAG)
                     : "memory", "cc");
}

enum { PAIRS = 20, BLOCKS = 8, STEPS_A_CALL = 5000 };

/* Calls that allocated, out of all that were stepped through. */
static unsigned step_through_calls(hak_heap_t *heap)
{
    unsigned good = 0;
    void *blocks[BLOCKS];
    steps = 0;
    most_steps = (2 * PAIRS + 2 * BLOCKS) * STEPS_A_CALL;
    begin_steps(on_step);
    for (int i = 0; i < PAIRS; i++) {
        void *block = hak_heap_malloc(heap, 100);
        good += block != NULL;
        hak_heap_free(heap, block);
    }
    for (int i = 0; i < BLOCKS; i++) good += (blocks[i] = hak_heap_malloc(heap, 2000)) != NULL;
    for (int i = 0; i < BLOCKS; i++) hak_free(blocks[i]);
    end_steps();
    return good;
}

/* A section that is aborted misses, so that the way out is as long as a slow path. */
Test(debugger, steps_lead_out_of_every_call)
{
    if (CONTRACT_SANITIZED) cr_skip_test("instrumented code takes many steps");
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "stepped");
        void *blocks[100];
        for (int i = 0; i < 100; i++) cr_assert((blocks[i] = hak_heap_malloc(heap, 100)) != NULL);
        for (int i = 0; i < 100; i++) hak_heap_free(heap, blocks[i]);
        unsigned good = step_through_calls(heap);
        cr_assert(steps <= most_steps, "%s: more than %ld steps", hak_percpu_mode(), most_steps);
        cr_assert(steps > PAIRS, "%ld steps", steps);
        cr_assert(good == PAIRS + BLOCKS, "%u allocations", good);
        cr_assert(contract_unsound(heap, 0) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- A handler that forks at each step of the gate ---- */

extern const char __executable_start[], etext[]; /* this program's code, by the linker */

enum { MOST_PLACES = 4096 };
static const char *places[MOST_PLACES]; /* where the handler has forked */
static int place_count, children_failed;
static pid_t stepped; /* the process that is stepped through */
static bool in_step;  /* forks of the handler are not */

static bool is_first_visit(const char *at)
{
    /* Not in the C library, parts of which hold locks of its own. */
    if (at < __executable_start || at >= etext || place_count == MOST_PLACES) return false;
    for (int i = 0; i < place_count; i++)
        if (places[i] == at) return false;
    places[place_count++] = at;
    return true;
}

/* The child goes on where its parent was interrupted, without steps. */
static void fork_at_step(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    /* Outside of the gate's functions it would wait for the fork of another thread. */
    bool inside = hak_tls.depth || hak_tls.closing;
    if (!inside || !is_first_visit((const char *)registers[REG_RIP])) return;
    in_step = true;
    pid_t pid = fork();
    in_step = false;
    if (pid == 0) {
        registers[REG_EFL] &= ~TRAP_FLAG;
        alarm(30); /* one that hangs */
        return;
    }
    int status = -1;
    children_failed += waitpid(pid, &status, 0) != pid || status != 0;
}

/* Fork handlers around the gate's: those registered before it run inside of it. */
static void step(void)
{
    if (!in_step && getpid() == stepped) set_trap_flag();
}

static void nothing(void) {}

static bool gate_is_open(void)
{
    if (gate_enter(false) != GATE_IN) return false;
    gate_leave();
    return !hak_tls.depth && !hak_tls.closing && !hak_tls.closer && lock_ranks() == 0;
}

/* Whoever forked whom at which step, each process has its gate open in the end. */
static void fork_and_see(void)
{
    pid_t pid = fork();
    if (pid == 0) _exit(!gate_is_open());
    int status = 0;
    /* What its parent had forked before is no child of a process that the handler made. */
    bool ended = waitpid(pid, &status, 0) == pid || (errno == ECHILD && getpid() != stepped);
    bool good = ended && status == 0 && gate_is_open();
    if (getpid() != stepped) _exit(!good);
    cr_assert(good, "status %x", status);
}

Test(debugger, a_fork_may_come_at_each_step_of_a_fork)
{
    if (CONTRACT_SANITIZED) cr_skip_test("instrumented code takes many steps");
    struct sigaction action = {.sa_sigaction = fork_at_step, .sa_flags = SA_SIGINFO | SA_RESTART};
    cr_assert(sigaction(SIGTRAP, &action, NULL) == 0);
    stepped = getpid();
    cr_assert(pthread_atfork(end_steps, step, NULL) == 0);
    cr_assert(gate_start_process(nothing));
    cr_assert(pthread_atfork(step, end_steps, NULL) == 0);
    fork_and_see();
    cr_assert(place_count > 50, "%d places", place_count);
    cr_assert(children_failed == 0, "%d of %d children", children_failed, place_count);
}

static _Thread_local bool keeps_closed;
static void keep_closed(void)
{
    if (keeps_closed) usleep(200000);
}

static void *fork_slowly(void *unused)
{
    keeps_closed = true;
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    (void)waitpid(pid, NULL, 0);
    return unused;
}

/* The slow path that waits until another thread has forked. */
Test(debugger, a_fork_may_come_at_each_step_of_a_wait)
{
    if (CONTRACT_SANITIZED) cr_skip_test("instrumented code takes many steps");
    stepped = getpid();
    cr_assert(pthread_atfork(keep_closed, NULL, NULL) == 0);
    cr_assert(gate_start_process(nothing));
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, fork_slowly, NULL) == 0);
    while (!gate_is_closed()) usleep(1000);
    begin_steps(fork_at_step);
    gate_entry_t entry = gate_enter(true);
    end_steps();
    if (entry == GATE_IN) gate_leave();
    bool good = entry == GATE_IN && gate_is_open();
    if (getpid() != stepped) _exit(!good);
    pthread_join(thread, NULL);
    cr_assert(good && place_count > 20, "%d places", place_count);
    cr_assert(children_failed == 0, "%d of %d children", children_failed, place_count);
}
#endif

/* ---- Samples ---- */

enum { SAMPLES = 200, DEEPEST = 64 };

static volatile long samples, lost;
static void *volatile caller; /* where the loop returns to */

static void on_sample(int number)
{
    (void)number;
    void *frames[DEEPEST];
    int depth = backtrace(frames, DEEPEST);
    bool found = false;
    for (int i = 0; i < depth; i++) found = found || frames[i] == caller;
    samples++;
    lost += !found;
}

static __attribute__((noinline)) void sample_pairs(hak_heap_t *heap)
{
    caller = __builtin_return_address(0);
    time_t end = time(NULL) + 20;
    while (samples < SAMPLES && time(NULL) < end)
        for (int i = 0; i < 1000; i++) {
            void *block = heap ? hak_heap_malloc(heap, 100) : malloc(100);
            __asm__ volatile("" : : "r"(block) : "memory");
            if (heap) hak_heap_free(heap, block);
            else free(block);
        }
    __asm__ volatile("");
}

/* Per cent of the samples whose stack does not reach the caller of the loop; NULL: of malloc. */
static long lost_of(hak_heap_t *heap)
{
    static const struct itimerval none;
    struct itimerval each = {{0, 1000}, {0, 1000}};
    samples = lost = 0;
    cr_assert(signal(SIGPROF, on_sample) != SIG_ERR);
    cr_assert(setitimer(ITIMER_PROF, &each, NULL) == 0);
    sample_pairs(heap);
    cr_assert(setitimer(ITIMER_PROF, &none, NULL) == 0);
    if (samples < SAMPLES / 2) cr_skip_test("%ld samples in 20 s", samples);
    return lost * 100 / samples;
}

/* A sample that comes in a section finds the thread in the section's abort handler. */
Test(debugger, stacks_of_samples_are_whole)
{
    if (CONTRACT_SANITIZED) cr_skip_test("a sanitizer's own backtrace");
    void *first[DEEPEST];
    (void)backtrace(first, DEEPEST); /* which may load what it needs */
    long usual = lost_of(NULL);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "sampled");
        long ours = lost_of(heap);
        cr_assert(ours <= usual + 3, "%s: %ld %% lost, %ld %% in malloc", hak_percpu_mode(), ours,
                  usual);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}
