/* Limits where calls meet: callbacks that change limits, moves, reallocs that are refused. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include <criterion/criterion.h>

#include "heap.h"
#include "support_contract.h"
#include "support_os.h"

TestSuite(bounds, .timeout = 300);

static hak_heap_t *bounded(hak_heap_t *parent, size_t live, size_t committed)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = parent;
    config.live_limit = live;
    config.committed_limit = committed;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL, "%s", hak_error_text(hak_last_error()));
    return heap;
}

static hak_heap_t *told(hak_heap_t *parent, hak_pressure_fn on_pressure, void *ctx, size_t soft)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = parent;
    config.live_limit = HAK_NO_LIMIT;
    config.soft_limit = soft;
    config.on_pressure = on_pressure;
    config.pressure_ctx = ctx;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL, "%s", hak_error_text(hak_last_error()));
    return heap;
}

/* ---- Soft limits ---- */

/* Raises the soft limit, but not above what is live. */
static void raise_a_little(void *ctx, hak_heap_t *full, size_t bytes)
{
    enum { ENOUGH = 4 };
    size_t *calls = ctx;
    (void)bytes;
    if (++*calls == ENOUGH) return;
    hak_limits_t limits = {sizeof limits, 0, 0, ((size_t)1 << 20) + *calls * 4096};
    cr_assert(hak_heap_set_limits(full, &limits) == 0);
}

Test(bounds, a_callback_that_changes_the_soft_limit_runs_once_for_a_request)
{
    size_t calls = 0;
    hak_heap_t *heap = told(NULL, raise_a_little, &calls, 1 << 20);
    cr_assert(hak_heap_malloc(heap, 2 << 20) != NULL && calls == 1, "%zu", calls);
    cr_assert(hak_heap_malloc(heap, 2 << 20) != NULL && calls == 2, "%zu", calls);
    cr_assert(hak_heap_destroy(heap) == 0);
}

static void count_call(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)full, (void)bytes;
    ++*(size_t *)ctx;
}

/* What moves from one heap to another below a third is in that one's sum all the time. */
Test(bounds, a_move_below_a_heap_does_not_pass_its_soft_limit)
{
    size_t calls = 0;
    hak_heap_t *root = told(NULL, count_call, &calls, 4 << 20);
    hak_heap_t *from = bounded(root, HAK_NO_LIMIT, 0), *to = bounded(root, HAK_NO_LIMIT, 0),
               *heap = bounded(from, HAK_NO_LIMIT, 0);
    cr_assert(hak_heap_malloc(heap, 5 << 20) != NULL && calls == 1);
    cr_assert(hak_heap_move(heap, to) == 0 && hak_heap_malloc(heap, 2 << 20) != NULL);
    cr_assert(calls == 1, "%zu", calls);
    cr_assert(hak_heap_move(heap, root) == 0 && hak_heap_malloc(heap, 2 << 20) != NULL);
    cr_assert(hak_heap_move(to, heap) == 0 && hak_heap_move(heap, NULL) == 0);
    cr_assert(ledger_is_sound(root->ledger) && ledger_is_sound(heap->ledger));
    cr_assert(hak_heap_move(heap, root) == 0 && hak_heap_malloc(heap, 2 << 20) != NULL);
    cr_assert(calls == 2, "it was gone: %zu", calls);
    cr_assert(hak_heap_destroy(root) == 0);
}

/* ---- Close ---- */

static void close_heap(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)full, (void)bytes;
    hak_free(*(void **)ctx);
    cr_assert(hak_heap_close(hak_heap_of(((void **)ctx)[1])) == 0);
}

