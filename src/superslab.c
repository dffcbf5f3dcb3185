/* hakheap level 3: superslab - bitmaps of granules and bins of SuperSlabs */
#include "superslab.h"

_Static_assert(DESCRIPTORS_NEAR == 64 && SUPERSLAB_GRANULES == 128,
               "a word of `used` for each page of descriptors");

typedef unsigned __int128 bits_t;

static bits_t free_bits(const superslab_t *ss) { return (bits_t)ss->free[1] << 64 | ss->free[0]; }
static bits_t run_bits(unsigned first, unsigned granules)
{
    bits_t ones = granules == 128 ? ~(bits_t)0 : ((bits_t)1 << granules) - 1;
    return ones << first;
}
static void set_free_bits(superslab_t *ss, bits_t bits)
{
    ss->free[0] = (uint64_t)bits;
    ss->free[1] = (uint64_t)(bits >> 64);
}

static bool get_bit(const uint64_t *words, unsigned at) { return words[at / 64] >> at % 64 & 1; }
static void flip_bit(uint64_t *words, unsigned at) { words[at / 64] ^= (uint64_t)1 << at % 64; }
/* There is one. */
static unsigned first_clear(const uint64_t *words)
{
    return ~words[0] ? (unsigned)__builtin_ctzll(~words[0])
                     : 64u + (unsigned)__builtin_ctzll(~words[1]);
}

/* Relaxed: the run's owner, or the set's lock, orders them for all but frees, which look at pages
 * of live blocks only. */
static uint8_t touched(const superslab_t *ss, unsigned granule)
{
    return load_relaxed(&((superslab_t *)(uintptr_t)ss)->touched[granule]);
}
static void set_touched(superslab_t *ss, unsigned granule, unsigned pages)
{
    if (touched(ss, granule) != pages) store_relaxed(&ss->touched[granule], (uint8_t)pages);
}

/* Bits of a granule's four; without the instruction for it, which not every x86-64 has, the builtin
 * is a call. */
static uint32_t page_count(uint8_t bits) { return 0x4332322132212110ull >> 4 * bits & 15; }

/* A bit for each place where `granules` free neighbours begin: runs of 2n are two runs of n. */
static bits_t run_starts(bits_t bits, unsigned granules)
{
    unsigned have = 1;
    while (bits && have < granules) {
        unsigned step = have * 2 <= granules ? have : granules - have;
        bits &= bits >> step;
        have += step;
    }
    return bits;
}

/* 0: nothing free; k: 2^(k-1) neighbours are free somewhere, 2^k nowhere. Without a branch or a
 * variable shift: it stands in every take and put. */
static uint8_t bin_of(const superslab_t *ss)
{
    bits_t one = free_bits(ss), two = one & one >> 1, four = two & two >> 2,
           eight = four & four >> 4;
    bits_t sixteen = eight & eight >> 8, half = sixteen & sixteen >> 16;
    bits_t most = half & half >> 32, all = most & most >> 64;
    return (uint8_t)(!!one + !!two + !!four + !!eight + !!sixteen + !!half + !!most + !!all);
}

static unsigned lowest(bits_t bits)
{
    uint64_t low = (uint64_t)bits;
    return low ? (unsigned)__builtin_ctzll(low)
               : 64u + (unsigned)__builtin_ctzll((uint64_t)(bits >> 64));
}

void superslab_init(superslab_t *ss, char *base, char *descriptors)
{
    *ss = (superslab_t){
        .base = base, .descriptors = descriptors, .free_granules = SUPERSLAB_GRANULES};
    set_free_bits(ss, ~(bits_t)0);
}

bool superslab_is_valid(const superslab_t *ss)
{
    unsigned bits =
        (unsigned)(__builtin_popcountll(ss->free[0]) + __builtin_popcountll(ss->free[1]));
    uint32_t pages = 0;
    uint64_t used[2] = {0, 0};
    for (unsigned g = 0; g < SUPERSLAB_GRANULES; g++) {
        bool is_free = superslab_is_free(ss, g);
        unsigned slot = superslab_slot(ss, g) % SUPERSLAB_GRANULES;
        if (is_free) pages += page_count(touched(ss, g));
        if (!get_bit(ss->begins, g)) continue;
        if (is_free || get_bit(used, slot)) return false;
        flip_bit(used, slot);
    }
    return bits == ss->free_granules && pages == ss->free_touched && used[0] == ss->used[0] &&
           used[1] == ss->used[1];
}

