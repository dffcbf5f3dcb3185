/* slab: on real memory - carving page by page, which slab serves, bins, what is no block of it. */
#include "slab.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>

#include "os.h"
#include "reserve.h"
#include "support_child.h"
#include "support_memory.h"
#include "support_random.h"

TestSuite(slab, .timeout = 600);

static superslab_set_t owned;
static slab_set_t set;
static char heap[64] __attribute__((aligned(64)));

static const guard_t fast = {0, "fast"};
static const guard_t checked = {0x1234567890abcdefull, "checked"};

static slab_t *add_long(unsigned cls, unsigned granules)
{
    run_t run = superslab_take(&owned, granules, 1);
    if (!run.ss) {
        uint32_t refused;
        superslab_t *ss = reserve_take(&process_reserve, false, &refused);
        cr_assert(ss != NULL);
        superslab_set_add(&owned, ss);
        run = superslab_take(&owned, granules, 1);
    }
    registry_set_run(superslab_granule(run.ss, run.first), granules, heap, cls);
    slab_add(&set, run, granules, cls);
    return superslab_descriptor(run.ss, run.first);
}
static slab_t *add(unsigned cls) { return add_long(cls, size_classes[cls].granules); }

static size_t outside_of(const slab_set_t *of) { return of->outside; }
static pages_t slab_pages(const slab_t *slab)
{
    return superslab_touched(slab_run(slab), slab->granules);
}

/* The bins are what the counts of each slab say, and the set's counts their sums. */
static void must_add_up(void)
{
    size_t slabs = 0, outside = 0, carved = 0, pages = 0, granules = 0, all = 0;
    for (unsigned bin = 0; bin < SLAB_BINS; bin++) {
        const slab_t *before = NULL;
        for (const slab_t *slab = set.bin[bin]; slab; before = slab, slab = slab->next) {
            size_t blocks = slab->blocks;
            size_t out = slab_outside(slab);
            unsigned wanted = out == blocks           ? BIN_FULL
                              : out == 0              ? BIN_EMPTY
                              : out * 4 >= blocks * 3 ? BIN_HIGH
                              : out * 2 >= blocks     ? BIN_HALF
                              : out * 4 >= blocks     ? BIN_LOW
                                                      : BIN_SPARSE;
            cr_assert(slab->bin == bin && slab->prev == before);
            cr_assert(bin == wanted, "%zu of %zu outside: bin %u, not %u", out, blocks, bin,
                      wanted);
            cr_assert(slab->carved <= blocks &&
                      chain_count(slab->free) + slab->released_blocks <= slab->carved);
            slabs++;
            outside += out;
            carved += slab_touched(slab);
            pages += slab->pages;
            granules += slab->granules;
            all += blocks;
            cr_assert(slab->pages == __builtin_popcountll(slab_pages(slab)));
        }
    }
    cr_assert(set.slabs == slabs && outside_of(&set) == outside && set.carved == carved);
    cr_assert(set.pages == pages && set.granules == granules && set.blocks == all);
}

/* Takes a chain apart. Returns how many. */
static size_t unchain(chain_t chain, const guard_t *guard, size_t bytes, char *out[], size_t room)
{
    size_t count = 0;
    for (; chain; chain = block_next(chain, guard, "test", bytes)) {
        cr_assert(count < room);
        out[count++] = (char *)chain_block(chain);
    }
    return count;
}

enum { MOST_BLOCKS = 1024 };
static char *blocks[4 * MOST_BLOCKS];

static size_t take(unsigned cls, size_t want, const guard_t *guard, char *out[])
{
    chain_t chain =
        slab_take(&set, cls, &(slab_wanted_t){(uint32_t)want, 2 * (uint32_t)want, 0, 0}, guard);
    size_t count = unchain(chain, guard, size_classes[cls].bytes, out, MOST_BLOCKS);
    cr_assert(count == chain_count(chain));
    return count;
}

static pages_t pages_of_block(const slab_t *slab, const char *block)
{
    size_t first = (size_t)(block - slab->start) / HAK_PAGE;
    size_t last = ((size_t)(block - slab->start) + size_classes[slab->cls].bytes - 1) / HAK_PAGE;
    pages_t pages = 0;
    for (size_t page = first; page <= last; page++) pages |= (pages_t)1 << page;
    return pages;
}

/* ---- Carving ---- */

/* One chain's blocks follow each other upwards and begin in one page. Returns their pages. */
static pages_t chain_must_be_carved(slab_t *slab, size_t count, bool seen[MOST_BLOCKS])
{
    unsigned cls = slab->cls;
    size_t bytes = size_classes[cls].bytes;
    pages_t pages = 0;
    for (size_t i = 0; i < count; i++) {
        size_t offset = (size_t)(blocks[i] - slab->start), at = offset / bytes;
        cr_assert(offset % bytes == 0 && at < size_classes[cls].blocks, "class %u, offset %zu", cls,
                  offset);
        cr_assert(!seen[at], "class %u: block %zu twice", cls, at);
        seen[at] = true;
        cr_assert(i == 0 || blocks[i] == blocks[i - 1] + bytes, "class %u: not upwards", cls);
        /* Of small blocks, four go together: their lines may reach into the next page, where
         * nothing else does. */
        bool first_line = bytes < HAK_LINE && i < 4;
        size_t page = (size_t)(blocks[0] - slab->start) / HAK_PAGE;
        cr_assert(first_line || offset / HAK_PAGE == page, "class %u: a second page", cls);
        cr_assert(slab_has(slab, blocks[i]));
        char *last = blocks[i] + bytes - 1;
        cr_assert(slab_of(registry_lookup(last), last) == slab);
        pages |= pages_of_block(slab, blocks[i]);
    }
    return pages;
}

static void carve_whole_slab(unsigned cls, const guard_t *guard)
{
    slab_t *slab = add(cls);
    size_t all = size_classes[cls].blocks;
    static bool seen[MOST_BLOCKS];
    memset(seen, 0, sizeof seen);
    pages_t pages = 0;
    size_t total = 0;
    cr_assert(slab_pages(slab) == 0, "class %u", cls);
    while (total < all) {
        size_t count = take(cls, 100000, guard, blocks);
        cr_assert(count > 0 && count <= all - total, "class %u: %zu after %zu of %zu", cls, count,
                  total, all);
        pages |= chain_must_be_carved(slab, count, seen);
        total += count;
        cr_assert(slab->carved == total && slab_outside(slab) == total);
        cr_assert(slab_pages(slab) == pages, "class %u, %zu blocks: pages %lx, not %lx", cls, total,
                  (unsigned long)slab_pages(slab), (unsigned long)pages);
    }
    cr_assert(slab->bin == BIN_FULL);
    cr_assert(slab_take(&set, cls, &(slab_wanted_t){1, 2, 0, 0}, guard) == 0,
              "class %u: more blocks than there are", cls);
    must_add_up();
    slab_remove(&set, slab);
    set.outside = 0;
}

Test(slab, carving_gives_every_block_once_for_every_class)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
        carve_whole_slab(cls, cls % 2 ? &fast : &checked);
}

