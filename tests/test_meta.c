/* meta: pages for records. */
#include "meta.h"

#include <criterion/criterion.h>
#include <pthread.h>

#include "hakheap.h"
#include "heap.h"
#include "record.h"
#include "registry.h"
#include "reserve.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_os.h"
#include "support_random.h"

TestSuite(meta, .timeout = 600);

static uint32_t refused;

static char *take(size_t pages)
{
    char *at = meta_take(pages, &refused);
    cr_assert(at != NULL, "refused: %u", refused);
    cr_assert((uintptr_t)at % HAK_PAGE == 0);
    return at;
}

Test(meta, pages_are_registered_as_nobodys_memory)
{
    char *at = take(3);
    for (size_t i = 0; i < 3 * HAK_PAGE; i += 512) {
        entry_t entry = registry_lookup(at + i);
        cr_assert(entry_code(entry) == CODE_META && entry_heap(entry) == NULL);
    }
    cr_assert(registry_superslab(at)->shared);
}

/* Which pages a heap's records have, all but the first. */
static size_t pages_of(const hak_heap_t *heap, const void *out[], size_t most)
{
    size_t count = 0;
    for (const meta_page_t *page = heap->pages; page && count < most; page = page->next)
        out[count++] = page;
    return count;
}

/* A heap that is destroyed gives back every page of its records: the next one gets the same. */
Test(meta, a_destroyed_heap_leaves_no_page)
{
    enum { MOST = 64, HEAPS = 3 };
    const void *pages[HEAPS][MOST];
    size_t count[HEAPS];
    for (int i = 0; i < HEAPS; i++) {
        hak_heap_t *heap = hak_heap_create(NULL);
        cr_assert(heap != NULL);
        for (unsigned cls = 0; cls < hak_size_class_count(); cls++)
            cr_assert(hak_heap_malloc(heap, hak_size_class_bytes(cls)) != NULL);
        count[i] = pages_of(heap, pages[i], MOST);
        cr_assert(count[i] > 1 && count[i] < MOST, "%zu pages of records", count[i]);
        cr_assert(count[i] == count[0]);
        cr_assert(memcmp(pages[i], pages[0], count[0] * sizeof *pages[0]) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* A heap is charged for each page of records, and notes each class that it has one for. */
Test(meta, a_record_is_charged_and_noted)
{
    hak_heap_t *heap = hak_heap_create(NULL);
    cr_assert(heap != NULL);
    const size_t own = load_relaxed(&heap->metadata);
    cr_assert(own % HAK_PAGE == 0 && load_relaxed(&heap->committed) == own + GRANULE);
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        cr_assert(class_bits_next(&heap->made, cls) == CLASS_COUNT, "class %u", cls);
        cr_assert(record_class(heap, cls) != NULL && class_bits_next(&heap->made, cls) == cls);
        size_t pages = 0;
        for (const meta_page_t *page = heap->pages; page; page = page->next) pages += page->pages;
        cr_assert(load_relaxed(&heap->metadata) == own + pages * HAK_PAGE, "class %u", cls);
    }
    cr_assert(heap->pages != NULL, "no page was taken, so nothing is tested");
    cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
}

Test(meta, areas_are_records_of_their_own)
{
    enum { AREAS = 5 };
    hak_heap_t *heap = hak_heap_create(NULL);
    area_t *areas[AREAS];
    cr_assert(heap != NULL);
    lock_acquire(&heap->lock, RANK_HEAP);
    for (unsigned i = 0; i < AREAS; i++) {
        cr_assert((areas[i] = record_take(heap, sizeof **areas, true)) != NULL);
        for (unsigned k = 0; k < i; k++) cr_assert(areas[i] != areas[k], "%u and %u", i, k);
        cr_assert(memcmp(areas[i], &zero_area, sizeof zero_area) == 0, "area %u", i);
        memset(areas[i], 1, sizeof *areas[i]);
    }
    lock_release(&heap->lock, RANK_HEAP);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Pages that were not written since they came from the kernel are not purged again. */
Test(meta, used_pages_are_purged_once)
{
    char *at = take(2);
    memset(at, 5, 2 * HAK_PAGE);
    meta_put(at, 2);
    cr_assert(take(2) == at && at[0] == 5 && at[2 * HAK_PAGE - 1] == 5);
    meta_put(at, 2);
    cr_assert(meta_trim() == 2 * HAK_PAGE);
    cr_assert(meta_trim() == 0);
    cr_assert(take(1) == at && memory_is_zero(at, HAK_PAGE));
}

/* One call for free neighbours, whichever of them were used; pages in use are not in it. */
Test(meta, a_purge_leaves_pages_in_use_alone)
{
    enum { TAKEN = 8 };
    char *at[TAKEN];
    for (int i = 0; i < TAKEN; i++) memset(at[i] = take(1), 1 + i, HAK_PAGE);
    for (int i = 0; i < TAKEN; i++)
        if (i != 3 && i != 4) meta_put(at[i], 1);
    cr_assert(meta_trim() == (TAKEN - 2) * HAK_PAGE);
    for (int i = 0; i < TAKEN; i++)
        cr_assert(i == 3 || i == 4 ? at[i][0] == 1 + i && at[i][HAK_PAGE - 1] == 1 + i
                                   : !memory_is_resident(at[i]),
                  "page %d", i);
}

Test(meta, a_refused_purge_stays_to_be_done)
{
    char *at = take(4);
    memset(at, 6, 4 * HAK_PAGE);
    meta_put(at, 4);
    fake_os_use();
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    cr_assert(meta_trim() == 0);
    fake_os_restore();
    cr_assert(take(1) == at && at[0] == 6);
    meta_put(at, 1);
    cr_assert(meta_trim() == 4 * HAK_PAGE);
}

/* What the kernel refused is not asked for again before twice as much has gathered. */
Test(meta, a_refused_purge_is_not_asked_for_at_every_put)
{
    enum { PAGES = META_TOUCHED + 200 };
    static char *at[PAGES];
    for (size_t i = 0; i < PAGES; i++) memset(at[i] = take(1), 7, HAK_PAGE);
    fake_os_use();
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    for (size_t i = 0; i < PAGES; i++) meta_put(at[i], 1);
    long calls = fake_os_calls(FAKE_PURGE);
    cr_assert(calls > 0 && calls < 100, "%ld calls", calls);
    fake_os_restore();
    cr_assert(meta_trim() >= PAGES * HAK_PAGE);
}

Test(meta, whole_superslabs_and_nothing_larger)
{
    enum { ALL = SUPERSLAB / HAK_PAGE };
    char *small = take(1);
    char *all = take(ALL);
    memset(all, 1, SUPERSLAB);
    cr_assert(registry_superslab(small) != registry_superslab(all));
    cr_assert(meta_take(ALL + 1, &refused) == NULL);
    meta_put(all, ALL);
    char *at = take(1);
    cr_assert(at != small);
}

/* Whatever lies behind it is used: a page that comes back serves again, so that records do not
 * creep onwards. */
Test(meta, the_first_free_page_serves)
{
    static char *taken[400];
    for (unsigned i = 0; i < 400; i++) taken[i] = take(1);
    static const unsigned back[] = {399, 130, 64, 63, 0};
    for (unsigned i = 0; i < 5; i++) {
        meta_put(taken[back[i]], 1);
        cr_assert(take(1) == taken[back[i]], "page %u", back[i]);
    }
    for (unsigned i = 0; i < 5; i++) meta_put(taken[back[i]], 1);
    cr_assert(take(2) == taken[63], "two neighbours");
    cr_assert(take(1) == taken[0] && take(1) == taken[130]);
}

/* ---- Against a shadow ---- */

enum { HELD = 300, MOST = 9 };
typedef struct held {
    char *at;
    size_t pages;
    char stamp;
} held_t;
static held_t held[HELD];

static void give_back(held_t *one)
{
    for (size_t i = 0; i < one->pages * HAK_PAGE; i += 1024)
        cr_assert(one->at[i] == one->stamp, "somebody else had page %zu too", i / HAK_PAGE);
    cr_assert(one->at[one->pages * HAK_PAGE - 1] == one->stamp);
    meta_put(one->at, one->pages);
    one->at = NULL;
}

Test(meta, random_pages_belong_to_one_at_a_time)
{
    randoms_t randoms = {7};
    for (unsigned round = 0; round < 20000; round++) {
        held_t *one = &held[random_below(&randoms, HELD)];
        if (one->at) {
            give_back(one);
        } else {
            one->pages = 1 + (random_below(&randoms, 4) ? 0 : random_below(&randoms, MOST));
            one->at = take(one->pages);
            one->stamp = (char)(1 + random_below(&randoms, 100));
            memset(one->at, one->stamp, one->pages * HAK_PAGE);
        }
        if (round % 4000 == 3999) cr_assert(meta_trim() > 0);
    }
    for (unsigned i = 0; i < HELD; i++)
        if (held[i].at) give_back(&held[i]);
    cr_assert(reserve_stats(&process_reserve).reserved_bytes == HAK_GIB);
}

/* ---- The bound on what is kept ---- */

Test(meta, more_free_pages_than_the_bound_are_purged)
{
    enum { PAGES = META_TOUCHED + 1 };
    static char *taken[PAGES];
    for (unsigned i = 0; i < PAGES; i++) memset(taken[i] = take(1), 1, HAK_PAGE);
    for (unsigned i = 0; i < PAGES - 1; i++) meta_put(taken[i], 1);
    cr_assert(memory_is_resident(taken[0]) && memory_is_resident(taken[PAGES - 2]));
    meta_put(taken[PAGES - 1], 1);
    for (unsigned i = 0; i < PAGES; i++) cr_assert(!memory_is_resident(taken[i]), "page %u", i);
    cr_assert(meta_trim() == 0);
}

/* ---- Where the SuperSlab comes from ---- */

/* A SuperSlab that a heap has used before keeps its content: the pages it soiled are to be purged,
 * and no others counted. */
Test(meta, a_used_superslab_remembers_its_pages)
{
    reserve_set_limit(&process_reserve, SIZE_MAX);
    superslab_t *ss = reserve_take(&process_reserve, false, &refused);
    superslab_set_t set = {0};
    superslab_set_add(&set, ss);
    run_t run = superslab_take(&set, 2, 1);
    memset(superslab_granule(ss, run.first) + HAK_PAGE, 9, HAK_PAGE);
    memset(superslab_granule(ss, run.first) + 6 * HAK_PAGE, 9, HAK_PAGE);
    superslab_put(&set, run, 2, 1u << 1 | 1u << 6);
    superslab_set_remove(&set, ss);
    size_t returned = 0;
    cr_assert(reserve_put(&process_reserve, ss, NULL, true, &returned) && returned == 0);
    cr_assert(reserve_stats(&process_reserve).dirty_superslabs == 1);
    cr_assert(take(1) == ss->base);
    cr_assert(reserve_stats(&process_reserve).dirty_superslabs == 0);
    cr_assert(meta_trim() == 2 * HAK_PAGE);
    cr_assert(!memory_is_resident(ss->base + HAK_PAGE) &&
              !memory_is_resident(ss->base + 6 * HAK_PAGE));
}

/* Its pages are counted until they are taken: a page that comes back then is kept as any other. */
Test(meta, a_used_superslab_is_counted_page_by_page)
{
    reserve_set_limit(&process_reserve, SIZE_MAX);
    superslab_t *ss = reserve_take(&process_reserve, false, &refused);
    superslab_set_t set = {0};
    superslab_set_add(&set, ss);
    run_t run = superslab_take(&set, 2, 1);
    memset(superslab_granule(ss, run.first), 9, 8 * HAK_PAGE);
    superslab_put(&set, run, 2, 0xff);
    superslab_set_remove(&set, ss);
    size_t to_kernel = 0;
    cr_assert(reserve_put(&process_reserve, ss, NULL, true, &to_kernel) && to_kernel == 0);
    char *pages = take(8), *more = take(1);
    cr_assert(pages == ss->base);
    memset(more, 9, HAK_PAGE);
    meta_put(more, 1);
    cr_assert(memory_is_resident(more));
    meta_put(pages, 8);
    cr_assert(meta_trim() == 9 * HAK_PAGE);
}

Test(meta, refusals_are_named_and_pass)
{
    fake_os_use();
    fake_os_refuse(FAKE_RESERVE, 1, FAKE_FOREVER);
    cr_assert(meta_take(1, &refused) == NULL && refused == HAK_ERROR_RESERVE);
    fake_os_allow(FAKE_RESERVE);
    fake_os_refuse(FAKE_COMMIT, 1, 1);
    cr_assert(meta_take(1, &refused) == NULL && refused == HAK_ERROR_COMMIT);
    (void)take(1);
    fake_os_restore();
}

static child_result_t child;

static void put_twice(void *arg)
{
    meta_put(arg, 1);
    meta_put(arg, 1);
}

Test(meta, a_page_put_twice_asserts)
{
    if (!HAK_DEBUG) cr_skip_test("built without asserts");
    child_run(&child, put_twice, take(1));
    cr_assert(child_aborted(&child, "ASSERT", "assert"), "signal %d: %s", child.signal, child.text);
}

/* ---- Threads ---- */

enum { THREADS = 4 };
static _Atomic unsigned clashes;

static void *take_and_put(void *arg)
{
    char stamp = (char)(1 + *(int *)arg);
    for (unsigned i = 0; i < 2000; i++) {
        uint32_t why;
        size_t pages = 1 + i % 3;
        char *at = meta_take(pages, &why);
        if (!at) {
            atomic_fetch_add(&clashes, 1u);
            return NULL;
        }
        memset(at, stamp, pages * HAK_PAGE);
        for (size_t k = 0; k < pages * HAK_PAGE; k += 256)
            if (at[k] != stamp) atomic_fetch_add(&clashes, 1u);
        meta_put(at, pages);
    }
    return NULL;
}

Test(meta, threads_never_share_a_page)
{
    pthread_t threads[THREADS];
    int numbers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        cr_assert(pthread_create(&threads[i], NULL, take_and_put, &numbers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    cr_assert(clashes == 0, "%u clashes", (unsigned)clashes);
}

/* Records of single pages lie between heaps; each heap begins a granule all the same. */
Test(meta, a_heap_begins_a_granule_after_any_record)
{
    enum { HEAPS = 6 };
    hak_heap_t *heaps[HEAPS];
    for (unsigned i = 0; i < HEAPS; i++) {
        heaps[i] = contract_heap((int)i & 1, "begins");
        cr_assert(heaps[i] && (uintptr_t)heaps[i] % GRANULE < HEAP_COLOURS * HAK_LINE);
        size_t records = contract_stats(heaps[i]).metadata_bytes;
        for (unsigned n = 0; n <= i; n++)
            cr_assert(hak_heap_malloc(heaps[i], SMALL_MAX >> n % 4) != NULL);
        cr_assert(contract_stats(heaps[i]).metadata_bytes > records);
    }
    for (unsigned i = 0; i < HEAPS; i++) {
        cr_assert(contract_unsound(heaps[i], i + 1) == 0);
        cr_assert(hak_heap_destroy(heaps[i]) == 0);
    }
}
