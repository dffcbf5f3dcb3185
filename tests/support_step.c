#define _GNU_SOURCE
#include "support_step.h"

#include <signal.h>
#include <stddef.h>

#ifdef __x86_64__
enum { TRAP = 0x100 /* of the flags: the CPU stops after each instruction */ };

static const step_t *running;
static volatile unsigned steps;

static void count_step(int number)
{
    (void)number;
    if (++steps == running->at) running->other();
}

bool step_run(const step_t *step)
{
    struct sigaction action = {.sa_handler = count_step}, before;
    running = step;
    steps = 0;
    if (sigaction(SIGTRAP, &action, &before) != 0) return false;
    __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() | TRAP);
    step->first();
    __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~(unsigned long long)TRAP);
    sigaction(SIGTRAP, &before, NULL);
    return steps >= step->at;
}
#else
bool step_run(const step_t *step)
{
    step->first();
    return false;
}
#endif
