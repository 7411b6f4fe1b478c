/*
 * roll.h - who is being served: a page that the listener and the processes of all its VMs share.
 * Counters, and the processes that a signal has to reach.
 */
#ifndef VMSNAP_RESTORE_LISTEN_ROLL_H
#define VMSNAP_RESTORE_LISTEN_ROLL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define ROLL_MAX 32768u /* VMs at a time, those that have all their memory included */

struct roll {
    atomic_int pids[ROLL_MAX];      /* 0: free; -1: taken by one that is about to begin; -2: kept */
    atomic_bool served[ROLL_MAX];   /* its handoff was taken, and found to be good */
    atomic_int vmms[ROLL_MAX];      /* then: the VMM's process */
    atomic_bool complete[ROLL_MAX]; /* all memory of that one is in */
    atomic_ullong n_served, n_complete, n_refused;
    atomic_bool learner; /* one of them learns, or has learned (--learn) */
};

/* NULL: no memory. Shared by all that are forked later. */
struct roll *roll_new(void);

/* A place for a process that is about to be forked; -1: too many. */
int roll_reserve(struct roll *r);
static inline void roll_set(struct roll *r, int place, pid_t pid)
{
    atomic_store(&r->pids[place], pid);
}

/* In that process, or instead of it if it never began and has not said so. */
static inline void roll_note_served(struct roll *r, int place, pid_t vmm)
{
    atomic_store(&r->vmms[place], vmm);
    atomic_store(&r->complete[place], false);
    atomic_fetch_add(&r->n_served, 1);
    atomic_store(&r->served[place], true);
}
static inline void roll_give_up(struct roll *r, int place)
{
    int reserved = -1;
    atomic_compare_exchange_strong(&r->pids[place], &reserved, 0);
}

/* That process has ended. False: it had no place. *kept: the place, if it was `killed` before all
 * the memory of its VM was in; else -1. It stays out of use until it is given back. */
bool roll_remove(struct roll *r, pid_t pid, bool killed, bool *served, int *kept);
static inline void roll_free_kept(struct roll *r, int place)
{
    int held = -2;
    atomic_compare_exchange_strong(&r->pids[place], &held, 0);
}

/* VMs that are served and have not all their memory; the first `max` of their VMMs' processes. */
unsigned roll_list_incomplete(const struct roll *r, pid_t *vmms, unsigned max);

/* Sends it to all of them; returns how many there are. 0 only counts. */
unsigned roll_signal(const struct roll *r, int number);

#endif
