#define _GNU_SOURCE
#include "support_realtime.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include "support_contract.h"

typedef struct holder {
    void (*enter)(void), (*leave)(void);
    int cpu;
    _Atomic bool inside;
} holder_t;

static double cpu_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *hold(void *arg)
{
    holder_t *holder = arg;
    (void)contract_move_to(holder->cpu);
    holder->enter();
    holder->inside = true;
    for (double end = cpu_time() + 0.02; cpu_time() < end;) {
    }
    holder->leave();
    return NULL;
}

static bool set_priority(int policy, int priority)
{
    struct sched_param param = {.sched_priority = priority};
    return pthread_setschedparam(pthread_self(), policy, &param) == 0;
}

double realtime_wait(void (*enter)(void), void (*leave)(void), void (*wait)(void))
{
    holder_t holder = {.enter = enter, .leave = leave};
    pthread_t thread;
    if (contract_cpus(&holder.cpu, 1) != 1 || !contract_move_to(holder.cpu)) return -1;
    if (!set_priority(SCHED_FIFO, 10) || !set_priority(SCHED_OTHER, 0)) return -1;
    if (pthread_create(&thread, NULL, hold, &holder) != 0) return -1;
    while (!holder.inside) usleep(1000);
    double took = -1;
    if (set_priority(SCHED_FIFO, 10)) {
        double begin = cpu_time();
        wait();
        took = cpu_time() - begin;
        (void)set_priority(SCHED_OTHER, 0);
    }
    pthread_join(thread, NULL);
    return took;
}