/* Where carving begins differs from slab to slab. */
Test(slab, carving_is_whole_wherever_it_begins)
{
    for (unsigned i = 0; i < 300; i++)
        carve_whole_slab(i % 3 == 0 ? 2 : i % 3 == 1 ? 40 : 56, &fast);
}

static pages_t resident_pages(const slab_t *slab)
{
    pages_t pages = 0;
    for (unsigned page = 0; page < size_classes[slab->cls].granules * GRANULE_PAGES; page++)
        if (memory_is_resident(slab->start + page * HAK_PAGE)) pages |= (pages_t)1 << page;
    return pages;
}

/* Resident memory follows what was taken, page by page. */
Test(slab, pages_are_touched_only_when_wanted)
{
    static const unsigned classes[] = {0, 3, 7, 15, 31, 39, 55};
    for (unsigned i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        slab_t *slab = add(classes[i]);
        cr_assert(resident_pages(slab) == 0);
        size_t all = size_classes[classes[i]].blocks;
        for (size_t total = 0; total < all;) {
            total += take(classes[i], all, &checked, blocks);
            pages_t resident = resident_pages(slab);
            cr_assert((resident & ~slab_pages(slab)) == 0, "class %u: pages %lx beyond %lx",
                      classes[i], (unsigned long)resident, (unsigned long)slab_pages(slab));
            if (total < all && size_classes[classes[i]].bytes <= 1024)
                cr_assert(
                    resident !=
                        (((pages_t)1 << size_classes[classes[i]].granules * GRANULE_PAGES) - 1) ||
                    total * 2 > all);
        }
        slab_remove(&set, slab);
    }
}

Test(slab, one_take_touches_one_page)
{
    static const unsigned classes[] = {0, 1, 3, 7, 15, 31};
    for (unsigned i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        slab_t *slab = add(classes[i]);
        take(classes[i], MOST_BLOCKS, &fast, blocks);
        cr_assert(__builtin_popcountll(resident_pages(slab)) == 1, "class %u", classes[i]);
        slab_remove(&set, slab);
    }
}

/* Of blocks smaller than a cache line a take gets whole lines: what two CPUs hold shares none. What
 * is left over at the end of the slab shares its line with nobody. */
static void carve_lines(unsigned cls, size_t want)
{
    slab_t *slab = add(cls);
    size_t bytes = size_classes[cls].bytes;
    size_t all = size_classes[cls].blocks;
    size_t count, torn = 0, where = 0;
    for (size_t total = 0; total < all; total += count) {
        count = take(cls, want, &fast, blocks);
        size_t first = (size_t)(blocks[0] - slab->start);
        size_t end = first + count * bytes;
        cr_assert(count > 0 && slab->carved == total + count);
        if (first % HAK_LINE == 0 && (end % HAK_LINE == 0 || end == all * bytes)) continue;
        if (!torn++) where = first;
    }
    cr_assert(torn == 0, "%zu bytes, %zu at once: %zu chains tear a line, the first at offset %zu",
              bytes, want, torn, where);
    slab_remove(&set, slab);
}

Test(slab, small_blocks_come_by_whole_lines)
{
    for (unsigned cls = 0; size_classes[cls].bytes < HAK_LINE; cls++)
        for (size_t want = 1; want <= 40; want++) carve_lines(cls, want);
}

Test(slab, a_take_gets_about_what_it_wants)
{
    slab_t *slab = add(7); /* 128 bytes: 32 a page */
    cr_assert(slab_take(&set, 7, &(slab_wanted_t){0, 0, 0, 0}, &fast) == 0);
    size_t first = take(7, 5, &fast, blocks);
    cr_assert(first > 0 && first <= 5);
    cr_assert(slab->carved == first);
    for (unsigned i = 0; i < first; i++) slab_put(&set, slab, blocks[i], &fast);
    cr_assert(take(7, 2, &fast, blocks) == 2);
    cr_assert(slab->carved == first, "freed blocks come before untouched ones");
    must_add_up();
}

/* ---- Which slab serves ---- */

/* Fills a slab's share: the only slab that may serve meanwhile. */
static size_t empty_into(unsigned cls, size_t count, char *out[])
{
    size_t have = 0;
    while (have < count) {
        size_t got = take(cls, count - have, &checked, out + have);
        if (got == 0) break;
        have += got;
    }
    return have;
}

/* ---- Slabs that are shorter than their class's ---- */

/* What a slab of so many granules gives, and takes back, is as many blocks as fit, each of them in
 * its run. */
static void short_slab(unsigned cls, unsigned granules)
{
    const size_class_t *sizes = &size_classes[cls];
    slab_t *slab = add_long(cls, granules);
    size_t room = hak_min(granules * (size_t)GRANULE / sizes->bytes, sizes->blocks), have = 0;
    cr_assert(slab->blocks == room && slab_room(&set) == room, "class %u: %u of %zu blocks", cls,
              slab->blocks, room);
    must_add_up();
    for (size_t got; (got = take(cls, room, &checked, blocks + have)) != 0; have += got)
        must_add_up();
    cr_assert(have == room && slab->bin == BIN_FULL && slab_room(&set) == 0);
    for (size_t i = 0; i < have; i++) {
        cr_assert(blocks[i] >= slab->start &&
                  blocks[i] + sizes->bytes <= slab->start + granules * (size_t)GRANULE);
        cr_assert(slab_has(slab, blocks[i]) &&
                  slab_of(registry_lookup(blocks[i]), blocks[i]) == slab);
        memset(blocks[i], (int)i, sizes->bytes);
    }
    cr_assert(!slab_has(slab, slab->start + room * sizes->bytes), "one more");
    for (size_t i = 0; i < have; i++)
        cr_assert(blocks[i][0] == (char)i && blocks[i][sizes->bytes - 1] == (char)i);
    chain_t chain = 0;
    for (size_t i = 0; i < have; i++) chain = block_push(chain, blocks[i], checked.key);
    slab_t *empty;
    cr_assert(slab_put_chain(&set, chain, SIZE_MAX, cls, &checked, &empty) == 0 && empty == slab);
    must_add_up();
    size_t keep = 0;
    (void)slab_release(&set, slab, &checked, &keep, os->purge);
    must_add_up();
    cr_assert(slab->pages == 0);
    slab_remove(&set, slab);
    must_add_up();
    superslab_put(&owned, slab_run(slab), granules, 0);
}

Test(slab, a_short_one_is_whole)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
        for (unsigned granules = 1; granules <= size_classes[cls].granules; granules++)
            if (granules * (size_t)GRANULE >= size_classes[cls].bytes) short_slab(cls, granules);
}

