/*
 * agent.h - the QEMU guest agent: a program in the guest that takes commands over a virtio-serial
 * port, whose other end is a UNIX socket of QEMU's. JSON lines as in QMP, but no greeting and no
 * ids.
 *
 * What comes from there is the guest's word: bounded in length and time, and believed in nothing
 * but what the guest may decide.
 */
#ifndef VMSNAP_COMMON_QEMU_AGENT_H
#define VMSNAP_COMMON_QEMU_AGENT_H

#include <jansson.h>
#include <stdint.h>

#include "common/error.h"
#include "common/qmp.h"
#include "common/target/target.h"

/*
 * Connects to the socket of the running QEMU's agent port: *fd. `described`: machine_describe() of
 * it. Milliseconds. -ENOENT: it has no such port; -EBUSY: another program is connected to it;
 * -EOPNOTSUPP: it is no UNIX socket that QEMU listens on.
 */
int agent_open(int *fd, const json_t *described, struct qmp *q, const struct target *t,
               int timeout_ms, struct error *e);

struct agent_clock {
    int64_t behind_ns; /* the guest's clock behind the host's; negative: ahead of it */
    uint64_t error_ns; /* that is known to within this, by how long the answer took */
};

/*
 * Sets the guest's clock to the host's and reads it back: 0 when it is right to within a second,
 * *clock is what is left. Blocks up to the deadline (clock_monotonic_ns()). -ETIMEDOUT: no answer;
 * -EPIPE: QEMU has gone, or has closed the port; -EPROTO: the agent refused, or answered what makes
 * no sense; -ERANGE: the clock was set and is still more than a second off (*clock says how much).
 */
int agent_set_clock(int fd, uint64_t deadline_ns, struct agent_clock *clock, struct error *e);

#endif
