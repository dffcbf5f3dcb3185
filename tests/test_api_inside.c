/* The contract of the public header where the system refuses, and where a test must look into the
 * heap. The rest of the contract, which asks the header only, is in test_api.c. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "hakheap.h"
#include "heap.h"
#include "support_must.h"
#include "support_os.h"
#include "support_stall.h"

TestSuite(api_inside, .timeout = 600);

/* A realloc that moves a block, where the system refuses the memory of the copy. */
Test(api_inside, a_refused_realloc_leaves_the_block)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "refused");
        void *ptr = must_have(hak_heap_malloc(heap, 1000), 1000);
        contract_fill(ptr, 1000, 4);
        fake_os_use();
        fake_os_refuse(FAKE_MAP, 1, FAKE_FOREVER);
        errno = 0;
        cr_assert(hak_heap_realloc(heap, ptr, 8 << 20) == NULL && errno == ENOMEM);
        fake_os_restore();
        must_be_sound(heap, 1);
        cr_assert(contract_holds(ptr, 1000, 4) && hak_heap_of(ptr) == heap);
        hak_heap_free(heap, ptr);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A block that cannot grow yet grows into what the heap has cached: there is no memory for a copy. */
Test(api_inside, a_large_block_grows_into_the_room_of_the_cache)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "room");
        void *ptr = must_have(hak_heap_malloc(heap, 3 * HAK_MIB), 3 * HAK_MIB);
        contract_fill(ptr, 3 * HAK_MIB, 6);
        hak_heap_free(heap, must_have(hak_heap_malloc(heap, 2 * HAK_MIB), 2 * HAK_MIB));
        cr_assert(contract_stats(heap).large_cached_bytes == 2 * HAK_MIB);
        fake_os_use();
        fake_os_refuse(FAKE_RESIZE, 1, 1);
        fake_os_refuse(FAKE_RESERVE, 1, 1);
        fake_os_bound(FAKE_MAP, HAK_MIB); /* tables of the registry are smaller */
        ptr = hak_heap_realloc(heap, ptr, 5 * HAK_MIB);
        fake_os_restore();
        must_have(ptr, 5 * HAK_MIB);
        cr_assert(contract_holds(ptr, 3 * HAK_MIB, 6) && hak_usable_size(ptr) == 5 * HAK_MIB);
        cr_assert(contract_stats(heap).large_cached_bytes == 0);
        must_be_sound(heap, 1);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static os_table_t refuses_once;
static bool has_refused;

/* As the kernel does it, errno and all. */
static void *map_at_the_second_try(size_t bytes, size_t alignment)
{
    if (bytes < 80 * HAK_MIB || has_refused) return os_kernel.map(bytes, alignment);
    has_refused = true;
    errno = ENOMEM;
    return NULL;
}

/* What was refused on the way to a block is no error of the call. */
Test(api_inside, a_block_that_came_at_the_second_try_leaves_no_error)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "second try");
        (void)hak_reserve_trim();
        hak_heap_free(heap, must_have(hak_heap_malloc(heap, 2 * HAK_MIB), 2 * HAK_MIB));
        cr_assert(contract_stats(heap).large_cached_bytes == 2 * HAK_MIB);
        has_refused = false;
        refuses_once = os_kernel;
        refuses_once.map = map_at_the_second_try;
        os = &refuses_once;
        hak_error_t before = hak_last_error();
        errno = 4321;
        /* What was freed would be too little of it. */
        void *ptr = hak_heap_malloc(heap, 80 * HAK_MIB);
        int after = errno;
        os = &os_kernel;
        cr_assert(has_refused && ptr && after == 4321, "errno %d", after);
        cr_assert(hak_last_error() == before, "%s", hak_error_text(hak_last_error()));
        hak_heap_free(heap, ptr);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static const size_t kinds[] = {1,     16,    100,    1024,    1025,        5000,
                               32768, 32769, 100000, HAK_MIB, HAK_MIB + 1, 5 * HAK_MIB};

