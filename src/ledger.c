/* hakheap level 6: ledger - borrowing, recalling and moving */
#include "ledger.h"

#include "stall.h"
#include "tls.h"

static hak_lock_t tree_lock; /* rank TREE */
/* Of each measure: frees in tight heaps, and changes of a tree; ordered. */
static _Atomic uint64_t epochs[MEASURES];
static uint32_t serials = 1; /* lock: TREE; of recalls; 0 is that of none */

static void hold(void) { lock_acquire(&tree_lock, RANK_TREE); }
static bool hold_if(bool may_wait) { return lock_enter(&tree_lock, RANK_TREE, may_wait); }
static void release(void) { lock_release(&tree_lock, RANK_TREE); }

void ledger_note_change(void)
{
    for (unsigned measure = 0; measure < MEASURES; measure++) add_ordered(&epochs[measure], 1u);
}

/* ---- Without the lock ---- */

size_t ledger_grab(ledger_t *ledger, size_t bytes, size_t n)
{
    size_t had = load_relaxed(&ledger->credit);
    for (;;) {
        /* A division takes as long as all the rest. */
        size_t k = HAK_LIKELY(had >= n * bytes) ? n : had / bytes;
        if (!k || ledger_is_tight(ledger)) return 0;
        /* Relaxed: a number of bytes orders nothing; the blocks are handed over by other words. */
        if (cas_relaxed(&ledger->credit, &had, had - k * bytes)) return k;
    }
}

void ledger_uncharge(ledger_t *ledger, size_t bytes)
{
    /* Ordered: as in ledger_refund. */
    add_ordered(&ledger->credit, bytes);
    if (ledger_is_tight(ledger)) add_ordered(&epochs[LIVE], 1u);
}

uint64_t ledger_epoch(unsigned measure) { return load_ordered(&epochs[measure]); }

size_t ledger_live(const ledger_t *ledger)
{
    ledger_t *at = (ledger_t *)(uintptr_t)ledger;
    size_t lease = load_relaxed(&at->of[LIVE].lease), credit = load_relaxed(&at->credit);
    return lease > credit ? lease - credit : 0;
}

/* ---- Lists of children; lock: TREE, as all below ---- */

static void link_first(ledger_t *parent, ledger_t *ledger)
{
    ledger->prev = NULL;
    ledger->next = parent->first;
    *(ledger->next ? &ledger->next->prev : &parent->last) = ledger;
    parent->first = ledger;
}

static void link_last(ledger_t *parent, ledger_t *ledger)
{
    ledger->next = NULL;
    ledger->prev = parent->last;
    *(ledger->prev ? &ledger->prev->next : &parent->first) = ledger;
    parent->last = ledger;
}

static void unlink(ledger_t *parent, ledger_t *ledger)
{
    *(ledger->prev ? &ledger->prev->next : &parent->first) = ledger->next;
    *(ledger->next ? &ledger->next->prev : &parent->last) = ledger->prev;
    ledger->next = ledger->prev = NULL;
}

/* ---- Sums ---- */

static void raise_to(_Atomic size_t *peak, size_t bytes)
{
    if (bytes > load_relaxed(peak)) store_relaxed(peak, bytes);
}

HAK_INLINE size_t put_on(_Atomic size_t *figure, size_t bytes)
{
    size_t more = load_relaxed(figure) + bytes;
    store_relaxed(figure, more);
    return more;
}

HAK_INLINE size_t add_to(measure_t *of, size_t bytes)
{
    size_t sum = put_on(&of->sum, bytes);
    raise_to(&of->peak, sum);
    return sum;
}

/* To all from one on, but for `end` and what is above it; NULL: up to the root. */
static void add_up(ledger_t *from, const ledger_t *end, unsigned measure, size_t bytes)
{
    for (ledger_t *at = from; at != end; at = at->parent) {
        size_t sum = add_to(&at->of[measure], bytes);
        if (HAK_UNLIKELY(sum > load_relaxed(&at->soft)) && measure == LIVE &&
            at->passed == SOFT_BELOW)
            at->passed = SOFT_DUE;
    }
}

/* A soft limit is passed once more only after the heap was well below it. */
static void calm(ledger_t *at, size_t live)
{
    size_t soft = load_relaxed(&at->soft);
    if (live < soft - soft / LEDGER_CALM) at->passed = SOFT_BELOW;
}

