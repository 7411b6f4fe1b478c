/*
 * peer_message.h - what Firecracker says when it hands its memory over: one JSON array on a stream
 * socket, no length before it and no terminator after it, and the userfaultfd beside it. Each
 * element is a region:
 *
 *     {"base_host_virt_addr": A, "size": S, "offset": O, "page_size": P, "page_size_kib": P}
 *
 * A is where the region lies in the VMM, O where it starts in the memory file (no guest address).
 * P is in bytes under both names, in spite of the second one: page_size_kib came with v1.7,
 * page_size with v1.12, before that there was neither and pages had 4096 bytes. Other keys are
 * ignored. Read from bytes alone: no socket, no image; whoever connects may send anything.
 */
#ifndef VMSNAP_RESTORE_LISTEN_PEER_MESSAGE_H
#define VMSNAP_RESTORE_LISTEN_PEER_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* Firecracker has two or three regions, each of about 140 bytes. */
#define PEER_MESSAGE_MAX_REGIONS 256u
#define PEER_MESSAGE_MAX_BYTES 65536u

struct peer_region {
    uint64_t hva;        /* a multiple of page_bytes, not 0 */
    uint64_t bytes;      /* likewise; hva + bytes and offset + bytes stay below 2^63 */
    uint64_t offset;     /* in the memory file; a multiple of page_bytes */
    uint64_t page_bytes; /* 4 KiB or 2 MiB */
};

/* No two regions overlap, neither in the VMM nor in the memory file. In the
 * order of the message. */
struct peer_message {
    struct peer_region regions[PEER_MESSAGE_MAX_REGIONS];
    uint32_t n_regions; /* at least one */
    size_t used_bytes;  /* of the bytes received; what follows is no part of the message */
};

/*
 * Reads the message from all bytes received so far. 0: *out holds it. -EAGAIN: so far so good, read
 * on (never with PEER_MESSAGE_MAX_BYTES or more); *e is untouched. Else -EPROTO or -ENOMEM: no
 * handoff, *e says what is wrong and with which region (exit code 10); e->guest is left as it is.
 * A few empty arrays in front are skipped: old versions may send an empty message first. Time and
 * memory are bounded by PEER_MESSAGE_MAX_BYTES. Any thread.
 */
int peer_message_parse(const void *bytes, size_t len, struct peer_message *out, struct error *e);

#endif
