/* hakheap level 6: ledger - borrowing, recalling and moving */
#include "ledger.h"

#include "stall.h"

static hak_lock_t tree_lock;   /* rank TREE */
static _Atomic uint64_t epoch; /* frees in tight heaps, and changes of a tree; ordered */
static uint32_t serials = 1;   /* lock: TREE; of recalls; 0 is that of none */

static void hold(void) { lock_acquire(&tree_lock, RANK_TREE); }
static void release(void) { lock_release(&tree_lock, RANK_TREE); }

/* ---- Without the lock ---- */

size_t ledger_grab(ledger_t *ledger, size_t bytes, size_t n)
{
    size_t had = load_relaxed(&ledger->credit);
    for (;;) {
        size_t k = hak_min(had / bytes, n);
        if (!k || ledger_is_tight(ledger)) return 0;
        /* Relaxed: a number of bytes orders nothing; the blocks are handed over by other words. */
        if (cas_relaxed(&ledger->credit, &had, had - k * bytes)) return k;
    }
}

void ledger_note_freed(ledger_t *ledger)
{
    if (HAK_UNLIKELY(ledger_is_tight(ledger))) add_ordered(&epoch, 1u);
}

void ledger_refund(ledger_t *ledger, size_t bytes)
{
    /* Ordered: either the thread that recalls sees these bytes, or this one sees that the heap is
     * tight. */
    add_ordered(&ledger->credit, bytes);
    ledger_note_freed(ledger);
}

uint64_t ledger_epoch(void) { return load_ordered(&epoch); }