HAK_INLINE size_t take_from(_Atomic size_t *figure, size_t bytes)
{
    size_t left = load_relaxed(figure) - bytes;
    store_relaxed(figure, left);
    return left;
}

static void take_off(ledger_t *from, const ledger_t *end, unsigned measure, size_t bytes)
{
    for (ledger_t *at = from; at != end; at = at->parent) {
        size_t sum = take_from(&at->of[measure].sum, bytes);
        if (HAK_UNLIKELY(at->passed != SOFT_BELOW) && measure == LIVE) calm(at, sum);
    }
}

static size_t room_of(ledger_t *at, unsigned measure)
{
    return load_relaxed(&at->of[measure].limit) - load_relaxed(&at->of[measure].sum);
}

/* The lowest from one on that has less room; NULL: none. */
static ledger_t *find_full(ledger_t *from, unsigned measure, size_t bytes)
{
    ledger_t *at = from;
    do
        if (room_of(at, measure) < bytes) return at;
    while ((at = at->parent) != NULL);
    return NULL;
}

/* What all of the chain have room for, without a step beyond a soft limit. */
static size_t room_above(ledger_t *from)
{
    size_t least = SIZE_MAX;
    for (ledger_t *at = from; at; at = at->parent) {
        size_t sum = load_relaxed(&at->of[LIVE].sum), soft = load_relaxed(&at->soft);
        least = hak_min(least, room_of(at, LIVE));
        if (HAK_UNLIKELY(sum < soft)) least = hak_min(least, soft - sum);
    }
    return least;
}

/* Part of a live lease may be credit, and a heap may keep as much as it might borrow ahead: what it
 * has freed is asked for again. */
static void note_idle(ledger_t *ledger)
{
    size_t part = load_relaxed(&ledger->of[LIVE].lease) / LEDGER_IDLE + 4 * HAK_PAGE;
    store_relaxed(&ledger->idle, hak_max(part, load_relaxed(&ledger->keep)));
}
static void note_keep(ledger_t *ledger, size_t room)
{
    store_relaxed(&ledger->keep, (uint32_t)hak_min(room / LEDGER_SHARE, LEDGER_KEEP));
    note_idle(ledger);
}

static void lend(ledger_t *ledger, unsigned measure, size_t bytes)
{
    put_on(&ledger->of[measure].lease, bytes);
    note_idle(ledger);
    add_up(ledger, NULL, measure, bytes);
}

static void give_back(ledger_t *ledger, unsigned measure, size_t bytes)
{
    take_from(&ledger->of[measure].lease, bytes);
    note_idle(ledger);
    take_off(ledger, NULL, measure, bytes);
}

/* The same of both measures, in one walk. */
static void give_back_both(ledger_t *ledger, size_t live, size_t footprint)
{
    take_from(&ledger->of[LIVE].lease, live);
    take_from(&ledger->of[FOOTPRINT].lease, footprint);
    note_idle(ledger);
    ledger_t *at = ledger;
    do {
        size_t sum = take_from(&at->of[LIVE].sum, live);
        if (HAK_UNLIKELY(at->passed != SOFT_BELOW)) calm(at, sum);
        take_from(&at->of[FOOTPRINT].sum, footprint);
    } while ((at = at->parent) != NULL);
}

/* Ordered: pairs with ledger_refund. */
static size_t take_credit(ledger_t *ledger)
{
    return atomic_exchange_explicit(&ledger->credit, 0, memory_order_seq_cst);
}

/* What no block has goes back to the chain. */
static void return_credit(ledger_t *ledger) { give_back(ledger, LIVE, take_credit(ledger)); }

/* ---- Tight ---- */

/* Whether a heap's limit leaves little. */
static bool is_scarce(ledger_t *at, unsigned measure)
{
    return room_of(at, measure) < load_relaxed(&at->of[measure].limit) / LEDGER_SLACK;
}

static bool is_squeezed(ledger_t *from)
{
    ledger_t *at = from;
    do
        if (at->squeezed) return true;
    while ((at = at->parent) != NULL);
    return false;
}

/* Ordered, and before a recall takes the credit: see ledger_refund. */
static void set_tight(ledger_t *ledger, bool tight)
{
    store_ordered(&ledger->tight, (uint32_t)tight);
    store_ordered(&ledger->keep, 0u);
    note_idle(ledger);
}

