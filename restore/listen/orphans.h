/*
 * orphans.h - VMs whose process here was killed before all their memory was in: a server that is
 * left, or a takeover by hand, brings it in, and the listener's last words are to count them right.
 * Of the listener's process alone.
 */
#ifndef VMSNAP_RESTORE_LISTEN_ORPHANS_H
#define VMSNAP_RESTORE_LISTEN_ORPHANS_H

#include "restore/listen/roll.h"

#define ORPHANS_MAX 64u

struct orphans {
    struct {
        int place; /* in the roll, which keeps it: its server may be left, and counts there */
        int pidfd; /* of the VMM */
        bool is_recorded; /* it has the record: else nothing could tell what becomes of it */
    } items[ORPHANS_MAX];
    unsigned n;
};

/* Of the place that roll_remove() kept; it is given back if there are too many. */
void orphans_add(struct orphans *o, struct roll *r, int place);

/* At the end: how many have all their memory by somebody whom the roll does not know, and how many
 * wait for somebody to take over. */
void orphans_count(const struct orphans *o, const struct roll *r, unsigned *complete,
                   unsigned *unserved);

void orphans_close(struct orphans *o);

#endif