Test(bounds, a_heap_that_its_callback_closes_gives_no_block)
{
    void *blocks[2];
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.live_limit = 4 << 20;
    config.on_pressure = close_heap;
    config.pressure_ctx = blocks;
    hak_heap_t *heap = hak_heap_create(&config);
    for (size_t i = 0; i < 2; i++) cr_assert((blocks[i] = hak_heap_malloc(heap, 3 << 19)) != NULL);
    errno = 0;
    cr_assert(hak_heap_malloc(heap, 3 << 19) == NULL);
    cr_assert(errno == ESHUTDOWN && hak_last_error() == HAK_ERROR_CLOSED);
    hak_usage_t usage = {.struct_size = sizeof usage};
    cr_assert(hak_heap_usage(heap, &usage) == 0 && usage.live_bytes == 3 << 19);
    cr_assert(usage.failed_turned_away == 1 && usage.failed_here == 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- realloc ---- */

/* The block that a realloc leaves behind waits where the reserve has no room for it. Its charge is
 * the other block's by then. */
Test(bounds, a_block_that_waits_is_not_refunded_twice)
{
    enum { COUNT = PIECES_MOST + 8 };
    static void *blocks[COUNT];
    hak_heap_t *others = contract_heap(0, "others"), *heap = bounded(NULL, 64 << 20, 0);
    for (size_t i = 0; i < COUNT; i++)
        cr_assert((blocks[i] = hak_heap_malloc(others, 2 << 20)) != NULL);
    char *block = hak_heap_malloc(heap, 32 << 20);
    fake_os_use();
    fake_os_refuse(FAKE_UNMAP, 1, FAKE_FOREVER);
    for (size_t i = 0; i < COUNT; i++) hak_heap_free(others, blocks[i]);
    cr_assert((block = hak_heap_realloc(heap, block, 900 << 10)) != NULL);
    cr_assert(remote_blocks(&heap->deferred) == 1);
    fake_os_restore();
    (void)hak_reserve_trim();
    (void)hak_heap_flush(heap);
    cr_assert(remote_blocks(&heap->deferred) == 0 && ledger_is_sound(heap->ledger));
    cr_assert(ledger_live(heap->ledger) == hak_usable_size(block), "%zu",
              ledger_live(heap->ledger));
    cr_assert(hak_heap_malloc(heap, 64 << 20) == NULL);
    cr_assert(hak_heap_destroy(heap) == 0 && hak_heap_destroy(others) == 0);
}

/* A neighbour's free pages are in the way of a block that may grow in its place; that a copy has no
 * room below the heap's own limit is not what is to be helped. */
Test(bounds, what_a_neighbour_has_free_is_room_for_a_block_that_grows)
{
    hak_heap_t *root = bounded(NULL, 0, 18 << 20), *heap = bounded(root, 0, 10 << 20),
               *other = bounded(root, 0, 0);
    void *pages[10]; /* two in a SuperSlab */
    for (size_t i = 0; i < CONTRACT_LENGTH(pages); i++)
        cr_assert((pages[i] = hak_heap_malloc(other, 1 << 20)) != NULL);
    for (size_t i = 0; i < CONTRACT_LENGTH(pages); i += 2) hak_heap_free(other, pages[i]);
    char *block = hak_heap_malloc(heap, 6 << 20);
    block[0] = 1;
    hak_usage_t usage = {.struct_size = sizeof usage};
    cr_assert(hak_heap_usage(root, &usage) == 0);
    cr_assert(usage.tree_committed_bytes > 15 << 20, "%zu", usage.tree_committed_bytes);
    block = hak_heap_realloc(heap, block, 9 << 20);
    cr_assert(block != NULL && block[0] == 1, "%s", hak_error_text(hak_last_error()));
    cr_assert(ledger_is_sound(root->ledger) && hak_heap_destroy(root) == 0);
}

/* What the process keeps is no heap's, and no room for one. */
Test(bounds, a_realloc_that_a_limit_refuses_leaves_the_reserve)
{
    hak_heap_t *heap = bounded(NULL, 0, 8 << 20), *other = contract_heap(0, "other");
    char *block = hak_heap_malloc(heap, 6 << 20);
    char *left = hak_heap_malloc(other, 4 << 20);
    memset(left, 1, 4 << 20);
    hak_heap_free(other, left);
    size_t kept = process_reserve.pieces.bytes;
    cr_assert(block && kept >= 4 << 20);
    cr_assert(hak_heap_realloc(heap, block, 9 << 20) == NULL);
    cr_assert(process_reserve.pieces.bytes == kept, "%zu", process_reserve.pieces.bytes);
    cr_assert(hak_heap_destroy(heap) == 0 && hak_heap_destroy(other) == 0);
}

/* ---- Create ---- */

/* A heap that is refused leaves nothing, and so makes no room: what is known of refusals stays. */
Test(bounds, a_create_that_is_refused_changes_nothing)
{
    hak_heap_t *root = bounded(NULL, 0, 3 * 16384 + 100);
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.parent = root;
    for (size_t i = 0; i < 2; i++) cr_assert(hak_heap_create(&config) != NULL);
    uint64_t before[MEASURES] = {ledger_epoch(LIVE), ledger_epoch(FOOTPRINT)};
    cr_assert(hak_heap_create(&config) == NULL && hak_last_error() == HAK_ERROR_LIMIT);
    for (unsigned measure = 0; measure < MEASURES; measure++)
        cr_assert(ledger_epoch(measure) == before[measure]);
    cr_assert(hak_heap_destroy(root) == 0);
}

/* ---- A handler on a stack of its own ---- */

enum { STACK = 1 << 18 };
static hak_heap_t *full_heap;
static size_t full_calls, in_handler;

static void ask_in_handler(int number)
{
    (void)number;
    in_handler += hak_heap_malloc(full_heap, 1 << 20) == NULL;
}

static void be_interrupted(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)ctx, (void)full, (void)bytes;
    if (++full_calls > 1) return;
    cr_assert(raise(SIGUSR1) == 0 && in_handler == 1);
    cr_assert(hak_heap_malloc(full_heap, 1 << 20) == NULL);
}

static void *ask_beside(void *signal_stack)
{
    stack_t stack = {.ss_sp = signal_stack, .ss_size = STACK};
    struct sigaction action = {.sa_handler = ask_in_handler, .sa_flags = SA_ONSTACK};
    cr_assert(sigaltstack(&stack, NULL) == 0 && sigaction(SIGUSR1, &action, NULL) == 0);
    cr_assert(hak_heap_malloc(full_heap, 1 << 20) == NULL && full_calls == 1, "%zu", full_calls);
    cr_assert(hak_heap_malloc(full_heap, 1 << 20) == NULL && full_calls == 2, "%zu", full_calls);
    return NULL;
}

/* The handler's stack lies above, where frames look as if the callback had been left, or below. */
static void interrupt_callback(bool above)
{
    pthread_t thread;
    pthread_attr_t attributes;
    static _Alignas(4096) char stacks[2][STACK];
    full_calls = in_handler = 0;
    cr_assert(pthread_attr_init(&attributes) == 0);
    cr_assert(pthread_attr_setstack(&attributes, stacks[!above], STACK) == 0);
    cr_assert(pthread_create(&thread, &attributes, ask_beside, stacks[above]) == 0);
    cr_assert(pthread_join(thread, NULL) == 0 && pthread_attr_destroy(&attributes) == 0);
}

Test(bounds, a_handler_that_interrupts_a_callback_calls_none)
{
    if (CONTRACT_SANITIZED) cr_skip_test("a sanitizer starts no thread on a stack of the program");
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.live_limit = 512 << 10;
    config.on_pressure = be_interrupted;
    full_heap = hak_heap_create(&config);
    interrupt_callback(false);
    interrupt_callback(true);
    cr_assert(hak_heap_destroy(full_heap) == 0);
}
