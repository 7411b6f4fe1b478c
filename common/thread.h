/*
 * thread.h - starting a thread with a small stack (so that mlockall() does not lock megabytes of
 * stack that nobody uses) and with all signals blocked: signals are the main thread's.
 */
#ifndef VMSNAP_COMMON_THREAD_H
#define VMSNAP_COMMON_THREAD_H

#include <pthread.h>
#include <sys/types.h>

#define THREAD_STACK_BYTES (256u << 10)

/* 0 or -errno. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *opaque);

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

#endif
