/*
 * linger.h - how long the server goes on reading after a fault before it sleeps.
 *
 * A wakeup across CPUs costs more than the fault itself, so while faults keep coming it pays to go
 * on reading. But the thread that was woken may have been put on the very CPU that the server reads
 * on, as it is where all CPUs are busy: it can't run until the server sleeps, each of its faults
 * takes LINGER_NS longer (measured on two busy CPUs: 240 us instead of 35 in more than half of
 * them), and no fault ever comes meanwhile. So lingering that found nothing twice in a row is left
 * out for a number of faults, for twice as many the next time, until it has found something.
 *
 * And where the server itself is kept waiting for a CPU, as on a host that starts many VMs at once,
 * what it lingers on is the time of others' guests.
 *
 * The server's thread alone.
 */
#ifndef VMSNAP_RESTORE_LINGER_H
#define VMSNAP_RESTORE_LINGER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/run_delay.h"

#define LINGER_NS 200000u

struct linger {
    uint64_t full_ns;   /* LINGER_NS; 0 on a single CPU */
    bool slept;         /* since the last fault: it had lingered and found nothing */
    uint32_t fruitless; /* faults in a row that came only after that */
    uint32_t without;   /* faults to come for which it sleeps at once */
    uint32_t next;      /* how many that will be the next time */
    struct run_delay delay;
    uint32_t n;     /* faults since that was looked at */
    bool contended; /* as of then: there are more who want a CPU than CPUs */
};

/* The server's thread, of itself. */
void linger_begin(struct linger *l);
void linger_end(struct linger *l);

/* How long after the last fault it goes on. */
uint64_t linger_ns(const struct linger *l);

/* It goes to sleep, having read on that long. */
void linger_sleeps(struct linger *l);

/* A fault was read. */
void linger_fault(struct linger *l);

#endif
