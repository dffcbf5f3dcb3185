/* region: what hints must not hide from a thread that is alone, and pages that go back unasked. The
 * suite is that of test_region.c. */
#include <criterion/criterion.h>

#include "heap.h"
#include "region.h"
#include "reserve.h"
#include "support_contract.h"
#include "support_region.h"

static const guard_t guards[CONTRACT_LEVELS] = {{0, "fast"}, {0x1234567890abcdefull, "checked"}};
static region_t region;

enum { PAGE_UNITS = PAGE_WORDS * WORD_UNITS, LONGEST = REGION_ROOM };

/* Over a granule of its own, with one page open. */
static char *begin(const guard_t *guard)
{
    uint32_t refused;
    superslab_t *ss = reserve_take(&process_reserve, false, &refused);
    cr_assert(ss != NULL);
    region_init(&region, 0, 0);
    region_attach(&region, ss->base);
    cr_assert(region_open(&region, guard));
    return ss->base;
}

/* Though the page is full but for that, and the hole is one unit short of the longest. */
Test(region, what_an_aligned_block_leaves_out_is_a_hole)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        char *base = begin(&guards[level]);
        cr_assert(support_region_take(&region, 1, 1, &guards[level]) == base);
        for (unsigned unit = LONGEST; unit < PAGE_UNITS; unit += LONGEST)
            cr_assert(support_region_take(&region, LONGEST, LONGEST, &guards[level]) ==
                      base + unit * REGION_UNIT);
        cr_assert(support_region_take(&region, LONGEST - 1, 1, &guards[level]) ==
                  base + REGION_UNIT);
        cr_assert(support_region_take(&region, 1, 1, &guards[level]) == NULL);
    }
}

/* ---- Pages ---- */

/* Of all regions, those that may have been written and are not the heap's own. */
static unsigned touched_pages(hak_heap_t *heap)
{
    unsigned pages = 0;
    FOR_REGIONS(at, heap)
    {
        char *base = load_relaxed(&at->base);
        for (unsigned page = 0; page < GRANULE_PAGES; page++) {
            char *start = base + page * (size_t)HAK_PAGE;
            bool own = page * PAGE_UNITS < at->record_end;
            pages += !own && superslab_is_touched(registry_superslab(start), start);
        }
    }
    return pages;
}

/* Some of each size, the longest first. */
enum { OF_EACH = 8, SOME = REGION_CLASSES * OF_EACH };
static void *blocks[SOME];
static void make_some(hak_heap_t *heap)
{
    for (unsigned i = 0; i < SOME; i++) {
        size_t bytes = size_classes[REGION_CLASSES - 1 - i / OF_EACH].bytes;
        cr_assert((blocks[i] = hak_heap_malloc(heap, bytes)) != NULL);
    }
}
static void free_some(hak_heap_t *heap)
{
    for (unsigned i = 0; i < SOME; i++) hak_heap_free(heap, blocks[i]);
}

/* No trim comes for what a heap used once: its own allocations do, now and then. */
Test(region, api_pages_go_back_while_a_heap_goes_on)
{
    enum { PAIRS = 1000, FEW = 2 };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "breathes");
        make_some(heap);
        unsigned most = touched_pages(heap);
        cr_assert(most > 4 * FEW, "%u pages", most);
        free_some(heap);
        cr_assert(touched_pages(heap) > 2 * FEW);
        for (unsigned i = 0; i < PAIRS; i++) hak_heap_free(heap, hak_heap_malloc(heap, 16));
        cr_assert(touched_pages(heap) <= FEW, "%u of %u pages", touched_pages(heap), most);
        cr_assert(contract_unsound(heap, 0) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

static char *lowest;
static bool purge_behind(void *page, size_t bytes)
{
    cr_assert((char *)page >= lowest && bytes == HAK_PAGE);
    return true;
}

/* Wherever in its pages the record lies. */
Test(region, a_page_with_the_record_never_goes)
{
    for (unsigned first = 0; first < PAGE_UNITS; first += WORD_UNITS / 2) {
        unsigned end = first + WORD_UNITS;
        size_t keep = 0, pages = (end + PAGE_UNITS - 1) / PAGE_UNITS;
        lowest = begin(&guards[0]) + pages * HAK_PAGE;
        region_init(&region, first, end);
        region_attach(&region, lowest - pages * HAK_PAGE);
        while (region_open(&region, &guards[0])) continue;
        cr_assert(region_release(&region, true, &keep, purge_behind) == GRANULE_PAGES - pages);
    }
}

/* ---- Which region ---- */

/* In the first region, where no other hole is as long. */
Test(region, api_a_hole_of_a_full_region_is_found)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "full");
        make_some(heap);
        cr_assert(entry_back(registry_lookup(blocks[0])) == 0 && load_relaxed(&heap->regions) > 2);
        hak_heap_free(heap, blocks[0]);
        void *again = hak_heap_malloc(heap, REGION_BLOCK_MAX);
        cr_assert(again == blocks[0], "%p, not %p", again, blocks[0]);
        free_some(heap);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Which class ---- */

