/*
 * run_delay.h - how long a thread could have run and had no CPU, because others had them all.
 *
 * A thread's priority does not tell, nor see to it: priorities count within a session (autogroups,
 * sched(7)) or a control group only, and between those the CPUs are shared out evenly, whatever
 * their threads are for. So who is to give way to processes of others has to look, and rest.
 */
#ifndef VMSNAP_COMMON_RUN_DELAY_H
#define VMSNAP_COMMON_RUN_DELAY_H

#include <stdint.h>

struct cpu_times {
    uint64_t ran_ns;    /* on a CPU; as of the last tick, or when it last lost one */
    uint64_t waited_ns; /* for a CPU */
};

struct run_delay {
    int fd; /* -1: the kernel does not tell */
    struct cpu_times last;
};

/* Of the calling thread, from now on. Where the kernel does not tell (no /proc, or built without
 * CONFIG_SCHED_INFO, which Debian's has) it is as if there were always a CPU. */
void run_delay_open(struct run_delay *d);
void run_delay_close(struct run_delay *d);

/* Since the last call. One system call, 1 to 2 us. */
struct cpu_times run_delay_take(struct run_delay *d);

#endif
