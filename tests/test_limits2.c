/* limits and trees under attack: callbacks that leave, requests without hope, what is charged after
 * each kind of operation. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap.h"
#include "support_contract.h"
#include "support_os.h"
#include "support_random.h"
#include "support_stall.h"

TestSuite(limits2, .timeout = 600);

static hak_heap_t *make_with(hak_heap_t *parent, size_t limit, int level, hak_pressure_fn told)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "attacked";
    config.parent = parent;
    config.live_limit = limit;
    config.region_bytes = 1;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.on_pressure = told;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL, "%s", hak_error_text(hak_last_error()));
    return heap;
}
static hak_heap_t *make(hak_heap_t *parent, size_t limit)
{
    return make_with(parent, limit, 0, NULL);
}

static bool is_refused(hak_heap_t *heap, size_t bytes)
{
    errno = 0;
    return hak_heap_malloc(heap, bytes) == NULL && errno == ENOMEM &&
           hak_last_error() == HAK_ERROR_LIMIT;
}

/* ---- Who pays ---- */

static uint64_t frozen = 1000;
static uint64_t frozen_clock(void) { return frozen; }
static long fences;
static bool (*real_fence)(void);
static bool counted_fence(void)
{
    fences++;
    return real_fence();
}

/* A clock that stands, and a count of fences. */
static void use_clock(void)
{
    static os_table_t table;
    table = *os;
    real_fence = table.fence;
    table.milliseconds = frozen_clock;
    table.fence = counted_fence;
    os = &table;
}

static void warm(hak_heap_t *heap)
{
    void *blocks[32];
    for (int i = 0; i < 32; i++) cr_assert((blocks[i] = hak_heap_malloc(heap, 64)) != NULL);
    for (int i = 0; i < 32; i++) hak_heap_free(heap, blocks[i]);
}

/* What no recall can make fit costs the neighbours nothing. */
Test(limits2, a_request_without_hope_recalls_nothing)
{
    hak_heap_t *root = make(NULL, 1 << 20), *one = make(root, 0), *other = make(root, 0);
    warm(other);
    size_t cached = contract_stats(other).hot_bytes;
    for (int i = 0; i < 10; i++) {
        cr_assert(is_refused(one, (1 << 20) + 1) && hak_heap_refused_by(one) == root);
        cr_assert(!heap_is_tight(other) && contract_stats(other).hot_bytes == cached);
    }
    cr_assert(hak_heap_malloc(one, 1 << 19) != NULL && ledger_is_sound(root->ledger));
    cr_assert(hak_heap_destroy(root) == 0);
}

/* However a tenant asks: where each recall finds much, and where it finds little. `pause`:
 * milliseconds between two requests. */
static long fences_of_ten_seconds(size_t held, size_t wanted, uint64_t pause, int burst)
{
    hak_heap_t *heap = make(NULL, 1 << 20);
    void *block = hak_heap_malloc(heap, held);
    cr_assert(block != NULL);
    fences = 0;
    for (uint64_t end = frozen + 10000; frozen < end; frozen += pause)
        for (int i = 0; i < burst; i++) {
            void *small = hak_heap_malloc(heap, 64);
            cr_assert(small != NULL);
            hak_heap_free(heap, small);
            cr_assert(is_refused(heap, wanted));
        }
    cr_assert(hak_heap_destroy(heap) == 0);
    return fences;
}

Test(limits2, a_tenant_causes_ten_fences_a_second)
{
    enum { MOST = 10 * 10 + 2 };
    use_clock();
    static const uint64_t pauses[] = {1, 7, 50, 99, 100, 101, 200, 201};
    for (size_t i = 0; i < CONTRACT_LENGTH(pauses); i++)
        for (int burst = 1; burst <= 4; burst += 3) {
            long much = fences_of_ten_seconds(512 << 10, 600 << 10, pauses[i], burst);
            long little = fences_of_ten_seconds(1000 << 10, 40 << 10, pauses[i], burst);
            cr_log_info("%d ms, %d at once: %ld, %ld fences", (int)pauses[i], burst, much, little);
            cr_expect(much <= MOST && little <= MOST, "%d ms, %d at once: %ld, %ld fences",
                      (int)pauses[i], burst, much, little);
        }
}

