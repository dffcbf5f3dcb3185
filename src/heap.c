/* hakheap level 7: heap - the process, what is a heap, what it has committed */
#include "heap.h"

#include <pthread.h>

#include "gate.h"
#include "os.h"

/* ---- Process ---- */

static struct {
    pthread_once_t once;
    bool ready;
    _Atomic uint32_t pinned; /* the module stays mapped */
    uint64_t key;
    _Atomic uint64_t serial; /* relaxed: only its being different each time matters */
} process = {.once = PTHREAD_ONCE_INIT};

static void in_child(void)
{
    /* The child has the parent's registrations; asking again costs nothing where it has. */
    (void)os->fence_register();
}

static void start_process(void)
{
    os_random(&process.key, sizeof process.key);
    options_start_process();
    percpu_start_process(os_environment("HAKHEAP_RSEQ"));
    process.ready = gate_start_process(in_child);
}

bool heap_start_process(void)
{
    pthread_once(&process.once, start_process);
    /* Not in the once: the loader's lock may be held by a thread that waits for it in a plugin's
     * constructor. */
    if (!exchange_acq_rel(&process.pinned, 1u)) os_pin_module(&process);
    options_tell_unknown();
    return process.ready;
}
uint64_t heap_next_key(void) { return block_key(process.key, add_relaxed(&process.serial, 1u)); }

const policy_t heap_policies[] = {
    [HAK_LEVEL_FAST] = {.name = "fast"},
    [HAK_LEVEL_CHECKED] = {.name = "checked", .sealed = true, .starts = true, .sizes = true},
};

/* ---- What is a heap ---- */

bool heap_is_valid(const hak_heap_t *heap)
{
    if ((uintptr_t)heap % HAK_LINE || entry_code(registry_lookup(heap)) != CODE_META) return false;
    hak_heap_t *at = (hak_heap_t *)(uintptr_t)heap;
    return (uintptr_t)heap % HAK_PAGE < HEAP_COLOURS * HAK_LINE &&
           load_acquire(&at->magic) == (HEAP_MAGIC ^ (uintptr_t)heap);
}
