/* hakheap level 4: reserve - reservations, the reserve of empty SuperSlabs, the nursery */
#include "reserve.h"

#include "hakheap.h"
#include "os.h"
#include "registry.h"
#include "stall.h"

reserve_t process_reserve;

void reserve_init(reserve_t *reserve, const os_table_t *table)
{
    *reserve = (reserve_t){.os = table, .nursery = {.os = table}};
}

/* ---- Reservations ---- */

enum { DESCRIPTORS = SUPERSLAB_GRANULES * DESCRIPTOR_BYTES /* bytes, of a SuperSlab */ };

/* A reservation's records: SuperSlabs, then descriptors. Mapped beside it, never unmapped. */
static size_t record_bytes(size_t count)
{
    return hak_round_up(count * sizeof(superslab_t), HAK_PAGE);
}

static bool reserve_some(reserve_t *reserve, size_t bytes)
{
    const os_table_t *table = os_or(reserve->os);
    size_t count = bytes / SUPERSLAB;
    size_t mapped = record_bytes(count) + count * DESCRIPTORS;
    char *base = table->reserve(bytes, SUPERSLAB);
    if (!base) return false;
    char *records = table->map(mapped, 0);
    if (records && registry_cover(base, bytes)) {
        reserve->next = base;
        reserve->end = base + bytes;
        reserve->next_record = (superslab_t *)(void *)records;
        reserve->next_descriptors = records + record_bytes(count);
        reserve->reservations++;
        reserve->reserved_bytes += bytes;
        return true;
    }
    if (records) table->unmap(records, mapped);
    table->unmap(base, bytes);
    return false;
}

/* 1 GiB, or as much as the system grants, down to one SuperSlab: address space may be limited
 * (RLIMIT_AS, cgroups, overcommit mode 2), and may count as locked memory (mlockall). */
static bool reserve_any(reserve_t *reserve)
{
    /* Large blocks need some of a limited space, too. */
    size_t most = hak_max(os_address_space() / LIMIT_SHARE, 2 * (size_t)SUPERSLAB);
    for (size_t bytes = HAK_GIB; bytes >= SUPERSLAB; bytes /= bytes > 4 * HAK_MIB ? 4 : 2)
        if (bytes <= most && reserve_some(reserve, bytes)) return true;
    return false;
}

static bool reserve_more(reserve_t *reserve)
{
    return reserve_any(reserve) || (registry_unlock() && reserve_any(reserve));
}

/* The next SuperSlab that was never handed out. */
static superslab_t *fresh_superslab(reserve_t *reserve, uint32_t *refused)
{
    if (reserve->next == reserve->end && !reserve_more(reserve)) {
        *refused = HAK_ERROR_RESERVE;
        return NULL;
    }
    if (!os_or(reserve->os)->commit(reserve->next, SUPERSLAB)) {
        *refused = HAK_ERROR_COMMIT;
        return NULL;
    }
    superslab_t *ss = reserve->next_record++;
    superslab_init(ss, reserve->next, reserve->next_descriptors);
    ss->committed = true;
    reserve->next += SUPERSLAB;
    reserve->next_descriptors += DESCRIPTORS;
    registry_set_superslab(ss->base, ss);
    return ss;
}

/* ---- What was in use in the recent past; lock: RESERVE ---- */

/* What a SuperSlab that is committed keeps: its pages, and those of its descriptors; nothing where
 * the kernel has taken all and refused to decommit. */
enum {
    DESCRIPTOR_PAGES = DESCRIPTORS / HAK_PAGE,
    MOST_PAGES = SUPERSLAB / HAK_PAGE + DESCRIPTOR_PAGES
};

static size_t out_pages(const reserve_t *reserve) { return reserve->out * MOST_PAGES; }

static size_t nursery_pages(const reserve_t *reserve)
{
    const superslab_set_t *nursery = &reserve->nursery;
    return (nursery->count * SUPERSLAB_GRANULES - nursery->free_granules) * GRANULE_PAGES;
}

