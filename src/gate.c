/* hakheap level 3: gate - the shards and the fork handlers */
#include "gate.h"

#include <pthread.h>

#include "os.h"
#include "tls.h"

enum { SHARDS = 64 };

static struct {
    struct {
        _Atomic uint32_t inside;
    } __attribute__((aligned(HAK_LINE))) shard[SHARDS];
    _Atomic uint32_t closed;
    hak_lock_t lock; /* rank GATE_CLOSE: held while closed, so that who may wait has something to wait on */
    void (*in_child)(void);
} gate;

gate_entry_t gate_enter(bool may_wait)
{
    if (HAK_UNLIKELY(hak_tls.depth | hak_tls.closing)) return GATE_REENTERED;
    hak_tls.depth = 1;
    atomic_signal_fence(memory_order_seq_cst); /* a handler on this thread sees depth before anything is taken */
    for (;;) {
        uint32_t at = os_cpu() % SHARDS;
        /* Ordered: either the closer sees this count, or this thread sees the gate closed. */
        add_ordered(&gate.shard[at].inside, 1u);
        if (HAK_LIKELY(!load_ordered(&gate.closed))) {
            hak_tls.gate_shard = at;
            return GATE_IN;
        }
        sub_release(&gate.shard[at].inside, 1u);
        if (!may_wait) break;
        lock_acquire(&gate.lock, RANK_GATE_CLOSE);
        lock_release(&gate.lock, RANK_GATE_CLOSE);
    }
    hak_tls.depth = 0;
    return GATE_CLOSED;
}

void gate_leave(void)
{
    /* Release: pairs with the closer's ordered load, which then sees all that was done inside. */
    sub_release(&gate.shard[hak_tls.gate_shard].inside, 1u);
    atomic_signal_fence(memory_order_seq_cst);
    hak_tls.depth = 0;
}

/* A fork in a signal handler that interrupted a slow path cannot wait for that path. */
static void close_gate(void)
{
    if (hak_tls.depth) return;
    lock_acquire(&gate.lock, RANK_GATE_CLOSE);
    store_ordered(&gate.closed, 1u);
    for (uint32_t at = 0; at < SHARDS; at++)
        while (load_ordered(&gate.shard[at].inside)) os_yield();
    hak_tls.closing = 1; /* other fork handlers of this thread may call the library: they must not wait for it */
}

static void open_gate(void)
{
    if (!hak_tls.closing) return;
    hak_tls.closing = 0;
    store_ordered(&gate.closed, 0u);
    lock_release(&gate.lock, RANK_GATE_CLOSE);
}

/* Only this thread exists here: what others counted goes, and nobody holds or awaits the lock. */
static void open_in_child(void)
{
    for (uint32_t at = 0; at < SHARDS; at++) store_relaxed(&gate.shard[at].inside, 0u);
    if (hak_tls.depth) store_relaxed(&gate.shard[hak_tls.gate_shard].inside, 1u);
    gate.in_child();
    open_gate();
}

bool gate_start_process(void (*in_child)(void))
{
    gate.in_child = in_child;
    return pthread_atfork(close_gate, open_gate, open_in_child) == 0;
}
