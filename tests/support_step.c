#define _GNU_SOURCE
#include "support_step.h"

#include <signal.h>
#include <stddef.h>
#include <ucontext.h>

#ifdef __x86_64__
enum { TRAP = 0x100 /* of the flags: the CPU stops after each instruction */ };

static const step_t *running;
static volatile unsigned steps;

/* What comes after `other` need not be stepped through. */
static void count_step(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    if (++steps < running->at) return;
    running->other();
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP;
}

bool step_run(const step_t *step)
{
    struct sigaction action = {.sa_sigaction = count_step, .sa_flags = SA_SIGINFO}, before;
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
