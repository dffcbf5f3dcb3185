/* hakheap level 4: region - taking and freeing runs of units */
#include "region.h"

#include "stall.h"

_Static_assert(PAGE_WORDS *GRANULE_PAGES == REGION_WORDS &&
                   (size_t)REGION_BLOCK_MAX < (size_t)GRANULE,
               "pages are whole words, and a granule has room for a block");

/* ---- Words ---- */

static uint32_t used_of(uint64_t word) { return (uint32_t)word; }
static uint32_t start_of(uint64_t word) { return (uint32_t)(word >> WORD_UNITS); }
static uint32_t free_of(uint64_t word) { return ~(used_of(word) | start_of(word)); }
static uint32_t inside_of(uint64_t word) { return used_of(word) & ~start_of(word); }
static uint32_t held_of(uint64_t word) { return start_of(word) & ~used_of(word); }
static uint64_t held(uint32_t units) { return (uint64_t)units << WORD_UNITS; }
static uint64_t both(uint32_t units) { return held(units) | units; }

/* `n` units from `first` on: up to all of a word. */
static uint32_t units_from(unsigned first, unsigned n)
{
    return (uint32_t)((((uint64_t)1 << n) - 1) << first);
}

static uint64_t word_at(const region_t *region, unsigned at)
{
    /* Relaxed: what is read is tried by an atomic operation, or belongs to a live block. */
    return load_relaxed(&((region_t *)(uintptr_t)region)->word[at]);
}

static unit_state_t state_of(uint64_t word, unsigned bit)
{
    bool start = start_of(word) >> bit & 1, used = used_of(word) >> bit & 1;
    if (start) return used ? UNIT_START : UNIT_HELD;
    return used ? UNIT_INSIDE : UNIT_FREE;
}

/* Units of a word that the heap's record has. */
static uint32_t record_of(const region_t *region, unsigned at)
{
    unsigned from = at * WORD_UNITS, to = from + WORD_UNITS;
    unsigned first = (unsigned)hak_max(from, region->record);
    unsigned end = (unsigned)hak_min(to, region->record_end);
    return first < end ? units_from(first - from, end - first) : 0;
}

/* ---- Seals: of each free unit of an open page ---- */

static void seal(char *at, size_t units, uint64_t key)
{
    for (char *end = at + units * REGION_UNIT; at < end; at += REGION_UNIT) {
        block_t *unit = (block_t *)(void *)at;
        unit->word[0] = key ^ (uintptr_t)at;
        unit->word[1] = ~unit->word[0];
    }
}

static bool is_sealed(const char *at, uint64_t key)
{
    const block_t *unit = (const block_t *)(const void *)at;
    return unit->word[0] == (key ^ (uintptr_t)at) && unit->word[1] == ~unit->word[0];
}

/* Proves the seals of units that were just taken, and takes them away: what a program copies from
 * its block is no seal. */
static void unseal(char *at, size_t units, const guard_t *guard)
{
    for (size_t i = 0; i < units; i++)
        if (HAK_UNLIKELY(!is_sealed(at + i * REGION_UNIT, guard->key)))
            block_corrupt(guard, "malloc", at + i * REGION_UNIT, units * REGION_UNIT);
    memset(at, 0, units * REGION_UNIT);
}

void region_seal(void *ptr, unsigned units, const guard_t *guard) { seal(ptr, units, guard->key); }
void region_unseal(void *ptr, unsigned units, const guard_t *guard) { unseal(ptr, units, guard); }

bool region_is_sealed(const void *ptr, unsigned units, const guard_t *guard)
{
    for (size_t i = 0; i < units; i++)
        if (!is_sealed((const char *)ptr + i * REGION_UNIT, guard->key)) return false;
    return true;
}

/* ---- Taking units ---- */

HAK_INLINE bool claim_word(region_t *region, unsigned at, uint32_t units, uint32_t start)
{
    uint64_t old = word_at(region, at);
    while ((free_of(old) & units) == units)
        /* Acquire: pairs with the release by which the units were freed. */
        if (cas_acquire(&region->word[at], &old, old | units | held(start))) return true;
    return false;
}