static void recent_note(recent_t *recent, size_t used)
{
    if (used > recent->most) recent->most = used;
}

/* A fifth of what is more than is in use, for each tick. */
static void recent_fade(recent_t *recent, size_t used, uint32_t ticks)
{
    enum { ALL = 64 /* ticks after which nothing is left of any memory */ };
    size_t more = recent->most > used && ticks < ALL ? recent->most - used : 0;
    for (; ticks && more; ticks--) more -= (more + 4) / 5;
    recent->most = used + more;
}

/* Pages that may be kept, where `used` are in use, and the others take so many of the limit. */
static size_t recent_bound(const reserve_t *reserve, const recent_t *recent, size_t used,
                           size_t others)
{
    size_t spare = recent->most > used ? recent->most - used : 0;
    size_t room = reserve->limit > others ? reserve->limit - others : 0;
    return hak_min(hak_max(spare, RESERVE_LEAST), room);
}

static size_t dirty_bound(const reserve_t *reserve)
{
    return recent_bound(reserve, &reserve->recent, out_pages(reserve),
                        reserve->nursery.free_touched);
}

static size_t nursery_bound(const reserve_t *reserve)
{
    return recent_bound(reserve, &reserve->recent_nursery, nursery_pages(reserve), 0);
}

static size_t large_pages(const reserve_t *reserve)
{
    return load_relaxed(&((reserve_t *)(uintptr_t)reserve)->large) / HAK_PAGE;
}

static size_t pieces_bound(const reserve_t *reserve)
{
    recent_t recent = {reserve->recent_large.most + reserve->recent_short.most};
    return recent_bound(reserve, &recent, large_pages(reserve),
                        reserve->nursery.free_touched + reserve->dirty_pages);
}

static bool pieces_are_due(const reserve_t *reserve)
{
    return reserve->pieces.count > PIECES_STAY || pieces_have_going(&reserve->pieces) ||
           reserve_is_due(reserve->pieces.bytes / HAK_PAGE,
                          pieces_bound(reserve) + reserve->recent_short.most / SHORT_STEPS,
                          reserve->pieces_again);
}

static uint32_t ticks_now(const reserve_t *reserve)
{
    return (uint32_t)(os_or(reserve->os)->milliseconds() / TICK_MS);
}

/* Before something is put back, while it still counts as in use: so what was taken a long time ago
 * counts as used until now. */
static void let_time_pass(reserve_t *reserve)
{
    uint32_t now = ticks_now(reserve), passed = now - load_relaxed(&reserve->tick);
    if (HAK_LIKELY(!passed)) return;
    store_relaxed(&reserve->tick, now);
    store_relaxed(&reserve->due, 1u);
    recent_fade(&reserve->recent, out_pages(reserve), passed);
    recent_fade(&reserve->recent_nursery, nursery_pages(reserve), passed);
    recent_fade(&reserve->recent_large, large_pages(reserve), passed);
    recent_fade(&reserve->recent_short, 0, passed);
}

/* ---- The two lists; lock: RESERVE ---- */

static size_t kept_pages(const superslab_t *ss)
{
    if (ss->far) return ss->free_touched + DESCRIPTOR_PAGES;
    return ss->free_touched ? ss->free_touched + 1u : 0;
}

static void unlist_dirty(reserve_t *reserve, superslab_t *ss)
{
    *(ss->prev ? &ss->prev->next : &reserve->dirty) = ss->next;
    *(ss->next ? &ss->next->prev : &reserve->oldest) = ss->prev;
    reserve->dirty_count--;
    reserve->dirty_pages -= kept_pages(ss);
}

static void enlist(reserve_t *reserve, superslab_t *ss)
{
    superslab_t **head = ss->committed ? &reserve->dirty : &reserve->clean;
    ss->next = *head;
    ss->prev = NULL;
    *head = ss;
    if (ss->committed) {
        *(ss->next ? &ss->next->prev : &reserve->oldest) = ss;
        reserve->dirty_count++;
        reserve->dirty_pages += kept_pages(ss);
    }
}