/* ---- The callback ---- */

static unsigned calls;
static void *spare_block;
static jmp_buf landing;

static void free_spare(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)ctx, (void)full, (void)bytes;
    calls++;
    hak_free(spare_block);
    spare_block = NULL;
    errno = EBADF;
}

/* A request that succeeds after the callback has failed nowhere. */
Test(limits2, a_request_that_the_callback_helps_has_not_failed)
{
    hak_heap_t *heap = make_with(NULL, 8192, 0, free_spare);
    cr_assert(hak_heap_malloc(NULL, 1) == NULL && hak_last_error() == HAK_ERROR_ARGUMENT);
    cr_assert((spare_block = hak_heap_malloc(heap, 8192)) != NULL);
    errno = EPERM;
    char *block = hak_heap_malloc(heap, 4096);
    cr_assert(block != NULL && calls == 1 && errno == EPERM);
    cr_expect(hak_last_error() == HAK_ERROR_ARGUMENT, "malloc: %d", (int)hak_last_error());
    cr_assert((spare_block = hak_heap_malloc(heap, 4096)) != NULL);
    block = hak_heap_realloc(heap, block, 8000);
    cr_assert(block != NULL && calls == 2 && errno == EPERM);
    cr_expect(hak_last_error() == HAK_ERROR_ARGUMENT, "realloc: %d", (int)hak_last_error());
    cr_assert(hak_heap_destroy(heap) == 0);
}

static bool leaves;
static void leave(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)ctx, (void)full, (void)bytes;
    calls++;
    if (leaves) longjmp(landing, 1);
}

/* Asks with so many frames below the caller's. */
static __attribute__((noinline)) void *ask_below(hak_heap_t *heap, unsigned depth)
{
    volatile char room[256];
    room[0] = (char)depth;
    void *ptr = depth ? ask_below(heap, depth - 1) : hak_heap_malloc(heap, 4096);
    room[1] = room[0];
    return ptr;
}

static void leave_from(hak_heap_t *heap, unsigned depth)
{
    leaves = true;
    if (setjmp(landing) == 0) {
        (void)ask_below(heap, depth);
        cr_assert_fail("the callback has not left");
    }
    leaves = false;
    cr_assert(hak_heap_refused_by(heap) == heap);
}

/* A callback that leaves leaves nothing behind: not the gate, not a charge; and it is called again,
 * from whatever depth. */
Test(limits2, a_callback_that_leaves_is_called_again)
{
    hak_heap_t *heap = make_with(NULL, 4096, 0, leave);
    char *block = hak_heap_malloc(heap, 3000);
    cr_assert(block != NULL);
    static const unsigned depths[] = {2, 2, 9, 3, 40, 0, 1};
    unsigned wanted = 0;
    for (size_t i = 0; i < CONTRACT_LENGTH(depths); i++) {
        leave_from(heap, depths[i]);
        cr_assert(calls == ++wanted, "%zu", i);
        cr_assert(ask_below(heap, depths[i] + 20) == NULL);
        cr_expect(calls == ++wanted, "depth %u, then deeper", depths[i]);
        wanted = calls;
        cr_assert(ledger_live(heap->ledger) == hak_good_size(3000));
    }
    cr_assert(hak_heap_check(heap) == 0 && ledger_is_sound(heap->ledger));
    leaves = true;
    if (setjmp(landing) == 0) block = hak_heap_realloc(heap, block, 9000);
    cr_assert(calls == wanted + 1 && hak_usable_size(block) == hak_good_size(3000));
    cr_assert(ledger_live(heap->ledger) == hak_good_size(3000));
    cr_assert(hak_heap_destroy(heap) == 0);
}