/* A chain may go from a slab to the one behind it, which is nearer than its class is long. */
Test(slab, short_ones_lie_beside_long_ones)
{
    enum { CLASS = 71 }; /* 32 KiB: two granules a block */
    slab_t *slabs[] = {add_long(CLASS, 4), add_long(CLASS, 2), add_long(CLASS, 4)};
    enum { ALL = 2 + 1 + 2 };
    static const unsigned order[ALL] = {1, 0, 2, 1, 2}; /* of slabs, from the last to the first */
    cr_assert(slabs[1]->start == slabs[0]->start + 4 * GRANULE && set.blocks == ALL);
    cr_assert(empty_into(CLASS, MOST_BLOCKS, blocks) == ALL);
    chain_t chain = 0;
    for (size_t i = 0; i < ALL; i++) {
        const slab_t *slab = slabs[order[i]];
        for (size_t k = 0; k < ALL; k++) {
            if (!blocks[k] || slab_of(registry_lookup(blocks[k]), blocks[k]) != slab) continue;
            chain = block_push(chain, blocks[k], checked.key);
            blocks[k] = NULL;
            break;
        }
    }
    for (size_t k = 0; k < ALL; k++)
        if (blocks[k]) chain = block_push(chain, blocks[k], checked.key);
    slab_t *empty;
    for (size_t left = ALL; chain; left = chain_count(chain)) {
        chain = slab_put_chain(&set, chain, SIZE_MAX, CLASS, &checked, &empty);
        cr_assert(chain_count(chain) < left);
        must_add_up();
    }
    for (size_t i = 0; i < 3; i++)
        cr_assert(slabs[i]->bin == BIN_EMPTY && chain_count(slabs[i]->free) == slabs[i]->blocks);
}

/* To its class's divisor a block begins behind the last one of a short slab. */
static void put_behind_the_last(void *arg)
{
    slab_t *slab = arg, *empty;
    char *behind = slab->start + slab->blocks * (size_t)size_classes[slab->cls].bytes;
    chain_t chain = block_push(0, behind, fast.key);
    (void)slab_put_chain(&set, chain, SIZE_MAX, slab->cls, &fast, &empty);
}
Test(slab, what_lies_behind_a_short_one_is_no_block)
{
    static child_result_t result;
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        size_t bytes = size_classes[cls].bytes;
        unsigned granules = (unsigned)((bytes + GRANULE - 1) / GRANULE);
        if (granules == size_classes[cls].granules || granules * (size_t)GRANULE % bytes == 0)
            continue;
        slab_t *slab = add_long(cls, granules);
        while (slab_take(&set, cls, &(slab_wanted_t){64, 64, 0, 0}, &fast)) {
        }
        cr_assert(slab->bin == BIN_FULL);
        child_run(&result, put_behind_the_last, slab);
        cr_assert(child_aborted(&result, "INTERIOR", "free"), "class %u: %s", cls, result.text);
        set = (slab_set_t){0};
    }
}

/* ---- Bins ---- */

static slab_t *home(const char *block) { return slab_of(registry_lookup(block), block); }

Test(slab, the_fullest_slab_serves_first)
{
    enum { CLASS = 31 }; /* 1024 bytes: 16 a slab, so every share is exact */
    slab_t *slabs[3];
    for (unsigned i = 0; i < 3; i++) slabs[i] = add(CLASS);
    cr_assert(empty_into(CLASS, 48, blocks) == 48);
    cr_assert(set.bin[BIN_FULL] &&
              slab_take(&set, CLASS, &(slab_wanted_t){1, 2, 0, 0}, &checked) == 0);

    /* Sparse, half and high: 2, 8 and 13 outside. */
    static const size_t keep[3] = {2, 8, 13};
    size_t left[3] = {16, 16, 16};
    for (unsigned i = 0; i < 48; i++)
        for (unsigned k = 0; k < 3; k++)
            if (home(blocks[i]) == slabs[k] && left[k] > keep[k]) {
                cr_assert(!slab_put(&set, slabs[k], blocks[i], &checked));
                left[k]--;
            }
    must_add_up();
    cr_assert(slabs[0]->bin == BIN_SPARSE && slabs[1]->bin == BIN_HALF &&
              slabs[2]->bin == BIN_HIGH);

    char *next[MOST_BLOCKS];
    for (unsigned i = 0; i < 3; i++) {
        unsigned from =
            2 - i; /* the fullest that is left; two blocks that are all it has come together */
        for (size_t got = 0; got < 16 - keep[from];) {
            size_t taken = take(CLASS, 1, &checked, next);
            got += taken;
            cr_assert(taken == (got == 16 - keep[from] ? 2 : 1) && home(next[0]) == slabs[from],
                      "slab %u", from);
        }
        cr_assert(slabs[from]->bin == BIN_FULL);
    }
    cr_assert(slab_take(&set, CLASS, &(slab_wanted_t){1, 2, 0, 0}, &checked) == 0);
    must_add_up();
}

Test(slab, a_slab_moves_to_another_set_with_all_that_is_counted)
{
    enum { CLASS = 31 };
    slab_t *stays = add(CLASS), *goes = add(CLASS);
    slab_set_t other = {.slabs = 0};
    cr_assert(empty_into(CLASS, 32, blocks) == 32);
    unsigned put = 0;
    for (unsigned i = 0; i < 32 && put < 11; i++)
        if (home(blocks[i]) == goes) put += !slab_put(&set, goes, blocks[i], &checked);
    cr_assert(put == 11 && goes->bin == BIN_LOW && stays->bin == BIN_FULL);
    cr_assert(slab_find(&set, BIN_HIGH) == goes && slab_find(&set, BIN_LOW) == goes);
    cr_assert(slab_find(&set, BIN_SPARSE) == NULL, "fuller than was asked for");
    slab_move(&set, &other, goes);
    must_add_up();
    cr_assert(set.slabs == 1 && set.outside == 16 && set.carved == 16 &&
              slab_find(&set, BIN_HIGH) == NULL);
    cr_assert(other.slabs == 1 && other.outside == 5 && other.carved == 16 &&
              slab_find(&other, BIN_HIGH) == goes);
    chain_t chain = slab_take(&other, CLASS, &(slab_wanted_t){11, 22, 0, 0}, &checked);
    cr_assert(chain_count(chain) == 11 && other.outside == 16 && goes->bin == BIN_FULL);
    slab_move(&other, &set, goes);
    must_add_up();
    cr_assert(other.slabs == 0 && other.outside == 0 && other.carved == 0 && set.outside == 32);
}

/* ---- Releasing pages ---- */

static unsigned purge_calls;
static bool purge_refuses;

static bool purge_counted(void *at, size_t bytes)
{
    purge_calls++;
    return !purge_refuses && os->purge(at, bytes);
}

static void stamp(char *block, size_t bytes, size_t number)
{
    memset(block, (int)(number % 251 + 1), bytes);
}

/* Takes every block of a fresh slab, puts some back, and says which pages hold one that is still
 * outside. */
static pages_t thin_out(slab_t *slab, unsigned cls, const guard_t *guard, randoms_t *randoms,
                        char *kept[], size_t *count)
{
    size_t bytes = size_classes[cls].bytes, all = 0;
    for (size_t got; (got = take(cls, 100000, guard, &blocks[all])) != 0;) all += got;
    pages_t live = 0;
    unsigned one_in = 1 + random_below(randoms, 12);
    for (size_t i = *count = 0; i < all; i++) {
        stamp(blocks[i], bytes, i);
        if (random_below(randoms, one_in) == 0 || i == 0) {
            live |= pages_of_block(slab, blocks[i]);
            kept[(*count)++] = blocks[i];
        } else {
            slab_put(&set, slab, blocks[i], guard);
        }
    }
    return live;
}

