/* hakheap level 5: meta - a bitmap of pages for each SuperSlab of records */
#include "meta.h"

#include "os.h"
#include "registry.h"
#include "reserve.h"

enum { PAGES = SUPERSLAB / HAK_PAGE, WORDS = PAGES / 64 };

/* Lives where a SuperSlab's slab descriptors would. lock: META. */
typedef struct meta {
    struct meta *next;
    char *base;
    size_t free_pages;
    size_t hint; /* no word before this one has a free page */
    uint64_t free[WORDS];
    uint64_t touched[WORDS]; /* written since they came from the kernel */
} meta_t;

_Static_assert(sizeof(meta_t) <= SUPERSLAB_GRANULES * DESCRIPTOR_BYTES,
               "it fits where descriptors would be");

static struct {
    hak_lock_t lock; /* rank META; guards all below */
    meta_t *all;
    size_t free_touched;
    size_t again;       /* so many free touched pages are worth another call; see reserve_again */
    reserve_t *reserve; /* const: where its SuperSlabs come from */
} metas = {.reserve = &process_reserve};

static bool get_bit(const uint64_t *bits, size_t i) { return bits[i / 64] >> (i % 64) & 1; }
static void flip_bit(uint64_t *bits, size_t i) { bits[i / 64] ^= 1ull << (i % 64); }

/* As many pages as a granule has, or more, begin where one does. */
static size_t places_of(size_t pages) { return pages < GRANULE_PAGES ? 1 : GRANULE_PAGES; }

/* The first of `pages` free neighbours, or PAGES. */
static size_t find(meta_t *meta, size_t pages)
{
    size_t places = places_of(pages);
    while (meta->hint < WORDS && !meta->free[meta->hint]) meta->hint++;
    size_t have = 0;
    for (size_t i = meta->hint * 64; i < PAGES; i++) {
        if (have == 0 && i % 64 == 0 && !meta->free[i / 64]) {
            i += 63;
            continue;
        }
        bool fits = get_bit(meta->free, i) && (have || i % places == 0);
        have = fits ? have + 1 : 0;
        if (have == pages) return i + 1 - pages;
    }
    return PAGES;
}

static meta_t *grow(uint32_t *refused)
{
    superslab_t *ss = reserve_take(metas.reserve, true, refused);
    if (!ss) return NULL;
    meta_t *meta = (meta_t *)(void *)ss->descriptors;
    *meta = (meta_t){.base = ss->base, .free_pages = PAGES, .next = metas.all};
    memset(meta->free, 0xff, sizeof meta->free);
    for (unsigned page = 0; page < PAGES; page++)
        if (ss->touched[page / GRANULE_PAGES] >> (page % GRANULE_PAGES) & 1)
            flip_bit(meta->touched, page);
    metas.free_touched += ss->free_touched;
    registry_set_run(ss->base, SUPERSLAB_GRANULES, NULL, CODE_META);
    metas.all = meta;
    return meta;
}

void meta_note(char *at, size_t pages)
{
    superslab_t *ss = registry_superslab(at);
    for (char *end = at + pages * HAK_PAGE; at < end; at += HAK_PAGE)
        if (!superslab_is_touched(ss, at)) superslab_touch_one(ss, at);
}

static void *take_from(meta_t *meta, size_t pages)
{
    if (meta->free_pages < pages) return NULL;
    size_t first = find(meta, pages);
    if (first == PAGES) return NULL;
    for (size_t i = first; i < first + pages; i++) {
        flip_bit(meta->free, i);
        if (get_bit(meta->touched, i)) metas.free_touched--;
        else flip_bit(meta->touched, i);
    }
    meta->free_pages -= pages;
    char *at = meta->base + first * HAK_PAGE;
    if (pages < GRANULE_PAGES) meta_note(at, pages);
    /* Granules may have been a heap's cradle before. */
    for (size_t page = 0; page < pages; page += places_of(pages))
        if (entry_code(registry_lookup(at + page * HAK_PAGE)) != CODE_META)
            registry_set_run(at + page * HAK_PAGE, 1, NULL, CODE_META);
    return at;
}

static void *take_held(size_t pages)
{
    void *at = NULL;
    for (meta_t *meta = metas.all; meta && !at; meta = meta->next) at = take_from(meta, pages);
    return at;
}

void *meta_take(size_t pages, uint32_t *refused)
{
    if (pages > PAGES) return NULL;
    lock_acquire(&metas.lock, RANK_META);
    void *at = take_held(pages);
    if (!at) {
        meta_t *meta = grow(refused);
        if (meta) at = take_from(meta, pages);
    }
    lock_release(&metas.lock, RANK_META);
    return at;
}

void *meta_take_now(size_t pages)
{
    if (!lock_try(&metas.lock, RANK_META)) return NULL;
    void *at = take_held(pages);
    lock_release(&metas.lock, RANK_META);
    return at;
}

/* Purges free touched pages, those between two in use in one call. */
static size_t purge(meta_t *meta)
{
    size_t purged = 0;
    for (size_t page = 0, end; page < PAGES; page = end + 1) {
        size_t touched = 0;
        for (end = page; end < PAGES && get_bit(meta->free, end); end++)
            touched += get_bit(meta->touched, end);
        if (!touched ||
            !os_purge_by(metas.reserve->os, meta->base + page * HAK_PAGE, (end - page) * HAK_PAGE))
            continue;
        for (; page < end; page++) {
            char *at = meta->base + page * HAK_PAGE;
            if (get_bit(meta->touched, page)) flip_bit(meta->touched, page);
            superslab_forget_one(registry_superslab(at), at);
        }
        purged += touched;
    }
    metas.free_touched -= purged;
    return purged;
}

static size_t trim_locked(void)
{
    size_t pages = 0;
    for (meta_t *meta = metas.all; meta; meta = meta->next) pages += purge(meta);
    metas.again = reserve_again(metas.free_touched);
    return pages;
}

void meta_put(void *at, size_t pages)
{
    lock_acquire(&metas.lock, RANK_META);
    superslab_t *ss = registry_superslab(at);
    meta_t *meta = (meta_t *)(void *)ss->descriptors;
    size_t first = (size_t)((char *)at - meta->base) / HAK_PAGE;
    for (size_t i = first; i < first + pages; i++) {
        hak_assert(!get_bit(meta->free, i));
        flip_bit(meta->free, i);
    }
    meta->free_pages += pages;
    meta->hint = hak_min(meta->hint, first / 64);
    metas.free_touched += pages;
    if (reserve_is_due(metas.free_touched, META_TOUCHED, metas.again)) trim_locked();
    lock_release(&metas.lock, RANK_META);
}

size_t meta_trim(void)
{
    lock_acquire(&metas.lock, RANK_META);
    size_t pages = trim_locked();
    lock_release(&metas.lock, RANK_META);
    return pages * HAK_PAGE;
}