/* From the last word to the first, so that no rest stays behind what may be taken. */
static void free_units(region_t *region, unsigned unit, unsigned n)
{
    for (unsigned end = unit + n; end > unit;) {
        unsigned at = (end - 1) / WORD_UNITS;
        unsigned first = (unsigned)hak_max(unit, at * WORD_UNITS);
        uint32_t mask = units_from(first % WORD_UNITS, end - first);
        /* Release: pairs with the acquire of the next taker, in claim_word or claim_page. */
        and_release(&region->word[at], ~both(mask));
        end = first;
    }
}

/* The same of the next words. False: none of all the units is taken. */
static HAK_NOINLINE bool claim_rest(region_t *region, unsigned unit, unsigned left)
{
    for (unsigned at = unit / WORD_UNITS + 1;; at++, left -= WORD_UNITS) {
        if (!claim_word(region, at, units_from(0, (unsigned)hak_min(left, WORD_UNITS)), 0)) {
            free_units(region, unit, at * WORD_UNITS - unit);
            return false;
        }
        STALL(region_part_taken);
        if (left <= WORD_UNITS) return true;
    }
}

/* From the first word to the last. `start`: a block begins there; else it grows. */
HAK_INLINE bool claim_more(region_t *region, unsigned unit, unsigned n, bool start)
{
    unsigned at = unit / WORD_UNITS, first = unit % WORD_UNITS;
    if (!claim_word(region, at, UINT32_MAX << first, start ? (uint32_t)1 << first : 0))
        return false;
    STALL(region_part_taken);
    return claim_rest(region, unit, first + n - WORD_UNITS);
}

HAK_INLINE bool claim_units(region_t *region, unsigned unit, unsigned n, bool start)
{
    unsigned first = unit % WORD_UNITS;
    if (first + n > WORD_UNITS) return claim_more(region, unit, n, start);
    return claim_word(region, unit / WORD_UNITS, units_from(first, n),
                      start ? (uint32_t)1 << first : 0);
}

/* By how much the bits of free units are shifted over each other, so that those are left where n
 * free neighbours begin: runs of 2k are two runs of k. Steps of 0 change nothing. */
enum { STEPS = 5 };
typedef struct steps {
    uint8_t by[STEPS];
} steps_t;

#define STEP(n, have) (uint8_t)((n) > (have) ? (n) < 2 * (have) ? (n) - (have) : (have) : 0)
#define STEPS_TO(n)                                                     \
    {                                                                   \
        {                                                               \
            STEP(n, 1), STEP(n, 2), STEP(n, 4), STEP(n, 8), STEP(n, 16) \
        }                                                               \
    }
#define STEPS_TO_4(n) STEPS_TO(n), STEPS_TO(n + 1), STEPS_TO(n + 2), STEPS_TO(n + 3)
static const steps_t steps_to[] = {
    STEPS_TO_4(0),  STEPS_TO_4(4),  STEPS_TO_4(8),  STEPS_TO_4(12),       STEPS_TO_4(16),
    STEPS_TO_4(20), STEPS_TO_4(24), STEPS_TO_4(28), STEPS_TO(WORD_UNITS),
};

HAK_INLINE uint32_t runs_of(uint64_t bits, steps_t steps)
{
    for (unsigned i = 0; i < STEPS; i++) bits &= bits >> steps.by[i];
    return (uint32_t)bits;
}

/* Of a word and the one behind it, which the last has, too. */
HAK_INLINE uint64_t free_in_two(const region_t *region, unsigned at)
{
    return free_of(word_at(region, at)) | (uint64_t)free_of(word_at(region, at + 1)) << WORD_UNITS;
}

/* Units of a word that are at multiples of the alignment. */
static uint32_t aligned_in(unsigned at, unsigned alignment)
{
    if (alignment > WORD_UNITS) return at % (alignment / WORD_UNITS) ? 0 : 1;
    return (uint32_t)(UINT64_C(0xffffffff) / (((uint64_t)1 << alignment) - 1));
}

static void raise_room(region_t *region, unsigned units)
{
    unsigned most = (unsigned)hak_min(units, REGION_ROOM);
    if (load_relaxed(&region->room) < most) store_relaxed(&region->room, (uint8_t)most);
}