/* What the kernel was offered. What it refused is on the dirty list from here on. */
static void enlist_arrived(reserve_t *reserve)
{
    if (HAK_LIKELY(!load_relaxed(&reserve->arrived))) return;
    /* Acquire: pairs with the release in arrive(). */
    for (superslab_t *ss = exchange_acquire(&reserve->arrived, NULL), *next; ss; ss = next) {
        next = ss->next;
        enlist(reserve, ss);
        reserve->dirty_again = ss->free_touched ? reserve_again(reserve->dirty_pages) : 0;
    }
}

static void hold(reserve_t *reserve)
{
    lock_acquire(&reserve->lock, RANK_RESERVE);
    enlist_arrived(reserve);
}

static bool hold_where(reserve_t *reserve, bool may_wait)
{
    if (!lock_enter(&reserve->lock, RANK_RESERVE, may_wait)) return false;
    enlist_arrived(reserve);
    let_time_pass(reserve);
    return true;
}

static void release(reserve_t *reserve) { lock_release(&reserve->lock, RANK_RESERVE); }

/* ---- Without the lock: the kernel takes long, and no thread waits for it ---- */

/* Whether one more SuperSlab may be decommitted; if so, it is counted. */
static bool take_hole(reserve_t *reserve)
{
    size_t holes = load_relaxed(&reserve->holes);
    do {
        if (holes >= RESERVE_HOLES) return false;
    } while (!cas_relaxed(&reserve->holes, &holes, holes + 1));
    return true;
}

static bool decommit(reserve_t *reserve, superslab_t *ss)
{
    if (!take_hole(reserve)) return false;
    if (os_or(reserve->os)->decommit(ss->base, SUPERSLAB)) return true;
    sub_relaxed(&reserve->holes, 1u);
    return false;
}

/* Gives the memory of an empty SuperSlab that is on no list to the kernel, its descriptors' too.
 * Returns pages. */
static size_t give_back(reserve_t *reserve, superslab_t *ss)
{
    superslab_set_t alone = {.free_touched = ss->free_touched, .os = reserve->os};
    size_t pages;
    registry_disown(ss->base, SUPERSLAB_GRANULES);
    ss->committed = !decommit(reserve, ss);
    if (ss->committed) pages = superslab_purge(&alone, ss, SIZE_MAX);
    else pages = superslab_forget_all(ss);
    /* Refused: they stay, unused. */
    ss->far = !os_purge_by(reserve->os, ss->descriptors, DESCRIPTORS);
    return pages;
}

/* For the next holder of the lock: this thread may be in a free, which does not wait for it. */
static void arrive(reserve_t *reserve, superslab_t *ss)
{
    superslab_t *head = load_relaxed(&reserve->arrived);
    do ss->next = head;
    /* Release: pairs with the acquire in enlist_arrived. */
    while (!cas_release(&reserve->arrived, &head, ss));
}

/* ---- Take and put ---- */

static superslab_t *take_clean(reserve_t *reserve, uint32_t *refused)
{
    superslab_t *ss = reserve->clean;
    if (!os_or(reserve->os)->commit(ss->base, SUPERSLAB)) {
        *refused = HAK_ERROR_COMMIT;
        return NULL;
    }
    ss->committed = true;
    reserve->clean = ss->next;
    sub_relaxed(&reserve->holes, 1u);
    return ss;
}

static superslab_t *take_locked(reserve_t *reserve, bool shared, uint32_t *refused)
{
    uint32_t before = *refused;
    superslab_t *ss = reserve->dirty;
    if (ss) unlist_dirty(reserve, ss);
    if (!ss && reserve->clean) ss = take_clean(reserve, refused);
    /* Near the limit of mappings the kernel refuses what has to split one, but not what lengthens
     * one. */
    if (!ss) ss = fresh_superslab(reserve, refused);
    if (!ss) return NULL;
    *refused = before;
    ss->shared = shared;
    reserve->out++;
    recent_note(&reserve->recent, out_pages(reserve));
    return ss;
}