/* ---- Sets ---- */

static void bin_insert(superslab_set_t *set, superslab_t *ss)
{
    ss->bin = bin_of(ss);
    superslab_t **head = &set->bin[ss->bin];
    ss->prev = NULL;
    ss->next = *head;
    if (*head) (*head)->prev = ss;
    *head = ss;
}

static void bin_remove(superslab_set_t *set, superslab_t *ss)
{
    if (ss->prev) ss->prev->next = ss->next;
    else set->bin[ss->bin] = ss->next;
    if (ss->next) ss->next->prev = ss->prev;
}

static void append(superslab_set_t *set, superslab_t *ss)
{
    ss->set_next = NULL;
    ss->set_prev = set->last;
    if (set->last) set->last->set_next = ss;
    else set->all = ss;
    set->last = ss;
}

static void detach(superslab_set_t *set, superslab_t *ss)
{
    if (ss->set_prev) ss->set_prev->set_next = ss->set_next;
    else set->all = ss->set_next;
    if (ss->set_next) ss->set_next->set_prev = ss->set_prev;
    else set->last = ss->set_prev;
}

superslab_t *superslab_set_turn(superslab_set_t *set)
{
    superslab_t *ss = set->all;
    if (ss) {
        detach(set, ss);
        append(set, ss);
    }
    return ss;
}

void superslab_set_add(superslab_set_t *set, superslab_t *ss)
{
    bin_insert(set, ss);
    append(set, ss);
    set->count++;
    set->empty += superslab_is_empty(ss);
    set->free_granules += ss->free_granules;
    set->free_touched += ss->free_touched;
}

void superslab_set_remove(superslab_set_t *set, superslab_t *ss)
{
    bin_remove(set, ss);
    detach(set, ss);
    set->count--;
    set->empty -= superslab_is_empty(ss);
    set->free_granules -= ss->free_granules;
    set->free_touched -= ss->free_touched;
}

/* ---- Runs ---- */

static void take_slot(superslab_t *ss, unsigned first)
{
    unsigned slot = first_clear(ss->used);
    store_relaxed(&ss->slot[first], (uint8_t)slot);
    flip_bit(ss->used, slot);
    flip_bit(ss->begins, first);
    if (slot >= DESCRIPTORS_NEAR) ss->far = true;
}

/* Those of all runs that begin in [first, first + granules). */
static void put_slots(superslab_t *ss, unsigned first, unsigned granules)
{
    for (unsigned g = first; g < first + granules; g++) {
        if (!get_bit(ss->begins, g)) continue;
        flip_bit(ss->begins, g);
        flip_bit(ss->used, superslab_slot(ss, g));
    }
}

static void mark(superslab_set_t *set, superslab_t *ss, unsigned first, unsigned granules,
                 bool give)
{
    uint32_t pages = superslab_touched_count((run_t){ss, first}, granules);
    set->empty -= superslab_is_empty(ss);
    bits_t run = run_bits(first, granules);
    if (give) {
        hak_assert((free_bits(ss) & run) == 0);
        set_free_bits(ss, free_bits(ss) | run);
        ss->free_granules += granules;
        set->free_granules += granules;
        ss->free_touched += pages;
        set->free_touched += pages;
    } else {
        hak_assert((free_bits(ss) & run) == run);
        set_free_bits(ss, free_bits(ss) & ~run);
        ss->free_granules -= granules;
        set->free_granules -= granules;
        ss->free_touched -= pages;
        set->free_touched -= pages;
    }
    set->empty += superslab_is_empty(ss);
    if (bin_of(ss) != ss->bin) {
        bin_remove(set, ss);
        bin_insert(set, ss);
    }
}

