/*
 * peer.h - one VM, from its connection on: a process of its own, which reads what the VMM hands
 * over, believes none of it until it is checked, and becomes the supervisor of that VM's servers.
 */
#ifndef VMSNAP_RESTORE_LISTEN_PEER_H
#define VMSNAP_RESTORE_LISTEN_PEER_H

#include <signal.h>

#include "common/image/reader.h"
#include "restore/listen/roll.h"
#include "restore/restore.h"

/* What the listener gives to each of them. */
struct peer_config {
    const struct restore_options *o; /* without detach and pidfile */
    struct image *img;
    const char *image_path; /* absolute; empty: it has no name */
    struct roll *roll;
    int claims;                /* claim_file() */
    uint64_t n_learned_before; /* clusters, by an earlier run */
    sigset_t mask; /* before the listener took signals, but for those that are to end it */
};

/* The signals that are to end it. From its fork on they are heard where it looks for them only: an
 * unread handoff is a guest that waits. */
void peer_add_ends(sigset_t *set);

/* The process of a connection, accepted at `began_ns`, to its end. `connection` is its own. `place`
 * was reserved for it.
 * What the listener takes is blocked. */
_Noreturn void peer_run(const struct peer_config *c, int place, int connection, uint64_t began_ns);

#endif