/* These units are free, and with them the hole around them, of which a word or two on each side are
 * looked at. Returns its units. */
static unsigned note_hole(region_t *region, unsigned unit, unsigned n)
{
    unsigned at = unit / WORD_UNITS, last = (unit + n - 1) / WORD_UNITS;
    uint64_t after = ~free_in_two(region, last) >> (unit + n - 1) % WORD_UNITS;
    uint64_t before =
        at ? free_in_two(region, at - 1) : (uint64_t)free_of(word_at(region, 0)) << WORD_UNITS;
    before = ~before << (WORD_UNITS - 1 - unit % WORD_UNITS);
    unsigned left = before ? (unsigned)__builtin_clzll(before) : REGION_ROOM;
    unsigned first = unit + 1 - (unsigned)hak_min(left, unit + 1);
    unsigned end = unit + n - 1 + (after ? (unsigned)__builtin_ctzll(after) : REGION_ROOM);
    for (unsigned from = first, word = first / WORD_UNITS; word <= last; word++) {
        rooms_raise(&region->rooms, word, end - from);
        from = (word + 1) * WORD_UNITS;
    }
    raise_room(region, end - first);
    return end - first;
}

/* Units of the longest hole that begins in the low word, at least: one that reaches the end may go
 * on. */
static unsigned longest_in(uint64_t bits)
{
    enum { POWERS = 7 };
    uint64_t runs[POWERS] = {bits}; /* of 1, 2, 4, ... */
    unsigned power = 0;
    if (!(uint32_t)bits) return 0;
    if (~bits >> (WORD_UNITS - 1) == 0) return REGION_ROOM;
    for (; power < POWERS - 1; power++) {
        runs[power + 1] = runs[power] & runs[power] >> (1u << power);
        if (!(uint32_t)runs[power + 1]) break;
    }
    unsigned units = 1u << power;
    uint64_t left = runs[power];
    while (power-- > 0) {
        uint64_t longer = left & runs[power] >> units;
        if (!(uint32_t)longer) continue;
        left = longer;
        units += 1u << power;
    }
    return units;
}

/* The lowest of the units where a hole of n begins in a word, n 0 where not all such units are known.
 * The word's other holes may be shorter. */
HAK_INLINE unsigned first_of(region_t *region, unsigned at, unsigned n, uint32_t starts)
{
    unsigned bit = (unsigned)__builtin_ctz(starts);
    if (n >= WORD_UNITS || !((uint64_t)starts >> bit >> n)) rooms_lower(&region->rooms, at, n - 1);
    return at * WORD_UNITS + bit;
}

/* Free units at the end of a word. */
static unsigned free_at_end(const region_t *region, unsigned at)
{
    uint32_t taken = ~free_of(word_at(region, at));
    return taken ? (unsigned)__builtin_clz(taken) : WORD_UNITS;
}

/* Units of the hole that begins with so many at the end of a word. */
static unsigned hole_from(const region_t *region, unsigned at, unsigned n)
{
    while (n && ++at < REGION_WORDS) {
        uint32_t ends = ~free_of(word_at(region, at));
        if (ends) return n + (unsigned)__builtin_ctz(ends);
        n += WORD_UNITS;
    }
    return n;
}

/* The same for more units than a hint can say: such a hole begins with the last units of a word. */
static HAK_NOINLINE unsigned find_long(region_t *region, unsigned n, unsigned alignment)
{
    for (unsigned at = 0;
         (at = rooms_next(&region->rooms, at, REGION_WORDS, REGION_ROOM)) < REGION_WORDS; at++) {
        unsigned last = free_at_end(region, at), have = hole_from(region, at, last);
        unsigned end = (at + 1) * WORD_UNITS, first = end - last;
        unsigned unit = (unsigned)hak_round_up(first, alignment);
        if (unit < end && unit + n <= first + have) return unit;
        /* Shorter holes of the word may be as long as the hint says only if this one is. */
        if (have < REGION_ROOM)
            rooms_lower(&region->rooms, at, (unsigned)hak_max(have, WORD_UNITS));
    }
    store_relaxed(&region->room, (uint8_t)rooms_most(&region->rooms));
    return REGION_UNITS;
}