/* What was squeezed long enough ago is so no more. */
static void relax(ledger_t *ledger, uint32_t now)
{
    ledger_t *at = ledger;
    do
        if (at->squeezed && now - at->squeezed_at >= LEDGER_TIGHT_MS) {
            at->squeezed = false;
            at->squeezed_at += LEDGER_TIGHT_MS;
        }
    while ((at = at->parent) != NULL);
    if (load_relaxed(&ledger->tight) && !is_squeezed(ledger)) set_tight(ledger, false);
}

/* ---- Borrowing ---- */

/* With the bytes asked for, where the chain has so much room. */
static size_t ahead(ledger_t *ledger, size_t room, size_t bytes)
{
    size_t most = hak_min(room / LEDGER_SHARE,
                          load_relaxed(&ledger->of[LIVE].lease) / LEDGER_OF_LEASE + HAK_PAGE);
    return hak_max(hak_min(most, LEDGER_AHEAD), bytes);
}

/* The least room of all of a chain; `live` 0: one is not at ease, or there is less than so much. */
typedef struct rooms_above {
    size_t live;    /* below limits and soft limits */
    size_t of_both; /* below the limits of both measures; 0: there is a soft limit */
} rooms_above_t;

/* One look at each. */
HAK_INLINE rooms_above_t rooms_at_ease(ledger_t *from, size_t live, size_t footprint)
{
    rooms_above_t least = {SIZE_MAX, SIZE_MAX};
    ledger_t *at = from;
    do {
        if (HAK_UNLIKELY(at->squeezed || at->passed != SOFT_BELOW)) return (rooms_above_t){0, 0};
        size_t soft = load_relaxed(&at->soft);
        size_t most = hak_min(load_relaxed(&at->of[LIVE].limit), soft);
        size_t room = most - load_relaxed(&at->of[LIVE].sum), other = room_of(at, FOOTPRINT);
        if (room < live || other < footprint) return (rooms_above_t){0, 0};
        least.live = hak_min(least.live, room);
        least.of_both = hak_min(least.of_both, soft == LEDGER_NO_LIMIT ? hak_min(room, other) : 0);
    } while ((at = at->parent) != NULL);
    return load_relaxed(&from->tight) ? (rooms_above_t){0, 0} : least;
}

/* Both measures in one walk, and of what is live some ahead. False: not at once. */
HAK_INLINE bool lend_at_ease(ledger_t *ledger, size_t live, size_t footprint)
{
    rooms_above_t room = rooms_at_ease(ledger, live, footprint);
    if (HAK_UNLIKELY(!room.live)) return false;
    size_t amount = ahead(ledger, room.live, live);
    put_on(&ledger->of[LIVE].lease, amount);
    if (footprint) put_on(&ledger->of[FOOTPRINT].lease, footprint);
    note_keep(ledger, room.of_both);
    ledger_t *at = ledger;
    do {
        (void)add_to(&at->of[LIVE], amount);
        if (footprint) (void)add_to(&at->of[FOOTPRINT], footprint);
    } while ((at = at->parent) != NULL);
    if (amount != live) add_ordered(&ledger->credit, amount - live);
    return true;
}

bool ledger_lend(ledger_t *ledger, size_t bytes)
{
    if (ledger_is_tight(ledger)) return false; /* as it is seen below, without the lock */
    hold();
    bool lent = lend_at_ease(ledger, bytes, 0);
    release();
    return lent;
}

static bool is_due(const ledger_t *from)
{
    for (const ledger_t *at = from; at; at = at->parent)
        if (at->passed == SOFT_DUE) return true;
    return false;
}

/* What a heap without room says of a request. */
static borrowed_t refuse(ledger_t *full, unsigned measure, size_t bytes)
{
    const measure_t *of = &full->of[measure];
    bool known =
        full->squeezed && of->refused_at == ledger_epoch(measure) + 1 && bytes >= of->refused_size;
    bool never = bytes > load_relaxed(&full->of[measure].limit);
    return (borrowed_t){.full = full, .again = known || never, .by = full->own, .bytes = bytes};
}

