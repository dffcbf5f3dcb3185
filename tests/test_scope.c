/* Scopes: the calling thread's current heap. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hakheap.h"

TestSuite(scope, .timeout = 60);

static hak_heap_t *make(void)
{
    hak_heap_t *heap = hak_heap_create(NULL);
    cr_assert(heap != NULL);
    return heap;
}

static void require_from(hak_heap_t *heap)
{
    cr_assert(hak_scope_heap() == heap);
    char *block = hak_scope_malloc(100), *zeros = hak_scope_calloc(10, 10);
    char *grown = hak_scope_realloc(NULL, 10);
    cr_assert(hak_heap_of(block) == heap);
    cr_assert(hak_heap_of(zeros) == heap);
    cr_assert(hak_heap_of(grown) == heap);
    for (int i = 0; i < 100; i++) cr_assert(zeros[i] == 0);
    hak_free(block);
    hak_free(zeros);
    hak_free(grown);
}

static bool is_refused(const void *ptr)
{
    return !ptr && errno == EINVAL && hak_last_error() == HAK_ERROR_ARGUMENT;
}

static void require_none(void)
{
    cr_assert(hak_scope_heap() == NULL);
    errno = 0;
    cr_assert(is_refused(hak_scope_malloc(1)));
    errno = 0;
    cr_assert(is_refused(hak_scope_calloc(1, 1)));
    errno = 0;
    cr_assert(is_refused(hak_scope_realloc(NULL, 1)));
}

Test(scope, serves_the_calling_thread_and_nests)
{
    hak_heap_t *a = make(), *b = make();
    require_none();
    hak_heap_t *outer = hak_scope_enter(a);
    cr_assert(outer == NULL);
    require_from(a);
    hak_heap_t *inner = hak_scope_enter(b);
    cr_assert(inner == a);
    require_from(b);
    hak_heap_t *again = hak_scope_enter(b);
    hak_scope_leave(again);
    require_from(b);
    hak_scope_leave(inner);
    require_from(a);
    hak_scope_leave(outer);
    require_none();
    hak_heap_destroy(a);
    hak_heap_destroy(b);
}

Test(scope, the_default_serves_where_there_is_no_scope)
{
    hak_heap_t *a = make(), *b = make();
    cr_assert(hak_scope_set_default(a) == 0);
    require_from(a);
    hak_heap_t *outer = hak_scope_enter(b);
    require_from(b);
    hak_heap_t *inner = hak_scope_enter(NULL);
    require_from(a);
    hak_scope_leave(inner);
    hak_scope_leave(outer);
    require_from(a);
    hak_heap_destroy(b);
    cr_assert(hak_scope_set_default(NULL) == 0);
    require_none();
    hak_heap_destroy(a);
}

Test(scope, a_destroyed_heap_is_no_default)
{
    hak_heap_t *heap = make();
    hak_heap_destroy(heap);
    cr_assert(hak_scope_set_default(heap) == EINVAL);
    cr_assert(hak_last_error() == HAK_ERROR_ARGUMENT);
    require_none();
}

static void *look(void *heap)
{
    if (hak_scope_heap() != NULL) return "a thread inherits a scope";
    hak_scope_enter(heap);
    char *block = hak_scope_malloc(10);
    bool good = block && hak_heap_of(block) == heap;
    hak_free(block);
    return good ? NULL : "a thread's own scope serves it not";
}

Test(scope, no_thread_inherits_it_or_sees_it)
{
    hak_heap_t *a = make(), *b = make();
    hak_scope_enter(a);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        void *what;
        cr_assert(pthread_create(&thread, NULL, look, b) == 0);
        pthread_join(thread, &what);
        cr_assert(what == NULL, "%s", (const char *)what);
        require_from(a);
    }
    hak_scope_leave(NULL);
    hak_heap_destroy(a);
    hak_heap_destroy(b);
}

Test(scope, a_block_that_grows_stays_with_its_heap)
{
    static const size_t sizes[] = {1, 100, 2000, 20000, 300000, 5000000, 16};
    hak_heap_t *a = make(), *b = make();
    hak_scope_enter(a);
    unsigned char *block = hak_scope_malloc(1);
    *block = 77;
    hak_scope_enter(b);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        block = hak_scope_realloc(block, sizes[i]);
        cr_assert(hak_heap_of(block) == a && *block == 77);
    }
    hak_scope_leave(NULL);
    block = hak_scope_realloc(block, 5000);
    cr_assert(hak_heap_of(block) == a && *block == 77);
    hak_free(block);
    cr_assert(hak_heap_check(a) == 0 && hak_heap_check(b) == 0);
    hak_heap_destroy(a);
    hak_heap_destroy(b);
}

Test(scope, requests_fail_as_those_that_name_the_heap)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.live_limit = 1 << 16;
    hak_heap_t *heap = hak_heap_create(&config);
    hak_scope_enter(heap);
    errno = 0;
    cr_assert(hak_scope_malloc(1 << 17) == NULL && errno == ENOMEM);
    cr_assert(hak_last_error() == HAK_ERROR_LIMIT);
    volatile size_t all = SIZE_MAX;
    errno = 0;
    cr_assert(hak_scope_calloc(all / 2, 3) == NULL && errno == ENOMEM);
    char *block = hak_scope_malloc(1000);
    memset(block, 5, 1000);
    cr_assert(hak_scope_realloc(block, 1 << 17) == NULL && errno == ENOMEM);
    for (int i = 0; i < 1000; i++) cr_assert(block[i] == 5);
    hak_free(block);
    cr_assert(hak_heap_close(heap) == 0);
    errno = 0;
    cr_assert(hak_scope_malloc(1) == NULL && errno == ESHUTDOWN);
    hak_scope_leave(NULL);
    hak_heap_destroy(heap);
}

/* The thread that forks goes on in the child, in the scope that it is in. */
Test(scope, the_child_of_fork_goes_on_in_its_scope)
{
    hak_heap_t *heap = make();
    hak_scope_enter(heap);
    pid_t child = fork();
    if (child == 0) {
        char *block = hak_scope_malloc(100);
        _exit(block && hak_heap_of(block) == heap && hak_scope_heap() == heap ? 0 : 1);
    }
    int status;
    cr_assert(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
    require_from(heap);
    hak_scope_leave(NULL);
    hak_heap_destroy(heap);
}