static hak_heap_t *apart, *sibling, *parent, *asking;
static void do_all(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)ctx;
    calls++;
    cr_assert(is_refused(full, bytes) && is_refused(asking, bytes), "no call inside of a call");
    void *there = hak_heap_malloc(apart, 100000);
    cr_assert(there != NULL && hak_heap_check(full) == 0);
    hak_heap_free(apart, there);
    hak_limits_t limits = {.struct_size = sizeof limits, .live_limit = 3 * 4096};
    cr_assert(hak_heap_move(sibling, apart) == 0 && hak_heap_destroy(sibling) == 0);
    cr_assert(hak_heap_set_limits(full, &limits) == 0);
}

Test(limits2, a_callback_may_do_what_the_header_says)
{
    apart = make(NULL, HAK_NO_LIMIT);
    parent = make_with(NULL, 2 * 4096, 0, do_all);
    asking = make(parent, 0);
    sibling = make(parent, 0);
    cr_assert(hak_heap_malloc(sibling, 4096) && hak_heap_malloc(asking, 4096) && calls == 0);
    cr_assert(hak_heap_malloc(asking, 4096) != NULL && calls == 1);
    cr_assert(hak_heap_malloc(asking, 4096) != NULL && calls == 1);
    cr_assert(ledger_is_sound(parent->ledger) && ledger_is_sound(apart->ledger));
    cr_assert(hak_heap_destroy(parent) == 0 && hak_heap_destroy(apart) == 0);
}

/* ---- What is charged ---- */

/* Of a heap that no thread uses now. */
static void require_charged(hak_heap_t *heap, const char *after)
{
    hak_heap_stats_t stats = contract_stats(heap);
    size_t outside = stats.live_bytes + contract_cached(&stats);
    cr_assert(ledger_live(heap->ledger) == outside, "after %s: %zu of %zu", after,
              ledger_live(heap->ledger), outside);
    cr_assert(ledger_is_sound(heap->ledger), "after %s", after);
}

static const size_t sizes[] = {0,     1,     16,    100,    1000,    8000,    32768,
                               32769, 40000, 65536, 400000, 1000000, 3000000, 9000000};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void charge_each(hak_heap_t *heap)
{
    for (size_t i = 0; i < SIZES; i++) {
        char *block = hak_heap_malloc(heap, sizes[i]);
        require_charged(heap, "malloc");
        for (size_t k = 0; k < SIZES; k++) {
            char *moved = hak_heap_realloc(heap, block, sizes[k]);
            cr_assert(moved != NULL);
            block = moved;
            require_charged(heap, "realloc");
        }
        hak_heap_free(heap, block);
        require_charged(heap, "free");
        hak_free(hak_heap_calloc(heap, 3, sizes[i]));
        require_charged(heap, "calloc");
        for (size_t alignment = 16; alignment <= 4 << 20; alignment *= 4) {
            block = hak_heap_aligned_alloc(heap, alignment, sizes[i]);
            cr_assert(block != NULL);
            require_charged(heap, "aligned_alloc");
            block = hak_heap_realloc(heap, block, sizes[(i + 1) % SIZES]);
            cr_assert(block != NULL);
            require_charged(heap, "realloc of an aligned block");
            hak_heap_free(heap, block);
            require_charged(heap, "free of an aligned block");
        }
    }
}