/* The unit, or REGION_UNITS. First fit. A run of more than 32 units is one of 32, and behind it one
 * of the others. */
static unsigned find_hole(region_t *region, unsigned n, unsigned alignment)
{
    if (HAK_LIKELY(load_relaxed(&region->room) < hak_min(n, REGION_ROOM))) return REGION_UNITS;
    if (HAK_UNLIKELY(n > REGION_ROOM)) return find_long(region, n, alignment);
    steps_t steps = steps_to[hak_min(n, WORD_UNITS)];
    for (unsigned at = 0; (at = rooms_next(&region->rooms, at, REGION_WORDS, n)) < REGION_WORDS;
         at++) {
        uint64_t bits = free_in_two(region, at);
        uint32_t starts = runs_of(bits, steps);
        if (HAK_UNLIKELY(n > WORD_UNITS) && starts)
            starts &= at + 1 == REGION_WORDS
                          ? 0
                          : runs_of(free_in_two(region, at + 1), steps_to[n - WORD_UNITS]);
        if (HAK_UNLIKELY(alignment != 1)) starts &= aligned_in(at, alignment);
        if (starts) return first_of(region, at, alignment == 1 ? n : 0, starts);
        if (alignment != 1) continue;
        rooms_lower(&region->rooms, at, (unsigned)hak_min(longest_in(bits), n - 1));
    }
    store_relaxed(&region->room, (uint8_t)rooms_most(&region->rooms));
    return REGION_UNITS;
}

/* Another thread has taken what this one has of the tail, or has moved it back: it goes on in the
 * next word. */
static void pass_tail(region_t *region, unsigned unit)
{
    size_t next = hak_round_up(unit + 1, WORD_UNITS);
    if (load_relaxed(&region->tail) != unit) return;
    rooms_raise(&region->rooms, unit / WORD_UNITS, REGION_ROOM);
    raise_room(region, REGION_ROOM);
    store_relaxed(&region->tail, (uint16_t)hak_min(next, load_relaxed(&region->tail_end)));
}

void region_leave(region_t *region)
{
    unsigned tail = load_relaxed(&region->tail), end = load_relaxed(&region->tail_end);
    if (tail + REGION_ROOM > end) return;
    (void)note_hole(region, tail, end - tail);
    store_relaxed(&region->tail, (uint16_t)end);
}

/* A block that reaches into the tail shortens it. What it leaves out before it, for its alignment,
 * is a hole. */
HAK_INLINE void note_taken(region_t *region, unsigned unit, unsigned n)
{
    unsigned tail = load_relaxed(&region->tail);
    if (unit + n <= tail) return;
    if (HAK_UNLIKELY(unit > tail)) (void)note_hole(region, tail, unit - tail);
    store_relaxed(&region->tail, (uint16_t)(unit + n));
}

HAK_INLINE char *taken(region_t *region, unsigned unit, unsigned n, const guard_t *guard)
{
    /* After the claim, and acquire: by then it is the granule that the units are of. */
    char *at = load_acquire(&region->base) + unit * REGION_UNIT;
    if (HAK_UNLIKELY(key_seals(guard->key))) unseal(at, n, guard);
    return at;
}

/* Tries of a thread that looks again where others have taken what it found. */
enum { TRIES = 4 };

HAK_INLINE void *append(region_t *region, unsigned n, unsigned alignment, const guard_t *guard)
{
    for (unsigned tries = 0; tries < TRIES; tries++) {
        unsigned tail = load_relaxed(&region->tail);
        unsigned unit = (unsigned)hak_round_up(tail, alignment);
        if (unit + n > load_relaxed(&region->tail_end)) return NULL;
        if (HAK_LIKELY(claim_units(region, unit, n, true))) {
            note_taken(region, unit, n);
            return taken(region, unit, n, guard);
        }
        pass_tail(region, tail);
    }
    return NULL;
}

void *region_append(region_t *region, unsigned n, const guard_t *guard)
{
    return append(region, n, 1, guard);
}

void *region_append_aligned(region_t *region, unsigned n, unsigned alignment, const guard_t *guard)
{
    return append(region, n, alignment, guard);
}

