/* What the check says of charges: each block is charged once, and nothing else is. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap.h"
#include "os.h"
#include "support_contract.h"
#include "support_must.h"
#include "support_random.h"
#include "tls.h"
#include "validate.h"

static os_table_t table;
static size_t threads = 1;
static size_t given_threads(void) { return threads; }

/* The test's runner has threads of its own, which use no heap. */
static void be_alone(void)
{
    table = *os;
    table.threads = given_threads;
    os = &table;
}

TestSuite(charges, .init = be_alone, .timeout = 600);

static hak_heap_t *make(int level)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "charged";
    config.live_limit = 1 << 30;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    return must_create(&config);
}

/* What is wrong with a heap, or NULL. */
static const char *wrong_with(hak_heap_t *heap)
{
    hak_fault_t fault;
    return validate_heap(heap, &fault) == 0 ? NULL : fault.words;
}

/* Blocks of all kinds come, grow, shrink and go. */
static void use(hak_heap_t *heap, randoms_t *randoms)
{
    enum { SLOTS = 64, TIMES = 3000 };
    static void *slots[SLOTS];
    for (size_t i = 0; i < TIMES; i++) {
        void **slot = &slots[random_below(randoms, SLOTS)];
        size_t size = (size_t)1 << random_below(randoms, 23);
        size += random_below(randoms, (unsigned)size);
        if (*slot && random_below(randoms, 2)) {
            hak_heap_free(heap, *slot);
            *slot = NULL;
        } else {
            size_t alignment = (size_t)1 << random_below(randoms, 17);
            void *ptr = *slot ? hak_heap_realloc(heap, *slot, size)
                              : hak_heap_aligned_alloc(heap, alignment, size);
            if (ptr) *slot = ptr;
        }
        if (i % 100 == 0) cr_assert(!wrong_with(heap), "%zu: %s", i, wrong_with(heap));
    }
    for (size_t i = 0; i < SLOTS; i++) {
        hak_heap_free(heap, slots[i]);
        slots[i] = NULL;
    }
    cr_assert(!wrong_with(heap), "%s", wrong_with(heap));
}

Test(charges, hold_whatever_comes_and_goes)
{
    randoms_t randoms = {1};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = make(level);
        use(heap, &randoms);
        (void)hak_heap_trim(heap, 0);
        use(heap, &randoms);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A line on standard error, which is not this test's. */
static int check_quietly(const hak_heap_t *heap)
{
    int before = dup(STDERR_FILENO), nowhere = open("/dev/null", O_WRONLY);
    cr_assert(before >= 0 && nowhere >= 0 && dup2(nowhere, STDERR_FILENO) >= 0);
    int error = hak_heap_check(heap);
    cr_assert(dup2(before, STDERR_FILENO) >= 0 && close(before) == 0 && close(nowhere) == 0);
    return error;
}

/* As if so much had been freed and not refunded. */
Test(charges, a_lost_refund_is_named)
{
    hak_heap_t *heap = make(0);
    cr_assert(hak_heap_malloc(heap, 100) != NULL && hak_heap_check(heap) == 0);
    enum { LOST = 4097 };
    cr_assert(ledger_take(heap->ledger, LOST));
    cr_assert(check_quietly(heap) == EFAULT);
    cr_assert_str_eq(wrong_with(heap), "a heap is charged for more than its blocks");
    ledger_refund(heap->ledger, LOST);
    cr_assert(hak_heap_check(heap) == 0);
}

Test(charges, a_block_that_is_not_charged_is_named)
{
    hak_heap_t *heap = make(0);
    cr_assert(hak_heap_malloc(heap, 100) != NULL);
    ledger_refund(heap->ledger, 1);
    cr_assert_str_eq(wrong_with(heap), "a heap has blocks that are not charged");
}

/* With other threads, and in a handler that has interrupted a realloc, nothing is known. */
Test(charges, are_not_judged_while_they_may_move)
{
    hak_heap_t *heap = make(0);
    cr_assert(hak_heap_malloc(heap, 100) != NULL);
    ledger_refund(heap->ledger, 1);
    threads = 2;
    cr_assert(!wrong_with(heap));
    threads = 1;
    hak_tls.resizing = 1;
    cr_assert(!wrong_with(heap));
    hak_tls.resizing = 0;
    cr_assert(wrong_with(heap));
}

/* A large block that waits for the reserve has given its charge to another one. */
Test(charges, of_a_block_that_waits_may_be_anothers)
{
    hak_heap_t *heap = make(0);
    void *block = hak_heap_malloc(heap, 2 * HAK_MIB);
    cr_assert(block != NULL && hak_heap_check(heap) == 0);
    large_find(block)->charge_moved = true;
    cr_assert(wrong_with(heap));
    ledger_refund(heap->ledger, 2 * HAK_MIB);
    cr_assert(!wrong_with(heap));
}

/* Other threads may have had something in their hands. */
Test(charges, of_a_child_of_fork_are_not_judged)
{
    hak_heap_t *heap = make(0);
    cr_assert(hak_heap_malloc(heap, 100) != NULL);
    ledger_refund(heap->ledger, 1);
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) _exit(wrong_with(heap) ? 1 : 0);
    cr_assert(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    cr_assert(wrong_with(heap));
}

static void *wait_for(void *lock)
{
    pthread_mutex_lock(lock);
    pthread_mutex_unlock(lock);
    return NULL;
}

Test(charges, threads_are_counted)
{
    pthread_t thread;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    size_t before = os_kernel.threads();
    cr_assert(before > 0 && pthread_create(&thread, NULL, wait_for, &lock) == 0);
    cr_assert(os_kernel.threads() == before + 1);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
}
