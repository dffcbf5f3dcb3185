#include "support_os.h"

typedef struct kind {
    _Atomic long calls;
    _Atomic long from, last; /* calls [from, last] are refused; last FAKE_FOREVER: all from there */
    _Atomic size_t bound, largest;
} kind_t;

static kind_t kinds[FAKE_CALLS];
static bool (*purge_watch)(void *at, size_t bytes);

/* Counts a call. False: it is one to refuse. */
static bool granted(fake_call_t call, size_t bytes)
{
    kind_t *kind = &kinds[call];
    long number = atomic_fetch_add(&kind->calls, 1) + 1;
    long from = kind->from, last = kind->last;
    if (from && number >= from && (last == FAKE_FOREVER || number <= last)) return false;
    if (kind->bound && bytes > kind->bound) return false;
    if (bytes > kind->largest) kind->largest = bytes;
    return true;
}

static void *fake_reserve(size_t bytes, size_t alignment)
{
    return granted(FAKE_RESERVE, bytes) ? os_kernel.reserve(bytes, alignment) : NULL;
}

static bool fake_commit(void *at, size_t bytes)
{
    return granted(FAKE_COMMIT, bytes) && os_kernel.commit(at, bytes);
}

static bool fake_purge(void *at, size_t bytes)
{
    if (!granted(FAKE_PURGE, bytes)) return false;
    if (purge_watch && !purge_watch(at, bytes)) return true;
    return os_kernel.purge(at, bytes);
}

static bool fake_decommit(void *at, size_t bytes)
{
    if (!granted(FAKE_DECOMMIT, bytes)) return false;
    if (purge_watch && !purge_watch(at, bytes)) return true;
    return os_kernel.decommit(at, bytes);
}

static void *fake_map(size_t bytes, size_t alignment)
{
    return granted(FAKE_MAP, bytes) ? os_kernel.map(bytes, alignment) : NULL;
}

static bool fake_unmap(void *at, size_t bytes)
{
    return granted(FAKE_UNMAP, bytes) && os_kernel.unmap(at, bytes);
}

static bool fake_unlock(void *at, size_t bytes)
{
    return granted(FAKE_UNLOCK, bytes) && os_kernel.unlock(at, bytes);
}

static bool fake_resize(void *at, size_t bytes, size_t wanted)
{
    return granted(FAKE_RESIZE, wanted) && os_kernel.resize(at, bytes, wanted);
}

static bool fake_move(void *from, size_t bytes, void *to, size_t wanted)
{
    return granted(FAKE_MOVE, wanted) && os_kernel.move(from, bytes, to, wanted);
}

static size_t fake_page_size(void)
{
    return granted(FAKE_PAGE_SIZE, 0) ? os_kernel.page_size() : 64 * HAK_KIB;
}

static bool fake_fence_register(void)
{
    return granted(FAKE_FENCE_REGISTER, 0) && os_kernel.fence_register();
}
static bool fake_fence(void) { return granted(FAKE_FENCE, 0) && os_kernel.fence(); }

static os_table_t table;

void fake_os_use(void)
{
    for (int call = 0; call < FAKE_CALLS; call++) {
        kind_t *kind = &kinds[call];
        kind->calls = kind->from = kind->last = 0;
        kind->bound = kind->largest = 0;
    }
    purge_watch = NULL;
    /* A copy first: what has no fake is the kernel's. */
    table = os_kernel;
    table.reserve = fake_reserve;
    table.commit = fake_commit;
    table.purge = fake_purge;
    table.decommit = fake_decommit;
    table.map = fake_map;
    table.unmap = fake_unmap;
    table.unlock = fake_unlock;
    table.resize = fake_resize;
    table.move = fake_move;
    table.page_size = fake_page_size;
    table.fence_register = fake_fence_register;
    table.fence = fake_fence;
    os = &table;
}

void fake_os_restore(void) { os = &os_kernel; }

void fake_os_refuse(fake_call_t call, long k, long times)
{
    kind_t *kind = &kinds[call];
    long from = kind->calls + k;
    kind->last = times == FAKE_FOREVER ? FAKE_FOREVER : from + times - 1;
    kind->from = from;
}

void fake_os_allow(fake_call_t call) { kinds[call].from = FAKE_NEVER; }
void fake_os_bound(fake_call_t call, size_t bytes) { kinds[call].bound = bytes; }
long fake_os_calls(fake_call_t call) { return kinds[call].calls; }
size_t fake_os_largest(fake_call_t call) { return kinds[call].largest; }
void fake_os_watch_purge(bool (*watch)(void *at, size_t bytes)) { purge_watch = watch; }
