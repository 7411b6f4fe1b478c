/* who.h - the process at the other end of a connection. */
#ifndef VMSNAP_RESTORE_LISTEN_WHO_H
#define VMSNAP_RESTORE_LISTEN_WHO_H

#include <stdint.h>

#include "common/error.h"
#include "common/target/target.h"

/*
 * Opens the process that has connected. Its number alone could be another process's by now, if it
 * has ended since: then it is refused. `since_ns`: of clock_monotonic_ns(), no earlier than the
 * connection. Exit code 10.
 */
int who_connected(int connection, uint64_t since_ns, struct target *t, struct error *e);

#endif
