/* load.h - gives a waiting QEMU its device state, and lets it run. */
#ifndef VMSNAP_RESTORE_QEMU_LOAD_H
#define VMSNAP_RESTORE_QEMU_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/qmp.h"
#include "common/target/target.h"

/*
 * Sends the stream to a QEMU in "inmigrate" and waits until it has taken it all. Its faults must be
 * answered meanwhile: what it loads reads guest memory. Exit code 16 (it refused), 17.
 */
int load_state(struct qmp *q, const struct target *t, const void *stream, size_t len,
               int timeout_ms, struct error *e);

/* Lets the guest run. */
int load_continue(struct qmp *q, int timeout_ms, struct error *e);

#endif
