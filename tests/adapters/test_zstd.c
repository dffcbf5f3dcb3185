/* include/hakheap/zstd.h under the real zstd. */
#include <hakheap/zstd.h>
#include <zstd_errors.h>

#include "adapter.h"

TestSuite(zstd, .timeout = 120);

enum { TEXT = 1 << 20, WORKED = 4 << 20 };

static unsigned char text[WORKED], packed[WORKED], unpacked[WORKED];

/* Compresses and expands in contexts of a heap; what zstd says where it cannot. */
static size_t there_and_back(hak_heap_t *heap, ZSTD_CCtx *cctx, ZSTD_DCtx *dctx, size_t bytes)
{
    ADAPTER_NOTE(hak_heap_of(cctx) == heap && hak_heap_of(dctx) == heap);
    size_t length = ZSTD_compress2(cctx, packed, sizeof packed, text, bytes);
    if (ZSTD_isError(length)) return length;
    ADAPTER_NOTE(length < bytes / 2);
    memset(unpacked, 0, bytes);
    size_t back = ZSTD_decompressDCtx(dctx, unpacked, sizeof unpacked, packed, length);
    if (!ZSTD_isError(back)) ADAPTER_NOTE(back == bytes && memcmp(text, unpacked, bytes) == 0);
    return back;
}

Test(zstd, a_context_lies_in_its_heap_and_leaves_nothing)
{
    adapter_text(text, TEXT, 1);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "zstd");
        size_t by_malloc = adapter_malloc_bytes();
        ZSTD_CCtx *cctx = ZSTD_createCCtx_advanced(hak_zstd_mem(heap));
        ZSTD_DCtx *dctx = ZSTD_createDCtx_advanced(hak_zstd_mem(heap));
        for (int strength = 1; strength <= 16; strength += 5) {
            ADAPTER_NOTE(
                !ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_compressionLevel, strength)));
            ADAPTER_NOTE(there_and_back(heap, cctx, dctx, TEXT) == TEXT);
        }
        ADAPTER_NOTE(adapter_live(heap) >= ZSTD_sizeof_CCtx(cctx) + ZSTD_sizeof_DCtx(dctx));
        ADAPTER_NOTE(adapter_malloc_bytes() == by_malloc);
        adapter_require_noted();
        ZSTD_freeCCtx(cctx);
        ZSTD_freeDCtx(dctx);
        adapter_end(heap);
    }
}

Test(zstd, a_dictionary_lies_in_its_heap)
{
    adapter_text(text, TEXT, 2);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "zstd");
        ZSTD_compressionParameters how = ZSTD_getCParams(3, TEXT, 4096);
        ZSTD_CDict *dictionary = ZSTD_createCDict_advanced(text, 4096, ZSTD_dlm_byCopy,
                                                           ZSTD_dct_auto, how, hak_zstd_mem(heap));
        cr_assert(hak_heap_of(dictionary) == heap);
        cr_assert(adapter_live(heap) >= ZSTD_sizeof_CDict(dictionary));
        ZSTD_freeCDict(dictionary);
        adapter_end(heap);
    }
}

Test(zstd, worker_threads_allocate_from_the_heap_of_their_context)
{
    adapter_text(text, WORKED, 3);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "zstd");
        ZSTD_CCtx *cctx = ZSTD_createCCtx_advanced(hak_zstd_mem(heap));
        ZSTD_DCtx *dctx = ZSTD_createDCtx_advanced(hak_zstd_mem(heap));
        size_t alone = adapter_live(heap);
        if (ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_nbWorkers, 2)))
            cr_skip_test("this zstd has no worker threads");
        ZSTD_CCtx_setParameter(cctx, ZSTD_c_jobSize, WORKED / 8);
        cr_assert(there_and_back(heap, cctx, dctx, WORKED) == WORKED);
        cr_assert(adapter_live(heap) > alone + (1 << 20));
        adapter_require_noted();
        ZSTD_freeCCtx(cctx);
        ZSTD_freeDCtx(dctx);
        adapter_end(heap);
    }
}

Test(zstd, a_refused_request_is_its_memory_error)
{
    adapter_text(text, TEXT, 4);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = adapter_heap(level, 512);
        cr_assert(ZSTD_createCCtx_advanced(hak_zstd_mem(heap)) == NULL);
        cr_assert(adapter_refusals(heap) == 1 && adapter_live(heap) == 0);
        adapter_set_limit(heap, HAK_NO_LIMIT);
        ZSTD_CCtx *cctx = ZSTD_createCCtx_advanced(hak_zstd_mem(heap));
        ZSTD_DCtx *dctx = ZSTD_createDCtx_advanced(hak_zstd_mem(heap));
        adapter_set_limit(heap, adapter_live(heap) + (1 << 16));
        size_t code = there_and_back(heap, cctx, dctx, TEXT);
        cr_assert(ZSTD_isError(code) && ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation);
        adapter_set_limit(heap, HAK_NO_LIMIT);
        cr_assert(there_and_back(heap, cctx, dctx, TEXT) == TEXT);
        adapter_require_noted();
        ZSTD_freeCCtx(cctx);
        ZSTD_freeDCtx(dctx);
        adapter_end(heap);
    }
}
