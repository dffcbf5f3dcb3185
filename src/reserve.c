/* hakheap level 4: reserve - reservations, the reserve of empty SuperSlabs, the nursery */
#include "reserve.h"

#include "hakheap.h"
#include "os.h"
#include "registry.h"

/* A reservation's records: mapped beside it, never unmapped. */
typedef struct records {
    superslab_t superslab[GIB_SUPERSLABS];
    char descriptors[GIB_SUPERSLABS][SUPERSLAB_GRANULES * DESCRIPTOR_BYTES]
        __attribute__((aligned(HAK_PAGE)));
} records_t;

static struct {
    hak_lock_t lock;  /* rank RESERVE; guards all below */
    char *next, *end; /* the newest reservation's SuperSlabs that nobody has had yet */
    superslab_t *next_record;
    char (*next_descriptors)[SUPERSLAB_GRANULES * DESCRIPTOR_BYTES];
    superslab_t *dirty, *clean; /* lists by `next` */
    superslab_set_t nursery;
    size_t dirty_count, clean_count;
    size_t dirty_pages; /* kept by all that are dirty, those of descriptors too */
    size_t made;        /* SuperSlabs, ever */
    size_t more_dirty;  /* may be, beyond RESERVE_DIRTY */
    size_t reservations, reserved_bytes;
} reserve;

/* 1 GiB, or as much as the system grants: address space may be limited (RLIMIT_AS, cgroups,
 * overcommit mode 2). */
static bool reserve_more(void)
{
    size_t least = 2 * (size_t)SUPERSLAB;
    size_t most = hak_max(os_address_space() / LIMIT_SHARE,
                          least); /* large blocks need some of a limited space, too */
    for (size_t bytes = HAK_GIB; bytes >= least; bytes /= 4) {
        if (bytes > most) continue;
        size_t count = bytes / SUPERSLAB;
        size_t record_bytes =
            offsetof(records_t, descriptors) + count * sizeof(((records_t *)0)->descriptors[0]);
        char *base = os->reserve(bytes, SUPERSLAB);
        if (!base) continue;
        records_t *records = os->map(record_bytes, 0);
        if (records && registry_cover(base, bytes)) {
            reserve.next = base;
            reserve.end = base + bytes;
            reserve.next_record = records->superslab;
            reserve.next_descriptors = records->descriptors;
            reserve.reservations++;
            reserve.reserved_bytes += bytes;
            return true;
        }
        if (records) os->unmap(records, record_bytes);
        os->unmap(base, bytes);
    }
    return false;
}

/* The next SuperSlab that nobody has had yet. */
static superslab_t *fresh_superslab(uint32_t *refused)
{
    if (reserve.next == reserve.end && !reserve_more()) {
        *refused = HAK_ERROR_RESERVE;
        return NULL;
    }
    if (!os->commit(reserve.next, SUPERSLAB)) {
        *refused = HAK_ERROR_COMMIT;
        return NULL;
    }
    superslab_t *ss = reserve.next_record++;
    superslab_init(ss, reserve.next, *reserve.next_descriptors++);
    reserve.next += SUPERSLAB;
    reserve.made++;
    registry_set_superslab(ss->base, ss);
    return ss;
}

/* What a SuperSlab that is not purged keeps: its pages, and those of its descriptors. */
enum {
    DESCRIPTOR_PAGES = SUPERSLAB_GRANULES * DESCRIPTOR_BYTES / HAK_PAGE,
    MOST_PAGES = SUPERSLAB / HAK_PAGE + DESCRIPTOR_PAGES
};
static size_t kept_pages(const superslab_t *ss)
{
    return ss->free_touched + (ss->far ? DESCRIPTOR_PAGES : 1u);
}

/* Takes what a link of the dirty list names off it. */
static superslab_t *unlist_dirty(superslab_t **at)
{
    superslab_t *ss = *at;
    *at = ss->next;
    reserve.dirty_count--;
    reserve.dirty_pages -= kept_pages(ss);
    return ss;
}

static superslab_t *take_locked(bool shared, uint32_t *refused)
{
    superslab_t *ss = NULL;
    if (reserve.dirty) {
        ss = unlist_dirty(&reserve.dirty);
    } else if ((ss = reserve.clean) != NULL) {
        reserve.clean = ss->next;
        reserve.clean_count--;
        size_t in_use = reserve.made - reserve.clean_count;
        if (RESERVE_DIRTY + reserve.more_dirty < in_use / RESERVE_DIRTY_SHARE) reserve.more_dirty++;
    } else if (!(ss = fresh_superslab(refused))) {
        return NULL;
    }
    ss->shared = shared;
    return ss;
}

superslab_t *reserve_take(bool shared, uint32_t *refused)
{
    lock_acquire(&reserve.lock, RANK_RESERVE);
    superslab_t *ss = take_locked(shared, refused);
    lock_release(&reserve.lock, RANK_RESERVE);
    return ss;
}

/* Purges an empty SuperSlab that is in no set, its descriptors too. Returns pages. */
static size_t purge_empty(superslab_t *ss)
{
    superslab_set_t alone = {.free_touched = ss->free_touched};
    size_t pages = superslab_purge(&alone, ss, SIZE_MAX);
    /* Refused: they stay, unused. */
    ss->far = !os_purge(ss->descriptors, DESCRIPTOR_PAGES * (size_t)HAK_PAGE);
    return pages;
}