/* A bit at each multiple of `alignment`. */
static bits_t aligned_places(unsigned alignment)
{
    if (HAK_LIKELY(alignment == 1)) return ~(bits_t)0;
    bits_t places = 1;
    for (unsigned have = alignment; have < SUPERSLAB_GRANULES; have *= 2) places |= places << have;
    return places;
}

/* How many granules are free from one on. */
static unsigned room_at(bits_t bits, unsigned first)
{
    bits_t used = ~(bits >> first);
    return used ? lowest(used) : SUPERSLAB_GRANULES;
}

/* Of the places where so many granules are free, the first in the shortest hole; its room in
 * *room. */
static unsigned shortest_hole(bits_t bits, bits_t starts, unsigned granules, unsigned *room)
{
    unsigned best = 0;
    *room = SUPERSLAB_GRANULES + 1;
    do {
        unsigned first = lowest(starts), have = room_at(bits, first), end = first + have;
        if (have < *room) best = first, *room = have;
        starts = end < SUPERSLAB_GRANULES ? starts >> end << end : 0;
    } while (starts && *room != granules);
    return best;
}

run_t superslab_take(superslab_set_t *set, unsigned granules, unsigned alignment)
{
    enum { TRIES = 16 }; /* per bin */
    bits_t places = aligned_places(alignment);
    unsigned bin = 32u - (unsigned)__builtin_clz(granules);
    for (; bin < SUPERSLAB_BINS; bin++) {
        run_t best = {0};
        unsigned least = SUPERSLAB_GRANULES + 1;
        int tries = TRIES;
        for (superslab_t *ss = set->bin[bin]; ss && tries && least != granules;
             ss = ss->next, tries--) {
            bits_t starts = run_starts(free_bits(ss), granules) & places;
            if (!starts) continue;
            unsigned room, first = shortest_hole(free_bits(ss), starts, granules, &room);
            if (room < least) least = room, best = (run_t){ss, first};
        }
        if (!best.ss) continue;
        mark(set, best.ss, best.first, granules, false);
        take_slot(best.ss, best.first);
        return best;
    }
    return (run_t){0};
}

bool superslab_extend(superslab_set_t *set, run_t run, unsigned granules, unsigned more)
{
    unsigned first = run.first + granules;
    if (first + more > SUPERSLAB_GRANULES || ~free_bits(run.ss) & run_bits(first, more))
        return false;
    mark(set, run.ss, first, more, false);
    return true;
}

void superslab_note(run_t run, unsigned granules, pages_t pages)
{
    for (unsigned g = 0; g < granules; g++) {
        set_touched(run.ss, run.first + g,
                    touched(run.ss, run.first + g) | (unsigned)(pages & ALL_TOUCHED));
        if (g * GRANULE_PAGES < 64 - GRANULE_PAGES) pages >>= GRANULE_PAGES;
    }
}

void superslab_put(superslab_set_t *set, run_t run, unsigned granules, pages_t pages)
{
    superslab_note(run, granules, pages);
    put_slots(run.ss, run.first, granules);
    mark(set, run.ss, run.first, granules, true);
}

bool superslab_run_is_clean(run_t run, unsigned granules)
{
    for (unsigned g = run.first; g < run.first + granules; g++)
        if (touched(run.ss, g)) return false;
    return true;
}

pages_t superslab_touched(run_t run, unsigned granules)
{
    pages_t pages = 0;
    for (unsigned g = 0; g < granules; g++)
        pages |= (pages_t)touched(run.ss, run.first + g) << g * GRANULE_PAGES;
    return pages;
}

uint32_t superslab_touched_count(run_t run, unsigned granules)
{
    _Atomic uint8_t *at = &run.ss->touched[run.first], *end = at + granules;
    uint32_t pages = 0;
    for (; at < end; at++) pages += page_count(load_relaxed(at)); /* relaxed: as `touched` */
    return pages;
}

void superslab_forget(run_t run, unsigned granules, pages_t pages)
{
    for (unsigned g = 0; g < granules; g++)
        set_touched(run.ss, run.first + g,
                    touched(run.ss, run.first + g) &
                        ~(unsigned)(pages >> g * GRANULE_PAGES & ALL_TOUCHED));
}

