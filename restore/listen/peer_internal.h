/* peer_internal.h - a VM that handed its memory over, as its supervisor and its servers know it. */
#ifndef VMSNAP_RESTORE_LISTEN_PEER_INTERNAL_H
#define VMSNAP_RESTORE_LISTEN_PEER_INTERNAL_H

#include <stdbool.h>

#include "common/target/target.h"
#include "restore/listen/mailbox.h"
#include "restore/listen/peer.h"
#include "restore/memory/blocks.h"

/* All of it is made before the first server is forked. */
struct peer {
    const struct peer_config *c;
    struct restore_options o; /* ours: also what the listener's are, but for `learn` */
    struct mailbox mailbox;
    int place;         /* in the roll */
    uint64_t began_ns; /* its connection was accepted, or its handoff began to come */
    int uffd;
    struct target target;
    struct blocks blocks;
    int record_fd;
    int claim; /* on its memory; -1: all is in */
};

/* In a server's process: serves it until all is in or it has ended (supervisor.h). */
int peer_serve(void *opaque, struct error *e);

/* All its memory is in: counted once, by whichever server or takeover it is. */
void peer_note_complete(const struct peer *p);

#endif