borrowed_t ledger_borrow(ledger_t *ledger, size_t bytes, uint32_t now)
{
    borrowed_t answer = {.full = NULL};
    hold();
    note_keep(ledger, 0); /* the chain is not at ease */
    ledger_t *full = find_full(ledger, LIVE, bytes);
    if (full || load_relaxed(&ledger->tight)) {
        return_credit(ledger);
        full = find_full(ledger, LIVE, bytes);
    }
    relax(ledger, now);
    if (full) {
        answer = refuse(full, LIVE, bytes);
    } else {
        size_t room = load_relaxed(&ledger->tight) ? 0 : room_above(ledger);
        size_t amount = room ? ahead(ledger, room, bytes) : bytes;
        lend(ledger, LIVE, amount);
        add_ordered(&ledger->credit, amount - bytes);
        answer.due = is_due(ledger);
    }
    release();
    return answer;
}

void ledger_return_credit(ledger_t *ledger)
{
    if (!hold_if(false)) return;
    return_credit(ledger);
    release();
}

static bool is_above(const ledger_t *top, const ledger_t *ledger)
{
    for (; ledger; ledger = ledger->parent)
        if (ledger == top) return true;
    return false;
}

/* NULL: it has left the chain, and may be gone. */
static ledger_t *find_above(const ledger_t *ledger, const ledger_t *full)
{
    return is_above(full, ledger) ? (ledger_t *)(uintptr_t)full : NULL;
}

static void note_by(ledger_t *ledger, unsigned measure, const ledger_t *full)
{
    ledger->refused_by = full;
    ledger->refused_of = measure;
}

void ledger_note_refused(ledger_t *ledger, unsigned measure, const borrowed_t *refusal,
                         uint64_t at_epoch)
{
    hold();
    ledger_t *at = find_above(ledger, refusal->full);
    if (at) {
        at->of[measure].refused_at = at_epoch + 1; /* 0: never */
        at->of[measure].refused_size = refusal->bytes;
        note_by(ledger, measure, at);
    }
    release();
}

void ledger_note_again(ledger_t *ledger, unsigned measure, const borrowed_t *refusal)
{
    hold();
    if (find_above(ledger, refusal->full)) note_by(ledger, measure, refusal->full);
    release();
}

static void count_failed(ledger_t *ledger, unsigned why)
{
    ledger_t *full = why == FAILED_HERE ? find_above(ledger, ledger->refused_by) : NULL;
    if (full) add_relaxed(&full->of[ledger->refused_of].refusals, 1u);
    if (full && full != ledger) why = FAILED_ABOVE;
    add_relaxed(&ledger->failed[why], 1u);
    ledger_t *at = ledger;
    do add_relaxed(&at->failed_below, 1u);
    while ((at = at->parent) != NULL);
}

/* A signal handler that is turned away may have interrupted the thread that has the lock. */
void ledger_count_failed(ledger_t *ledger, unsigned why)
{
    if (why == FAILED_TURNED) {
        add_relaxed(&ledger->failed[why], 1u);
        return;
    }
    hold();
    count_failed(ledger, why);
    release();
}

static bool is_told(const told_t *told, const ledger_t *ledger)
{
    for (size_t i = 0; i < told->count; i++)
        if (told->at[i] == ledger) return true;
    return false;
}

/* The lowest first. */
bool ledger_take_due(ledger_t *ledger, told_t *told, refused_t *soft)
{
    hold();
    ledger_t *at = told->count < LEDGER_DEPTH ? ledger : NULL;
    while (at && (at->passed != SOFT_DUE || is_told(told, at))) at = at->parent;
    if (at) {
        told->at[told->count++] = at;
        at->passed = SOFT_TOLD;
        *soft = at->own;
    }
    release();
    return at != NULL;
}

hak_heap_t *ledger_refused_by(ledger_t *ledger)
{
    hold();
    const ledger_t *at = find_above(ledger, ledger->refused_by);
    release();
    return at ? at->own.heap : NULL;
}

/* ---- The footprint ---- */

static void note_footprint(ledger_t *ledger, size_t footprint)
{
    store_relaxed(&ledger->footprint, footprint);
    raise_to(&ledger->most, footprint);
}

/* What is asked for and not lent yet. */
static size_t lacking(ledger_t *ledger, size_t footprint)
{
    size_t lease = load_relaxed(&ledger->of[FOOTPRINT].lease);
    return footprint > lease ? footprint - lease : 0;
}

