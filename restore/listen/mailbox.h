/* mailbox.h - what has come over a VMM's connection: bytes and descriptors, until they make a
 * handoff. */
#ifndef VMSNAP_RESTORE_LISTEN_MAILBOX_H
#define VMSNAP_RESTORE_LISTEN_MAILBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "restore/listen/peer_message.h"

#define MAILBOX_FDS 4u

struct mailbox {
    int connection; /* -1: closed */
    unsigned char *bytes;
    size_t n_bytes;
    int fds[MAILBOX_FDS];
    unsigned n_fds;
    bool ended; /* the VMM has closed it, or has ended */
};

/* Owns `connection` from then on. */
int mailbox_open(struct mailbox *in, int connection, struct error *e);
void mailbox_close(struct mailbox *in);

/*
 * The next handoff: its regions, and the userfaultfd that came with it (*fd, the caller's). Waits
 * until `until_ns`, or (for the first byte) until `end_fd` (-1: none) can be read. -ENODATA: it was
 * closed, or we are to end, without a word of it. Exit code 10: what came is none; 17: no more
 * came.
 */
int mailbox_take(struct mailbox *in, struct peer_message *m, int *fd, int end_fd, uint64_t until_ns,
                 struct error *e);

/* Nothing has come that is not taken yet. */
bool mailbox_is_empty(const struct mailbox *in);

/* Descriptors that came and that nobody has taken. */
void mailbox_drop_fds(struct mailbox *in);

/* Something has come, or the end: false, and nothing is known to come any more. */
bool mailbox_look(struct mailbox *in);

#endif
