/* arm.h - the VM's memory under our userfaultfds: registered, protected at the
 * instant, released. */
#ifndef VMSNAP_SNAPSHOT_ARM_H
#define VMSNAP_SNAPSHOT_ARM_H

#include <stdint.h>

#include "common/error.h"
#include "common/target/region.h"
#include "common/target/target.h"
#include "snapshot/memory/cluster_map.h"

/* The UFFDIO_API handshake. */
int arm_enable(int uffd, struct error *e);

/* Refuses memory that any userfaultfd has registered, by its flags in smaps: exit code 11. Asked
 * before anything is registered, since a call that fails may already have done harm (below). Takes
 * milliseconds; not in the pause. */
int arm_check_free(const struct target *t, const struct region *regions, uint32_t n_regions,
                   struct error *e);

/*
 * Registers a region: private anonymous memory for MISSING and WP events (an absent page then tells
 * us before it comes to be, on every kernel from 6.1 on, and costs nothing in the pause),
 * file-backed memory for WP (its holes are protected by markers). Nothing is protected yet; the
 * fault thread must be started right after, since MISSING events already come. -EBUSY: exit code
 * 11. After a failure close the fd, don't call arm_release(): before Linux 6.17 UNREGISTER takes
 * another userfaultfd's registration away as well.
 */
int arm_register(int uffd, const struct region *r, struct error *e);

/* Write-protects all that is LOOSE; in the pause, after faults_freeze(). *n_clusters: how many.
 * Waits at most timeout_ms for a fault thread to read an event that is in the way. */
int arm_protect(const struct cluster_map *map, int timeout_ms, uint64_t *n_clusters,
                struct error *e);

/* Drops protection and registration of all memory in pieces, wakes every waiter. Harmless to
 * repeat; errors are skipped (a vanished process, an unmapped piece): closing the fds does the
 * rest. */
void arm_release(const struct cluster_map *map);

#endif