bool ledger_lend_both(ledger_t *ledger, size_t bytes, size_t footprint)
{
    if (ledger_is_tight(ledger)) return false; /* likewise */
    size_t more = lacking(ledger, footprint);
    hold();
    bool lent = lend_at_ease(ledger, bytes, more);
    release();
    if (HAK_LIKELY(lent)) note_footprint(ledger, footprint);
    return lent;
}

/* A thread is known by where its own record lies, about: to take another for it does little harm. */
static uint32_t this_thread(void) { return (uint32_t)((uintptr_t)&hak_tls >> 3); }
static void note_lacking(ledger_t *ledger, size_t bytes)
{
    ledger->lacks_by = this_thread();
    ledger->lacks = bytes;
}

bool ledger_admit(ledger_t *ledger, size_t footprint, bool may_wait)
{
    size_t more = lacking(ledger, footprint);
    if (more) {
        if (!hold_if(may_wait)) return false;
        ledger_t *full = find_full(ledger, FOOTPRINT, more);
        if (!full) lend(ledger, FOOTPRINT, more);
        else if (may_wait) note_lacking(ledger, more);
        release();
        if (full) return false;
    }
    note_footprint(ledger, footprint);
    return true;
}

void ledger_settle_at(ledger_t *ledger, size_t footprint, bool may_wait)
{
    size_t lease = load_relaxed(&ledger->of[FOOTPRINT].lease);
    note_footprint(ledger, footprint);
    if (footprint >= lease) return;
    if (!hold_if(may_wait)) {
        ledger_note_freed(ledger); /* a recall returns it */
        return;
    }
    size_t credit = ledger_is_idle(ledger) ? take_credit(ledger) : 0;
    give_back_both(ledger, credit, lease - footprint);
    release();
}

borrowed_t ledger_lacks(ledger_t *ledger, size_t least)
{
    hold();
    size_t lacks = ledger->lacks_by == this_thread() ? ledger->lacks : least;
    ledger_t *full = find_full(ledger, FOOTPRINT, lacks);
    borrowed_t refusal = {.full = NULL};
    if (full) refusal = refuse(full, FOOTPRINT, lacks);
    release();
    return refusal;
}

/* ---- Recalls ---- */

void ledger_begin(recall_t *recall, ledger_t *of, ledger_t *top, uint32_t now)
{
    recall->of = of;
    recall->top = top;
    recall->now = now;
    recall->more = true;
    recall->again = false;
    recall->count = 0;
    hold();
    recall->serial = ++serials;
    release();
}

static void visit(recall_t *recall, ledger_t *at)
{
    if (at->stamp == recall->serial) return;
    at->stamp = recall->serial;
    if (at->away) return;
    at->pins++;
    set_tight(at, true);
    recall->at[recall->count++] = at;
}

/* Down to the first child that is not done, else up. Those that are done go to the end of their
 * list, so that each step finds where the last one was. */
static ledger_t *next_of(const recall_t *recall, ledger_t *at)
{
    if (at->first && at->first->done != recall->serial) return at->first;
    at->done = recall->serial;
    if (at == recall->top) return NULL;
    ledger_t *parent = at->parent;
    unlink(parent, at);
    link_last(parent, at);
    return parent;
}

/* What was refused before is asked again, until a recall has come to its end. At the first step
 * the top still says when the last recall, or the time after it, has ended. */
static void squeeze(recall_t *recall, ledger_t *top)
{
    if (top->stamp != recall->serial)
        recall->again = top->squeezed_at && recall->now - top->squeezed_at < LEDGER_TIGHT_MS;
    top->squeezed = true;
    top->squeezed_at = recall->now;
    for (unsigned measure = 0; measure < MEASURES; measure++) top->of[measure].refused_at = 0;
}

void ledger_step(recall_t *recall)
{
    enum { STEPS = 4 * LEDGER_AT_ONCE };
    recall->count = 0;
    hold();
    ledger_t *at = recall->top;
    recall->more = is_above(at, recall->of);
    if (recall->more) squeeze(recall, at);
    for (unsigned step = 0; recall->more && step < STEPS && recall->count < LEDGER_AT_ONCE;
         step++) {
        visit(recall, at);
        at = next_of(recall, at);
        recall->more = at != NULL;
    }
    release();
    STALL(recall_stepped);
}

