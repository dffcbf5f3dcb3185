/* The contract of the public header, at both levels, asked of that header only: heap.h tells sizes,
 * and what a forged heap looks like. What ends the process is in test_misuse.c, and where a test
 * looks into the heap in test_api_inside.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "hakheap.h"
#include "heap.h"
#include "support_must.h"
#include "support_step.h"

TestSuite(api, .timeout = 600);

/* The compiler refuses constants that no block can have; these are not constants to it. */
static size_t opaque(size_t size)
{
    static volatile size_t zero;
    return size + zero;
}

/* ---- malloc: every size ---- */

static void must_fit(void *ptr, size_t size)
{
    must_have(ptr, size);
    size_t usable = hak_usable_size(ptr), good = hak_good_size(size);
    cr_assert((uintptr_t)ptr % 16 == 0, "%zu bytes at %p", size, ptr);
    cr_assert(good >= size && usable >= good, "%zu bytes: usable %zu, good %zu", size, usable,
              good);
    cr_assert(hak_good_size(good) == good, "%zu bytes are good, but %zu better", good,
              hak_good_size(good));
}

Test(api, malloc_of_every_size)
{
    enum { WINDOW = 40 };
    size_t step = contract_work(8) < 8 ? 7 : 1;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "sizes");
        unsigned char *window[WINDOW] = {NULL};
        size_t sizes[WINDOW] = {0};
        size_t turn = 0;
        for (size_t size = 0; size <= 40000; size += step, turn++) {
            unsigned char *ptr = hak_heap_malloc(heap, size);
            must_fit(ptr, size);
            cr_assert(hak_heap_of(ptr) == heap);
            contract_fill(ptr, size, (unsigned)size);
            /* Blocks live side by side, so one that is shorter than it says tears its neighbour. */
            size_t at = turn % WINDOW;
            if (window[at]) {
                cr_assert(contract_holds(window[at], sizes[at], (unsigned)sizes[at]),
                          "%zu bytes are torn", sizes[at]);
                hak_heap_free(heap, window[at]);
            }
            window[at] = ptr;
            sizes[at] = size;
        }
        for (size_t at = 0; at < WINDOW; at++) hak_heap_free(heap, window[at]);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* In a heap that has SuperSlabs of its own, a request gets exactly what hak_good_size says. */
Test(api, good_size_is_what_a_grown_heap_gives)
{
    hak_heap_t *heap = contract_heap(0, "grown");
    void *mid = must_have(hak_heap_malloc(heap, HAK_MIB), HAK_MIB);
    for (size_t size = 0; size < 5 * HAK_MIB; size += 1 + size / 50) {
        void *ptr = must_have(hak_heap_malloc(heap, size), size);
        cr_assert(hak_usable_size(ptr) == hak_good_size(size), "%zu bytes: usable %zu, good %zu",
                  size, hak_usable_size(ptr), hak_good_size(size));
        hak_heap_free(heap, ptr);
        (void)hak_heap_trim(heap, size > HAK_MIB ? 0 : SIZE_MAX);
    }
    hak_heap_free(heap, mid);
    cr_assert(hak_good_size(opaque(SIZE_MAX)) == SIZE_MAX);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(api, malloc_around_powers_of_two)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "powers");
        for (size_t power = 1; power <= HAK_GIB; power *= 2)
            for (size_t size = power - 1; size <= power + 1; size++) {
                volatile char *ptr = hak_heap_malloc(heap, size);
                must_fit((void *)(uintptr_t)ptr, size);
                size_t last = size ? size - 1 : 0;
                ptr[0] = 1;
                ptr[last] = 2;
                cr_assert(ptr[last] == 2 && hak_heap_of((void *)(uintptr_t)&ptr[last]) == heap);
                hak_heap_free(heap, (void *)(uintptr_t)ptr);
            }
        must_be_sound(heap, 0);
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(api, blocks_of_no_bytes_are_blocks)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "zero");
        void *blocks[1000];
        for (size_t i = 0; i < 1000; i++) {
            blocks[i] = i % 4 == 0   ? hak_heap_malloc(heap, 0)
                        : i % 4 == 1 ? hak_heap_calloc(heap, 0, 10)
                        : i % 4 == 2 ? hak_heap_calloc(heap, 10, 0)
                                     : hak_heap_aligned_alloc(heap, 64, 0);
            must_have(blocks[i], 0);
            memset(blocks[i], (int)i, hak_usable_size(blocks[i]));
            cr_assert(hak_heap_of(blocks[i]) == heap);
        }
        for (size_t i = 0; i < 1000; i++) {
            cr_assert(*(unsigned char *)blocks[i] == (unsigned char)i,
                      "two blocks of no bytes are one");
            hak_free(blocks[i]);
        }
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(api, null_is_freed_by_doing_nothing)
{
    hak_heap_t *heap = contract_heap(1, "null");
    hak_heap_free(heap, NULL);
    hak_heap_free_sized(heap, NULL, 100);
    hak_heap_free(NULL, NULL);
    hak_heap_free_sized(NULL, NULL, 0);
    hak_free(NULL);
    must_be_sound(heap, 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Alignment ---- */

Test(api, every_alignment)
{
    const size_t sizes[] = {0,    1,    15,    16,    17,      100,        1000,
                            4096, 5000, 32768, 40000, HAK_MIB, 3 * HAK_MIB};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "aligned");
        for (size_t alignment = 1; alignment <= 64 * HAK_MIB; alignment *= 2) {
            void *blocks[CONTRACT_LENGTH(sizes)][2];
            for (size_t s = 0; s < CONTRACT_LENGTH(sizes); s++)
                for (int twice = 0; twice < 2; twice++) {
                    unsigned char *ptr = hak_heap_aligned_alloc(heap, alignment, sizes[s]);
                    must_have(ptr, sizes[s]);
                    cr_assert((uintptr_t)ptr % alignment == 0, "%p is not aligned to %zu",
                              (void *)ptr, alignment);
                    cr_assert((uintptr_t)ptr % 16 == 0);
                    cr_assert(hak_usable_size(ptr) >= sizes[s] && hak_heap_of(ptr) == heap);
                    if (sizes[s]) ptr[0] = 1, ptr[sizes[s] - 1] = (unsigned char)s;
                    blocks[s][twice] = ptr;
                }
            for (size_t s = 0; s < CONTRACT_LENGTH(sizes); s++)
                for (int twice = 0; twice < 2; twice++) {
                    unsigned char *ptr = blocks[s][twice];
                    if (sizes[s] > 1)
                        cr_assert(ptr[0] == 1 && ptr[sizes[s] - 1] == (unsigned char)s);
                    if (twice) hak_heap_free(heap, ptr);
                    else hak_free(ptr);
                }
        }
        must_be_sound(heap, 0);
        (void)hak_heap_trim(heap, 0);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(api, an_aligned_block_is_a_block_to_realloc)
{
    hak_heap_t *heap = contract_heap(1, "aligned");
    for (size_t alignment = 16; alignment <= 4 * HAK_MIB; alignment *= 4) {
        void *ptr = must_have(hak_heap_aligned_alloc(heap, alignment, 3000), 3000);
        contract_fill(ptr, 3000, 5);
        ptr = must_have(hak_heap_realloc(heap, ptr, 3 * HAK_MIB), 3 * HAK_MIB);
        cr_assert(contract_holds(ptr, 3000, 5));
        hak_heap_free(heap, ptr);
    }
    must_be_sound(heap, 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- calloc ---- */

static const size_t kinds[] = {1,     16,    100,    1024,    1025,        5000,
                               32768, 32769, 100000, HAK_MIB, HAK_MIB + 1, 5 * HAK_MIB};

static void dirty(hak_heap_t *heap, size_t size)
{
    void *blocks[20];
    size_t count = size > HAK_MIB ? 3 : 20;
    for (size_t i = 0; i < count; i++) {
        blocks[i] = must_have(hak_heap_malloc(heap, size), size);
        memset(blocks[i], 0xff, hak_usable_size(blocks[i]));
    }
    for (size_t i = 0; i < count; i++) hak_heap_free(heap, blocks[i]);
}

static void calloc_must_be_zero(hak_heap_t *heap, size_t size, const char *when)
{
    void *blocks[30];
    size_t count = size > HAK_MIB ? 4 : 30;
    for (size_t i = 0; i < count; i++) {
        blocks[i] = must_have(
            i % 2 ? hak_heap_calloc(heap, 1, size) : hak_heap_calloc(heap, size, 1), size);
        cr_assert(contract_is_zero(blocks[i], size), "%s: %zu bytes are not zero", when, size);
        memset(blocks[i], 0xff, hak_usable_size(blocks[i]));
    }
    for (size_t i = 0; i < count; i++) hak_heap_free(heap, blocks[i]);
}

Test(api, calloc_is_zero_on_used_memory)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "zeroed");
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++) {
            dirty(heap, kinds[k]);
            calloc_must_be_zero(heap, kinds[k], "from magazines");
            (void)hak_heap_flush(heap);
            calloc_must_be_zero(heap, kinds[k], "from slabs");
            (void)hak_heap_trim(heap, 0);
            calloc_must_be_zero(heap, kinds[k], "from the kernel");
            (void)hak_heap_trim(heap, 1);
            calloc_must_be_zero(heap, kinds[k], "after half a trim");
        }
        /* The same memory under blocks of another kind: mid runs where slabs were, slabs where mid
         * runs were. */
        for (size_t k = CONTRACT_LENGTH(kinds); k-- > 0;) {
            (void)hak_heap_flush(heap);
            calloc_must_be_zero(heap, kinds[k], "after other kinds");
        }
        cr_assert(hak_heap_reset(heap) == 0);
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++)
            calloc_must_be_zero(heap, kinds[k], "after reset");
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
        hak_heap_t *next = contract_heap(level, "next");
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++)
            calloc_must_be_zero(next, kinds[k], "of another heap");
        cr_assert(hak_heap_destroy(next) == 0);
    }
}