size_t ledger_live(const ledger_t *ledger)
{
    ledger_t *at = (ledger_t *)(uintptr_t)ledger;
    size_t lease = load_relaxed(&at->lease), credit = load_relaxed(&at->credit);
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

static void add_up(ledger_t *from, size_t bytes)
{
    for (ledger_t *at = from; at; at = at->parent) {
        size_t sum = load_relaxed(&at->sum) + bytes;
        store_relaxed(&at->sum, sum);
        if (sum > load_relaxed(&at->peak)) store_relaxed(&at->peak, sum);
    }
}

static void take_off(ledger_t *from, size_t bytes)
{
    for (ledger_t *at = from; at; at = at->parent)
        store_relaxed(&at->sum, load_relaxed(&at->sum) - bytes);
}

static size_t room_of(ledger_t *at) { return load_relaxed(&at->limit) - load_relaxed(&at->sum); }

/* The lowest from one on that has less room; NULL: none. *least: the room of the fullest. */
static ledger_t *find_full(ledger_t *from, size_t bytes, size_t *least)
{
    ledger_t *at = from;
    *least = SIZE_MAX;
    do {
        if (room_of(at) < bytes) return at;
        *least = hak_min(*least, room_of(at));
    } while ((at = at->parent) != NULL);
    return NULL;
}

static void lend(ledger_t *ledger, size_t bytes)
{
    store_relaxed(&ledger->lease, load_relaxed(&ledger->lease) + bytes);
    add_up(ledger, bytes);
}

/* What no block has goes back to the chain. */
static void return_credit(ledger_t *ledger)
{
    size_t bytes = atomic_exchange_explicit(&ledger->credit, 0, memory_order_seq_cst);
    store_relaxed(&ledger->lease, load_relaxed(&ledger->lease) - bytes);
    take_off(ledger, bytes);
}

/* ---- Tight ---- */

/* Whether a heap's limit leaves little. */
static bool is_scarce(ledger_t *at)
{
    return room_of(at) < load_relaxed(&at->limit) / LEDGER_SLACK;
}

static bool is_squeezed(ledger_t *from)
{
    ledger_t *at = from;
    do
        if (at->squeezed) return true;
    while ((at = at->parent) != NULL);
    return false;
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
    if (load_relaxed(&ledger->tight) && !is_squeezed(ledger)) store_ordered(&ledger->tight, 0u);
}

/* ---- Borrowing ---- */

/* With the bytes asked for. */
static size_t ahead(ledger_t *ledger, size_t room, size_t bytes)
{
    if (load_relaxed(&ledger->tight)) return bytes;
    size_t most =
        hak_min(room / LEDGER_SHARE, load_relaxed(&ledger->lease) / LEDGER_OF_LEASE + HAK_PAGE);
    return hak_max(hak_min(most, LEDGER_AHEAD), bytes);
}

borrowed_t ledger_borrow(ledger_t *ledger, size_t bytes, uint32_t now)
{
    hold();
    size_t room;
    borrowed_t refusal = {find_full(ledger, bytes, &room), false, {0}};
    if (refusal.full || load_relaxed(&ledger->tight)) {
        return_credit(ledger);
        refusal.full = find_full(ledger, bytes, &room);
    }
    relax(ledger, now);
    if (!refusal.full) {
        size_t amount = ahead(ledger, room, bytes);
        lend(ledger, amount);
        add_ordered(&ledger->credit, amount - bytes);
    } else {
        const ledger_t *full = refusal.full;
        refusal.by = full->own;
        refusal.again = bytes > load_relaxed(&full->limit) ||
                        (full->squeezed && full->refused_at == ledger_epoch() + 1 &&
                         bytes >= full->refused_size);
    }
    release();
    return refusal;
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

static void count_refusal(ledger_t *ledger, ledger_t *at)
{
    ledger->refused_by = at;
    store_relaxed(&at->refusals, load_relaxed(&at->refusals) + 1);
}

void ledger_note_refused(ledger_t *ledger, const ledger_t *full, size_t bytes, uint64_t at_epoch)
{
    hold();
    ledger_t *at = find_above(ledger, full);
    if (at) {
        at->refused_at = at_epoch + 1; /* 0: never */
        at->refused_size = bytes;
        count_refusal(ledger, at);
    }
    release();
}

void ledger_note_again(ledger_t *ledger, const ledger_t *full)
{
    hold();
    ledger_t *at = find_above(ledger, full);
    if (at) count_refusal(ledger, at);
    release();
}

hak_heap_t *ledger_refused_by(ledger_t *ledger)
{
    hold();
    const ledger_t *at = find_above(ledger, ledger->refused_by);
    release();
    return at ? at->own.heap : NULL;
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
    /* Ordered, and before the credit is taken: see ledger_refund. */
    store_ordered(&at->tight, 1u);
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
    top->refused_at = 0;
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

void ledger_end(recall_t *recall, uint32_t now)
{
    hold();
    ledger_t *top = find_above(recall->of, recall->top);
    if (top) {
        /* Where it found much, caches may go on; but not where that comes again and again. */
        top->squeezed = is_scarce(top) || recall->again;
        top->squeezed_at = now;
    }
    release();
}

/* ---- Trees ---- */

/* A change that may make room, or bring what may be recalled. */
static void note_change(void) { add_ordered(&epoch, 1u); }

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

bool ledger_join(ledger_t *ledger, ledger_t *parent, size_t limit)
{
    store_relaxed(&ledger->limit, limit);
    hold();
    bool fits = depth_of(parent) < LEDGER_DEPTH;
    if (fits) {
        ledger->height = 1;
        link_to(ledger, parent);
        store_ordered(&ledger->tight, (uint32_t)is_squeezed(ledger));
    }
    release();
    return fits;
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
    take_off(ledger, load_relaxed(&ledger->lease));
    store_relaxed(&ledger->lease, 0);
    store_ordered(&ledger->credit, 0);
}

void ledger_clear(ledger_t *ledger)
{
    hold();
    return_lease(ledger);
    ledger->away = false;
    store_ordered(&ledger->tight, (uint32_t)is_squeezed(ledger));
    note_change();
    release();
}

void ledger_leave(ledger_t *ledger)
{
    hold();
    hak_assert(!ledger->first && !ledger->pins);
    return_lease(ledger);
    unlink_from_parent(ledger);
    note_change();
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

/* The lowest of [from, end) that has less room, or NULL. */
static ledger_t *find_full_before(ledger_t *from, const ledger_t *end, size_t bytes)
{
    for (ledger_t *at = from; at != end; at = at->parent)
        if (room_of(at) < bytes) return at;
    return NULL;
}

static ledger_answer_t may_move(ledger_t *ledger, ledger_t *parent, ledger_t **full)
{
    if (parent && is_above(ledger, parent)) return LEDGER_LOOP;
    if (parent && depth_of(parent) + ledger->height > LEDGER_DEPTH) return LEDGER_DEEP;
    const ledger_t *end = common(ledger->parent, parent);
    *full = find_full_before(parent, end, load_relaxed(&ledger->sum));
    return *full ? LEDGER_FULL : LEDGER_DONE;
}

ledger_answer_t ledger_move(ledger_t *ledger, ledger_t *parent, ledger_t **full)
{
    hold();
    ledger_answer_t answer = may_move(ledger, parent, full);
    if (answer == LEDGER_DONE) {
        size_t bytes = load_relaxed(&ledger->sum);
        take_off(ledger->parent, bytes);
        unlink_from_parent(ledger);
        link_to(ledger, parent);
        add_up(parent, bytes);
        note_change();
    }
    release();
    return answer;
}

bool ledger_set_limit(ledger_t *ledger, size_t limit)
{
    hold();
    bool fits = load_relaxed(&ledger->sum) <= limit;
    if (fits) store_relaxed(&ledger->limit, limit);
    note_change();
    release();
    return fits;
}

/* ---- Proof ---- */

static size_t sum_below(const ledger_t *ledger)
{
    size_t sum = 0;
    for (ledger_t *at = ledger->first; at; at = at->next) sum += load_relaxed(&at->sum);
    return sum;
}

static bool is_whole(ledger_t *ledger)
{
    size_t sum = load_relaxed(&ledger->sum), lease = load_relaxed(&ledger->lease);
    if (sum != lease + sum_below(ledger) || sum > load_relaxed(&ledger->limit)) return false;
    if (load_relaxed(&ledger->credit) > lease) return false;
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