/* A second free is known by the seal or, where that is gone, by the page: also of a block that
 * reaches into a page that is still gone from one that is wanted again. */
static void free_blocks_must_be_known(const slab_t *slab, const bool *outside, const guard_t *guard)
{
    const size_class_t *sizes = &size_classes[slab->cls];
    for (size_t i = 0; i < sizes->blocks; i++) {
        const block_t *block = (const block_t *)(const void *)(slab->start + i * sizes->bytes);
        if (outside[i] || slab_forgot(block)) continue;
        cr_assert(block_is_sealed(block, block_link(block, guard->key), guard->key),
                  "class %u: block %zu is free, and unknown", slab->cls, i);
    }
}

/* Releases the pages that are not `live`, but where the kernel refuses. */
static void release_pages(slab_t *slab, const guard_t *guard, pages_t live)
{
    size_t none = 0;
    pages_t touched = slab_pages(slab), gone = touched & ~live;
    purge_refuses = true;
    cr_assert(slab_release(&set, slab, guard, &none, purge_counted) == 0 &&
                  slab_pages(slab) == touched,
              "refused");
    purge_refuses = false;
    purge_calls = 0;
    size_t pages = slab_release(&set, slab, guard, &none, purge_counted);
    cr_assert(pages == (size_t)__builtin_popcountll(gone), "class %u: %zu pages", slab->cls, pages);
    cr_assert(slab_pages(slab) == live && (resident_pages(slab) & ~live) == 0, "class %u",
              slab->cls);
    cr_assert(purge_calls == (unsigned)__builtin_popcountll(gone & ~(gone << 1)),
              "a call for each run of pages");
    cr_assert(slab_release(&set, slab, guard, &none, purge_counted) == 0, "nothing twice");
}

/* Everything can be taken again, once, and touches pages one after another. */
static void take_all_again(slab_t *slab, const guard_t *guard, char *const *kept, size_t count)
{
    unsigned cls = slab->cls;
    size_t bytes = size_classes[cls].bytes;
    static bool seen[MOST_BLOCKS];
    memset(seen, 0, sizeof seen);
    for (size_t i = 0; i < count; i++) seen[(size_t)(kept[i] - slab->start) / bytes] = true;
    char *next[MOST_BLOCKS];
    size_t total = count;
    for (size_t got; (got = take(cls, 3, guard, next)) != 0; total += got) {
        for (size_t i = 0; i < got; i++) {
            size_t at = (size_t)(next[i] - slab->start) / bytes;
            cr_assert(!seen[at] && slab_has(slab, next[i]), "class %u: block %zu twice", cls, at);
            seen[at] = true;
            stamp(next[i], bytes, at);
            cr_assert((pages_of_block(slab, next[i]) & ~slab_pages(slab)) == 0,
                      "handed out, and said to be untouched");
        }
        if (guard->key) free_blocks_must_be_known(slab, seen, guard);
    }
    cr_assert(total == size_classes[cls].blocks && !slab_has_released(slab));
}

static void release_and_take_again(unsigned cls, const guard_t *guard, randoms_t *randoms)
{
    static char *kept[MOST_BLOCKS];
    size_t bytes = size_classes[cls].bytes, count;
    slab_t *slab = add(cls);
    pages_t live = thin_out(slab, cls, guard, randoms, kept, &count);
    release_pages(slab, guard, live);
    cr_assert(slab_outside(slab) == count);
    must_add_up();
    for (size_t i = 0; i < count; i++) {
        cr_assert(slab_has(slab, kept[i]) && kept[i][0] == kept[i][bytes - 1] && kept[i][0],
                  "content was lost");
    }
    take_all_again(slab, guard, kept, count);
    must_add_up();
    slab_remove(&set, slab);
    set.outside = 0;
}

Test(slab, pages_without_a_block_outside_are_released_and_come_back)
{
    randoms_t randoms = {7};
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
        for (unsigned round = 0; round < 6; round++)
            release_and_take_again(cls, round % 2 ? &fast : &checked, &randoms);
}

/* The kernel purges up to a page that the program has locked, and then says that it did not. */
static bool purge_halfway(void *at, size_t bytes)
{
    if (bytes > HAK_PAGE) (void)os->purge(at, bytes / HAK_PAGE / 2 * HAK_PAGE);
    return false;
}

static bool purge_first_page(void *at, size_t bytes)
{
    (void)bytes;
    return os->purge(at, HAK_PAGE) && false;
}

Test(slab, a_purge_that_fails_halfway_loses_no_block)
{
    static const unsigned classes[] = {0, 3, 15, 31, 40};
    for (size_t at = 0; at < 4 * sizeof classes / sizeof classes[0]; at++) {
        unsigned cls = classes[at / 4];
        const guard_t *guard = at % 2 ? &fast : &checked;
        slab_t *slab = add(cls);
        size_t bytes = size_classes[cls].bytes, all = 0, none = 0;
        for (size_t got; (got = take(cls, 100000, guard, &blocks[all])) != 0;) all += got;
        for (size_t i = 0; i < all; i++) stamp(blocks[i], bytes, i);
        for (size_t i = 0; i < all; i++)
            if (i != all / 2) slab_put(&set, slab, blocks[i], guard);
        cr_assert(slab_release(&set, slab, guard, &none,
                               at % 4 < 2 ? purge_halfway : purge_first_page) == 0);
        cr_assert(slab_outside(slab) == 1 && !slab_has_released(slab));
        must_add_up();
        cr_assert(blocks[all / 2][0] == blocks[all / 2][bytes - 1] && blocks[all / 2][0],
                  "content was lost");
        size_t again = 0;
        for (size_t got; (got = take(cls, 100000, guard, &blocks[again])) != 0;) again += got;
        cr_assert(again == all - 1, "class %u: %zu blocks of %zu", cls, again, all - 1);
        must_add_up();
        slab_remove(&set, slab);
        set.outside = 0;
    }
}

static bool purge_two_pages(void *at, size_t bytes)
{
    return os->purge(at, hak_min(bytes, 2 * HAK_PAGE)) && false;
}

/* So does a block whose beginning lies there, and whose end is gone already: its second free stays
 * known. */