superslab_t *reserve_take(reserve_t *reserve, bool shared, uint32_t *refused)
{
    hold(reserve);
    superslab_t *ss = take_locked(reserve, shared, refused);
    release(reserve);
    return ss;
}

/* Keeps an empty SuperSlab with its pages where there is room for it; false: it is the kernel's. */
static bool keep_locked(reserve_t *reserve, superslab_t *ss, const void *giver)
{
    hak_assert(superslab_is_empty(ss));
    ss->giver = giver;
    reserve->out--;
    size_t pages = reserve->dirty_pages + kept_pages(ss);
    /* A SuperSlab that comes back without touched pages needs no descriptors either. */
    if (!ss->free_touched || reserve_is_due(pages, dirty_bound(reserve), reserve->dirty_again))
        return false;
    enlist(reserve, ss);
    return true;
}

bool reserve_put(reserve_t *reserve, superslab_t *ss, const void *giver, bool may_wait,
                 size_t *returned)
{
    if (!hold_where(reserve, may_wait)) return false;
    bool kept = keep_locked(reserve, ss, giver);
    release(reserve);
    if (kept) return true;
    STALL(superslab_unlisted);
    *returned += give_back(reserve, ss) * HAK_PAGE;
    arrive(reserve, ss);
    return true;
}

/* ---- Nursery ---- */

run_t nursery_take(reserve_t *reserve, unsigned granules, uint32_t *refused)
{
    hold(reserve);
    run_t run = superslab_take(&reserve->nursery, granules, 1);
    if (!run.ss) {
        superslab_t *ss = take_locked(reserve, true, refused);
        if (ss) {
            superslab_set_add(&reserve->nursery, ss);
            run = superslab_take(&reserve->nursery, granules, 1);
        }
    }
    recent_note(&reserve->recent_nursery, nursery_pages(reserve));
    release(reserve);
    return run;
}

/* Purges the free pages of every SuperSlab, one after another, and passes the lock on in between.
 * Returns pages. */
static size_t purge_nursery(reserve_t *reserve)
{
    superslab_set_t *nursery = &reserve->nursery;
    size_t pages = 0;
    for (size_t left = nursery->count; left; left--) {
        superslab_t *ss = superslab_set_turn(nursery);
        if (!ss) break;
        if (ss->free_touched) pages += superslab_purge(nursery, ss, SIZE_MAX);
        superslab_purge_far(nursery, ss);
        reserve->nursery_again = reserve_again(nursery->free_touched);
        lock_pass(&reserve->lock, RANK_RESERVE);
        hold(reserve);
    }
    return pages;
}

/* Gives a list of SuperSlabs to the kernel. Returns bytes. */
static size_t give_back_all(reserve_t *reserve, superslab_t *list)
{
    size_t pages = 0;
    for (superslab_t *ss; (ss = list) != NULL;) {
        list = ss->next;
        pages += give_back(reserve, ss);
        arrive(reserve, ss);
    }
    return pages * HAK_PAGE;
}

/* Puts runs back. Returns a list of what left the nursery and found no room in the reserve. */
static superslab_t *put_runs(reserve_t *reserve, const nursery_run_t *runs, size_t count)
{
    superslab_t *out = NULL;
    for (const nursery_run_t *at = runs, *end = runs + count; at < end;) {
        /* Neighbours go back as one. */
        run_t run = at->run;
        unsigned granules = 0;
        for (; at < end && at->run.ss == run.ss && at->run.first == run.first + granules; at++) {
            superslab_note(at->run, at->granules, at->pages);
            granules += at->granules;
        }
        superslab_put(&reserve->nursery, run, granules, 0);
        if (!superslab_is_empty(run.ss) || reserve->nursery.empty <= 1) continue;
        superslab_set_remove(&reserve->nursery, run.ss);
        if (keep_locked(reserve, run.ss, &reserve->nursery)) continue;
        run.ss->next = out;
        out = run.ss;
    }
    return out;
}

