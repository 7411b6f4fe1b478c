/*
 * damage.h - memory whose content can't be had, because the image is damaged: it is said, once per
 * cluster, and either left absent (who touches it waits) or poisoned (who touches it gets a machine
 * check). It is never filled with anything. The server's thread calls.
 */
#ifndef VMSNAP_RESTORE_DAMAGE_H
#define VMSNAP_RESTORE_DAMAGE_H

#include <stdbool.h>

#include "restore/serve/answer.h"

/* 0, or exit code 12: poisoning is asked for and this kernel can't. */
int damage_check_kernel(bool poison, struct error *e);

/*
 * A cluster turned out to be unreadable: marks and reports it (the first DAMAGE_NAMED_MAX by name),
 * once. `err` and `cause`: image_read_cluster()'s. `guest_waits`: something has touched it.
 */
void damage_report(struct answerer *a, const struct block *b, uint64_t cluster, int err,
                   const char *cause, bool guest_waits);

/* The damage was told before; now somebody has come to it: once. */
void damage_report_wait(struct answerer *a, const struct block *b, uint64_t offset);

/* A cluster that could not be read but may yet, since that was an I/O error: says so, once for each
 * of the first DAMAGE_NAMED_MAX, and for the first that the guest waits for whatever was said. Such
 * a one counts as damaged, where that is poisoned, when a demand thread has failed with it
 * DAMAGE_IO_TRIES times (about 10 s). What the guest waits for is not said before it has failed
 * DAMAGE_IO_SAID times: 0.3 s. */
#define DAMAGE_IO_TRIES 10u
#define DAMAGE_IO_SAID 3u
void damage_report_unread(struct answerer *a, const struct block *b, uint64_t cluster,
                          const char *cause, bool guest_waits);

/* What to do about it. */
void damage_hint(const struct answerer *a, struct error *e);

/* Poisons the whole unit that the cluster is in, but for what is present or was given back; it is
 * done then. Wakes who waits. */
enum answer damage_poison(struct answerer *a, const struct block *b, uint64_t cluster);

#endif
