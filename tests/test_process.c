/* process: what is set up once; what finds it half done. */
#define _GNU_SOURCE
#include "process.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os.h"
#include "percpu.h"
#include "support_os.h"

TestSuite(process, .timeout = 60);

/* ---- While it is set up ---- */

static os_table_t table;
static void (*meanwhile)(void);
static _Atomic int set_ups;

/* Setting up begins with this question. */
static size_t page_size(void)
{
    set_ups++;
    if (meanwhile) meanwhile();
    return os_kernel.page_size();
}

static void interrupt_with(void (*what)(void))
{
    meanwhile = what;
    table = os_kernel;
    table.page_size = page_size;
    os = &table;
}

static struct {
    hak_heap_t *heap;
    int error;
    hak_error_t why;
    const char *mode;
} seen;

static void create_in_handler(int number)
{
    (void)number;
    int before = errno;
    seen.heap = hak_heap_create(NULL);
    seen.error = errno;
    seen.why = hak_last_error();
    seen.mode = hak_percpu_mode();
    errno = before;
}

static void raise_signal(void) { raise(SIGUSR1); }

Test(process, a_handler_in_the_first_create_is_turned_away)
{
    signal(SIGUSR1, create_in_handler);
    interrupt_with(raise_signal);
    hak_heap_t *heap = hak_heap_create(NULL);
    cr_assert(seen.heap == NULL && seen.error == EDEADLK && seen.why == HAK_ERROR_REENTERED,
              "errno %d, error %d", seen.error, (int)seen.why);
    cr_assert(strcmp(seen.mode, "starting") == 0, "%s", seen.mode);
    cr_assert(heap != NULL && set_ups == 1);
    raise(SIGUSR1);
    cr_assert(seen.heap != NULL && strcmp(seen.mode, "starting") != 0, "%s", seen.mode);
}

Test(process, a_handler_while_the_mode_is_asked_for_is_turned_away)
{
    signal(SIGUSR1, create_in_handler);
    interrupt_with(raise_signal);
    errno = 77;
    cr_assert(strcmp(hak_percpu_mode(), "starting") != 0 && errno == 77);
    cr_assert(seen.heap == NULL && seen.error == EDEADLK);
    cr_assert(strcmp(seen.mode, "starting") == 0, "%s", seen.mode);
}

static _Atomic bool go_on, waits;

static void stay(void)
{
    while (!go_on) usleep(1000);
}

static void *create_in_thread(void *arg)
{
    (void)arg;
    waits = true;
    return hak_heap_create(NULL);
}

/* All threads get a heap, and the process is set up once. */
Test(process, other_threads_wait)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    interrupt_with(stay);
    cr_assert(pthread_create(&threads[0], NULL, create_in_thread, NULL) == 0);
    while (!set_ups) usleep(1000);
    for (int i = 1; i < THREADS; i++)
        cr_assert(pthread_create(&threads[i], NULL, create_in_thread, NULL) == 0);
    usleep(20000);
    go_on = true;
    for (int i = 0; i < THREADS; i++) {
        void *heap;
        pthread_join(threads[i], &heap);
        cr_assert(heap != NULL && hak_heap_destroy(heap) == 0, "thread %d", i);
    }
    cr_assert(set_ups == 1, "%d times", (int)set_ups);
}

static int exit_status(pid_t child)
{
    int status = -1;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The thread that was setting up is not there in the child, which has to begin again. */
Test(process, a_child_does_not_wait_for_a_vanished_thread)
{
    pthread_t thread;
    interrupt_with(stay);
    cr_assert(pthread_create(&thread, NULL, create_in_thread, NULL) == 0);
    while (!set_ups) usleep(1000);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        go_on = true;
        hak_heap_t *heap = hak_heap_create(NULL);
        _exit(heap && hak_heap_malloc(heap, 100) && hak_heap_destroy(heap) == 0 ? 0 : 1);
    }
    cr_assert(exit_status(child) == 0);
    go_on = true;
    void *heap;
    pthread_join(thread, &heap);
    cr_assert(heap != NULL && hak_heap_destroy(heap) == 0);
}