/* ---- realloc ---- */

Test(api, realloc_from_every_size_to_every_size)
{
    static const size_t sizes[] = {0,       1,           16,          17,         100,   1000,
                                   1024,    5000,        32768,       32769,      65536, 100000,
                                   HAK_MIB, HAK_MIB + 1, 3 * HAK_MIB, 9 * HAK_MIB};
    enum { SIZES = CONTRACT_LENGTH(sizes) };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "realloc");
        for (size_t from = 0; from < SIZES; from++)
            for (size_t to = 0; to < SIZES; to++) {
                /* Neighbours, so that a block that grew without room would tear one. */
                void *below = must_have(hak_heap_malloc(heap, sizes[from]), sizes[from]);
                unsigned char *ptr = must_have(hak_heap_malloc(heap, sizes[from]), sizes[from]);
                size_t kept = hak_min(sizes[from], sizes[to]);
                for (size_t i = 0; i < sizes[from]; i++) ptr[i] = (unsigned char)(i * 7 + from);
                ptr = must_have(hak_heap_realloc(heap, ptr, sizes[to]), sizes[to]);
                for (size_t i = 0; i < kept; i++)
                    cr_assert(ptr[i] == (unsigned char)(i * 7 + from),
                              "%zu to %zu bytes: byte %zu is lost", sizes[from], sizes[to], i);
                cr_assert(hak_usable_size(ptr) >= sizes[to] && hak_heap_of(ptr) == heap);
                cr_assert((uintptr_t)ptr % 16 == 0);
                memset(ptr, 0xee, sizes[to]);
                hak_heap_free(heap, ptr);
                hak_heap_free(heap, below);
            }
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A mid block grows into free granules behind it and gives back those it does not need; a neighbour
 * is in the way. */
Test(api, realloc_of_a_mid_block_stays_where_there_is_room)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "realloc");
        void *wide = must_have(hak_heap_malloc(heap, HAK_MIB), HAK_MIB); /* no run of the nursery */
        unsigned char *ptr = must_have(hak_heap_malloc(heap, 100000), 100000);
        contract_fill(ptr, 100000, 3);
        cr_assert(hak_heap_realloc(heap, ptr, 700000) == ptr && hak_usable_size(ptr) >= 700000);
        cr_assert(contract_holds(ptr, 100000, 3) && hak_heap_of(ptr + 699999) == heap);
        memset(ptr + 100000, 0xee, 600000);
        contract_fill(ptr, 40000, 4);
        cr_assert(hak_heap_realloc(heap, ptr, 40000) == ptr && hak_usable_size(ptr) < 100000);
        cr_assert(contract_holds(ptr, 40000, 4));
        cr_assert(contract_holds(ptr, 40000, 3) || level >= 0);
        void *tail = must_have(hak_heap_malloc(heap, 300000), 300000);
        cr_assert((unsigned char *)tail > ptr && (unsigned char *)tail < ptr + 700000,
                  "the tail was given back");
        memset(tail, 0xdd, 300000);
        must_be_sound(heap, 3);
        unsigned char *moved = must_have(hak_heap_realloc(heap, ptr, 900000), 900000);
        cr_assert(moved != ptr, "the tail is in the way");
        must_be_sound(heap, 3);
        hak_heap_free(heap, moved);
        hak_heap_free(heap, tail);
        hak_heap_free(heap, wide);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(api, realloc_of_null_and_to_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "realloc");
        void *ptr = must_have(hak_heap_realloc(heap, NULL, 50), 50);
        cr_assert(hak_heap_of(ptr) == heap && contract_stats(heap).live_blocks == 1);
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++) {
            ptr = must_have(hak_heap_realloc(heap, ptr, kinds[k]), kinds[k]);
            ptr = must_have(hak_heap_realloc(heap, ptr, 0), 0);
            cr_assert(hak_heap_of(ptr) == heap && contract_stats(heap).live_blocks == 1,
                      "a block or none was freed");
        }
        hak_heap_free(heap, ptr);
        ptr = must_have(hak_heap_realloc(heap, NULL, 0), 0);
        hak_heap_free(heap, ptr);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