static bool nursery_is_due(const reserve_t *reserve)
{
    return reserve_is_due(reserve->nursery.free_touched, nursery_bound(reserve),
                          reserve->nursery_again);
}

/* Purges a few free pages of the SuperSlabs that were looked at longest ago: no more than a free
 * may spend, and more than it puts back. Returns pages. */
static size_t purge_step(reserve_t *reserve)
{
    enum { LOOKS = 8 };
    superslab_set_t *nursery = &reserve->nursery;
    size_t pages = 0;
    for (unsigned looks = 0; looks < LOOKS && pages < NURSERY_STEP; looks++) {
        superslab_t *ss = superslab_set_turn(nursery);
        if (ss && ss->free_touched) pages += superslab_purge(nursery, ss, NURSERY_STEP - pages);
    }
    reserve->nursery_again = pages ? 0 : reserve_again(nursery->free_touched);
    return pages;
}

bool nursery_put(reserve_t *reserve, const nursery_run_t *runs, size_t count, bool may_wait,
                 size_t *returned)
{
    if (!hold_where(reserve, may_wait)) return false;
    superslab_t *out = put_runs(reserve, runs, count);
    /* A caller that may wait takes as many steps as that needs, and passes the lock on in
     * between. */
    for (bool more = nursery_is_due(reserve); more;) {
        *returned += purge_step(reserve) * HAK_PAGE;
        more = may_wait && nursery_is_due(reserve);
        if (!more) break;
        lock_pass(&reserve->lock, RANK_RESERVE);
        hold(reserve);
    }
    release(reserve);
    *returned += give_back_all(reserve, out);
    return true;
}

/* ---- Large blocks ---- */

void reserve_note_large(reserve_t *reserve, size_t more, size_t less)
{
    add_relaxed(&reserve->large, more - less);
}

/* What was in use is forgotten by large blocks, too, not only by time: blocks that replace each
 * other need what the last few of them needed, however fast they come. Not by short ones, which come
 * so fast that each forgets what the next one needs. */
static void note_taken(reserve_t *reserve, size_t bytes)
{
    recent_t *recent = &reserve->recent_large;
    reserve_note_large(reserve, bytes, 0);
    recent_note(recent, large_pages(reserve));
    if (bytes < PARTS_FROM) recent_note(&reserve->recent_short, SHORT_KEPT);
    else recent->most -= (recent->most - large_pages(reserve)) / TAKE_SHARE;
}

static void put_back(reserve_t *reserve, const piece_t *pieces, unsigned count)
{
    hold(reserve);
    for (unsigned i = 0; i < count; i++) /* No room: its pages go, and the address space is lost. */
        if (!pieces_put(&reserve->pieces, pieces[i], os_or(reserve->os)))
            (void)os_purge_by(reserve->os, pieces[i].base, pieces[i].bytes);
    release(reserve);
}

static char *place(reserve_t *reserve, size_t bytes, size_t alignment)
{
    char *to = os_or(reserve->os)->reserve(bytes, alignment);
    if (!to || registry_cover(to, bytes)) return to;
    os_or(reserve->os)->unmap(to, bytes);
    return NULL;
}

/* Moves pieces one behind the other, the last one with as many fresh pages as are wanted. Returns
 * how many; what they are is written to the pieces. Where the kernel refuses, what was to be moved
 * to is left alone, see large.c. */
static unsigned move_all(reserve_t *reserve, piece_t *pieces, unsigned count, char *to,
                         size_t bytes)
{
    const os_table_t *table = os_or(reserve->os);
    char *at = to, *end = to + bytes;
    for (unsigned i = 0; i < count; i++) {
        size_t wanted = i + 1 == count ? (size_t)(end - at) : pieces[i].bytes;
        if (!table->move(pieces[i].base, pieces[i].bytes, at, wanted)) return i;
        pieces[i].base = at;
        pieces[i].bytes = wanted;
        at += wanted;
    }
    return count;
}