Test(slab, a_purge_that_fails_halfway_loses_no_seal)
{
    enum { BYTES = 7168 };
    unsigned cls = sizeclass_of(BYTES);
    slab_t *slab = add(cls);
    size_t all = 0, keep = 1;
    for (size_t got; (got = take(cls, 100, &checked, &blocks[all])) != 0;) all += got;
    cr_assert(all == size_classes[cls].blocks && all > 3);
    char *block = slab->start + BYTES;
    slab_put(&set, slab, block, &checked);
    slab_put(&set, slab, block + BYTES, &checked);
    cr_assert(slab_release(&set, slab, &checked, &keep, os->purge) == 2 && slab_has_released(slab));
    slab_put(&set, slab, slab->start, &checked);
    cr_assert(slab_release(&set, slab, &checked, &keep, purge_two_pages) == 0);
    cr_assert(memory_is_zero(slab->start + HAK_PAGE, BYTES - HAK_PAGE),
              "the page of its beginning was emptied");
    cr_assert(!slab_forgot(block) && !slab_has(slab, block));
    const block_t *words = (const block_t *)(const void *)block;
    cr_assert(block_is_sealed(words, block_link(words, checked.key), checked.key));
    must_add_up();
}

Test(slab, as_many_pages_stay_as_may)
{
    enum { CLASS = 15 }; /* 256 bytes: 16 a page, 64 a slab */
    slab_t *slab = add(CLASS);
    size_t all = empty_into(CLASS, 64, blocks), keep = 2;
    cr_assert(all == 64);
    for (size_t i = 0; i < 64; i++)
        if (i) slab_put(&set, slab, blocks[i], &fast);
    cr_assert(slab_release(&set, slab, &fast, &keep, os->purge) == 1 && keep == 0);
    keep = 5;
    cr_assert(slab_release(&set, slab, &fast, &keep, os->purge) == 0 && keep == 3);
    must_add_up();
}

/* What was written before the run became this slab is given back with it, once. */
Test(slab, pages_of_an_earlier_life_go_too)
{
    enum { CLASS = 15 }; /* 256 bytes: 16 a page, 4 pages a slab */
    slab_t *slab = add(CLASS);
    for (size_t page = 0; page < GRANULE_PAGES; page++) slab->start[page * HAK_PAGE + 100] = 1;
    run_t run = slab_run(slab);
    slab_remove(&set, slab);
    superslab_note(run, size_classes[CLASS].granules, PAGES_ALL);
    slab = slab_add(&set, run, size_classes[CLASS].granules, CLASS);
    cr_assert(take(CLASS, 1, &fast, blocks) == 1);
    pages_t live = pages_of_block(slab, blocks[0]);
    size_t keep = 0, pages = GRANULE_PAGES - (size_t)__builtin_popcountll(live);
    cr_assert(slab_release(&set, slab, &fast, &keep, os->purge) == pages);
    for (size_t page = 0; page < GRANULE_PAGES; page++)
        cr_assert(live >> page & 1 || !memory_is_resident(slab->start + page * HAK_PAGE),
                  "page %zu", page);
    cr_assert(slab_release(&set, slab, &fast, &keep, os->purge) == 0);
    size_t all = 1;
    for (size_t got; (got = take(CLASS, 64, &fast, &blocks[all])) != 0;) all += got;
    cr_assert(all == size_classes[CLASS].blocks);
    must_add_up();
}

/* One take goes on with the next slab where the freed blocks of the first are too few. */
Test(slab, a_take_gathers_from_several_slabs)
{
    enum { CLASS = 31 };
    slab_t *a = add(CLASS), *b = add(CLASS);
    cr_assert(empty_into(CLASS, 32, blocks) == 32);
    unsigned of_a = 0, of_b = 0;
    for (unsigned i = 0; i < 32; i++) {
        if (home(blocks[i]) == a && of_a < 3) of_a += !slab_put(&set, a, blocks[i], &checked);
        else if (home(blocks[i]) == b && of_b < 5) of_b += !slab_put(&set, b, blocks[i], &checked);
    }
    char *next[MOST_BLOCKS];
    cr_assert(take(CLASS, 14, &checked, next) == 8);
    unsigned from_a = 0;
    for (unsigned i = 0; i < 8; i++) from_a += home(next[i]) == a;
    cr_assert(from_a == 3, "%u of 8", from_a);
    must_add_up();
    cr_assert(take(CLASS, 7, &checked, next) == 0);
}

/* A freelist is not split that has up to twice what is wanted, and a quarter of it is enough. */
Test(slab, a_freelist_goes_whole)
{
    enum { CLASS = 31 };
    static const struct {
        unsigned listed, want, got;
    } cases[] = {{8, 4, 8}, {9, 4, 4}, {2, 8, 2}, {1, 1, 1}, {16, 8, 16}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        slab_t *slab = add(CLASS);
        cr_assert(empty_into(CLASS, 16, blocks) == 16);
        for (unsigned i = 0; i < cases[c].listed; i++)
            (void)slab_put(&set, slab, blocks[i], &checked);
        char *next[MOST_BLOCKS];
        size_t got = take(CLASS, cases[c].want, &checked, next);
        cr_assert(got == cases[c].got, "%zu of %u, %u wanted", got, cases[c].listed, cases[c].want);
        must_add_up();
        while (take(CLASS, 16, &checked, next)) {
        }
    }
}

Test(slab, of_two_alike_the_lower_address_serves)
{
    enum { CLASS = 31 };
    slab_t *low = add(CLASS), *high = add(CLASS);
    cr_assert(low < high);
    cr_assert(empty_into(CLASS, 32, blocks) == 32);
    for (unsigned order = 0; order < 2; order++) {
        char *one[2] = {NULL, NULL};
        for (unsigned i = 0; i < 32; i++) one[home(blocks[i]) == high] = blocks[i];
        slab_put(&set, order ? high : low, one[order], &checked);
        slab_put(&set, order ? low : high, one[!order], &checked);
        char *next[MOST_BLOCKS];
        cr_assert(take(CLASS, 1, &checked, next) == 1 && home(next[0]) == low, "order %u", order);
        cr_assert(take(CLASS, 1, &checked, next) == 1 && home(next[0]) == high, "order %u", order);
    }
}

/* ---- Full, empty, spare ---- */

Test(slab, the_last_block_back_makes_a_slab_empty)
{
    enum { CLASS = 20 };
    slab_t *slab = add(CLASS);
    cr_assert(slab_empty(&set) == slab && slab->bin == BIN_EMPTY);
    size_t all = size_classes[CLASS].blocks;
    cr_assert(empty_into(CLASS, all, blocks) == all);
    cr_assert(slab_empty(&set) == NULL && slab->bin == BIN_FULL);
    for (size_t i = 0; i < all; i++) {
        cr_assert(slab_put(&set, slab, blocks[i], &checked) == (i + 1 == all), "block %zu", i);
        must_add_up();
    }
    cr_assert(slab_empty(&set) == slab && outside_of(&set) == 0 && set.carved == all);
    cr_assert(slab_pages(slab) == pages_of_block(slab, slab->start) || slab_pages(slab) != 0);

    run_t run = slab_run(slab);
    cr_assert(superslab_granule(run.ss, run.first) == slab->start);
    slab_remove(&set, slab);
    cr_assert(set.slabs == 0 && set.carved == 0 && slab_empty(&set) == NULL);
    cr_assert(slab_take(&set, CLASS, &(slab_wanted_t){1, 2, 0, 0}, &checked) == 0);
    slab_restore(&set, slab);
    cr_assert(set.slabs == 1 && set.carved == all && slab_empty(&set) == slab);
    must_add_up();
    cr_assert(empty_into(CLASS, all, blocks) == all);
    must_add_up();
}