/* ---- Purge ---- */

static bool purge_range(const os_table_t *own, superslab_t *ss, size_t first, size_t last)
{
    if (!os_purge_by(own, ss->base + first * HAK_PAGE, (last - first) * HAK_PAGE)) return false;
    for (unsigned at = (unsigned)first; at < last; at++)
        set_touched(ss, at / GRANULE_PAGES,
                    touched(ss, at / GRANULE_PAGES) & ~(1u << at % GRANULE_PAGES));
    return true;
}

static bool page_is_touched(const superslab_t *ss, size_t page)
{
    return superslab_is_touched(ss, ss->base + page * HAK_PAGE);
}

/*
 * Purges the touched ones of the free pages [page, end), at most `most`, in one call: it costs the
 * kernel less to pass over pages that are not there than to be called again. Where it refuses, the
 * program has locked some of them, or of those between: then half by half, until `refusals` are
 * spent. Returns pages.
 */
static size_t purge_pages(const os_table_t *own, superslab_t *ss, size_t page, size_t end,
                          size_t most, unsigned *refusals)
{
    size_t first = end, last = end, found = 0;
    for (; page < end && found < most; page++) {
        if (!page_is_touched(ss, page)) continue;
        if (!found++) first = page;
        last = page + 1;
    }
    if (!found) return 0;
    if (purge_range(own, ss, first, last)) return found;
    if (last - first == 1 || !*refusals) return 0;
    --*refusals;
    size_t middle = first + (last - first) / 2;
    return purge_pages(own, ss, first, middle, SIZE_MAX, refusals) +
           purge_pages(own, ss, middle, last, SIZE_MAX, refusals);
}

size_t superslab_purge(superslab_set_t *set, superslab_t *ss, size_t pages)
{
    /* That many are halved; each free run is asked for once besides. All locked: not a call for
     * each page. */
    enum { MOST_REFUSALS = 32 };
    unsigned refusals = MOST_REFUSALS;
    size_t purged = 0;
    for (unsigned g = 0, end; g < SUPERSLAB_GRANULES && purged < pages; g = end + 1) {
        for (end = g; end < SUPERSLAB_GRANULES && superslab_is_free(ss, end);) end++;
        purged += purge_pages(set->os, ss, g * GRANULE_PAGES, end * GRANULE_PAGES, pages - purged,
                              &refusals);
    }
    ss->free_touched -= (uint32_t)purged;
    set->free_touched -= purged;
    return purged;
}

size_t superslab_forget_all(superslab_t *ss)
{
    hak_assert(superslab_is_empty(ss));
    for (unsigned g = 0; g < SUPERSLAB_GRANULES; g++) set_touched(ss, g, 0);
    size_t pages = ss->free_touched;
    ss->free_touched = 0;
    return pages;
}

void superslab_clear(superslab_t *ss)
{
    for (unsigned g = 0; g < SUPERSLAB_GRANULES; g++)
        if (!superslab_is_free(ss, g)) ss->free_touched += page_count(touched(ss, g));
    set_free_bits(ss, ~(bits_t)0);
    ss->free_granules = SUPERSLAB_GRANULES;
    put_slots(ss, 0, SUPERSLAB_GRANULES);
}

/* ---- Descriptors ---- */

void *superslab_move_near(run_t run)
{
    superslab_t *ss = run.ss;
    if (!~ss->used[0]) return NULL;
    unsigned slot = first_clear(ss->used);
    flip_bit(ss->used, superslab_slot(ss, run.first));
    flip_bit(ss->used, slot);
    store_relaxed(&ss->slot[run.first], (uint8_t)slot);
    return superslab_descriptor(ss, run.first);
}

void superslab_purge_far(const superslab_set_t *set, superslab_t *ss)
{
    if (!ss->far || ss->used[1]) return;
    ss->far = !os_purge_by(set->os, ss->descriptors + HAK_PAGE, HAK_PAGE);
}