/* Some have moved, and one is refused. */
static void undo(reserve_t *reserve, const piece_t *pieces, unsigned moved, unsigned count,
                 size_t bytes)
{
    char *end = pieces[0].base + bytes;
    for (unsigned i = 0; i < moved; i++)
        os_or(reserve->os)->split(pieces[i].base, (size_t)(end - pieces[i].base), pieces[i].bytes);
    put_back(reserve, pieces, count);
}

static char *join(reserve_t *reserve, piece_t *pieces, unsigned count, size_t bytes,
                  size_t alignment)
{
    if (pieces->bytes == bytes && (uintptr_t)pieces->base % alignment == 0) return pieces->base;
    char *to = place(reserve, bytes, alignment);
    unsigned moved = to ? move_all(reserve, pieces, count, to, bytes) : 0;
    STALL(pieces_moved);
    if (moved == count) return to;
    undo(reserve, pieces, moved, count, bytes);
    return NULL;
}

char *reserve_take_pieces(reserve_t *reserve, size_t bytes, size_t alignment, parts_t *parts,
                          size_t *dirty)
{
    piece_t taken[PARTS_MOST];
    hold(reserve);
    note_taken(reserve, bytes);
    unsigned count = pieces_take(&reserve->pieces, bytes, alignment, os_or(reserve->os), taken);
    release(reserve);
    if (!count) return NULL;
    *dirty = 0;
    for (unsigned i = 0; i < count; i++) *dirty += taken[i].bytes;
    char *base = join(reserve, taken, count, bytes, alignment);
    parts->count = count;
    for (unsigned i = 0; i < count; i++) parts->bytes[i] = taken[i].bytes;
    return base;
}

/* A block as the pieces that it was made of. */
static unsigned take_apart(const reserve_t *reserve, piece_t block, const parts_t *parts,
                           piece_t pieces[PARTS_MOST])
{
    unsigned count = 0;
    for (; count + 1 < parts->count; count++) {
        size_t bytes = parts->bytes[count];
        os_or(reserve->os)->split(block.base, block.bytes, bytes);
        pieces[count] = block;
        pieces[count].bytes = bytes;
        block.base += bytes;
        block.bytes -= bytes;
    }
    pieces[count] = block;
    return count + 1;
}

bool reserve_put_pieces(reserve_t *reserve, piece_t block, const parts_t *parts, size_t limit,
                        bool may_wait)
{
    if (!hold_where(reserve, may_wait)) return false;
    pieces_t *set = &reserve->pieces;
    bool room = set->count + PARTS_MOST <= PIECES_MOST;
    if (room) {
        piece_t pieces[PARTS_MOST];
        block.goes = block.bytes > limit || pieces_of(set, block.giver) > limit - block.bytes;
        unsigned count = take_apart(reserve, block, parts, pieces);
        for (unsigned i = 0; i < count; i++) (void)pieces_put(set, pieces[i], os_or(reserve->os));
        recent_note(&reserve->recent_large, large_pages(reserve));
        reserve_note_large(reserve, 0, block.bytes);
        if (pieces_are_due(reserve)) {
            store_relaxed(&reserve->due, 1u);
            store_relaxed(&reserve->pieces_due, 1u);
        }
    }
    release(reserve);
    return room;
}

/* A piece that may not stay, or of it `most` bytes. */
static piece_t take_due_piece(reserve_t *reserve, size_t most)
{
    pieces_t *set = &reserve->pieces;
    if (!pieces_are_due(reserve)) return (piece_t){0};
    size_t bound = pieces_bound(reserve) * HAK_PAGE;
    size_t more = set->bytes > bound ? set->bytes - bound : 0;
    if (set->count > PIECES_STAY || pieces_have_going(set)) more = SIZE_MAX;
    reserve->pieces_again = 0;
    return pieces_take_out(set, NULL, hak_min(more, most), os_or(reserve->os));
}