Test(slab, an_empty_slab_is_spare_where_another_could_serve)
{
    enum { CLASS = 31 };
    slab_t *slab = add(CLASS);
    cr_assert(!slab_is_spare(&set, slab), "the only one");
    slab_t *other = add(CLASS);
    cr_assert(slab_is_spare(&set, slab) && slab_is_spare(&set, other), "two empty ones");
    cr_assert(empty_into(CLASS, 16, blocks) == 16);
    slab_t *full = home(blocks[0]);
    slab_t *empty = full == slab ? other : slab;
    cr_assert(full->bin == BIN_FULL && !slab_is_spare(&set, empty), "the other one is full");
    slab_put(&set, full, blocks[3], &checked);
    cr_assert(slab_is_spare(&set, empty), "the other one has a block");
}

/* ---- What is no block ---- */

Test(slab, only_what_was_carved_is_had)
{
    enum { CLASS = 12 }; /* 208 bytes: something is left over at the end */
    slab_t *slab = add(CLASS);
    size_t bytes = size_classes[CLASS].bytes;
    size_t all = size_classes[CLASS].blocks;
    bool out[MOST_BLOCKS] = {false};
    for (size_t total = 0;; total += take(CLASS, 3, &fast, blocks + total)) {
        for (size_t i = 0; i < total; i++) out[(size_t)(blocks[i] - slab->start) / bytes] = true;
        for (size_t i = 0; i < all; i++) {
            const char *block = slab->start + i * bytes;
            cr_assert(slab_has(slab, block) == out[i], "%zu carved, block %zu", total, i);
            cr_assert(!slab_has(slab, block + 16) && !slab_has(slab, block + bytes - 16));
        }
        cr_assert(!slab_has(slab, slab->start + all * bytes), "behind the last block");
        cr_assert(!slab_has(slab, slab->start - bytes) &&
                  !slab_has(slab, slab->start + size_classes[CLASS].granules * GRANULE));
        if (total == all) break;
    }
}

static child_result_t child;
static slab_t *victim;
static const guard_t *guard_of_victim;

static void put_victim(void *arg) { slab_put(&set, victim, arg, guard_of_victim); }

static void must_abort(void *ptr, const char *code)
{
    guard_of_victim = &checked;
    child_run(&child, put_victim, ptr);
    cr_assert(child_aborted(&child, code, "free"), "signal %d, status %d: %s", child.signal,
              child.status, child.text);
    char wanted[64];
    snprintf(wanted, sizeof wanted,
             "ptr=0x%zx heap=\"checked\" class=128: ", (size_t)(uintptr_t)ptr);
    cr_assert(strstr(child.text, wanted), "%s", child.text);
    guard_of_victim = &fast;
    child_run(&child, put_victim, ptr);
    cr_assert(child_aborted(&child, code, "free"), "a FAST heap: signal %d: %s", child.signal,
              child.text);
}

Test(slab, what_is_no_block_aborts)
{
    victim = add(7);
    size_t count = take(7, 8, &checked, blocks);
    cr_assert(count > 1);
    must_abort(blocks[0] + 16, "INTERIOR");
    must_abort(blocks[0] + 64, "INTERIOR");
    must_abort(blocks[count - 1] + 128, "INTERIOR");
    must_abort(victim->start - 128, "INTERIOR");
    must_abort(victim->start + GRANULE, "INTERIOR");
}

Test(slab, more_blocks_back_than_went_out_aborts)
{
    victim = add(7);
    size_t count = take(7, 8, &checked, blocks);
    for (size_t i = 0; i < count; i++) slab_put(&set, victim, blocks[i], &checked);
    must_abort(blocks[0], "DOUBLE_FREE");
    must_abort(blocks[count - 1], "DOUBLE_FREE");
}

Test(slab, a_double_put_ends_the_process, .signal = SIGABRT)
{
    slab_t *slab = add(7);
    size_t count = take(7, 4, &checked, blocks);
    for (size_t i = 0; i < count; i++) slab_put(&set, slab, blocks[i], &checked);
    slab_put(&set, slab, blocks[0], &checked);
}

static void take_damaged(void *arg)
{
    (void)arg;
    (void)slab_take(&set, 7, &(slab_wanted_t){2, 4, 0, 0}, &checked);
}

Test(slab, a_freed_block_that_was_written_to_aborts)
{
    slab_t *slab = add(7);
    size_t count = empty_into(7, 12, blocks);
    for (size_t i = 0; i + 1 < count; i++) slab_put(&set, slab, blocks[i], &checked);
    blocks[count - 2][9] ^= 1;
    child_run(&child, take_damaged, NULL);
    cr_assert(child_aborted(&child, "CORRUPT", "malloc"), "signal %d: %s", child.signal,
              child.text);
    blocks[count - 2][9] ^= 1;
    child_run(&child, take_damaged, NULL);
    cr_assert(child.status == 0, "%s", child.text);
}

/* ---- Against a shadow ---- */

static void random_blocks(unsigned cls, const guard_t *guard, uint64_t seed)
{
    enum { ROUNDS = 3000 };
    size_t all = size_classes[cls].blocks;
    static char *held[4 * MOST_BLOCKS];
    size_t count = 0;
    unsigned char stamp = (unsigned char)(cls + 1);
    randoms_t randoms = {seed};
    for (unsigned i = 0; i < 3; i++) add(cls);
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (random_below(&randoms, 2)) {
            size_t got = take(cls, 1 + random_below(&randoms, 20), guard, held + count);
            cr_assert(got > 0 || count == 3 * all, "nothing although only %zu of %zu are out",
                      count, 3 * all);
            for (size_t i = count; i < count + got; i++) {
                cr_assert((unsigned char)held[i][15] != stamp, "a block that is out already");
                memset(held[i], stamp, 16);
            }
            count += got;
        } else {
            for (unsigned some = random_below(&randoms, 24); some && count; some--) {
                size_t at = random_next(&randoms) % count;
                char *block = held[at];
                cr_assert((unsigned char)block[0] == stamp && (unsigned char)block[15] == stamp);
                held[at] = held[--count];
                memset(block, 0, 16);
                slab_put(&set, home(block), block, guard);
            }
        }
        cr_assert(outside_of(&set) == count);
        if (round % 32 == 0) must_add_up();
    }
    while (count) {
        memset(held[--count], 0, 16);
        slab_put(&set, home(held[count]), held[count], guard);
    }
    must_add_up();
    for (slab_t *slab; (slab = slab_empty(&set)) != NULL;) slab_remove(&set, slab);
    cr_assert(set.slabs == 0 && set.carved == 0 && outside_of(&set) == 0);
}

/* ---- Chains ---- */

/* A chain of these blocks, the first of them on top. */
static chain_t chain_of(char *const some[], size_t count, const guard_t *guard)
{
    chain_t chain = 0;
    while (count-- > 0) chain = block_push(chain, some[count], guard->key);
    return chain;
}

