/* include/hakheap/zlib.h under the real zlib. */
#include <hakheap/zlib.h>

#include "adapter.h"

TestSuite(zlib, .timeout = 120);

enum { TEXT = 1 << 20 };

static unsigned char text[TEXT], packed[TEXT], unpacked[TEXT];

/* Compresses the text with a level, or says why not. */
static int pack(hak_heap_t *heap, int level, size_t *bytes)
{
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    hak_zlib_use(&stream, heap);
    int code = deflateInit(&stream, level);
    if (code != Z_OK) return code;
    ADAPTER_NOTE(hak_heap_of(stream.state) == heap);
    stream.next_in = text, stream.avail_in = TEXT;
    stream.next_out = packed, stream.avail_out = TEXT;
    code = deflate(&stream, Z_FINISH);
    *bytes = stream.total_out;
    ADAPTER_NOTE(adapter_live(heap) > 100000);
    ADAPTER_NOTE(deflateEnd(&stream) == Z_OK);
    return code;
}

static int unpack(hak_heap_t *heap, size_t bytes)
{
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    hak_zlib_use(&stream, heap);
    int code = inflateInit(&stream);
    if (code != Z_OK) return code;
    ADAPTER_NOTE(hak_heap_of(stream.state) == heap);
    stream.next_in = packed, stream.avail_in = (uInt)bytes;
    stream.next_out = unpacked;
    do { /* in pieces, so that zlib needs its window */
        stream.avail_out = TEXT / 16;
        code = inflate(&stream, Z_NO_FLUSH);
    } while (code == Z_OK && stream.total_out < TEXT);
    ADAPTER_NOTE(code != Z_STREAM_END || memcmp(text, unpacked, TEXT) == 0);
    ADAPTER_NOTE(inflateEnd(&stream) == Z_OK);
    return code;
}

Test(zlib, a_stream_lies_in_its_heap_and_leaves_nothing)
{
    adapter_text(text, TEXT, 1);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "zlib");
        size_t by_malloc = adapter_malloc_bytes(), bytes = 0;
        for (int strength = 1; strength <= 9; strength += 4) {
            ADAPTER_NOTE(pack(heap, strength, &bytes) == Z_STREAM_END && bytes < TEXT / 2);
            ADAPTER_NOTE(unpack(heap, bytes) == Z_STREAM_END);
        }
        ADAPTER_NOTE(adapter_malloc_bytes() == by_malloc);
        adapter_require_noted();
        adapter_end(heap);
    }
}

Test(zlib, the_heap_goes_in_place_of_the_end_of_its_streams)
{
    adapter_text(text, TEXT, 2);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "zlib"), *other = contract_heap(level, "other");
        size_t by_malloc = adapter_malloc_bytes();
        z_stream stream, copy;
        memset(&stream, 0, sizeof stream);
        hak_zlib_use(&stream, heap);
        ADAPTER_NOTE(deflateInit(&stream, Z_BEST_SPEED) == Z_OK);
        hak_zlib_use(&copy, other);
        ADAPTER_NOTE(deflateCopy(&copy, &stream) == Z_OK);
        ADAPTER_NOTE(hak_heap_of(copy.state) == heap && adapter_live(other) == 0);
        ADAPTER_NOTE(hak_heap_destroy(heap) == 0);
        ADAPTER_NOTE(adapter_malloc_bytes() == by_malloc);
        adapter_require_noted();
        adapter_end(other);
    }
}

Test(zlib, a_refused_request_is_its_memory_error)
{
    adapter_text(text, TEXT, 3);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = adapter_heap(level, HAK_NO_LIMIT);
        size_t bytes = 0, refused[2] = {0, 0};
        cr_assert(pack(heap, Z_BEST_SPEED, &bytes) == Z_STREAM_END);
        for (size_t limit = 1024; limit < 400 * 1024; limit += 8192) {
            adapter_set_limit(heap, limit);
            size_t ignored;
            int packing = pack(heap, Z_DEFAULT_COMPRESSION, &ignored);
            if (packing == Z_MEM_ERROR) refused[0]++;
            else cr_assert(packing == Z_STREAM_END && limit > 200000);
            adapter_require_empty(heap);
            if (packing == Z_STREAM_END) bytes = ignored;
            int unpacking = unpack(heap, bytes);
            if (unpacking == Z_MEM_ERROR) refused[1]++;
            else cr_assert(unpacking == Z_STREAM_END && limit > 30000);
            adapter_require_empty(heap);
        }
        adapter_require_noted();
        cr_assert(refused[0] > 20 && refused[0] < 45 && refused[1] > 2 && refused[1] < 10);
        cr_assert(adapter_refusals(heap) >= refused[0] + refused[1]);
        adapter_end(heap);
    }
}