void ledger_settle(recall_t *recall)
{
    hold();
    for (size_t i = 0; i < recall->count; i++) {
        return_credit(recall->at[i]);
        recall->at[i]->pins--;
    }
    recall->count = 0;
    release();
}

void ledger_end(recall_t *recall, unsigned measure, uint32_t now)
{
    hold();
    ledger_t *top = find_above(recall->of, recall->top);
    if (top) {
        /* Where it found much, caches may go on; but not where that comes again and again. */
        top->squeezed = is_scarce(top, measure) || recall->again;
        top->squeezed_at = now;
    }
    release();
}

/* ---- Trees ---- */

/* Heaps from the root to this one. */
static unsigned depth_of(const ledger_t *ledger)
{
    unsigned depth = 0;
    for (; ledger; ledger = ledger->parent) depth++;
    return depth;
}

/* A child has come: it may be the highest. */
static void raise_height(ledger_t *from, unsigned height)
{
    for (ledger_t *at = from; at; at = at->parent)
        at->height = (uint16_t)hak_max(at->height, ++height);
}

static void link_to(ledger_t *ledger, ledger_t *parent)
{
    ledger->parent = parent;
    if (!parent) return;
    /* Those that a recall is done with come last: see next_of. */
    if (ledger->done == serials) link_last(parent, ledger);
    else link_first(parent, ledger);
    raise_height(parent, ledger->height);
}

static void unlink_from_parent(ledger_t *ledger)
{
    ledger_t *parent = ledger->parent;
    ledger->parent = NULL;
    if (!parent) return;
    unlink(parent, ledger);
    if (!parent->first) parent->height = 1;
}

static size_t limit_of(const hak_limits_t *limits, unsigned measure)
{
    return measure == LIVE ? limits->live_limit : limits->committed_limit;
}

static void set_limits(ledger_t *ledger, const hak_limits_t *limits)
{
    for (unsigned measure = 0; measure < MEASURES; measure++)
        store_relaxed(&ledger->of[measure].limit, limit_of(limits, measure));
    store_relaxed(&ledger->soft, limits->soft_limit);
}

ledger_answer_t ledger_join(ledger_t *ledger, ledger_t *parent, const hak_limits_t *limits,
                            size_t footprint)
{
    ledger_answer_t answer = LEDGER_DONE;
    set_limits(ledger, limits);
    note_keep(ledger, 0);
    hold();
    ledger_t *full = parent ? find_full(parent, FOOTPRINT, footprint) : NULL;
    if (depth_of(parent) >= LEDGER_DEPTH) {
        answer = LEDGER_DEEP;
    } else if (full) {
        answer = LEDGER_FULL;
        note_lacking(parent, footprint);
    } else {
        ledger->height = 1;
        link_to(ledger, parent);
        lend(ledger, FOOTPRINT, footprint);
        note_footprint(ledger, footprint);
        set_tight(ledger, is_squeezed(ledger));
    }
    release();
    return answer;
}

bool ledger_hide(ledger_t *ledger)
{
    hold();
    ledger->away = true;
    bool hidden = ledger->pins == 0;
    release();
    return hidden;
}

static void return_lease(ledger_t *ledger)
{
    give_back(ledger, LIVE, load_relaxed(&ledger->of[LIVE].lease));
    store_ordered(&ledger->credit, 0);
}

void ledger_clear(ledger_t *ledger)
{
    hold();
    return_lease(ledger);
    ledger->away = false;
    set_tight(ledger, is_squeezed(ledger));
    ledger_note_change();
    release();
}

void ledger_leave(ledger_t *ledger)
{
    hold();
    hak_assert(!ledger->first && !ledger->pins);
    return_lease(ledger);
    give_back(ledger, FOOTPRINT, load_relaxed(&ledger->of[FOOTPRINT].lease));
    unlink_from_parent(ledger);
    if (ledger->height) ledger_note_change(); /* else it was refused, and makes no room */
    release();
}

ledger_t *ledger_child(const ledger_t *ledger)
{
    hold();
    ledger_t *child = ledger->first;
    release();
    return child;
}

/* The lowest above both, or NULL. */
static ledger_t *common(ledger_t *a, const ledger_t *b)
{
    while (a && !is_above(a, b)) a = a->parent;
    return a;
}