/* Unmaps a piece. Where the kernel refuses, its pages go, and it stays. Returns bytes. */
static size_t drop_piece(reserve_t *reserve, piece_t piece)
{
    if (!piece.bytes) return 0;
    STALL(piece_dropped);
    if (os_or(reserve->os)->unmap(piece.base, piece.bytes)) return piece.bytes;
    (void)os_or(reserve->os)->purge(piece.base, piece.bytes);
    hak_tls.last_error = HAK_ERROR_PURGE;
    piece.goes = false;
    put_back(reserve, &piece, 1);
    hold(reserve);
    reserve->pieces_again = reserve_again(reserve->pieces.bytes / HAK_PAGE);
    release(reserve);
    return 0;
}

void reserve_settle_pieces(reserve_t *reserve, size_t put)
{
    for (size_t left = put + PIECES_STEP_LEAST; left;) {
        if (!hold_where(reserve, false)) return;
        piece_t piece = take_due_piece(reserve, left);
        if (!piece.bytes) store_relaxed(&reserve->pieces_due, 0u);
        release(reserve);
        if (!drop_piece(reserve, piece)) return;
        left -= piece.bytes;
    }
}

size_t reserve_given(reserve_t *reserve, const void *giver)
{
    hold(reserve);
    size_t bytes = pieces_of(&reserve->pieces, giver);
    release(reserve);
    return bytes;
}

size_t reserve_trim_piece(reserve_t *reserve, const void *giver, size_t most)
{
    hold(reserve);
    piece_t piece = pieces_take_out(&reserve->pieces, giver, most, os_or(reserve->os));
    if (!giver) reserve->pieces_again = 0;
    release(reserve);
    return drop_piece(reserve, piece);
}

void reserve_disown(reserve_t *reserve, const void *giver)
{
    hold(reserve);
    pieces_disown(&reserve->pieces, giver);
    release(reserve);
}

/* ---- Time ---- */

/* Takes the oldest of what is kept too long off the dirty list, a step at most. */
static superslab_t *take_oldest(reserve_t *reserve)
{
    superslab_t *taken = NULL;
    for (unsigned i = 0; i < RESERVE_STEP && reserve->oldest; i++) {
        superslab_t *ss = reserve->oldest;
        if (!reserve_is_due(reserve->dirty_pages, dirty_bound(reserve), reserve->dirty_again))
            break;
        unlist_dirty(reserve, ss);
        ss->next = taken;
        taken = ss;
    }
    return taken;
}

/* What a step takes out of the reserve. */
typedef struct step {
    superslab_t *list;
    unsigned count;
    piece_t pieces[PIECES_STEP];
} step_t;

/* Many pieces go in steps that follow how many they are: where few calls come by, they still go. */
static unsigned take_due_pieces(reserve_t *reserve, piece_t taken[PIECES_STEP])
{
    size_t bound = pieces_bound(reserve) * HAK_PAGE, bytes = reserve->pieces.bytes;
    size_t part = bytes > bound ? (bytes - bound) / PIECES_SHARE & ~(size_t)(HAK_PAGE - 1) : 0;
    size_t most = hak_min(hak_max(part, PIECES_STEP_LEAST), PIECES_STEP_MOST);
    unsigned count = 0;
    for (; most && count < PIECES_STEP; count++) {
        taken[count] = take_due_piece(reserve, most);
        if (!taken[count].bytes) break;
        most -= taken[count].bytes;
    }
    return count;
}

/* A step. Whether there is more is told by `due`. */
static step_t step_locked(reserve_t *reserve)
{
    step_t step = {.list = take_oldest(reserve)};
    step.count = take_due_pieces(reserve, step.pieces);
    if (nursery_is_due(reserve)) (void)purge_step(reserve);
    bool more = step.list || step.count || nursery_is_due(reserve);
    store_relaxed(&reserve->due, (uint32_t)more);
    return step;
}