/* A freelist as long as it says, all of it the slab's. */
static void must_be_listed(const slab_t *slab, size_t count, const guard_t *guard)
{
    cr_assert(chain_count(slab->free) == count);
    chain_t chain = slab->free;
    for (size_t left = count; left; left--) {
        cr_assert(chain_count(chain) == left, "the count of a link is not what follows");
        cr_assert(slab_has(slab, chain_block(chain)));
        chain = block_next(chain, guard, "test", size_classes[slab->cls].bytes);
    }
    cr_assert(chain == 0);
}

/* All of a slab in one chain: it passes every bin on its way to the empty one. */
static void put_whole_slab(unsigned cls, const guard_t *guard)
{
    slab_t *slab = add(cls), *empty = NULL;
    size_t all = empty_into(cls, size_classes[cls].blocks, blocks);
    cr_assert(all == size_classes[cls].blocks && slab->bin == BIN_FULL);
    chain_t chain = chain_of(blocks, all, guard);
    size_t some = all / 3;
    chain = slab_put_chain(&set, chain, some, cls, guard, &empty);
    cr_assert(chain_count(chain) == all - some && !empty && outside_of(&set) == all - some);
    must_be_listed(slab, some, guard);
    must_add_up();
    chain = slab_put_chain(&set, chain, SIZE_MAX, cls, guard, &empty);
    cr_assert(chain == 0 && empty == slab && slab->bin == BIN_EMPTY && outside_of(&set) == 0);
    must_be_listed(slab, all, guard);
    must_add_up();
    slab_remove(&set, slab);
}

Test(slab, a_chain_of_one_slab_goes_back_at_once)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
        put_whole_slab(cls, cls % 2 ? &checked : &fast);
}

/* Blocks of two slabs in turn, and a part of one that is not carved to its end. */
static void put_two_slabs(unsigned cls, const guard_t *guard)
{
    slab_t *pair[2] = {add(cls), add(cls)}, *empty = NULL;
    size_t all = size_classes[cls].blocks, last[2] = {0, 0}, count = 0;
    size_t have = empty_into(cls, 2 * all, blocks);
    char *of[2][MOST_BLOCKS], *mixed[2 * MOST_BLOCKS];
    for (size_t i = 0; i < have; i++) {
        unsigned side = home(blocks[i]) == pair[1];
        of[side][last[side]++] = blocks[i];
    }
    cr_assert(last[0] == all && last[1] == all);
    for (size_t i = 0; i < all; i++)
        for (unsigned side = 0; side < 2; side++) mixed[count++] = of[side][i];
    chain_t chain = chain_of(mixed, count, guard);
    chain = slab_put_chain(&set, chain, all + 1, cls, guard, &empty);
    cr_assert(chain_count(chain) == all - 1 && !empty && outside_of(&set) == all - 1);
    must_add_up();
    chain = slab_put_chain(&set, chain, SIZE_MAX, cls, guard, &empty);
    cr_assert(empty == home(mixed[count - 2]) && chain_count(chain) == 1,
              "it stops at an empty one");
    chain = slab_put_chain(&set, chain, SIZE_MAX, cls, guard, &empty);
    cr_assert(chain == 0 && empty == home(mixed[count - 1]) && outside_of(&set) == 0);
    for (unsigned side = 0; side < 2; side++) must_be_listed(pair[side], all, guard);
    must_add_up();
    for (unsigned side = 0; side < 2; side++) slab_remove(&set, pair[side]);
}

Test(slab, a_chain_of_two_slabs_in_turn_goes_back)
{
    static const unsigned classes[] = {0, 2, 3, 15, 31, 44, 71};
    for (unsigned i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        put_two_slabs(classes[i], &fast);
        put_two_slabs(classes[i], &checked);
    }
}

/* The slabs of another home are another set's: they are left for the caller to find. */
Test(slab, a_chain_stops_at_another_home)
{
    enum { CLASS = 31 };
    slab_t *here = add(CLASS), *there = add(CLASS), *empty;
    cr_assert(empty_into(CLASS, 32, blocks) == 32);
    there->home = 1;
    char *mixed[4];
    size_t mine = 0, others = 2;
    for (size_t i = 0; i < 32; i++) {
        if (home(blocks[i]) == here && mine < 2) mixed[mine++] = blocks[i];
        if (home(blocks[i]) == there && others < 4) mixed[others++] = blocks[i];
    }
    chain_t chain = slab_put_chain(&set, chain_of(mixed, 4, &checked), 4, CLASS, &checked, &empty);
    cr_assert(chain_count(chain) == 2 && (char *)chain_block(chain) == mixed[2] && !empty);
    cr_assert(chain_count(here->free) == 2 && there->free == 0 && outside_of(&set) == 30);
}

static chain_t broken;
static void put_broken(void *arg)
{
    /* An empty slab goes away: what is left of the chain is not looked at in it. */
    slab_t *empty = NULL;
    while (broken && !empty) broken = slab_put_chain(&set, broken, SIZE_MAX, 7, arg, &empty);
}

static void chain_must_abort(const guard_t *guard, const char *code, const char *ptr)
{
    char wanted[32];
    snprintf(wanted, sizeof wanted, "ptr=0x%zx ", (size_t)(uintptr_t)ptr);
    child_run(&child, put_broken, (void *)(uintptr_t)guard);
    cr_assert(child_aborted(&child, code, "free"), "signal %d: %s", child.signal, child.text);
    cr_assert(strstr(child.text, wanted), "%s, not %s", child.text, wanted);
}

/* In the middle of a run: what is no block, in a slab that is carved to its end and in one that is
 * not; a block more than the slab has outside; and a block that was written to. */
Test(slab, each_block_of_a_chain_is_proved)
{
    const guard_t *guards[] = {&fast, &checked};
    for (unsigned i = 0; i < 4; i++) {
        const guard_t *guard = guards[i % 2];
        slab_t *slab = add(7);
        size_t all = size_classes[7].blocks, count = empty_into(7, i < 2 ? all : 8, blocks);
        char *inside = blocks[3] + 16, *some[4] = {blocks[1], blocks[2], inside, blocks[4]};
        broken = chain_of(some, 4, guard);
        chain_must_abort(guard, "INTERIOR", inside);
        (void)block_push(0, blocks[3], guard->key);
        char *twice = blocks[0];
        broken = chain_of(&blocks[1], count - 1, guard);
        broken = slab_put_chain(&set, broken, SIZE_MAX, 7, guard, &(slab_t *){NULL});
        cr_assert(broken == 0 && slab_outside(slab) == 1);
        /* Two blocks come back, and one is outside. */
        some[0] = blocks[1], some[1] = twice;
        broken = chain_of(some, 2, guard);
        chain_must_abort(guard, "DOUBLE_FREE", twice);
        (void)slab_put_chain(&set, chain_of(&twice, 1, guard), 1, 7, guard, &(slab_t *){NULL});
        cr_assert(slab_outside(slab) == 0);
        broken = chain_of(&twice, 1, guard);
        chain_must_abort(guard, "DOUBLE_FREE", twice);
        slab_remove(&set, slab);
        set.outside = 0;
    }
    slab_t *slab = add(7);
    cr_assert(empty_into(7, 8, blocks) == 8 && slab->bin != BIN_EMPTY);
    broken = chain_of(blocks, 8, &checked);
    blocks[5][0] ^= 1;
    chain_must_abort(&checked, "CORRUPT", blocks[5]);
}