/* Whether one of [from, end) has less room than a heap has of a measure; *full: the lowest. */
static bool is_full_before(ledger_t *from, const ledger_t *end, const ledger_t *ledger,
                           full_t *full)
{
    for (unsigned measure = 0; measure < MEASURES; measure++) {
        size_t bytes = load_relaxed(&((ledger_t *)(uintptr_t)ledger)->of[measure].sum);
        for (ledger_t *at = from; at != end; at = at->parent) {
            *full = (full_t){at, measure};
            if (room_of(at, measure) < bytes) return true;
        }
    }
    return false;
}

static ledger_answer_t may_move(ledger_t *ledger, ledger_t *parent, full_t *full)
{
    if (parent && is_above(ledger, parent)) return LEDGER_LOOP;
    if (parent && depth_of(parent) + ledger->height > LEDGER_DEPTH) return LEDGER_DEEP;
    const ledger_t *end = common(ledger->parent, parent);
    return is_full_before(parent, end, ledger, full) ? LEDGER_FULL : LEDGER_DONE;
}

ledger_answer_t ledger_move(ledger_t *ledger, ledger_t *parent, full_t *full)
{
    hold();
    ledger_answer_t answer = may_move(ledger, parent, full);
    if (answer == LEDGER_DONE) {
        ledger_t *from = ledger->parent;
        /* What is in its sum before and after never leaves it. */
        const ledger_t *end = common(from, parent);
        unlink_from_parent(ledger);
        link_to(ledger, parent);
        for (unsigned measure = 0; measure < MEASURES; measure++) {
            size_t bytes = load_relaxed(&ledger->of[measure].sum);
            take_off(from, end, measure, bytes);
            add_up(parent, end, measure, bytes);
        }
        ledger_note_change();
    }
    release();
    return answer;
}

bool ledger_set_limits(ledger_t *ledger, const hak_limits_t *limits, full_t *full)
{
    bool fits = true;
    hold();
    for (unsigned measure = 0; measure < MEASURES && fits; measure++) {
        *full = (full_t){ledger, measure};
        fits = load_relaxed(&ledger->of[measure].sum) <= limit_of(limits, measure);
    }
    if (fits) {
        set_limits(ledger, limits);
        ledger->passed = SOFT_BELOW;
        if (load_relaxed(&ledger->of[LIVE].sum) > limits->soft_limit) ledger->passed = SOFT_DUE;
    }
    STALL(tree_held);
    ledger_note_change();
    release();
    return fits;
}

/* ---- Proof ---- */

static size_t sum_below(const ledger_t *ledger, unsigned measure)
{
    size_t sum = 0;
    for (ledger_t *at = ledger->first; at; at = at->next) sum += load_relaxed(&at->of[measure].sum);
    return sum;
}

static const char *look(ledger_t *ledger)
{
    for (unsigned measure = 0; measure < MEASURES; measure++) {
        measure_t *of = &ledger->of[measure];
        size_t sum = load_relaxed(&of->sum);
        if (sum != load_relaxed(&of->lease) + sum_below(ledger, measure))
            return "a heap's sum is not its lease and the sums of its children";
        if (sum > load_relaxed(&of->limit)) return "a heap is above its limit";
    }
    if (load_relaxed(&ledger->credit) > load_relaxed(&ledger->of[LIVE].lease))
        return "a heap has more credit than it has borrowed";
    if (load_relaxed(&ledger->footprint) > load_relaxed(&ledger->of[FOOTPRINT].lease))
        return "a heap uses more memory than is counted";
    return NULL;
}

static bool is_whole(ledger_t *ledger)
{
    if (look(ledger)) return false;
    for (ledger_t *at = ledger->first; at; at = at->next)
        if (at->parent != ledger || at->height >= ledger->height || !is_whole(at)) return false;
    return true;
}

bool ledger_is_sound(ledger_t *ledger)
{
    hold();
    bool sound = is_whole(ledger);
    release();
    return sound;
}

const char *ledger_check(ledger_t *ledger, size_t footprint)
{
    if (load_relaxed(&ledger->footprint) != footprint)
        return "what a heap has in use is not what was counted last";
    hold();
    const char *words = look(ledger);
    release();
    return words;
}
