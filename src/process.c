/* hakheap level 7: process - setting up once, and waiting for the thread that does */
#include "process.h"

#include <errno.h>
#include <pthread.h>

#include "block.h"
#include "gate.h"
#include "options.h"
#include "os.h"
#include "percpu.h"
#include "reserve.h"
#include "tls.h"

enum { BEGIN = 0, READY = UINT32_MAX }; /* no process has such an id */

static struct {
    _Atomic uint32_t state; /* see process.h */
} process;
_Atomic uint32_t process_ready; /* and the module stays mapped */

static int refuse(hak_error_t why, int error)
{
    hak_tls.last_error = why;
    return error;
}

static void in_child(void)
{
    /* The child has the parent's registrations; asking again costs nothing where it has. */
    (void)os->fence_register();
}

/* May run again, where it was refused or its thread vanished in a fork: fork handlers that are
 * there twice do what they do once. */
static int set_up(void)
{
    if (os->page_size() != HAK_PAGE) return refuse(HAK_ERROR_PAGES, ENOTSUP);
    uint64_t key;
    os_random(&key, sizeof key);
    block_start_process(key);
    options_start_process();
    process_reserve.limit = options_reserve_bytes(os_memory() / MEMORY_SHARE) / HAK_PAGE;
    percpu_start_process(os_environment("HAKHEAP_RSEQ"));
    return gate_start_process(in_child) ? 0 : refuse(HAK_ERROR_COMMIT, ENOMEM);
}

static int set_up_or_wait(void)
{
    for (unsigned turn = 0;; turn++) {
        /* Each time: a handler may have forked, and this be the child. */
        uint32_t mine = os_process();
        /* Acquire: pairs with the release below. */
        uint32_t state = load_acquire(&process.state);
        if (state == READY) return 0;
        if (state == mine) {
            hak_wait(turn);
            continue;
        }
        if (!cas_acquire(&process.state, &state, mine)) continue;
        int error = set_up();
        store_release(&process.state, error ? (uint32_t)BEGIN : (uint32_t)READY);
        return error;
    }
}

/* What opens files may be a cancellation point, and a handler may interrupt any of it. */
static int start(void)
{
    int before = errno, cancel;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    hak_tls.starting = true;
    atomic_signal_fence(memory_order_seq_cst);
    int error = set_up_or_wait();
    /* After, not while others wait: the loader's lock may be held by a thread that waits for this
     * one in a plugin's constructor. Release: pairs with the acquire in process_start. */
    if (!error && !exchange_acq_rel(&process_ready, 1u)) {
        os_pin_module(&process);
        options_tell_unknown();
    }
    atomic_signal_fence(memory_order_seq_cst);
    hak_tls.starting = false;
    pthread_setcancelstate(cancel, &cancel);
    errno = before;
    return error;
}

int process_set_up(void)
{
    return hak_tls.starting ? refuse(HAK_ERROR_REENTERED, EDEADLK) : start();
}