void *region_take(region_t *region, unsigned n, unsigned alignment, const guard_t *guard)
{
    for (unsigned tries = 0; tries < TRIES; tries++) {
        unsigned unit = find_hole(region, n, alignment);
        if (unit == REGION_UNITS) return NULL;
        if (HAK_UNLIKELY(!claim_units(region, unit, n, true))) continue;
        note_taken(region, unit, n);
        return taken(region, unit, n, guard);
    }
    return NULL;
}

/* ---- Freeing them ---- */

/* Units of the block that begins there; only the block's owner may ask. */
static unsigned length_of(const region_t *region, unsigned unit)
{
    unsigned at = unit / WORD_UNITS, bit = unit % WORD_UNITS + 1;
    uint64_t ends = (uint64_t)(uint32_t)~inside_of(word_at(region, at)) >> bit;
    if (HAK_LIKELY(ends)) return 1 + (unsigned)__builtin_ctzll(ends);
    unsigned n = WORD_UNITS - unit % WORD_UNITS;
    while (++at < REGION_WORDS) {
        uint32_t rest = ~inside_of(word_at(region, at));
        if (rest) return n + (unsigned)__builtin_ctz(rest);
        n += WORD_UNITS;
    }
    return n;
}

/* Frees a block that lies in one word. False: none began there. */
static bool put_in_word(region_t *region, unsigned unit, unsigned n)
{
    uint32_t units = units_from(unit % WORD_UNITS, n);
    uint64_t block = units | held(units & -units);
    /* Release: as in free_units. All of the block is looked at: of two threads that free it the
     * second may come after others have taken its units. */
    return (and_release(&region->word[unit / WORD_UNITS], ~block) & both(units)) == block;
}

/* The same in steps, with its first unit held meanwhile. */
static bool put_held(region_t *region, unsigned unit, unsigned n, char *ptr, const guard_t *guard)
{
    unsigned bit = unit % WORD_UNITS;
    /* Relaxed: what follows is released by free_units. */
    uint64_t old = and_relaxed(&region->word[unit / WORD_UNITS], ~((uint64_t)1 << bit));
    if (state_of(old, bit) != UNIT_START) return false;
    STALL(region_put_held);
    if (key_seals(guard->key)) seal(ptr, n, guard->key);
    free_units(region, unit, n);
    return true;
}

unsigned region_put(region_t *region, void *ptr, const guard_t *guard, unsigned *hole)
{
    unsigned unit = region_unit(ptr);
    if (state_of(word_at(region, unit / WORD_UNITS), unit % WORD_UNITS) != UNIT_START) return 0;
    unsigned n = length_of(region, unit);
    bool one = unit % WORD_UNITS + n <= WORD_UNITS && !key_seals(guard->key);
    bool done = one ? put_in_word(region, unit, n) : put_held(region, unit, n, ptr, guard);
    if (HAK_UNLIKELY(!done)) return 0;
    *hole = note_hole(region, unit, n);
    return n;
}

unsigned region_length_far(const region_t *region, unsigned unit)
{
    return length_of(region, unit);
}

char *region_find(const region_t *region, const void *ptr, unsigned *units)
{
    unsigned unit = region_unit(ptr), least = unit < REGION_LONGEST ? 0 : unit - REGION_LONGEST;
    for (unsigned at = unit;; at--) {
        unit_state_t state = state_of(word_at(region, at / WORD_UNITS), at % WORD_UNITS);
        if (state == UNIT_START) {
            *units = length_of(region, at);
            return (char *)((uintptr_t)ptr & ~(uintptr_t)(GRANULE - 1)) + at * REGION_UNIT;
        }
        if (state != UNIT_INSIDE || at == least) return NULL;
    }
}

bool region_resize(region_t *region, void *ptr, unsigned units, unsigned wanted,
                   const guard_t *guard)
{
    unsigned unit = region_unit(ptr);
    char *end = ptr;
    if (wanted > units) {
        if (unit + wanted > REGION_UNITS) return false;
        if (!claim_units(region, unit + units, wanted - units, false)) return false;
        note_taken(region, unit + units, wanted - units);
        if (key_seals(guard->key)) unseal(end + units * REGION_UNIT, wanted - units, guard);
        return true;
    }
    if (key_seals(guard->key)) seal(end + wanted * REGION_UNIT, units - wanted, guard->key);
    free_units(region, unit + wanted, units - wanted);
    (void)note_hole(region, unit + wanted, units - wanted);
    return true;
}