/* By whether it has pages. */
static void enlist(superslab_t *ss)
{
    superslab_t **head = ss->free_touched ? &reserve.dirty : &reserve.clean;
    ss->next = *head;
    *head = ss;
    if (ss->free_touched) {
        reserve.dirty_count++;
        reserve.dirty_pages += kept_pages(ss);
    } else {
        reserve.clean_count++;
    }
}

static void put_locked(superslab_t *ss)
{
    hak_assert(superslab_is_empty(ss));
    /* A SuperSlab that comes back without touched pages needs no descriptors either. */
    size_t most = (RESERVE_DIRTY + reserve.more_dirty) * MOST_PAGES;
    if (!ss->free_touched || reserve.dirty_pages + kept_pages(ss) > most) purge_empty(ss);
    enlist(ss);
}

bool reserve_put(superslab_t *ss, const void *giver, bool may_wait)
{
    if (!lock_enter(&reserve.lock, RANK_RESERVE, may_wait)) return false;
    ss->giver = giver;
    put_locked(ss);
    lock_release(&reserve.lock, RANK_RESERVE);
    return true;
}

run_t nursery_take(unsigned granules, uint32_t *refused)
{
    lock_acquire(&reserve.lock, RANK_RESERVE);
    run_t run = superslab_take(&reserve.nursery, granules, 1);
    if (!run.ss) {
        superslab_t *ss = take_locked(true, refused);
        if (ss) {
            superslab_set_add(&reserve.nursery, ss);
            run = superslab_take(&reserve.nursery, granules, 1);
        }
    }
    lock_release(&reserve.lock, RANK_RESERVE);
    return run;
}

static size_t purge_nursery(void)
{
    size_t pages = 0;
    for (superslab_t *ss = reserve.nursery.all; ss; ss = ss->set_next) {
        if (ss->free_touched) pages += superslab_purge(&reserve.nursery, ss, SIZE_MAX);
        superslab_purge_far(ss);
    }
    return pages;
}

bool nursery_put(const nursery_run_t *runs, size_t count, bool may_wait)
{
    if (!lock_enter(&reserve.lock, RANK_RESERVE, may_wait)) return false;
    for (const nursery_run_t *at = runs, *end = runs + count; at < end;) {
        /* Neighbours go back as one. */
        run_t run = at->run;
        unsigned granules = 0;
        for (; at < end && at->run.ss == run.ss && at->run.first == run.first + granules; at++) {
            superslab_note(at->run, at->granules, at->pages);
            granules += at->granules;
        }
        superslab_put(&reserve.nursery, run, granules, 0);
        if (!superslab_is_empty(run.ss) || reserve.nursery.empty <= 1) continue;
        superslab_set_remove(&reserve.nursery, run.ss);
        run.ss->giver = &reserve.nursery;
        put_locked(run.ss);
    }
    if (reserve.nursery.free_touched > NURSERY_TOUCHED) purge_nursery();
    lock_release(&reserve.lock, RANK_RESERVE);
    return true;
}

/* Takes what a giver left, or all, off the dirty list. */
static superslab_t *take_dirty_of(const void *giver)
{
    superslab_t *taken = NULL;
    for (superslab_t **at = &reserve.dirty; *at;) {
        if (giver && (*at)->giver != giver) {
            at = &(*at)->next;
            continue;
        }
        superslab_t *ss = unlist_dirty(at);
        ss->next = taken;
        taken = ss;
    }
    return taken;
}

/* Purges without the lock: they are on no list meanwhile, and nobody waits for the kernel. */
size_t reserve_trim(const void *giver)
{
    lock_acquire(&reserve.lock, RANK_RESERVE);
    reserve.more_dirty = 0;
    superslab_t *list = take_dirty_of(giver);
    lock_release(&reserve.lock, RANK_RESERVE);
    size_t pages = 0;
    for (superslab_t *ss; (ss = list) != NULL;) {
        list = ss->next;
        pages += purge_empty(ss);
        lock_acquire(&reserve.lock, RANK_RESERVE);
        enlist(ss);
        lock_release(&reserve.lock, RANK_RESERVE);
    }
    return pages * HAK_PAGE;
}

size_t nursery_trim(void)
{
    lock_acquire(&reserve.lock, RANK_RESERVE);
    size_t pages = purge_nursery();
    lock_release(&reserve.lock, RANK_RESERVE);
    return pages * HAK_PAGE + reserve_trim(&reserve.nursery);
}

reserve_stats_t reserve_stats(void)
{
    lock_acquire(&reserve.lock, RANK_RESERVE);
    reserve_stats_t stats = {
        .reservations = reserve.reservations,
        .reserved_bytes = reserve.reserved_bytes,
        .dirty_superslabs = reserve.dirty_count,
        .clean_superslabs = reserve.clean_count,
        .nursery_superslabs = reserve.nursery.count,
        .nursery_touched_bytes = reserve.nursery.free_touched * HAK_PAGE,
    };
    lock_release(&reserve.lock, RANK_RESERVE);
    return stats;
}
