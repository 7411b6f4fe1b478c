/*
 * thread.h - starting a thread with a small stack (so that mlockall() does not lock megabytes of
 * stack that nobody uses) and with all signals blocked: signals are the main thread's.
 */
#ifndef VMSNAP_COMMON_THREAD_H
#define VMSNAP_COMMON_THREAD_H

#include <pthread.h>

#define THREAD_STACK_BYTES (256u << 10)

/* 0 or -errno. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *opaque);

#endif
