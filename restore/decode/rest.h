/*
 * rest.h - a worker of the background pass gives way to what other processes do.
 *
 * That it comes last (calm.h) counts within its own session or control group only. A host that
 * starts eight VMs from one image has eight servers, each with the share of a CPU that any of the
 * guests gets, and what the fill takes of it the server's own thread lacks when a fault comes. So a
 * worker that waits for a CPU far longer than it has one rests for many times as long: the busier
 * the others, the less it takes. Beside one VM of its own it hardly ever rests.
 *
 * Of one thread.
 */
#ifndef VMSNAP_RESTORE_REST_H
#define VMSNAP_RESTORE_REST_H

#include <stdint.h>

#include "common/run_delay.h"

struct rest {
    struct run_delay delay;
    unsigned n;              /* pieces since it was looked at */
    struct cpu_times lately; /* of the last looks, the older the less */
    uint64_t due_ns;         /* not yet rested */
};

/* The calling thread's. */
void rest_begin(struct rest *r);
void rest_end(struct rest *r);

/* After a piece of work, of some 40 us: how many ms to rest now, mostly 0. */
unsigned rest_due_ms(struct rest *r);

#endif
