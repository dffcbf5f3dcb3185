/* Opens a race between two instructions: runs a function a step at a time, and another one in between. */
#ifndef HAK_SUPPORT_STEP_H
#define HAK_SUPPORT_STEP_H

#include <stdbool.h>

typedef struct step {
    void (*first)(void); /* runs a step at a time */
    void (*other)(void); /* runs in between, in a signal handler of the same thread */
    unsigned at;         /* after so many instructions of `first` and of what calls it, from 1 */
} step_t;

/* False: `first` came to its end before, or the CPU takes no single steps (an emulator, or no
 * x86-64). */
bool step_run(const step_t *step);

#endif
