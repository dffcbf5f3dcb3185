/* What a real-time thread spends on waiting for one of lower priority on its own CPU. */
#ifndef HAK_SUPPORT_REALTIME_H
#define HAK_SUPPORT_REALTIME_H

/*
 * Another thread of this CPU calls `enter`, works for 20 ms of CPU time and calls `leave`.
 * Meanwhile the calling thread gets a real-time priority and calls `wait`, which is to come back
 * when the other one has left. Returns the seconds of CPU time that `wait` took; below 0 where the
 * system refuses the priority. A wait that never sleeps takes 0.9 and more: all that the kernel
 * grants real-time threads in a second.
 */
double realtime_wait(void (*enter)(void), void (*leave)(void), void (*wait)(void));

#endif