Test(api_inside, reset_leaves_a_heap_as_it_began)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "reset");
        size_t metadata = 0;
        for (int round = 0; round < 20; round++) {
            void *freed[CONTRACT_LENGTH(kinds)];
            for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++) {
                freed[k] = must_have(hak_heap_malloc(heap, kinds[k]), kinds[k]);
                void *live = must_have(hak_heap_malloc(heap, kinds[k]), kinds[k]);
                memset(live, 0xdd, kinds[k]);
            }
            for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++) hak_heap_free(heap, freed[k]);
            must_be_sound(heap, CONTRACT_LENGTH(kinds));
            cr_assert(hak_heap_reset(heap) == 0);
            must_be_sound(heap, 0);
            hak_heap_stats_t stats = contract_stats(heap);
            cr_assert(stats.committed_bytes == stats.metadata_bytes + contract_cradle(heap),
                      "%zu bytes committed, %zu of them records", stats.committed_bytes,
                      stats.metadata_bytes);
            cr_assert(stats.superslabs == 0 && stats.large_blocks == 0 &&
                      contract_cached(&stats) == 0);
            cr_assert(stats.free_bytes + stats.untouched_bytes == contract_cradle(heap));
            if (round == 2) metadata = stats.metadata_bytes;
            if (round > 2)
                cr_assert(stats.metadata_bytes == metadata, "records grow at each reset");
        }
        cr_assert(hak_heap_reset(heap) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A heap's record is part of what it has committed from the start. */
Test(api_inside, a_fresh_heap_has_its_record)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "fresh");
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(stats.metadata_bytes >= sizeof(hak_heap_t) &&
                  stats.committed_bytes == stats.metadata_bytes + contract_cradle(heap) &&
                  stats.peak_bytes == stats.committed_bytes);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A pointer among the library's records, but where no heap begins, is no heap. */
Test(api_inside, a_record_that_looks_like_a_heap_is_none)
{
    uint32_t refused;
    hak_heap_t *heap = contract_heap(0, "real");
    char *page = meta_take(4, &refused);
    must_have(page, 4 * HAK_PAGE);
    hak_heap_t *forged = (hak_heap_t *)(void *)(page + HEAP_COLOURS * HAK_LINE);
    memset(page, 0, 4 * HAK_PAGE);
    store_relaxed(&forged->magic, HEAP_MAGIC ^ (uintptr_t)forged);
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    cr_assert(hak_heap_stats(forged, &stats) == EINVAL);
    meta_put(page, 4);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* A free reports nothing, also where the kernel does not take what it gives back. */
Test(api_inside, a_free_leaves_the_error)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 1;
    hak_heap_t *heap = hak_heap_create(&config);
    void *ptr = must_have(hak_heap_malloc(heap, 2 * HAK_MIB), 2 * HAK_MIB);
    cr_assert(hak_heap_malloc(NULL, 1) == NULL && hak_last_error() == HAK_ERROR_ARGUMENT);
    fake_os_use();
    fake_os_refuse(FAKE_UNMAP, 1, FAKE_FOREVER);
    hak_heap_free(heap, ptr);
    cr_assert(fake_os_calls(FAKE_UNMAP) > 0 && hak_last_error() == HAK_ERROR_ARGUMENT);
    fake_os_restore();
    must_be_sound(heap, 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* A heap's record may end before its cradle's last granule begins, at its start, or far in it. */
Test(api_inside, a_heap_has_room_for_every_number_of_cpus)
{
    hak_heap_destroy(contract_heap(0, "starts the process"));
    for (uint32_t slots = percpu_slots; slots < 2200; slots += 9) {
        percpu_slots = slots;
        hak_heap_t *heaps[9];
        for (size_t i = 0; i < CONTRACT_LENGTH(heaps); i++) {
            heaps[i] = contract_heap(i % CONTRACT_LEVELS, "cpus");
            const region_t *region = heaps[i]->near_region;
            size_t units = GRANULE / REGION_UNIT;
            cr_assert(region->record <= region->record_end && region->record_end <= units);
            memset(must_have(hak_heap_malloc(heaps[i], 1000), 1000), 1, 1000);
            cr_assert(hak_heap_of(heaps[i]) == NULL && hak_heap_check(heaps[i]) == 0);
        }
        for (size_t i = 0; i < CONTRACT_LENGTH(heaps); i++)
            cr_assert(hak_heap_destroy(heaps[i]) == 0);
    }
}

static void wait_in_vain(void *ctx)
{
    (void)ctx;
    errno = EAGAIN;
}

/* The wait for a fork's end sets errno: no malloc that has a block shows that. */
Test(api_inside, a_wait_at_the_gate_leaves_errno_alone)
{
    NEEDS_POINTS();
    static stall_t stall = {.run = wait_in_vain, .nth = 1};
    static const size_t sizes[] = {16, 1024, 4000, 30000, 100000, 3 << 20};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "waits");
        for (size_t i = 0; i < CONTRACT_LENGTH(sizes); i++) {
            store_relaxed(&stall.visits, 0u);
            stall_arm(STALL_gate_counted, &stall);
            errno = ENOENT;
            void *ptr = hak_heap_malloc(heap, sizes[i]);
            cr_assert(ptr && errno == ENOENT, "%zu: %d", sizes[i], errno);
            stall_arm(STALL_gate_counted, NULL);
            hak_heap_free(heap, ptr);
        }
        cr_assert(load_relaxed(&stall.visits) > 0);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}
