/* hakheap level 3: gate - lets slow paths in and keeps them out while the process forks */
#ifndef HAK_GATE_H
#define HAK_GATE_H

#include "base.h"

/*
 * Role: a fork must find no lock held and no chain half moved. Taking every lock of 100,000 heaps
 * would take seconds, so every slow path passes one process-wide gate instead, counted in a shard
 * of the CPU it enters on; fork closes the gate and waits until the shards are empty. Callers: api
 * and the ladders. Lock-free while open.
 *
 * Also where re-entry is noticed: a signal handler that interrupts a slow path of the same thread
 * must not enter.
 */
typedef enum gate_entry { GATE_IN, GATE_REENTERED, GATE_CLOSED } gate_entry_t;

gate_entry_t gate_enter(bool may_wait); /* GATE_CLOSED only where the caller may not wait */
void gate_leave(void);
/* Lets a fork go first that waits; of long calls, while they hold no lock and no chain. */
void gate_pass(void);
bool gate_is_closed(void); /* a hint */
/* Whether this is a child of fork, which may have lost what other threads were at. */
bool gate_was_forked(void);

/* Registers the fork handlers; once a process. `in_child` runs in the child before anybody can
 * enter. */
bool gate_start_process(void (*in_child)(void));

#endif