Test(limits2, each_operation_is_charged_what_it_takes)
{
    for (int level = 0; level < 2; level++)
        for (int bound = 0; bound < 2; bound++) {
            hak_heap_t *heap = make_with(NULL, bound ? 18000000 : HAK_NO_LIMIT, level, NULL);
            charge_each(heap);
            if (bound) cr_assert(is_refused(heap, 18000001));
            charge_each(heap);
            volatile size_t all = SIZE_MAX, alignment = (size_t)1 << 60;
            cr_assert(hak_heap_calloc(heap, all / 2, 3) == NULL);
            cr_assert(hak_heap_malloc(heap, all) == NULL);
            cr_assert(hak_heap_aligned_alloc(heap, alignment, 16) == NULL);
            require_charged(heap, "sizes beyond everything");
            (void)hak_heap_flush(heap);
            (void)hak_heap_trim(heap, 0);
            require_charged(heap, "trim");
            cr_assert(ledger_live(heap->ledger) == 0);
            cr_assert(hak_heap_reset(heap) == 0);
            require_charged(heap, "reset");
            cr_assert(hak_heap_destroy(heap) == 0);
        }
}

/* At the limit: a realloc that is refused leaves the block whole and charged; one that shrinks, or
 * keeps its class, never is. */
Test(limits2, a_realloc_at_the_limit_keeps_the_block)
{
    static const size_t larger[] = {100, 1000, 30000, 40000, 500000, 3000000};
    for (size_t i = 0; i < CONTRACT_LENGTH(larger); i++)
        for (int level = 0; level < 2; level++) {
            size_t size = larger[i], charge = hak_good_size(size);
            hak_heap_t *heap = make_with(NULL, charge + 8, level, NULL);
            unsigned char *block = hak_heap_malloc(heap, size);
            cr_assert(block != NULL);
            memset(block, 0x5a, size);
            for (int k = 0; k < 3; k++) {
                errno = 0;
                cr_assert(hak_heap_realloc(heap, block, charge + 1) == NULL && errno == ENOMEM);
                cr_assert(hak_last_error() == HAK_ERROR_LIMIT && is_refused(heap, 16));
                require_charged(heap, "a refused realloc");
            }
            for (size_t at = 0; at < size; at += 97) cr_assert(block[at] == 0x5a);
            block = hak_heap_realloc(heap, block, charge);
            cr_assert(block != NULL && is_refused(heap, 16));
            block = hak_heap_realloc(heap, block, 16);
            cr_assert(block != NULL && block[15] == 0x5a && ledger_live(heap->ledger) == 16);
            block = hak_heap_realloc(heap, block, size);
            cr_assert(block != NULL && block[15] == 0x5a && is_refused(heap, 16));
            require_charged(heap, "a realloc there and back");
            cr_assert(hak_heap_destroy(heap) == 0);
        }
}

Test(limits2, limits_at_the_ends_of_the_range)
{
    hak_heap_t *least = make(NULL, 1), *most = make(NULL, SIZE_MAX - 1), *child = make(most, 0);
    cr_assert(is_refused(least, 0) && is_refused(least, 1) && is_refused(least, 1 << 30));
    cr_assert(hak_heap_malloc(child, 0) != NULL && hak_heap_malloc(child, 5 << 20) != NULL);
    hak_limits_t limits = {.struct_size = sizeof limits, .live_limit = 15};
    cr_assert(hak_heap_set_limits(least, &limits) == 0 && is_refused(least, 0));
    limits.live_limit = 16;
    cr_assert(hak_heap_set_limits(least, &limits) == 0 && hak_heap_malloc(least, 0) != NULL);
    cr_assert(is_refused(least, 0) && hak_heap_move(least, child) == 0);
    cr_assert(ledger_is_sound(most->ledger) && is_refused(least, 1));
    limits.live_limit = 1;
    cr_assert(hak_heap_set_limits(most, &limits) == EBUSY);
    cr_assert(hak_heap_destroy(most) == 0);
}

/* ---- Fork ---- */

static hak_heap_t *tree[3];
static _Atomic bool stop;