Test(api, a_failed_realloc_leaves_the_block)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "realloc");
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++) {
            void *ptr = must_have(hak_heap_malloc(heap, kinds[k]), kinds[k]);
            contract_fill(ptr, kinds[k], 3);
            const size_t beyond[] = {SIZE_MAX, SIZE_MAX - 4096, (size_t)PTRDIFF_MAX + 1,
                                     PTRDIFF_MAX, (size_t)1 << 60};
            for (size_t b = 0; b < CONTRACT_LENGTH(beyond); b++) {
                errno = 0;
                cr_assert(hak_heap_realloc(heap, ptr, opaque(beyond[b])) == NULL &&
                          errno == ENOMEM);
                cr_assert(contract_holds(ptr, kinds[k], 3), "%zu bytes are torn", kinds[k]);
            }
            errno = 0;
            cr_assert(hak_heap_realloc(NULL, ptr, 10) == NULL && errno == EINVAL);
            cr_assert(contract_holds(ptr, kinds[k], 3) && hak_heap_of(ptr) == heap);
            hak_heap_free(heap, ptr);
        }
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Refusals: what each call returns, errno, and hak_last_error() ---- */

typedef struct refusal {
    const char *name;
    void *(*call)(hak_heap_t *heap);
    int error;
    hak_error_t why;
} refusal_t;

static void *malloc_null(hak_heap_t *heap) { return (void)heap, hak_heap_malloc(NULL, 1); }
static void *malloc_null_mid(hak_heap_t *heap) { return (void)heap, hak_heap_malloc(NULL, 100000); }
static void *malloc_null_huge(hak_heap_t *heap)
{
    return (void)heap, hak_heap_malloc(NULL, opaque(SIZE_MAX));
}
static void *calloc_null(hak_heap_t *heap) { return (void)heap, hak_heap_calloc(NULL, 1, 1); }
static void *calloc_null_overflow(hak_heap_t *heap)
{
    return (void)heap, hak_heap_calloc(NULL, opaque(SIZE_MAX), 2);
}
static void *realloc_null(hak_heap_t *heap) { return (void)heap, hak_heap_realloc(NULL, NULL, 1); }
static void *aligned_null(hak_heap_t *heap)
{
    return (void)heap, hak_heap_aligned_alloc(NULL, 16, 1);
}
static void *malloc_max(hak_heap_t *heap) { return hak_heap_malloc(heap, opaque(SIZE_MAX)); }
static void *malloc_ptrdiff(hak_heap_t *heap) { return hak_heap_malloc(heap, opaque(PTRDIFF_MAX)); }
static void *malloc_ptrdiff_1(hak_heap_t *heap)
{
    return hak_heap_malloc(heap, opaque((size_t)PTRDIFF_MAX + 1));
}
static void *malloc_rounds_to_0(hak_heap_t *heap)
{
    return hak_heap_malloc(heap, opaque(SIZE_MAX - 14));
}
static void *calloc_max(hak_heap_t *heap) { return hak_heap_calloc(heap, 1, opaque(SIZE_MAX)); }
static void *calloc_overflow(hak_heap_t *heap)
{
    return hak_heap_calloc(heap, opaque(SIZE_MAX / 2 + 1), 2);
}
static void *calloc_overflow_small(hak_heap_t *heap)
{
    /* The product is 2^64 + 16. */
    return hak_heap_calloc(heap, opaque(((size_t)1 << 60) + 1), 16);
}
static void *calloc_ptrdiff(hak_heap_t *heap)
{
    return hak_heap_calloc(heap, opaque((size_t)1 << 32), (size_t)1 << 31);
}
static void *realloc_max(hak_heap_t *heap)
{
    return hak_heap_realloc(heap, NULL, opaque(SIZE_MAX));
}
static void *aligned_max(hak_heap_t *heap)
{
    return hak_heap_aligned_alloc(heap, 64, opaque(SIZE_MAX - 62));
}
static void *aligned_page_max(hak_heap_t *heap)
{
    return hak_heap_aligned_alloc(heap, 4096, opaque(SIZE_MAX));
}
static void *aligned_0(hak_heap_t *heap) { return hak_heap_aligned_alloc(heap, opaque(0), 1); }
static void *aligned_3(hak_heap_t *heap) { return hak_heap_aligned_alloc(heap, opaque(3), 1); }
static void *aligned_48(hak_heap_t *heap) { return hak_heap_aligned_alloc(heap, opaque(48), 1); }
static void *aligned_odd_huge(hak_heap_t *heap)
{
    return hak_heap_aligned_alloc(heap, opaque(SIZE_MAX), 1);
}
static void *aligned_3_max(hak_heap_t *heap)
{
    return hak_heap_aligned_alloc(heap, opaque(3), opaque(SIZE_MAX));
}
static void *aligned_2_to_63(hak_heap_t *heap)
{
    return hak_heap_aligned_alloc(heap, opaque((size_t)1 << 63), 1);
}

static const refusal_t refusals[] = {
    {"malloc, NULL heap", malloc_null, EINVAL, HAK_ERROR_ARGUMENT},
    {"malloc of a mid block, NULL heap", malloc_null_mid, EINVAL, HAK_ERROR_ARGUMENT},
    {"malloc, NULL heap and too much", malloc_null_huge, EINVAL, HAK_ERROR_ARGUMENT},
    {"calloc, NULL heap", calloc_null, EINVAL, HAK_ERROR_ARGUMENT},
    {"calloc, NULL heap and overflow", calloc_null_overflow, EINVAL, HAK_ERROR_ARGUMENT},
    {"realloc, NULL heap", realloc_null, EINVAL, HAK_ERROR_ARGUMENT},
    {"aligned, NULL heap", aligned_null, EINVAL, HAK_ERROR_ARGUMENT},
    {"malloc of SIZE_MAX", malloc_max, ENOMEM, HAK_ERROR_SIZE},
    {"malloc of PTRDIFF_MAX", malloc_ptrdiff, ENOMEM, HAK_ERROR_SIZE},
    {"malloc of PTRDIFF_MAX + 1", malloc_ptrdiff_1, ENOMEM, HAK_ERROR_SIZE},
    {"malloc of what rounds to 0", malloc_rounds_to_0, ENOMEM, HAK_ERROR_SIZE},
    {"calloc of SIZE_MAX", calloc_max, ENOMEM, HAK_ERROR_SIZE},
    {"calloc that overflows to 0", calloc_overflow, ENOMEM, HAK_ERROR_SIZE},
    {"calloc that overflows to 16", calloc_overflow_small, ENOMEM, HAK_ERROR_SIZE},
    {"calloc of 2^63", calloc_ptrdiff, ENOMEM, HAK_ERROR_SIZE},
    {"realloc of NULL to SIZE_MAX", realloc_max, ENOMEM, HAK_ERROR_SIZE},
    {"aligned, size that rounds to 0", aligned_max, ENOMEM, HAK_ERROR_SIZE},
    {"aligned to a page, SIZE_MAX", aligned_page_max, ENOMEM, HAK_ERROR_SIZE},
    {"aligned to 0", aligned_0, EINVAL, HAK_ERROR_ARGUMENT},
    {"aligned to 3", aligned_3, EINVAL, HAK_ERROR_ARGUMENT},
    {"aligned to 48", aligned_48, EINVAL, HAK_ERROR_ARGUMENT},
    {"aligned to SIZE_MAX", aligned_odd_huge, EINVAL, HAK_ERROR_ARGUMENT},
    {"aligned to 3, SIZE_MAX", aligned_3_max, EINVAL, HAK_ERROR_ARGUMENT},
    {"aligned to 2^63", aligned_2_to_63, ENOMEM, HAK_ERROR_SIZE},
};