/* ---- Carving ahead ---- */

/* What a class will want soon is carved over pages and slabs, and nothing beyond what is wanted. */
Test(slab, a_growing_class_carves_ahead)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        const guard_t *guard = cls % 2 ? &checked : &fast;
        slab_t *pair[2] = {add(cls), add(cls)};
        uint32_t all = size_classes[cls].blocks, want = all + all / 2;
        chain_t chain = slab_take(&set, cls, &(slab_wanted_t){want, want, want, 0}, guard);
        size_t count = unchain(chain, guard, size_classes[cls].bytes, blocks, 4 * MOST_BLOCKS);
        cr_assert(count == chain_count(chain) && count >= want && count < want + 4,
                  "class %u: %zu, not %u", cls, count, want);
        cr_assert(outside_of(&set) == count &&
                  (pair[0]->bin == BIN_FULL || pair[1]->bin == BIN_FULL));
        must_add_up();
        for (unsigned side = 0; side < 2; side++) slab_remove(&set, pair[side]);
        set.outside = 0;
    }
}

/* So much ahead, and no more: the pages behind it stay untouched. */
Test(slab, carving_ahead_stops_where_it_may)
{
    enum { CLASS = 47 }; /* 4096 bytes: a block a page */
    slab_t *slab = add(CLASS);
    cr_assert(size_classes[CLASS].bytes == HAK_PAGE);
    chain_t chain = slab_take(&set, CLASS, &(slab_wanted_t){8, 8, 0, 0}, &fast);
    cr_assert(chain_count(chain) == 1 && slab->pages == 1);
    chain = slab_take(&set, CLASS, &(slab_wanted_t){8, 8, 3, 0}, &fast);
    cr_assert(chain_count(chain) == 3 && slab->pages == 4, "%zu", chain_count(chain));
    must_add_up();
    /* Upwards, but where it begins again at the slab's first block. */
    size_t count = unchain(chain, &fast, HAK_PAGE, blocks, 3), down = 0;
    for (size_t i = 1; i < count; i++) down += blocks[i] != blocks[i - 1] + HAK_PAGE;
    cr_assert(down <= (slab->origin + 4 > size_classes[CLASS].blocks), "%zu steps down", down);
}

Test(slab, random_takes_and_puts)
{
    static const unsigned classes[] = {0, 2, 9, 31, 44, 71};
    for (unsigned i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        random_blocks(classes[i], &checked, i);
        random_blocks(classes[i], &fast, i + 100);
    }
}

/* ---- Places that were never handed out ---- */

static void carve_all(void *arg)
{
    (void)arg;
    while (slab_take(&set, 7, &(slab_wanted_t){32, 64, 0, 0}, &checked)) {
    }
}

static void carve_all_at_once(void *arg)
{
    uint32_t all = size_classes[7].blocks;
    (void)arg;
    while (slab_take(&set, 7, &(slab_wanted_t){all, all, all, 0}, &checked)) {
    }
}

/* What is carved has words of zero, where the kernel's page was not used before. */
Test(slab, a_place_that_was_freed_before_it_was_handed_out_aborts)
{
    for (int sealed = 0; sealed < 2; sealed++)
        for (size_t distance = 1; distance < 40; distance += 6) {
            slab_t *slab = add(7);
            cr_assert(slab->used_before == 0, "the pages are the kernel's: nothing is tested");
            size_t count = take(7, 4, &checked, blocks);
            size_t next = (size_t)slab->origin + count + distance, all = size_classes[7].blocks;
            char *place = slab->start + next % all * size_classes[7].bytes;
            if (sealed) (void)block_push(0, place, checked.key);
            else place[9] = 1;
            child_run(&child, carve_all, NULL);
            cr_assert(child_aborted(&child, sealed ? "INTERIOR" : "CORRUPT", "malloc"),
                      "distance %zu: signal %d: %s", distance, child.signal, child.text);
            char wanted[32];
            snprintf(wanted, sizeof wanted, "ptr=0x%zx ", (size_t)(uintptr_t)place);
            cr_assert(strstr(child.text, wanted), "%s", child.text);
            memset(place, 0, 16);
            child_run(&child, carve_all, NULL);
            cr_assert(child.status == 0 && child.signal == 0, "%s", child.text);
            carve_all(NULL);
            slab_remove(&set, slab);
            set.outside = 0;
        }
}

/* A take over pages of both kinds proves what it can. */
Test(slab, a_place_is_proved_beside_pages_that_were_used_before)
{
    slab_t *slab = add(7);
    run_t run = slab_run(slab);
    slab_remove(&set, slab);
    const pages_t used = 0x5;
    for (unsigned page = 0; page < GRANULE_PAGES; page++)
        if (used >> page & 1) memset(slab->start + page * HAK_PAGE, 0x5a, HAK_PAGE);
    superslab_note(run, 1, used);
    slab = slab_add(&set, run, 1, 7);
    cr_assert(slab->used_before == used);
    child_run(&child, carve_all_at_once, NULL);
    cr_assert(child.status == 0 && child.signal == 0, "%s", child.text);
    for (unsigned page = 1; page < GRANULE_PAGES; page += 2) {
        char *place = slab->start + page * HAK_PAGE + 5 * 128;
        place[9] = 1;
        child_run(&child, carve_all_at_once, NULL);
        cr_assert(child_aborted(&child, "CORRUPT", "malloc"), "page %u: %s", page, child.text);
        place[9] = 0;
    }
}

/* Pages with an earlier life may hold anything, seals too; once a trim has given them back they are
 * the kernel's. */
Test(slab, a_place_in_a_page_that_was_used_before_proves_nothing)
{
    slab_t *slab = add(7);
    run_t run = slab_run(slab);
    memset(slab->start, 0x5a, GRANULE);
    slab_remove(&set, slab);
    superslab_note(run, 1, PAGES_ALL);
    slab = slab_add(&set, run, 1, 7);
    cr_assert(slab->pages == GRANULE_PAGES && set.pages == GRANULE_PAGES);
    size_t count = take(7, 4, &checked, blocks), none = 0;
    cr_assert(count > 0);
    for (size_t i = 0; i < count; i++) slab_put(&set, slab, blocks[i], &checked);
    cr_assert(slab_release(&set, slab, &checked, &none, os->purge) == GRANULE_PAGES);
    cr_assert(slab->pages == 0 && set.pages == 0 && slab->used_before == 0);
    carve_all(NULL);
    cr_assert(slab->pages == GRANULE_PAGES && slab->bin == BIN_FULL);
    must_add_up();
}