static _Atomic pid_t forked;
static pid_t parent;

static void fork_in_handler(int number)
{
    (void)number;
    pid_t child = fork();
    if (child) forked = child;
}

static void *create_or_end(void *arg)
{
    void *heap = create_in_thread(arg);
    if (getpid() != parent) _exit(heap ? 0 : 1);
    return heap;
}

/* The one that waits may itself be the only thread of a child, by a handler. */
Test(process, a_child_of_a_thread_that_waits_begins_again)
{
    pthread_t starter, waiter;
    void *heap;
    parent = getpid();
    signal(SIGUSR1, fork_in_handler);
    interrupt_with(stay);
    cr_assert(pthread_create(&starter, NULL, create_in_thread, NULL) == 0);
    while (!set_ups) usleep(1000);
    waits = false;
    cr_assert(pthread_create(&waiter, NULL, create_or_end, NULL) == 0);
    while (!waits) usleep(1000);
    usleep(50000);
    meanwhile = NULL; /* of the child */
    cr_assert(pthread_kill(waiter, SIGUSR1) == 0);
    while (!forked) usleep(1000);
    cr_assert(exit_status(forked) == 0);
    go_on = true;
    pthread_join(starter, &heap);
    cr_assert(heap != NULL);
    pthread_join(waiter, &heap);
    cr_assert(heap != NULL);
}

/* A pointer that is no heap is refused, and nothing of the thread is written. */
Test(process, what_is_no_heap_harms_nothing_before_the_first)
{
    static char none[64 * 1024] __attribute__((aligned(4096)));
    cr_assert(!PERCPU_SECTIONS || percpu_rseq_offset != 0);
    errno = 0;
    cr_assert(hak_heap_malloc((hak_heap_t *)(void *)none, 100) == NULL && errno == EINVAL);
    for (size_t i = 0; i < sizeof none; i++) cr_assert(none[i] == 0);
}

/* ---- Refused ---- */

Test(process, pages_of_another_size_are_refused)
{
    fake_os_use();
    fake_os_refuse(FAKE_PAGE_SIZE, 1, 2);
    for (int i = 0; i < 2; i++) {
        errno = 0;
        cr_assert(hak_heap_create(NULL) == NULL && errno == ENOTSUP, "errno %d", errno);
        cr_assert(hak_last_error() == HAK_ERROR_PAGES);
        cr_assert(strstr(hak_error_text(HAK_ERROR_PAGES), "4096"));
    }
    cr_assert(hak_heap_create(NULL) != NULL, "what was refused is tried again");
    fake_os_restore();
}

static size_t page_size_and_errno(void)
{
    errno = EIO;
    return os_kernel.page_size();
}

/* Whatever the system says on the way; here in a call that does no more than start the process. */
Test(process, a_start_leaves_errno)
{
    table = os_kernel;
    table.page_size = page_size_and_errno;
    os = &table;
    errno = 4242;
    const char *mode = hak_percpu_mode();
    int after = errno;
    os = &os_kernel;
    cr_assert(mode != NULL && after == 4242, "errno %d", after);
    cr_assert(load_relaxed(&process_ready) == 1);
}

/* ---- Cancellation ---- */

static _Atomic bool returned;

static void *create_cancelled(void *arg)
{
    pthread_cancel(pthread_self());
    *(hak_heap_t **)arg = hak_heap_create(NULL);
    returned = true;
    pthread_testcancel();
    return NULL;
}

Test(process, the_first_create_is_no_cancellation_point)
{
    hak_heap_t *heap = NULL;
    void *end;
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, create_cancelled, &heap) == 0);
    pthread_join(thread, &end);
    cr_assert(returned && heap != NULL);
    cr_assert(end == PTHREAD_CANCELED, "cancellation is as it was");
    cr_assert(hak_heap_destroy(heap) == 0);
}