/* ---- Pages ---- */

static bool has_record(const region_t *region, unsigned page)
{
    return page * PAGE_WORDS * WORD_UNITS < region->record_end;
}

/* Lets units of a page go that are held, but for the record's. */
static void release_page(region_t *region, unsigned page)
{
    bool recorded = has_record(region, page);
    for (unsigned at = page * PAGE_WORDS; at < (page + 1) * PAGE_WORDS; at++) {
        uint64_t record = HAK_UNLIKELY(recorded) ? held(record_of(region, at)) : 0;
        /* No other thread writes a word whose units are all held. Release: pairs with the acquire in
         * claim_word. */
        store_release(&region->word[at], record);
    }
}

/* There is room in a page: it is open, or its units were held for a while, so that a thread that
 * looked for room has found less. A hole may begin up to two words before. */
static void note_again(region_t *region, unsigned page)
{
    unsigned first = page * PAGE_WORDS;
    for (unsigned at = page ? first - 2 : 0; at < first + PAGE_WORDS; at++)
        rooms_raise(&region->rooms, at, REGION_ROOM);
    raise_room(region, REGION_ROOM);
}

/* A page is open. It goes on with the tail, or is a hole. */
static void note_open(region_t *region, unsigned page)
{
    unsigned first = page * PAGE_WORDS, end = first + PAGE_WORDS;
    if (first * WORD_UNITS == load_relaxed(&region->tail_end)) {
        unsigned tail = load_relaxed(&region->tail);
        unsigned most = (unsigned)hak_max(first * WORD_UNITS, region->record_end);
        if (tail < region->record_end) {
            rooms_raise(&region->rooms, 0, region->record);
            raise_room(region, region->record);
            store_relaxed(&region->tail, region->record_end);
        } else if (tail > most) { /* by a thread that left the tail while another closed pages */
            store_relaxed(&region->tail, (uint16_t)most);
        }
        store_relaxed(&region->tail_end, (uint16_t)(end * WORD_UNITS));
    } else {
        note_again(region, page);
    }
}

/* A page is not open any more. */
static void note_closed(region_t *region, unsigned page)
{
    unsigned first = page * PAGE_WORDS * WORD_UNITS, tail = load_relaxed(&region->tail);
    if (tail >= first + PAGE_WORDS * WORD_UNITS) return;
    store_relaxed(&region->tail_end, (uint16_t)first);
    if (tail > first) store_relaxed(&region->tail, (uint16_t)first);
}

/* Holds all units of an open page without blocks. False: it has some, or another thread closes
 * it. */
static bool claim_page(region_t *region, unsigned page)
{
    unsigned first = page * PAGE_WORDS, at = first;
    if (word_at(region, first) != held(record_of(region, first))) return false;
    for (; at < first + PAGE_WORDS; at++) {
        uint64_t expected = held(record_of(region, at));
        /* Acquire: pairs with the release by which the units were freed. */
        if (!cas_acquire(&region->word[at], &expected, held(UINT32_MAX))) break;
    }
    if (at == first + PAGE_WORDS) return true;
    while (at-- > first) and_release(&region->word[at], ~held(~record_of(region, at)));
    note_again(region, page);
    return false;
}

static char *page_at(const region_t *region, unsigned page)
{
    return load_acquire(&((region_t *)(uintptr_t)region)->base) + page * (size_t)HAK_PAGE;
}

static void seal_page(region_t *region, unsigned page, uint64_t key)
{
    char *base = page_at(region, 0);
    for (unsigned at = page * PAGE_WORDS; at < (page + 1) * PAGE_WORDS; at++)
        for (uint32_t units = ~record_of(region, at); units; units &= units - 1)
            seal(base + (at * WORD_UNITS + (unsigned)__builtin_ctz(units)) * REGION_UNIT, 1, key);
}

/* The page's bit is the caller's. Sets up what the thread that takes the first unit relies on. */
static void open_page(region_t *region, unsigned page, const guard_t *guard)
{
    char *at = page_at(region, page);
    superslab_touch_one(registry_superslab(at), at);
    if (key_seals(guard->key)) seal_page(region, page, guard->key);
    STALL(region_opening);
    release_page(region, page);
    note_open(region, page);
}