static void end_step(reserve_t *reserve, const step_t *step)
{
    (void)give_back_all(reserve, step->list);
    for (unsigned i = 0; i < step->count; i++) (void)drop_piece(reserve, step->pieces[i]);
}

void reserve_tick(reserve_t *reserve)
{
    if (HAK_LIKELY(!load_relaxed(&reserve->due) &&
                   load_relaxed(&reserve->tick) == ticks_now(reserve)))
        return;
    if (!hold_where(reserve, false)) return;
    step_t step = step_locked(reserve);
    release(reserve);
    end_step(reserve, &step);
}

void reserve_set_limit(reserve_t *reserve, size_t bytes)
{
    hold(reserve);
    reserve->limit = bytes / HAK_PAGE;
    for (;;) {
        step_t step = step_locked(reserve);
        bool more = load_relaxed(&reserve->due);
        release(reserve);
        end_step(reserve, &step);
        if (!more) return;
        hold(reserve);
    }
}

/* ---- Trim ---- */

/* What is purged and may not be decommitted has nothing to give. */
static bool has_to_give(reserve_t *reserve, const superslab_t *ss)
{
    return kept_pages(ss) || load_relaxed(&reserve->holes) < RESERVE_HOLES;
}

/* Takes what a giver left, or all, off the dirty list. */
static superslab_t *take_dirty_of(reserve_t *reserve, const void *giver)
{
    superslab_t *taken = NULL;
    for (superslab_t *ss = reserve->dirty, *next; ss; ss = next) {
        next = ss->next;
        if ((giver && ss->giver != giver) || !has_to_give(reserve, ss)) continue;
        unlist_dirty(reserve, ss);
        ss->next = taken;
        taken = ss;
    }
    return taken;
}

size_t reserve_trim(reserve_t *reserve, const void *giver)
{
    hold(reserve);
    superslab_t *list = take_dirty_of(reserve, giver);
    size_t left = reserve->pieces.count;
    release(reserve);
    size_t returned = 0, bytes = 1;
    for (; left && bytes; left--, returned += bytes)
        bytes = reserve_trim_piece(reserve, giver, SIZE_MAX);
    return returned + give_back_all(reserve, list);
}

/* Takes the empty SuperSlabs out of the nursery. Returns a list of them. */
static superslab_t *take_empty(reserve_t *reserve)
{
    superslab_set_t *nursery = &reserve->nursery;
    superslab_t *taken = NULL;
    for (superslab_t *ss = nursery->all, *next; ss; ss = next) {
        next = ss->set_next;
        if (!superslab_is_empty(ss)) continue;
        superslab_set_remove(nursery, ss);
        reserve->out--;
        ss->giver = nursery;
        ss->next = taken;
        taken = ss;
    }
    return taken;
}

size_t nursery_trim(reserve_t *reserve)
{
    hold(reserve);
    superslab_t *list = take_empty(reserve);
    size_t bytes = purge_nursery(reserve) * HAK_PAGE;
    release(reserve);
    return bytes + give_back_all(reserve, list) + reserve_trim(reserve, &reserve->nursery);
}

reserve_stats_t reserve_stats(reserve_t *reserve)
{
    hold(reserve);
    reserve_stats_t stats = {
        .reservations = reserve->reservations,
        .reserved_bytes = reserve->reserved_bytes,
        .dirty_superslabs = reserve->dirty_count,
        .clean_superslabs = load_relaxed(&reserve->holes),
        .nursery_superslabs = reserve->nursery.count,
        .nursery_touched_bytes = reserve->nursery.free_touched * HAK_PAGE,
        .pieces = reserve->pieces.count,
        .piece_bytes = reserve->pieces.bytes,
    };
    release(reserve);
    return stats;
}