Test(api, refusals)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "refuses");
        void *live = must_have(hak_heap_malloc(heap, 1000), 1000);
        contract_fill(live, 1000, 1);
        hak_heap_stats_t before = contract_stats(heap);
        for (size_t i = 0; i < CONTRACT_LENGTH(refusals); i++) {
            const refusal_t *row = &refusals[i];
            errno = 0;
            void *ptr = row->call(heap);
            int error = errno;
            cr_expect(ptr == NULL && error == row->error, "%s: %p, errno %d, not %d", row->name,
                      ptr, error, row->error);
            cr_expect(hak_last_error() == row->why, "%s: says \"%s\"", row->name,
                      hak_error_text(hak_last_error()));
        }
        hak_heap_stats_t after = contract_stats(heap);
        cr_assert(memcmp(&before, &after, sizeof before) == 0,
                  "a refusal changed the heap's figures");
        cr_assert(contract_holds(live, 1000, 1));
        must_be_sound(heap, 1);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* Alignments that are in order, but that no address space holds. */
Test(api, alignments_beyond_memory)
{
    hak_heap_t *heap = contract_heap(0, "refuses");
    for (unsigned bit = 48; bit < 64; bit++) {
        errno = 0;
        cr_assert(hak_heap_aligned_alloc(heap, opaque((size_t)1 << bit), 1) == NULL &&
                      errno == ENOMEM,
                  "2^%u", bit);
        errno = 0;
        cr_assert(hak_heap_malloc(heap, opaque((size_t)1 << bit)) == NULL && errno == ENOMEM,
                  "2^%u", bit);
    }
    must_be_sound(heap, 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

static int no_write(void *ctx, const char *text, size_t length)
{
    return (void)ctx, (void)text, (void)length, 0;
}

Test(api, control_calls_refuse_bad_arguments)
{
    hak_heap_t *heap = contract_heap(0, "control");
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    hak_class_stats_t class_stats = {.struct_size = sizeof class_stats};
    struct {
        const char *name;
        int given;
    } rows[] = {
        {"destroy(NULL)", hak_heap_destroy(NULL)},
        {"reset(NULL)", hak_heap_reset(NULL)},
        {"check(NULL)", hak_heap_check(NULL)},
        {"stats(NULL)", hak_heap_stats(NULL, &stats)},
        {"stats to NULL", hak_heap_stats(heap, NULL)},
        {"class_stats(NULL)", hak_heap_class_stats(NULL, 0, &class_stats)},
        {"class_stats to NULL", hak_heap_class_stats(heap, 0, NULL)},
        {"class_stats of an unknown class",
         hak_heap_class_stats(heap, hak_size_class_count(), &class_stats)},
        {"class_stats of class UINT_MAX", hak_heap_class_stats(heap, UINT32_MAX, &class_stats)},
        {"report(NULL)", hak_heap_report(NULL, no_write, NULL)},
        {"report to NULL", hak_heap_report(heap, NULL, NULL)},
    };
    for (size_t i = 0; i < CONTRACT_LENGTH(rows); i++)
        cr_expect(rows[i].given == EINVAL, "%s gave %d", rows[i].name, rows[i].given);
    cr_assert(hak_heap_flush(NULL) == 0 && hak_heap_flush_class(NULL, 0) == 0 &&
              hak_heap_trim(NULL, 0) == 0);
    cr_assert(hak_last_error() == HAK_ERROR_ARGUMENT);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- errno: one table over every call that must leave it alone, in success and in failure ---- */

static hak_heap_t *subject;
static void *small, *mid, *large;
static hak_heap_stats_t some_stats;
static hak_class_stats_t some_class_stats;

static void call_free(void) { hak_heap_free(subject, small); }
static void call_free_mid(void) { hak_heap_free(subject, mid); }
static void call_free_large(void) { hak_heap_free(subject, large); }
static void call_free_null(void) { hak_heap_free(subject, NULL); }
static void call_free_sized(void) { hak_heap_free_sized(subject, small, 100); }
static void call_hak_free(void) { hak_free(small); }
static void call_hak_free_mid(void) { hak_free(mid); }
static void call_hak_free_large(void) { hak_free(large); }
static void call_usable(void) { (void)hak_usable_size(small); }
static void call_usable_foreign(void) { (void)hak_usable_size(&subject); }
static void call_good(void) { (void)hak_good_size(12345); }
static void call_of(void) { (void)hak_heap_of((void *)(uintptr_t)0xffff800000000000); }
static void call_flush(void) { (void)hak_heap_flush(subject); }
static void call_flush_class(void) { (void)hak_heap_flush_class(subject, 5); }
static void call_flush_null(void) { (void)hak_heap_flush(NULL); }
static void call_trim(void) { (void)hak_heap_trim(subject, 0); }
static void call_trim_null(void) { (void)hak_heap_trim(NULL, 0); }
static void call_reserve_trim(void) { (void)hak_reserve_trim(); }
static void call_reserve_set_limit(void) { (void)hak_reserve_set_limit(SIZE_MAX); }
static void call_stats(void) { (void)hak_heap_stats(subject, &some_stats); }
static void call_stats_null(void) { (void)hak_heap_stats(NULL, &some_stats); }
static void call_class_stats(void) { (void)hak_heap_class_stats(subject, 3, &some_class_stats); }
static void call_class_stats_unknown(void)
{
    (void)hak_heap_class_stats(subject, 9999, &some_class_stats);
}
static void call_check(void) { (void)hak_heap_check(subject); }
static void call_check_null(void) { (void)hak_heap_check(NULL); }
static void call_report(void) { (void)hak_heap_report(subject, no_write, NULL); }
static void call_report_null(void) { (void)hak_heap_report(NULL, no_write, NULL); }
static void call_reset(void) { (void)hak_heap_reset(subject); }
static void call_reset_null(void) { (void)hak_heap_reset(NULL); }
static void call_destroy_null(void) { (void)hak_heap_destroy(NULL); }
static void call_destroy(void) { (void)hak_heap_destroy(subject); }
static void call_words(void)
{
    (void)hak_last_error();
    (void)hak_error_text(HAK_ERROR_FENCE);
    (void)hak_version();
    (void)hak_percpu_mode();
    (void)hak_size_class_count();
    (void)hak_size_class_bytes(1);
    (void)hak_size_class_of(1);
}

static const struct {
    const char *name;
    void (*call)(void);
} quiet[] = {
    {"free", call_free},
    {"free of a mid block", call_free_mid},
    {"free of a large block", call_free_large},
    {"free of NULL", call_free_null},
    {"free_sized", call_free_sized},
    {"hak_free", call_hak_free},
    {"hak_free of a mid block", call_hak_free_mid},
    {"hak_free of a large block", call_hak_free_large},
    {"usable_size", call_usable},
    {"usable_size of a foreign pointer", call_usable_foreign},
    {"good_size", call_good},
    {"heap_of", call_of},
    {"flush", call_flush},
    {"flush_class", call_flush_class},
    {"flush of NULL", call_flush_null},
    {"trim", call_trim},
    {"trim of NULL", call_trim_null},
    {"reserve_trim", call_reserve_trim},
    {"reserve_set_limit", call_reserve_set_limit},
    {"stats", call_stats},
    {"stats of NULL", call_stats_null},
    {"class_stats", call_class_stats},
    {"class_stats of an unknown class", call_class_stats_unknown},
    {"check", call_check},
    {"check of NULL", call_check_null},
    {"report", call_report},
    {"report of NULL", call_report_null},
    {"reset", call_reset},
    {"reset of NULL", call_reset_null},
    {"destroy of NULL", call_destroy_null},
    {"words", call_words},
    {"destroy", call_destroy},
    /* Here the heap is gone. */
    {"destroy again", call_destroy},
    {"flush of a destroyed heap", call_flush},
    {"trim of a destroyed heap", call_trim},
    {"stats of a destroyed heap", call_stats},
    {"check of a destroyed heap", call_check},
};

Test(api, errno_is_preserved)
{
    some_stats.struct_size = sizeof some_stats;
    some_class_stats.struct_size = sizeof some_class_stats;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        subject = contract_heap(level, "errno");
        bool gone = false;
        for (size_t i = 0; i < CONTRACT_LENGTH(quiet); i++) {
            if (!gone) {
                small = must_have(hak_heap_malloc(subject, 100), 100);
                mid = must_have(hak_heap_malloc(subject, 300000), 300000);
                large = must_have(hak_heap_malloc(subject, 40 * HAK_MIB), 40 * HAK_MIB);
            }
            errno = 4321;
            quiet[i].call();
            int after = errno;
            cr_expect(after == 4321, "%s leaves errno %d", quiet[i].name, after);
            gone = gone || quiet[i].call == call_destroy;
            /* What the row did not free stays; large ones are many megabytes, so they go with the
             * next reset. */
        }
    }
}

/* ---- What a pointer is ---- */

static void must_be_foreign(void *ptr, const char *what)
{
    cr_assert(hak_heap_of(ptr) == NULL && hak_usable_size(ptr) == 0, "%s: %p", what, ptr);
}

/* Every byte of a block leads to its heap; its address with a bit above set does not. */
static void must_lead_to(const hak_heap_t *heap, char *ptr)
{
    size_t usable = hak_usable_size(ptr);
    cr_assert(hak_heap_of(ptr) == heap && hak_heap_of(ptr + usable - 1) == heap);
    for (size_t at = 1; at < usable; at += 1 + usable / 13)
        cr_assert(hak_heap_of(ptr + at) == heap, "%zu bytes: byte %zu", usable, at);
    for (unsigned bit = 47; bit < 64; bit++)
        must_be_foreign((void *)((uintptr_t)ptr | (uintptr_t)1 << bit), "tagged");
}

Test(api, heap_of_and_usable_size_of_any_pointer)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "of");
        void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        void *unmapped = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(unmapped, 4096);
        void *foreign[] = {NULL,
                           &heap,
                           (void *)(uintptr_t)&must_fit,
                           malloc(10),
                           page,
                           unmapped,
                           heap,
                           (void *)(uintptr_t)1,
                           (void *)(uintptr_t)0x7fffffffffff,
                           (void *)(uintptr_t)0x800000000000,
                           (void *)(uintptr_t)0xffff800000000000,
                           (void *)(uintptr_t)UINTPTR_MAX};
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++) {
            size_t size = kinds[k];
            char *ptr = must_have(hak_heap_malloc(heap, size), size);
            must_lead_to(heap, ptr);
            hak_heap_free(heap, ptr);
            if (size > SMALL_MAX) must_be_foreign(ptr, "freed");
            for (size_t i = 0; i < CONTRACT_LENGTH(foreign); i++)
                must_be_foreign(foreign[i], "foreign");
        }
        void *ptrs[CONTRACT_LENGTH(kinds)];
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++)
            ptrs[k] = must_have(hak_heap_malloc(heap, kinds[k]), kinds[k]);
        cr_assert(hak_heap_destroy(heap) == 0);
        for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++)
            must_be_foreign(ptrs[k], "of a destroyed heap");
        free(foreign[3]);
        munmap(page, 4096);
    }
}