bool region_open(region_t *region, const guard_t *guard)
{
    for (unsigned page = 0; page < GRANULE_PAGES; page++) {
        uint8_t bit = (uint8_t)(1u << page);
        if (load_relaxed(&region->open) & bit) continue;
        /* Acquire: pairs with the releases in region_attach and close_page. */
        if (or_acquire(&region->open, bit) & bit) continue;
        open_page(region, page, guard);
        return true;
    }
    return false;
}

/* Sets the bit of a page that is not open, or holds all units of one that is; *was_open says
 * which. */
static bool own_page(region_t *region, unsigned page, bool *was_open)
{
    uint8_t bit = (uint8_t)(1u << page);
    /* Acquire: as in region_open. */
    *was_open = or_acquire(&region->open, bit) & bit;
    return !*was_open || claim_page(region, page);
}

/* The page is the caller's; from here on it may be opened. */
static void close_page(region_t *region, unsigned page)
{
    note_closed(region, page);
    /* Release: pairs with the acquire in region_open. */
    and_release(&region->open, (uint8_t) ~(1u << page));
}

/* The page is the caller's, who has no use for it. */
static void reopen_page(region_t *region, unsigned page)
{
    release_page(region, page);
    note_again(region, page);
}

bool region_close(region_t *region)
{
    bool was_open[GRANULE_PAGES];
    unsigned page = 0;
    while (page < GRANULE_PAGES && own_page(region, page, &was_open[page])) page++;
    if (page == GRANULE_PAGES) return true;
    while (page-- > 0) {
        if (was_open[page]) reopen_page(region, page);
        else close_page(region, page);
    }
    return false;
}

/* The page is the caller's. True: the kernel has taken it. */
static bool purge_page(region_t *region, unsigned page, size_t *keep, bool (*purge)(void *, size_t))
{
    char *at = page_at(region, page);
    superslab_t *ss = registry_superslab(at);
    if (!superslab_is_touched(ss, at)) return false;
    if (*keep) {
        --*keep;
        return false;
    }
    if (!purge(at, HAK_PAGE)) return false;
    superslab_forget_one(ss, at);
    return true;
}

/* Whether a page may be worth what it takes to own it. `unopened`: also one that is not open. */
static bool may_release(const region_t *region, unsigned page, bool unopened)
{
    bool open = load_relaxed(&((region_t *)(uintptr_t)region)->open) >> page & 1;
    if (has_record(region, page) || !region_is_attached(region)) return false;
    return open ? !word_at(region, page * PAGE_WORDS) : unopened;
}

size_t region_release(region_t *region, bool unopened, size_t *keep, bool (*purge)(void *, size_t))
{
    size_t pages = 0;
    for (unsigned page = 0; page < GRANULE_PAGES; page++) {
        bool was_open;
        if (!may_release(region, page, unopened) || !own_page(region, page, &was_open)) continue;
        bool gone = purge_page(region, page, keep, purge);
        pages += gone;
        if (gone || !was_open) close_page(region, page);
        else reopen_page(region, page);
    }
    return pages;
}

/* ---- Whole maps; no other thread uses them ---- */

static void hold_all(region_t *region)
{
    for (unsigned at = 0; at <= REGION_WORDS; at++)
        store_relaxed(&region->word[at], held(UINT32_MAX));
    store_relaxed(&region->open, (uint8_t)PAGES_OPEN);
    rooms_set(&region->rooms, 0);
    store_relaxed(&region->room, (uint8_t)0);
    store_relaxed(&region->tail, (uint16_t)0);
    store_relaxed(&region->tail_end, (uint16_t)0);
}

void region_init(region_t *region, unsigned record, unsigned record_end)
{
    store_relaxed(&region->base, NULL);
    region->record = (uint16_t)record;
    region->record_end = (uint16_t)record_end;
    hold_all(region);
}

void region_attach(region_t *region, char *base)
{
    /* Release: pairs with the acquire in page_at and region_take. */
    store_release(&region->base, base);
    /* Release: pairs with the acquire in region_open. */
    store_release(&region->open, (uint8_t)0);
}

