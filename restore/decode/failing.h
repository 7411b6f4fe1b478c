/*
 * failing.h - units whose reading failed while a fault waits for them: their places for demand
 * (demand.h) are free for others meanwhile, and each is tried again when its time has come. The
 * server's thread alone.
 */
#ifndef VMSNAP_RESTORE_FAILING_H
#define VMSNAP_RESTORE_FAILING_H

#include <stdbool.h>
#include <stdint.h>

#include "restore/decode/queue.h"

/* As many as faults can be parked (waiting.h): it is full only where what nobody waits for any more
 * has not had its turn yet, or where what can't be read is to be poisoned. */
#define FAILING_MAX 1024u

struct failing_unit {
    const struct block *block;
    uint64_t cluster;
    uint32_t n_clusters;
    unsigned tries, n_errors; /* as in struct job */
    uint64_t at_ns;           /* when it is tried again */
};

struct failing {
    struct failing_unit units[FAILING_MAX];
    unsigned n;
    uint64_t next_ns; /* the earliest of their times */
};

bool failing_has(const struct failing *f, uint64_t cluster);

/* Takes the unit of a job that failed. False: there is no room. */
bool failing_add(struct failing *f, const struct job *job, uint64_t now_ns);

/* Takes out the one that is due for longest, into *job (JOB_DEMAND). False: none is due. */
bool failing_take_due(struct failing *f, uint64_t now_ns, struct job *job);

#endif
