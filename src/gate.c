/* hakheap level 3: gate - the shards and the fork handlers */
#include "gate.h"

#include <pthread.h>

#include "os.h"
#include "stall.h"
#include "tls.h"

enum { SHARDS = 64, SETS = 2 };

typedef struct shard {
    _Atomic uint32_t inside;
} __attribute__((aligned(HAK_LINE))) shard_t;

static struct {
    /* Two sets: a child goes on with the other one, zeroed, so that a count that its only thread
     * was just making or taking back when a signal handler forked hits a set that is not read. */
    shard_t shard[SETS * SHARDS];
    _Atomic uint32_t epoch; /* its lowest bit chooses the set */
    _Atomic uint32_t closed;
    /* rank GATE_CLOSE: held while closed, so that a thread that may wait has something to wait
     * on */
    hak_lock_t lock;
    void (*in_child)(void);
} gate;

_Static_assert(SETS *SHARDS <= UINT8_MAX + 1, "a place is a byte of hak_tls_t");

static _Atomic uint32_t *counter(uint32_t place) { return &gate.shard[place].inside; }

static uint32_t first_place(uint32_t epoch) { return epoch % SETS * SHARDS; }

gate_entry_t gate_enter(bool may_wait)
{
    if (HAK_UNLIKELY(hak_tls.depth | hak_tls.closing)) return GATE_REENTERED;
    hak_tls.depth = 1;
    atomic_signal_fence(
        memory_order_seq_cst); /* a handler on this thread sees depth before anything is taken */
    for (;;) {
        uint32_t epoch = load_relaxed(&gate.epoch);
        uint32_t place = first_place(epoch) + os_cpu() % SHARDS;
        hak_tls.gate_place = (uint8_t)place;
        /* Ordered: either the closer sees this count, or this thread sees the gate closed. */
        add_ordered(counter(place), 1u);
        STALL(gate_counted);
        bool closed = load_ordered(&gate.closed);
        if (HAK_LIKELY(!closed && load_relaxed(&gate.epoch) == epoch)) return GATE_IN;
        sub_release(counter(place), 1u);
        if (!closed) continue; /* this is the child of a handler's fork */
        if (!may_wait) break;
        STALL(gate_waiting);
        lock_acquire(&gate.lock, RANK_GATE_CLOSE);
        lock_release_reset(&gate.lock, RANK_GATE_CLOSE); /* as in open_gate */
    }
    hak_tls.depth = 0;
    return GATE_CLOSED;
}

void gate_leave(void)
{
    /* Release: pairs with the closer's ordered load, which then sees all that was done inside. */
    sub_release(counter(hak_tls.gate_place), 1u);
    atomic_signal_fence(memory_order_seq_cst);
    hak_tls.depth = 0;
}

bool gate_is_closed(void) { return load_relaxed(&gate.closed); }

bool gate_was_forked(void) { return load_relaxed(&gate.epoch) != 0; }

void gate_pass(void)
{
    gate_leave();
    (void)gate_enter(true);
}

/* The set is looked up each time: in the child of a handler's fork it is the other one, and what
 * the first one counts is gone. */
static bool is_inside(uint32_t at)
{
    return load_ordered(counter(first_place(load_relaxed(&gate.epoch)) + at)) != 0;
}

/*
 * `closing` comes first and goes last: a handler that interrupts these functions finds the library
 * closed to this thread, and never waits for a lock that the thread itself holds. A fork in a
 * handler that interrupted a slow path, or another fork, cannot wait for what it interrupted and
 * does without.
 */
static void close_gate(void)
{
    bool outermost = hak_tls.closing++ == 0 && !hak_tls.depth;
    if (!outermost) return;
    hak_tls.closer = 1;
    atomic_signal_fence(memory_order_seq_cst);
    lock_acquire(&gate.lock, RANK_GATE_CLOSE);
    hak_tls.holds_gate = 1;
    store_ordered(&gate.closed, 1u);
    for (uint32_t at = 0; at < SHARDS; at++)
        for (unsigned turn = 0; is_inside(at); turn++) hak_wait(turn);
    STALL(gate_closed);
}

static void open_gate(void)
{
    if (hak_tls.closing == 1 && hak_tls.closer) {
        store_ordered(&gate.closed, 0u);
        hak_tls.holds_gate = 0;
        lock_release_reset(&gate.lock, RANK_GATE_CLOSE);
        hak_tls.closer = 0;
        atomic_signal_fence(memory_order_seq_cst);
    }
    hak_tls.closing--;
}

/*
 * Only this thread exists here: what others counted goes, and what they had closed is open.
 *
 * A handler may have forked between an instruction that changes the lock and the one that changes
 * `holds_gate`. Then the lock is set free although the interrupted code has it, or is about to give
 * it back. No other thread is there to take it, so that code goes on as if it had it, and gives
 * back what is free.
 */
static void open_in_child(void)
{
    uint32_t epoch = load_relaxed(&gate.epoch) + 1;
    for (uint32_t at = 0; at < SHARDS; at++) store_relaxed(counter(first_place(epoch) + at), 0u);
    store_relaxed(&gate.epoch, epoch);
    if (!hak_tls.holds_gate) {
        store_relaxed(&gate.closed, 0u);
        store_relaxed(&gate.lock.word, 0u);
    }
    gate.in_child();
    STALL(gate_opening);
    open_gate();
}

bool gate_start_process(void (*in_child)(void))
{
    gate.in_child = in_child;
    return pthread_atfork(close_gate, open_gate, open_in_child) == 0;
}