static void *hammer(void *arg)
{
    size_t at = (size_t)(uintptr_t)arg, count = 0;
    void *blocks[64] = {NULL};
    while (!stop) {
        void **slot = &blocks[count++ % 64];
        hak_free(*slot);
        *slot = hak_heap_malloc(tree[at], 100 * (1 + count % 90));
    }
    for (size_t i = 0; i < 64; i++) hak_free(blocks[i]);
    return NULL;
}

/* All heaps serve in the child, and their sums hold. */
static int use_tree(void)
{
    for (size_t i = 0; i < 3; i++) {
        hak_limits_t limits = {.struct_size = sizeof limits, .live_limit = HAK_NO_LIMIT};
        if (hak_heap_set_limits(tree[i], &limits)) return 1;
    }
    for (size_t i = 0; i < 3; i++) {
        void *block = hak_heap_malloc(tree[i], 50000);
        if (!block || hak_heap_move(tree[2], i == 1 ? NULL : tree[0])) return 2;
        hak_free(block);
    }
    if (!ledger_is_sound(tree[0]->ledger) || hak_heap_check(tree[1])) return 3;
    return hak_heap_destroy(tree[0]) ? 4 : 0;
}

Test(limits2, a_child_of_fork_uses_the_whole_tree)
{
    pthread_t threads[2];
    tree[0] = make(NULL, 300000);
    tree[1] = make(tree[0], 0);
    tree[2] = make(tree[0], 200000);
    for (size_t i = 0; i < 2; i++)
        cr_assert(pthread_create(&threads[i], NULL, hammer, (void *)(uintptr_t)(i + 1)) == 0);
    for (size_t i = 0; i < contract_work(80); i++) {
        pid_t pid = fork();
        if (pid == 0) _exit(use_tree());
        int status = -1;
        cr_assert(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "%d", status);
    }
    stop = true;
    for (size_t i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (size_t i = 0; i < 3; i++) require_charged(tree[i], "forks");
    cr_assert(hak_heap_destroy(tree[0]) == 0);
}

/* ---- Signal handlers ---- */

/* volatile: raise() is declared as a leaf, which changes nothing of this file. */
static void *volatile handled, *volatile to_free;
static volatile bool stays; /* the block could not grow */
static void handle(int signal)
{
    (void)signal;
    int before = errno;
    handled = hak_heap_malloc(asking, 64);
    if (to_free) stays = hak_heap_realloc(asking, to_free, 2000) == NULL;
    hak_free(to_free);
    to_free = NULL;
    errno = before;
}

static void raise_inside(void *ctx)
{
    (void)ctx;
    raise(SIGUSR1);
}

/* A block that a handler frees in the middle of a recall is not lost, and its room is found by the
 * next request at the latest. */
Test(limits2, a_handler_frees_in_a_recall)
{
    NEEDS_POINTS();
    enum { BLOCKS = 32 };
    signal(SIGUSR1, handle);
    for (int level = 0; level < 2; level++) {
        void *blocks[BLOCKS];
        asking = make_with(NULL, BLOCKS * 1024, level, NULL);
        for (int i = 0; i < BLOCKS; i++)
            cr_assert((blocks[i] = hak_heap_malloc(asking, 1024)) != NULL);
        stall_t stall = {.run = raise_inside, .nth = 1};
        to_free = blocks[0];
        stall_arm(STALL_recall_stepped, &stall);
        void *block = hak_heap_malloc(asking, 1024);
        stall_arm(STALL_recall_stepped, NULL);
        cr_assert(!to_free && !handled, "it interrupted the library");
        cr_assert(stays);
        if (!block) block = hak_heap_malloc(asking, 1024);
        cr_assert(block != NULL && is_refused(asking, 1024));
        to_free = block;
        raise(SIGUSR1);
        cr_assert(!to_free && !handled, "it is full there, too");
        raise(SIGUSR1);
        cr_assert(handled != NULL, "a handler that interrupted nothing allocates");
        handled = NULL;
        require_charged(asking, "handlers");
        cr_assert(hak_heap_destroy(asking) == 0);
    }
}
