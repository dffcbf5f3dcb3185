/* request: what a request leaves behind that fails, or that one rung refuses and another one serves. */
#include "request.h"

#include <criterion/criterion.h>
#include <errno.h>

#include "os.h"
#include "support_contract.h"
#include "support_must.h"
#include "tls.h"

static os_table_t table;
static unsigned resizing, refusals;

/* Refuses so many times; notes what a handler would see that came here. */
static void *watched_map(size_t bytes, size_t alignment)
{
    resizing = hak_tls.resizing;
    if (!refusals) return os_kernel.map(bytes, alignment);
    refusals--;
    errno = ENOMEM;
    return NULL;
}
static bool refused_resize(void *at, size_t bytes, size_t wanted)
{
    (void)at, (void)bytes, (void)wanted;
    return false;
}
static bool refused_move(void *from, size_t bytes, void *to, size_t wanted)
{
    (void)from, (void)bytes, (void)to, (void)wanted;
    return false;
}
static void watch(void)
{
    table = *os;
    table.map = watched_map;
    table.resize = refused_resize;
    table.move = refused_move;
    os = &table;
}

TestSuite(request, .init = watch, .timeout = 600);

static hak_heap_t *make(size_t limit)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "requested";
    config.live_limit = limit;
    return must_create(&config);
}

/* The greatest size leaves room for a rounding and an alignment below the end of addresses. */
Test(request, no_size_wraps_when_it_is_rounded)
{
    size_t most = ((size_t)1 << ADDRESS_BITS) - 2 * SUPERSLAB;
    cr_assert(!request_is_too_large(0) && !request_is_too_large(most));
    cr_assert(request_is_too_large(most + 1) && request_is_too_large(SIZE_MAX));
    size_t dirty;
    hak_heap_t *heap = make(HAK_NO_LIMIT);
    errno = 0;
    cr_assert(!request_malloc(heap, most + 1, BLOCK_ALIGN, &dirty) && errno == ENOMEM);
    cr_assert(hak_last_error() == HAK_ERROR_SIZE && ledger_live(heap->ledger) == 0);
    cr_assert(!request_malloc(NULL, 1, BLOCK_ALIGN, &dirty) && errno == EINVAL);
    cr_assert(hak_last_error() == HAK_ERROR_ARGUMENT);
    cr_assert(request_fail(HAK_ERROR_CLOSED, ESHUTDOWN) == NULL && errno == ESHUTDOWN &&
              hak_last_error() == HAK_ERROR_CLOSED);
}

/* The reserve keeps what another heap has freed; where the system refuses, that goes, and the request
 * is tried once more. Then nothing has failed. */
Test(request, what_the_second_try_serves_has_not_failed)
{
    for (int counts = 0; counts < 2; counts++) {
        hak_heap_t *other = make(HAK_NO_LIMIT);
        hak_heap_free(other, hak_heap_malloc(other, 2 * HAK_MIB));
        hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
        config.live_limit = counts ? HAK_NO_LIMIT : 0;
        hak_heap_t *heap = hak_heap_create(&config);
        cr_assert(heap != NULL && !heap->ledger == !counts);
        (void)request_fail(HAK_ERROR_CLOSED, EPERM);
        refusals = 1;
        size_t dirty;
        void *block = request_malloc(heap, 64 * HAK_MIB, BLOCK_ALIGN, &dirty);
        cr_assert(block != NULL && refusals == 0, "counts %d", counts);
        cr_assert(errno == EPERM && hak_last_error() == HAK_ERROR_CLOSED, "counts %d", counts);
        cr_assert(hak_heap_destroy(heap) == 0 && hak_heap_destroy(other) == 0);
    }
}

/* A check in a handler knows that a realloc is between a block and its charge. */
Test(request, a_realloc_says_that_it_is_under_way)
{
    hak_heap_t *heap = make(HAK_NO_LIMIT);
    void *block = hak_heap_malloc(heap, 2 * HAK_MIB);
    cr_assert(block != NULL && resizing == 0);
    block = hak_heap_realloc(heap, block, 64 * HAK_MIB);
    cr_assert(block != NULL && resizing == 1 && hak_tls.resizing == 0);
    hak_tls.resizing = 1; /* this is a handler */
    block = hak_heap_realloc(heap, block, 128 * HAK_MIB);
    cr_assert(block != NULL && hak_tls.resizing == 1);
    hak_tls.resizing = 0;
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Neither the difference nor the block's own charge is lost, whatever refuses. */
Test(request, a_realloc_that_fails_leaves_charge_and_block)
{
    hak_heap_t *heap = make(256 * HAK_MIB);
    unsigned char *block = hak_heap_malloc(heap, 2 * HAK_MIB);
    cr_assert(block != NULL);
    block[0] = 7, block[2 * HAK_MIB - 1] = 9;
    (void)hak_reserve_trim();
    static const struct {
        size_t size;
        unsigned refusals;
        int why;
    } ways[] = {{64 * HAK_MIB, 9, HAK_ERROR_COMMIT}, {300 * HAK_MIB, 0, HAK_ERROR_LIMIT}};
    for (size_t i = 0; i < CONTRACT_LENGTH(ways); i++) {
        refusals = ways[i].refusals;
        errno = 0;
        cr_assert(!hak_heap_realloc(heap, block, ways[i].size) && errno == ENOMEM, "%zu", i);
        refusals = 0; /* the check maps memory, too */
        cr_assert((int)hak_last_error() == ways[i].why, "%zu: %d", i, (int)hak_last_error());
        cr_assert(ledger_live(heap->ledger) == 2 * HAK_MIB && heap->coming == 0);
        cr_assert(block[0] == 7 && block[2 * HAK_MIB - 1] == 9 && hak_heap_check(heap) == 0);
        cr_assert(hak_tls.resizing == 0);
    }
    cr_assert(hak_heap_destroy(heap) == 0);
}
