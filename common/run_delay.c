#include "common/run_delay.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* In all since the thread began. proc(5): time on a CPU, time spent waiting for one, both in ns,
 * and how many times it got one. */
static struct cpu_times look(const struct run_delay *d)
{
    char text[80];
    unsigned long long ran, waited;
    ssize_t n = d->fd < 0 ? -1 : pread(d->fd, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return d->last;
    text[n] = '\0';
    if (sscanf(text, "%llu %llu", &ran, &waited) != 2)
        return d->last;
    return (struct cpu_times){ran, waited};
}

void run_delay_open(struct run_delay *d)
{
    *d = (struct run_delay){.fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)};
    d->last = look(d);
}

void run_delay_close(struct run_delay *d)
{
    if (d->fd >= 0)
        close(d->fd);
    d->fd = -1;
}

struct cpu_times run_delay_take(struct run_delay *d)
{
    struct cpu_times before = d->last;
    d->last = look(d);
    return (struct cpu_times){d->last.ran_ns - before.ran_ns, d->last.waited_ns - before.waited_ns};
}
