#include "common/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

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

bool thread_join_within(pthread_t thread, unsigned seconds)
{
    struct timespec limit;
    clock_gettime(CLOCK_MONOTONIC, &limit);
    limit.tv_sec += (time_t)seconds;
    return pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &limit) == 0;
}

int thread_session_nice(int nice_value)
{
    char text[16];
    int len = snprintf(text, sizeof(text), "%d", nice_value);
    int fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int ret = write(fd, text, (size_t)len) == len ? 0 : -errno;
    close(fd);
    return ret;
}

bool thread_is_starved(pid_t tid)
{
    char path[32], text[128];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    const char *name_end = strrchr(text, ')'); /* the name may hold anything */
    return name_end && name_end[1] == ' ' && name_end[2] && strchr("RZX", name_end[2]);
}

int thread_go_first(int priority)
{
    struct sched_param real_time = {.sched_priority = priority};
    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &real_time) == 0)
        return 0;
    int err = errno;
    return setpriority(PRIO_PROCESS, 0, -20) == 0 ? 0 : -err;
}

int thread_go_last(pid_t tid)
{
    struct sched_param none = {.sched_priority = 0};
    /* sched(7): to leave SCHED_IDLE takes what it takes to lower one's nice value. */
    if (setpriority(PRIO_PROCESS, (id_t)tid, -1))
        return -errno;
    return sched_setscheduler(tid, SCHED_IDLE, &none) == 0 ? 0 : -errno;
}

int thread_go_nice(pid_t tid, int nice_value)
{
    struct sched_param none = {.sched_priority = 0};
    if (sched_setscheduler(tid, SCHED_OTHER, &none))
        return -errno;
    /* On Linux: of that thread alone. */
    return setpriority(PRIO_PROCESS, (id_t)tid, nice_value) == 0 ? 0 : -errno;
}
