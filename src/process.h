/* hakheap level 7: process - what is set up once, before the first heap */
#ifndef HAK_PROCESS_H
#define HAK_PROCESS_H

#include "base.h"

/*
 * Role: the key of seals, the options, the mode of the magazines, the fork handlers. Callers: api.
 * Memory: none. Lock: none; one thread sets up, others wait for it, before they enter the gate.
 *
 *             process_start                     done
 *    BEGIN ------------------> the process's id ------> READY
 *      ^                              |
 *      +------------------------------+  refused: the next call tries again
 *
 * The state is the id of the process whose thread sets up. A child of fork that finds another
 * process's id there has no such thread, and begins again.
 */

/*
 * 0 where all is set up. Else, with hak_last_error(): EDEADLK (in a signal handler that interrupted
 * this call in the same thread), ENOTSUP (the system's pages have another size), ENOMEM (the C
 * library refuses the fork handlers). Thread-safe. No cancellation point. Leaves errno as it was.
 */
int process_set_up(void);
extern _Atomic uint32_t process_ready; /* release pairs with the acquire below */
HAK_INLINE int process_start(void)
{
    return HAK_LIKELY(load_acquire(&process_ready)) ? 0 : process_set_up();
}

#endif