/* Wild values by the million: none faults. */
Test(api, heap_of_never_faults)
{
    hak_heap_t *heap = contract_heap(0, "wild");
    char *near = must_have(hak_heap_malloc(heap, 3 * HAK_MIB), 3 * HAK_MIB);
    uint64_t z = 1;
    for (size_t i = 0; i < contract_work(2000000); i++) {
        z = z * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t wild = i % 3 == 0   ? z
                        : i % 3 == 1 ? z >> 17
                                     : (uint64_t)(uintptr_t)near + (z >> 34) - (1ull << 29);
        hak_heap_t *owner = hak_heap_of((void *)(uintptr_t)wild);
        cr_assert(owner == NULL || owner == heap);
        cr_assert((hak_usable_size((void *)(uintptr_t)wild) == 0) == (owner == NULL));
    }
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- create ---- */

static hak_heap_t *create_with(const hak_heap_config_t *config, int error, const char *what)
{
    errno = 0;
    hak_heap_t *heap = hak_heap_create(config);
    int given = errno;
    cr_assert((heap == NULL) == (error != 0) && given == error, "%s: %p, errno %d", what,
              (void *)heap, given);
    if (error)
        cr_assert(hak_last_error() == HAK_ERROR_ARGUMENT, "%s: says %d", what,
                  (int)hak_last_error());
    if (heap) {
        void *ptr = must_have(hak_heap_malloc(heap, 10), 10);
        hak_heap_free(heap, ptr);
        must_be_sound(heap, 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
    return heap;
}

Test(api, create_takes_what_it_knows)
{
    const hak_heap_config_t defaults = HAK_HEAP_CONFIG_INIT;
    hak_heap_config_t config = defaults;
    create_with(NULL, 0, "NULL");
    create_with(&config, 0, "defaults");
    config.level = HAK_LEVEL_HARDENED, create_with(&config, ENOTSUP, "HARDENED");
    config.level = (hak_level_t)4, create_with(&config, EINVAL, "level 4");
    config.level = (hak_level_t)-1, create_with(&config, EINVAL, "level -1");
    config.level = HAK_LEVEL_FAST, create_with(&config, 0, "FAST");
    config.level = HAK_LEVEL_CHECKED, create_with(&config, 0, "CHECKED");
    config = defaults;
    config.flags = 1, create_with(&config, EINVAL, "flags");
    config.flags = UINT32_MAX, create_with(&config, EINVAL, "flags");
    config = defaults;
    config.cache_bytes = 1, create_with(&config, 0, "cache_bytes 1");
    config.cache_bytes = HAK_GIB, create_with(&config, 0, "cache_bytes 1 GiB");
    config.cache_bytes = HAK_GIB + 1, create_with(&config, EINVAL, "cache_bytes above");
    config.cache_bytes = SIZE_MAX, create_with(&config, EINVAL, "cache_bytes SIZE_MAX");
    config = defaults;
    config.large_cache_bytes = 64 * HAK_GIB, create_with(&config, 0, "large_cache_bytes 64 GiB");
    config.large_cache_bytes++, create_with(&config, EINVAL, "large_cache_bytes above");
}

Test(api, create_takes_structs_of_other_versions)
{
    struct {
        hak_heap_config_t config;
        unsigned char tail[64];
    } wide = {.config = HAK_HEAP_CONFIG_INIT};
    hak_heap_config_t *config = &wide.config;
    config->struct_size = 0, create_with(config, EINVAL, "struct_size 0");
    config->struct_size = sizeof(size_t) - 1, create_with(config, EINVAL, "struct_size 7");
    config->struct_size = SIZE_MAX, create_with(config, EINVAL, "struct_size SIZE_MAX");
    config->struct_size = sizeof(size_t), create_with(config, 0, "struct_size 8");
    /* What lies beyond the struct's size is not read. */
    config->flags = 77;
    config->struct_size = offsetof(hak_heap_config_t, flags);
    create_with(config, 0, "short struct");
    *config = (hak_heap_config_t)HAK_HEAP_CONFIG_INIT;
    config->struct_size = sizeof wide;
    create_with(config, 0, "a later version's struct, zero tail");
    wide.tail[63] = 1;
    create_with(config, EINVAL, "a later version's struct, used tail");
}

static int gather(void *ctx, const char *text, size_t length)
{
    char *into = ctx;
    size_t used = strlen(into);
    if (used + length >= 32768) return 1;
    memcpy(into + used, text, length);
    into[used + length] = '\0';
    return 0;
}

static void name_is(const char *given, const char *wanted)
{
    static char text[32768];
    char copy[64];
    snprintf(copy, sizeof copy, "%s", given ? given : "");
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = given ? copy : NULL;
    hak_heap_t *heap = hak_heap_create(&config);
    /* The name is copied: what becomes of the caller's string is nothing to the heap. */
    memset(copy, 'x', sizeof copy);
    text[0] = '\0';
    cr_assert(hak_heap_report(heap, gather, text) == 0);
    char line[64];
    snprintf(line, sizeof line, "heap \"%s\" ", wanted);
    cr_assert(strncmp(text, line, strlen(line)) == 0, "%s is not in: %.80s", line, text);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(api, names_are_copied_and_cut)
{
    name_is("sessions", "sessions");
    name_is("", "");
    name_is(NULL, "unnamed");
    name_is("0123456789012345678901234567890", "0123456789012345678901234567890");
    name_is("01234567890123456789012345678901", "0123456789012345678901234567890");
}

/* ---- Structs that the caller sizes ---- */

Test(api, stats_write_no_more_than_the_struct)
{
    hak_heap_t *heap = contract_heap(1, "stats");
    must_have(hak_heap_malloc(heap, 100), 100);
    hak_heap_stats_t whole = {.struct_size = sizeof whole};
    hak_class_stats_t whole_class = {.struct_size = sizeof whole_class};
    unsigned class = hak_size_class_of(100);
    while (hak_size_class_bytes(class) < 112) class ++;
    cr_assert(hak_heap_stats(heap, &whole) == 0 &&
              hak_heap_class_stats(heap, class, &whole_class) == 0);
    union {
        hak_heap_stats_t stats;
        hak_class_stats_t class_stats;
        unsigned char bytes[512];
    } out;
    for (size_t size = 0; size <= sizeof out; size++)
        for (int which = 0; which < 2; which++) {
            size_t known = which ? sizeof whole_class : sizeof whole;
            memset(&out, 0xab, sizeof out);
            out.stats.struct_size = size;
            int error = which ? hak_heap_class_stats(heap, class, &out.class_stats)
                              : hak_heap_stats(heap, &out.stats);
            cr_assert(error == (size < sizeof(size_t) ? EINVAL : 0), "size %zu: %d", size, error);
            cr_assert(out.stats.struct_size == size, "the struct's size is the caller's");
            size_t written = size < sizeof(size_t) ? sizeof(size_t) : hak_min(size, known);
            for (size_t i = hak_max(written, size < known ? written : size); i < sizeof out; i++)
                cr_assert(out.bytes[i] == 0xab, "size %zu: byte %zu was written", size, i);
            const unsigned char *from =
                which ? (const unsigned char *)&whole_class : (const unsigned char *)&whole;
            if (size > sizeof(size_t))
                cr_assert(memcmp(out.bytes + sizeof(size_t), from + sizeof(size_t),
                                 written - sizeof(size_t)) == 0,
                          "size %zu: figures differ", size);
        }
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Size classes ---- */

Test(api, size_classes)
{
    unsigned count = hak_size_class_count();
    cr_assert(count > 0);
    cr_assert(hak_size_class_bytes(count) == 0 && hak_size_class_bytes(UINT32_MAX) == 0);
    for (unsigned class = 0; class < count; class ++) {
        size_t bytes = hak_size_class_bytes(class);
        cr_assert(bytes % 16 == 0 && bytes > 0);
        cr_assert(hak_size_class_of(bytes) == class && hak_good_size(bytes) == bytes);
        cr_assert(hak_size_class_of(bytes + 1) == class + 1, "%zu bytes", bytes + 1);
        size_t below = class ? hak_size_class_bytes(class - 1) : 0;
        cr_assert(bytes > below);
        if (below >= 128)
            cr_assert((bytes - below - 1) * 8 <= bytes, "%zu bytes may waste more than an eighth",
                      bytes);
    }
    cr_assert(hak_size_class_of(0) == 0);
    cr_assert(hak_size_class_of(hak_size_class_bytes(count - 1) + 1) == count);
    cr_assert(hak_size_class_of(SIZE_MAX) == count);
}

/* ---- Several heaps ---- */

enum { HEAPS = 60, BLOCKS_EACH = 40 };
typedef struct shelf {
    hak_heap_t *heap;
    void *blocks[BLOCKS_EACH];
    size_t sizes[BLOCKS_EACH];
} shelf_t;
static shelf_t shelves[HEAPS];

static void fill_shelves(void)
{
    for (unsigned b = 0; b < BLOCKS_EACH; b++)
        for (unsigned h = 0; h < HEAPS; h++) {
            shelf_t *at = &shelves[h];
            size_t size = at->sizes[b] = kinds[(b * 7 + h) % 9];
            at->blocks[b] = must_have(hak_heap_malloc(at->heap, size), size);
            contract_fill(at->blocks[b], size, h * 1000 + b);
            cr_assert(hak_heap_of(at->blocks[b]) == at->heap);
        }
}

static void shelf_must_hold(unsigned h)
{
    for (unsigned b = 0; b < BLOCKS_EACH; b++)
        cr_assert(contract_holds(shelves[h].blocks[b], shelves[h].sizes[b], h * 1000 + b),
                  "heap %u, block %u is torn", h, b);
}

Test(api, heaps_are_apart)
{
    for (int h = 0; h < HEAPS; h++)
        cr_assert((shelves[h].heap = contract_heap(h & 1, "apart")) != NULL);
    fill_shelves();
    for (int h = 0; h < HEAPS; h += 2) {
        if (h % 4 == 0) cr_assert(hak_heap_destroy(shelves[h].heap) == 0);
        else cr_assert(hak_heap_reset(shelves[h].heap) == 0);
    }
    for (unsigned h = 1; h < HEAPS; h += 2) {
        must_be_sound(shelves[h].heap, BLOCKS_EACH);
        shelf_must_hold(h);
    }
    /* What the destroyed ones had is used again, by others. */
    hak_heap_t *next = contract_heap(1, "next");
    for (unsigned b = 0; b < BLOCKS_EACH * HEAPS / 2; b++) {
        void *ptr = must_have(hak_heap_malloc(next, kinds[b % 9]), kinds[b % 9]);
        memset(ptr, 0xcc, kinds[b % 9]);
    }
    for (unsigned h = 1; h < HEAPS; h += 2) {
        shelf_must_hold(h);
        for (unsigned b = 0; b < BLOCKS_EACH; b++) hak_free(shelves[h].blocks[b]);
    }
    for (int h = 0; h < HEAPS; h++) {
        if (h % 4 == 0) continue;
        must_be_sound(shelves[h].heap, 0);
        cr_assert(hak_heap_destroy(shelves[h].heap) == 0);
    }
    cr_assert(hak_heap_destroy(next) == 0);
}

/* ---- reset and destroy ---- */

/* Chains below the magazines, too. */
Test(api, a_reset_forgets_cold_chains)
{
    contract_slabs_only();
    enum { BLOCKS = 400, SIZE = 256 }; /* so few that the heap is not divided */
    void *blocks[BLOCKS];
    int cpu;
    cr_assert(contract_cpus(&cpu, 1) == 1 && contract_move_to(cpu));
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "cold");
        for (size_t i = 0; i < BLOCKS; i++)
            blocks[i] = must_have(hak_heap_malloc(heap, SIZE), SIZE);
        for (size_t i = 0; i < BLOCKS; i++) hak_heap_free(heap, blocks[i]);
        cr_assert(contract_stats(heap).cold_bytes > 0, "no chain is cold, so nothing is tested");
        cr_assert(hak_heap_reset(heap) == 0);
        must_be_sound(heap, 0);
        for (unsigned i = 0; i < BLOCKS; i++) {
            blocks[i] = must_have(hak_heap_malloc(heap, SIZE), SIZE);
            contract_fill(blocks[i], SIZE, i);
        }
        for (unsigned i = 0; i < BLOCKS; i++) cr_assert(contract_holds(blocks[i], SIZE, i));
        must_be_sound(heap, BLOCKS);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static struct {
    hak_heap_t *heap;
    int error[2];
    bool was_alive;
} twice;

static void destroy_first(void) { twice.error[0] = hak_heap_destroy(twice.heap); }
static void *destroy_in_thread(void *unused)
{
    (void)unused;
    twice.error[1] = hak_heap_destroy(twice.heap);
    return NULL;
}

/* As long as the first has not taken the heap it has no lock either: the other comes to its end. */
static void destroy_other(void)
{
    pthread_t thread;
    uint64_t alive = HEAP_MAGIC ^ (uintptr_t)twice.heap;
    twice.was_alive = load_relaxed(&twice.heap->magic) == alive;
    if (twice.was_alive && pthread_create(&thread, NULL, destroy_in_thread, NULL) == 0)
        pthread_join(thread, NULL);
}

/* Of two threads that destroy a heap one does, wherever the other is by then. */
Test(api, of_two_that_destroy_one_does_at_every_instruction)
{
    enum { MOST = 10000 };
    unsigned at = 1;
    for (; at < MOST; at++) {
        twice.heap = contract_heap((int)at & 1, "twice");
        twice.error[0] = twice.error[1] = -1;
        if (!step_run(&(step_t){destroy_first, destroy_other, at}) || !twice.was_alive) break;
        cr_assert(twice.error[0] == EINVAL && twice.error[1] == 0, "after instruction %u: %d, %d",
                  at, twice.error[0], twice.error[1]);
    }
    if (at == 1) cr_skip_test("no single steps here");
    cr_assert(at > 10 && at < MOST && twice.error[0] == 0);
}

/* Not even what its magazines held. */
Test(api, a_destroyed_heap_hands_out_nothing)
{
    contract_slabs_only();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "gone");
        hak_heap_t *volatile gone = heap;
        void *freed[8];
        for (size_t i = 0; i < 8; i++) freed[i] = must_have(hak_heap_malloc(heap, 100), 100);
        for (size_t i = 0; i < 8; i++) hak_heap_free(heap, freed[i]);
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(contract_cached(&stats) > 0 && hak_heap_destroy(heap) == 0);
        for (size_t i = 0; i < 8; i++) {
            errno = 0;
            cr_assert(hak_heap_malloc(gone, 100) == NULL && errno == EINVAL);
        }
    }
}

/* A value is a heap by where it lies, and only then by what it says. */
Test(api, a_block_that_looks_like_a_heap_is_none)
{
    hak_heap_t *heap = contract_heap(0, "real");
    hak_heap_t *forged = hak_heap_aligned_alloc(heap, HAK_PAGE, 4 * HAK_PAGE);
    must_have(forged, 4 * HAK_PAGE);
    memset((void *)forged, 0, 4 * HAK_PAGE);
    store_relaxed(&forged->magic, HEAP_MAGIC ^ (uintptr_t)forged);
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    cr_assert(hak_heap_stats(forged, &stats) == EINVAL && hak_heap_check(forged) == EINVAL);
    hak_heap_free(heap, forged);
    must_be_sound(heap, 0);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(api, a_class_is_flushed_alone)
{
    contract_slabs_only();
    hak_heap_t *heap = contract_heap(0, "classes");
    static const size_t sizes[] = {64, 256, 1024};
    for (size_t i = 0; i < 3; i++)
        hak_heap_free(heap, must_have(hak_heap_malloc(heap, sizes[i]), sizes[i]));
    hak_heap_stats_t before = contract_stats(heap);
    size_t moved = hak_heap_flush_class(heap, hak_size_class_of(256));
    hak_heap_stats_t after = contract_stats(heap);
    cr_assert(moved > 0 && moved % 256 == 0 && moved < contract_cached(&before));
    cr_assert(contract_cached(&before) - contract_cached(&after) == moved);
    for (size_t i = 0; i < 3; i++) {
        hak_class_stats_t row = {.struct_size = sizeof row};
        cr_assert(hak_heap_class_stats(heap, hak_size_class_of(sizes[i]), &row) == 0);
        cr_assert((row.hot_blocks + row.spare_blocks == 0) == (sizes[i] == 256), "%zu bytes",
                  sizes[i]);
    }
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(api, a_peak_stays)
{
    hak_heap_t *heap = contract_heap(0, "peak");
    hak_heap_free(heap, must_have(hak_heap_malloc(heap, 9 * HAK_MIB), 9 * HAK_MIB));
    size_t peak = contract_stats(heap).peak_bytes;
    cr_assert(peak >= 9 * HAK_MIB && hak_heap_trim(heap, 0) > 0);
    must_have(hak_heap_malloc(heap, 2 * HAK_MIB), 2 * HAK_MIB);
    hak_heap_stats_t stats = contract_stats(heap);
    cr_assert(stats.peak_bytes == peak && stats.committed_bytes < peak);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(api, destroy_takes_live_blocks)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *stays = contract_heap(level, "stays");
        void *live = must_have(hak_heap_malloc(stays, 100), 100);
        contract_fill(live, 100, 9);
        for (int round = 0; round < 50; round++) {
            hak_heap_t *heap = contract_heap(level, "goes");
            for (size_t k = 0; k < CONTRACT_LENGTH(kinds); k++)
                must_have(hak_heap_malloc(heap, kinds[k]), kinds[k]);
            cr_assert(hak_heap_destroy(heap) == 0);
            cr_assert(hak_heap_destroy(heap) == EINVAL && hak_last_error() == HAK_ERROR_ARGUMENT);
            cr_assert(hak_heap_reset(heap) == EINVAL && hak_heap_check(heap) == EINVAL);
        }
        cr_assert(contract_holds(live, 100, 9));
        must_be_sound(stays, 1);
        cr_assert(hak_heap_destroy(stays) == 0);
    }
}

/* ---- Words ---- */

Test(api, words)
{
    cr_assert(hak_version() == HAK_VERSION);
    for (int error = HAK_ERROR_NONE; error <= HAK_ERROR_REENTERED; error++) {
        const char *text = hak_error_text((hak_error_t)error);
        cr_assert(text && strlen(text) > 5);
        for (int other = HAK_ERROR_NONE; other < error; other++)
            cr_assert(strcmp(text, hak_error_text((hak_error_t)other)) != 0,
                      "%d and %d read the same", error, other);
    }
    cr_assert(hak_error_text((hak_error_t)99) != NULL && hak_error_text((hak_error_t)-1) != NULL);
    const char *mode = hak_percpu_mode(), *wish = getenv("HAKHEAP_RSEQ");
    cr_assert(strcmp(mode, "mm_cid") == 0 || strcmp(mode, "cpu_id") == 0 ||
                  strcmp(mode, "locked") == 0,
              "%s", mode);
    if (wish && strcmp(wish, "0") == 0) cr_assert(strcmp(mode, "locked") == 0, "%s", mode);
    if (wish && strcmp(wish, "cpu") == 0) cr_assert(strcmp(mode, "mm_cid") != 0, "%s", mode);
}
/* A block of a region grows into the free units behind it; the next block comes behind that, in the
 * same granule. */
Test(api, realloc_of_a_block_of_a_region_leaves_the_room_behind_it)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "realloc");
        size_t committed = contract_stats(heap).committed_bytes;
        char *ptr = must_have(hak_heap_malloc(heap, 16), 16);
        cr_assert(hak_heap_realloc(heap, ptr, 128) == ptr, "there is room behind");
        char *next = must_have(hak_heap_malloc(heap, 1000), 1000);
        cr_assert(next == ptr + 128, "%p, then %p", (void *)ptr, (void *)next);
        cr_assert(contract_stats(heap).committed_bytes == committed, "a granule was taken");
        must_be_sound(heap, 2);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A cradle has pages that an earlier heap has written: they are counted, and a trim returns them. */
Test(api, a_trim_returns_what_an_earlier_heap_wrote)
{
    hak_heap_t *heap = contract_heap(0, "first");
    for (int i = 0; i < 100; i++) memset(must_have(hak_heap_malloc(heap, 128), 128), 1, 128);
    cr_assert(hak_heap_destroy(heap) == 0);
    hak_heap_t *again = contract_heap(0, "second");
    cr_assert(again == heap, "the cradle is the same");
    cr_assert(contract_stats(again).resident_bytes == GRANULE);
    size_t returned = hak_heap_trim(again, 0);
    cr_assert(returned > 0 && contract_stats(again).resident_bytes == GRANULE - returned);
    cr_assert(hak_heap_destroy(again) == 0);
}

/* What a reset empties is used again, also where it was full before. */
Test(api, a_reset_heap_fills_its_cradle_again)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "reset");
        size_t committed = contract_stats(heap).committed_bytes;
        for (int round = 0; round < 3; round++) {
            for (int i = 0; i < 40; i++) must_have(hak_heap_malloc(heap, 100), 100);
            cr_assert(contract_stats(heap).committed_bytes == committed, "round %d", round);
            for (int i = 0; i < 200; i++) must_have(hak_heap_malloc(heap, 100), 100);
            cr_assert(contract_stats(heap).committed_bytes > committed, "the cradle was full");
            cr_assert(hak_heap_reset(heap) == 0);
        }
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}