static bool is_in_region(const void *ptr)
{
    return entry_code(registry_lookup(ptr)) == CODE_REGION;
}

/* Classes move to slabs by how many blocks there are, and not by how many there were. */
Test(region, api_what_comes_and_goes_stays)
{
    enum { SHORT = 256, LONG = 512 };
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "comes");
        size_t rounds = 2 * heap->settings.region_bytes / SHORT;
        for (size_t i = 0; i < rounds; i++) {
            void *block = hak_heap_malloc(heap, SHORT);
            cr_assert(block && is_in_region(block), "round %zu", i);
            cr_assert(hak_heap_realloc(heap, block, LONG) == block);
            if (i % 2) cr_assert(hak_heap_realloc(heap, block, SHORT) == block);
            hak_heap_free(heap, block);
        }
        void *block = hak_heap_malloc(heap, LONG);
        cr_assert(block && is_in_region(block));
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A region that was given back is no region by its entry either: its map serves elsewhere. */
Test(region, api_a_region_that_is_gone_is_not_named)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "gone");
        make_some(heap);
        free_some(heap);
        (void)hak_heap_flush(heap);
        unsigned gone = 0;
        for (unsigned i = 0; i < SOME; i++) {
            if (entry_back(registry_lookup(blocks[i])) == 0 && is_in_region(blocks[i])) continue;
            cr_assert(!is_in_region(blocks[i]) && hak_heap_of(blocks[i]) == NULL);
            gone++;
        }
        cr_assert(gone > 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A page that a trim has given back is opened again before another region is taken. */
Test(region, api_the_lowest_page_is_opened_again)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "again");
        make_some(heap);
        uint32_t regions = load_relaxed(&heap->regions);
        cr_assert(regions > 3);
        for (unsigned i = 0; i < SOME; i++) {
            if (entry_back(registry_lookup(blocks[i])) != 1) continue;
            hak_heap_free(heap, blocks[i]);
            blocks[i] = NULL;
        }
        (void)hak_heap_trim(heap, 0);
        unsigned again = 0;
        for (unsigned i = 0; i < SOME; i++) {
            if (blocks[i]) continue;
            cr_assert((blocks[i] = hak_heap_malloc(heap, 1000)) != NULL);
            again += entry_back(registry_lookup(blocks[i])) == 1;
        }
        cr_assert(again > 0 && load_relaxed(&heap->regions) == regions);
        cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* ---- Blocks longer than a hint can say ---- */

/* In the tail of a region that has too little room for the next long block there is room for a
 * shorter one. */
Test(region, api_what_a_long_block_leaves_of_a_region_is_used)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "leaves");
        char *before = NULL, *block = hak_heap_malloc(heap, 3000);
        while (entry_back(registry_lookup(block)) == 0) {
            before = block;
            cr_assert((block = hak_heap_malloc(heap, 3000)) != NULL);
        }
        cr_assert(before != NULL);
        size_t end = GRANULE - (uintptr_t)before % GRANULE - hak_usable_size(before);
        cr_assert(end >= 1024 && end < 3000, "%zu bytes are left", end);
        char *next = hak_heap_malloc(heap, 1000);
        cr_assert(next == before + hak_usable_size(before));
        cr_assert(hak_heap_check(heap) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A class has moved to slabs, and the limit has no room for another one: what was freed in regions
 * is there. */
Test(region, api_what_a_class_has_left_in_regions_serves_it_at_the_limit)
{
    enum { MOST = 1000 };
    for (size_t size = 500; size <= 4000; size += 500)
        for (int level = 0; level < CONTRACT_LEVELS; level++) {
            static void *all[MOST];
            size_t count = 0;
            hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
            config.level = (hak_level_t)level;
            config.committed_limit = 300000;
            hak_heap_t *heap = hak_heap_create(&config);
            while ((all[count] = hak_heap_malloc(heap, size)) != NULL) cr_assert(++count < MOST);
            unsigned in_slab = 0;
            for (size_t i = 0; i < count; i++)
                in_slab += entry_code(registry_lookup(all[i])) < CLASS_COUNT;
            cr_assert(in_slab > 0 && in_slab < count);
            for (size_t i = 0; i < count; i++) {
                hak_heap_free(heap, all[i]);
                cr_assert((all[i] = hak_heap_malloc(heap, size)) != NULL, "%zu: %zu", size, i);
            }
            cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
        }
}
