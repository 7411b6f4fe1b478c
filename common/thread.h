/*
 * thread.h - starting a thread with a small stack (so that mlockall() does not lock megabytes of
 * stack that nobody uses) and with all signals blocked: signals are the main thread's.
 */
#ifndef VMSNAP_COMMON_THREAD_H
#define VMSNAP_COMMON_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

#define THREAD_STACK_BYTES (256u << 10)

/* 0 or -errno. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *opaque);

/* Joins it if it ends within that time, by a clock that nobody sets; false: it has not, and is
 * left.
 */
bool thread_join_within(pthread_t thread, unsigned seconds);

/*
 * The nice value of this whole session towards others. Where autogroups are on (sched(7); Debian's
 * default) the CPU is shared out between sessions first, and nice(2) counts within one only:
 * against a VM that was started elsewhere it is without effect. Only for a session of our own, or
 * it is the user's shell that gives way. -ENOENT: no autogroups here; or another -errno.
 */
int thread_session_nice(int nice_value);

/* Thread `tid` of this process (0: the caller) runs only where nobody else wants the CPU
 * (SCHED_IDLE): whoever wakes up takes such a CPU for an idle one. 0 or -errno. -EACCES: it could
 * not be undone (that needs CAP_SYS_NICE), so it is not done. */
int thread_go_last(pid_t tid);

/* It gets its share of the CPU by this nice value again. Only a negative one needs a right: then it
 * gets as much as may be, and -errno is returned. */
int thread_go_nice(pid_t tid, int nice_value);

/* Puts the calling thread ahead of everything that is not real-time (SCHED_RR; bounded by the
 * kernel's real-time throttling); without the right to that as far ahead as may be: then -errno. */
int thread_go_first(int priority);

/* Whether a thread of any process, by its number, runs, waits for a CPU or has just ended: it does
 * not sleep in the kernel. */
bool thread_is_starved(pid_t tid);

/* For a thread or process that is to end and only gets no CPU for it: on a host where others take
 * all of it that may be long, and is no reason to take it for one that hangs. */
#define THREAD_STARVED_MS 30000

#endif