void region_clear(region_t *region, const guard_t *guard)
{
    uint8_t open = load_relaxed(&region->open);
    hold_all(region);
    store_relaxed(&region->open, open);
    for (unsigned page = 0; page < GRANULE_PAGES; page++) {
        if (!(open >> page & 1)) continue;
        if (key_seals(guard->key)) seal_page(region, page, guard->key);
        release_page(region, page);
        note_open(region, page);
    }
}

void region_detach(region_t *region)
{
    hold_all(region);
    store_release(&region->base, NULL); /* pairs as in region_attach */
}

/* ---- Readers ---- */

static unsigned bits_of(uint32_t units) { return (unsigned)__builtin_popcount(units); }

region_sums_t region_sums(const region_t *region)
{
    region_sums_t sums = {0};
    uint8_t open = load_relaxed(&((region_t *)(uintptr_t)region)->open);
    for (unsigned at = 0; at < REGION_WORDS; at++) {
        uint64_t word = word_at(region, at);
        uint32_t record = record_of(region, at);
        bool is_open = open >> at / PAGE_WORDS & 1;
        sums.blocks += bits_of(start_of(word) & used_of(word));
        sums.live += bits_of(used_of(word));
        sums.free += bits_of(free_of(word));
        sums.held += bits_of(is_open ? held_of(word) : record);
        sums.untouched += is_open ? 0 : bits_of(held_of(word) & ~record);
    }
    return sums;
}

void region_count(const region_t *region, size_t blocks[REGION_CLASSES])
{
    for (unsigned at = 0; at < REGION_WORDS; at++) {
        uint64_t word = word_at(region, at);
        for (uint32_t starts = start_of(word) & used_of(word); starts; starts &= starts - 1) {
            unsigned n = length_of(region, at * WORD_UNITS + (unsigned)__builtin_ctz(starts));
            blocks[sizeclass_of(hak_min(n * REGION_UNIT, REGION_BLOCK_MAX))]++;
        }
    }
}

/* Units of a word that are free, held by the caller. */
static uint32_t hold_free(region_t *region, unsigned at)
{
    uint64_t old = word_at(region, at);
    while (free_of(old) && !cas_acquire(&region->word[at], &old, old | held(free_of(old)))) {
    }
    return free_of(old);
}

static const char *check_seals(region_t *region, unsigned at, uint64_t key, const void **ptr)
{
    char *base = page_at(region, 0) + at * (size_t)WORD_UNITS * REGION_UNIT;
    const char *words = NULL;
    uint32_t units = hold_free(region, at);
    for (uint32_t left = units; left && !words; left &= left - 1) {
        char *unit = base + (unsigned)__builtin_ctz(left) * REGION_UNIT;
        if (!is_sealed(unit, key)) words = "a free block was written to", *ptr = unit;
    }
    and_release(&region->word[at], ~held(units)); /* pairs with the acquire in claim_word */
    return words;
}

/* Whether the last unit before a word is free while the first of the word goes on with a block. A
 * block is taken from its first word on and freed from its last, so that no two looks in this order
 * see that, but where one block goes and another comes between them. */
static bool begins_nowhere(const region_t *region, unsigned at)
{
    enum { LOOKS = 100 };
    for (unsigned look = 0; look < LOOKS; look++) {
        if (!(inside_of(load_acquire(&((region_t *)(uintptr_t)region)->word[at])) & 1))
            return false;
        if (at && !(free_of(word_at(region, at - 1)) >> (WORD_UNITS - 1))) return false;
    }
    return true;
}

const char *region_check(region_t *region, const guard_t *guard, const void **ptr)
{
    *ptr = page_at(region, 0);
    for (unsigned at = 0; at < REGION_WORDS; at++) {
        uint64_t word = word_at(region, at);
        if (inside_of(word) & free_of(word) << 1 || begins_nowhere(region, at))
            return "a region's map has a block without a begin";
        if (record_of(region, at) & ~held_of(word)) return "a region's map has lost the record";
        const char *words = key_seals(guard->key) ? check_seals(region, at, guard->key, ptr) : NULL;
        if (words) return words;
    }
    return NULL;
}
