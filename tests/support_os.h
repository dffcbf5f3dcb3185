/*
 * An os table that refuses chosen calls and lets the others through to the kernel. One per process:
 * `fake_os_use` puts it in place, before other threads run, and `fake_os_restore` puts the kernel's
 * back.
 */
#ifndef HAK_SUPPORT_OS_H
#define HAK_SUPPORT_OS_H

#include "os.h"

typedef enum fake_call {
    FAKE_RESERVE,
    FAKE_COMMIT,
    FAKE_PURGE,
    FAKE_DECOMMIT,
    FAKE_MAP,
    FAKE_UNMAP,
    FAKE_UNLOCK,
    FAKE_RESIZE,
    FAKE_MOVE,
    FAKE_PAGE_SIZE, /* refused: the answer is 64 KiB */
    FAKE_FENCE_REGISTER,
    FAKE_FENCE,
    FAKE_CALLS
} fake_call_t;

enum { FAKE_NEVER = 0, FAKE_FOREVER = -1 };

/* Starts afresh: all counts 0, nothing refused. */
void fake_os_use(void);
void fake_os_restore(void);

/* Refuses the k-th call of a kind from now on (1: the next), and the `times - 1` after it;
 * FAKE_FOREVER: all after it. */
void fake_os_refuse(fake_call_t call, long k, long times);
/* Refuses nothing of that kind any more. */
void fake_os_allow(fake_call_t call);
/* Refuses reserve and map of more than so many bytes; 0: no bound. */
void fake_os_bound(fake_call_t call, size_t bytes);
/* Calls of a kind since fake_os_use, refused ones too. */
long fake_os_calls(fake_call_t call);
/* The most bytes that one call of a kind since fake_os_use was granted. */
size_t fake_os_largest(fake_call_t call);

/* Sees each purge and decommit before it happens; NULL: nobody. Where it returns false, the kernel
 * is not asked, and the call succeeds. */
void fake_os_watch_purge(bool (*watch)(void *at, size_t bytes));

#endif
