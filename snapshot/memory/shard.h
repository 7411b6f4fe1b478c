/*
 * shard.h - a share of the VM's memory: one userfaultfd, and the fault thread that serves it.
 *
 * Each cluster_range lies in one shard, from registration to release; a large region is cut into
 * one range for each. Whoever calls the userfaultfd takes it from the range, so nothing else knows
 * how many there are. All are made, and their helpers gone, before any memory is registered; only
 * we hold them; the instant's protection begins when every fault thread has changed phase; they are
 * closed together. Between fault threads there is no more than between one and the sweep: atomic
 * states, the lock-free pool and queue, counters.
 */
#ifndef VMSNAP_SNAPSHOT_SHARD_H
#define VMSNAP_SNAPSHOT_SHARD_H

#include <stdatomic.h>

#include "common/error.h"
#include "common/target/target.h"

#define SHARDS_MAX 8u
/* docs/performance.md, "Fault path", has what more of them cost on two CPUs. */
#define SHARDS_DEFAULT 1u

struct cluster_map;
struct faults;

struct shard {
    int uffd; /* -1: none */
    struct faults *faults;
    /* Kept by its fault thread, read by anyone. */
    atomic_uint events_turn; /* odd: events are being read, or read and not yet looked at */
    atomic_uint_fast64_t held_since_ns; /* a fault is held since then (monotonic); 0: none */
};

/* Makes the userfaultfds inside the target, by injected system calls, and fetches them. 0 or
 * -errno; then none is left. */
int shards_open(struct shard *shards, unsigned n, const struct target *target, int timeout_ms,
                struct error *e);

/* Registers each range with its shard (arm.h): the fault threads must be started right after. 0 or
 * -errno; then all are closed, which takes our own registrations away and no other's, as
 * UNREGISTER would. */
int shards_register(struct shard *shards, unsigned n, const struct cluster_map *map,
                    struct error *e);

/* Closes the userfaultfds: the kernel drops what is registered, and wakes everyone. */
void shards_close(struct shard *shards, unsigned n);

#endif
