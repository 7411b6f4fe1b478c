/*
 * huge.h - huge pages that the snapshot has split are huge again after it: notes before memory is
 * protected which there are, and puts together again, once the guest is free of us, those that are
 * in pieces, while the rest of the image is compressed and written.
 */
#ifndef VMSNAP_SNAPSHOT_HUGE_H
#define VMSNAP_SNAPSHOT_HUGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/region.h"

struct huge;

/* Looks which 2 MiB of the regions are mapped by huge pages; the guest runs. Borrows everything.
 * Fails only for want of memory (-ENOMEM): where the kernel does not tell, none are noted, and a
 * line of -v says so. */
int huge_note(struct huge **out, const struct target *t, const struct region *regions,
              uint32_t n_regions);

/* Starts the thread that puts them together; after the registration is gone, for the kernel leaves
 * memory alone that a userfaultfd write-protects. Without it, or if it fails (-errno), they stay.
 */
int huge_start(struct huge *h);

/* An eventfd that becomes readable when the thread has done what it could; -1: it was not started.
 */
int huge_event_fd(const struct huge *h);

/* Of huge_bytes_before(), what the thread is done with. Any thread. */
uint64_t huge_bytes_settled(const struct huge *h);

/* Ends the thread, within some tens of milliseconds, done or not, and says with -v what it did. May
 * be NULL, or not started. */
void huge_stop(struct huge *h);

/* Bytes on huge pages before, and how many of those are again as far as was looked: after
 * huge_stop().
 */
uint64_t huge_bytes_before(const struct huge *h);
uint64_t huge_bytes_after(const struct huge *h);

/* May be NULL. Stops the thread. */
void huge_free(struct huge *h);

#endif
