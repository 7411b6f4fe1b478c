/*
 * events.h - reading the userfaultfd: faults are handed to the caller, an event that says that
 * memory goes away (REMOVE, UNMAP, REMAP) is looked at before anything else is done. The fault
 * thread's alone; waits for nothing but the sender of such an event, a millisecond at a time.
 */
#ifndef VMSNAP_SNAPSHOT_EVENTS_H
#define VMSNAP_SNAPSHOT_EVENTS_H

#include "common/uffd.h"
#include "snapshot/save/capture.h"

#define EVENTS_BATCH 32

enum phase { PHASE_BEFORE, PHASE_AFTER };

struct events {
    struct capture *capture;
    struct shard *shard; /* whose userfaultfd it is */
    enum phase phase;    /* is the instant over? Set by the fault thread */
};

/*
 * Reads up to EVENTS_BATCH messages without waiting; returns how many, or -errno. Those that are no
 * faults have been dealt with already: reading them is what lets their sender go on, so until then
 * the memory is whole, and no fault of the same batch may be served, nor anything absent be taken
 * for zero by the sweep (which waits for the turn to be over), before it is known whether all of it
 * had been saved.
 */
int events_read(struct events *v, struct uffd_msg *messages);

/* Reads what is in the way of an ioctl that was refused with EAGAIN: an event other than a fault.
 * Faults that come along are woken unserved; the kernel sends them again. 0 or -errno. */
int events_drain(struct events *v);

#endif
