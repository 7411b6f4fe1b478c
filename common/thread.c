#include "common/thread.h"

#include <signal.h>

int thread_start(pthread_t *thread, void *(*run)(void *), void *opaque)
{
    pthread_attr_t attributes;
    int err = pthread_attr_init(&attributes);
    if (err)
        return -err;
    pthread_attr_setstacksize(&attributes, THREAD_STACK_BYTES);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(thread, &attributes, run, opaque);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    return -err;
}
