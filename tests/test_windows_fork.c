/* Windows of races at the fork gate, each held open. See stall.h; the suite is that of
 * test_windows.c. */
#include <criterion/criterion.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gate.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_run.h"
#include "support_stall.h"
#include "tls.h"

/* Frees come to an end while it is closed. */
Test(windows, gate_closed)
{
    WINDOW(.point = STALL_gate_closed, .act = scene_fork, .there = scene_signal,
           .danger = scene_free_theirs);
}

static void retire_and_take(void)
{
    scene_trim();
    item_make(scene.heap, &scene.acts[0], SCENE_SIZE);
}
static crew_t forker;
static _Atomic bool forked;

static void fork_and_tell(void)
{
    pid_t pid = fork();
    if (pid == 0) scene_child(NULL);
    forked = true;
    int status = -1;
    STALL_REQUIRE(waitpid(pid, &status, 0) == pid && status == 0);
}

/* A fork waits for a thread that has counted itself in, whatever that knows yet. */
static void fork_waits(void)
{
    forked = false;
    crew_start(&forker, fork_and_tell);
    crew_settle(&forker);
    STALL_REQUIRE(!forked);
    scene_free_theirs();
}
static void forker_ends(void) { STALL_REQUIRE(crew_finish(&forker)); }

Test(windows, gate_counted)
{
    WINDOW(.point = STALL_gate_counted, .act = retire_and_take, .there = scene_signal,
           .danger = fork_waits, .after = forker_ends);
}

/* A thread that found it closed is not counted: it may take its time, and forks go on. */
static void forks_go_on(void)
{
    scene_fork();
    scene_allocate();
    scene_fork();
    scene_free_theirs();
}

Test(windows, gate_waiting)
{
    NEEDS_POINTS();
    static hold_t fork, waiter;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_begin(level);
        scene_trim();
        cr_assert(hold_start(&fork, STALL_gate_closed, 1, scene_fork, scene_signal));
        cr_assert(hold_start(&waiter, STALL_gate_waiting, 1, retire_and_take, scene_signal));
        cr_assert(hold_end(&fork), "the fork waits for a thread that is not inside");
        forks_go_on();
        cr_assert(hold_end(&waiter));
        SCENE_END();
    }
}

static _Atomic bool opening;
static void before_it_opens(void *unused)
{
    (void)unused;
    STALL_REQUIRE(gate_is_closed() && hak_tls.closing);
    scene_signal();
    opening = true;
}
static void it_was_closed(void *unused)
{
    if (!opening) _exit(9);
    scene_child(unused);
}

/* In the child the point is the only thread's. */
Test(windows, gate_opening)
{
    NEEDS_POINTS();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        scene_begin(level);
        stall_t stall = {.run = before_it_opens, .nth = 1};
        stall_arm(STALL_gate_opening, &stall);
        child_result_t child;
        child_run(&child, it_was_closed, NULL);
        stall_arm(STALL_gate_opening, NULL);
        cr_assert(child.status == 0 && child.signal == 0, "status %d, signal %d: %s", child.status,
                  child.signal, child.text);
        cr_assert(!opening, "the parent is no child");
        SCENE_END();
    }
}

/* ---- The table ---- */

static run_result_t result;

static void must_have_a_test(const char *point)
{
    run_program(&result, 60,
                (const char *const[]){"sh", "-c", "grep -qw \"STALL_$0\" tests/test_windows*.c",
                                      point, NULL});
    cr_assert(result.status == 0, "the point %s has no test", point);
}

#define POINT(name, held, words) must_have_a_test(#name);
Test(windows, every_point_has_one) { STALL_POINTS(POINT) }
