/*
 * huge.h - huge pages that the snapshot has split are huge again after it: notes before memory is
 * protected which there are, and puts together again, once the guest is free of us, those that are
 * in pieces, while the rest of the image is compressed and written.
 */
#ifndef VMSNAP_SNAPSHOT_HUGE_H
#define VMSNAP_SNAPSHOT_HUGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/target/region.h"

struct huge;

/* Looks which 2 MiB of the regions are mapped by huge pages; the guest runs. Borrows everything,
 * for as long as the process lives. `tick` (may be NULL) is called every 2 GiB. Fails only for want
 * of memory (-ENOMEM) or when `tick` does not return 0 (-EINTR; *out is to be freed then too):
 * where the kernel does not tell, none are noted, and a line of -v says so. */
int huge_note(struct huge **out, const struct target *t, const struct region *regions,
              uint32_t n_regions, int (*tick)(void *), void *opaque);

/* Before huge_start(): the guest may discard memory, so that little is put together in one call
 * (collapse.h). */
void huge_expect_discards(struct huge *h);

/* Starts the thread that puts them together; after the registration is gone, for the kernel leaves
 * memory alone that a userfaultfd write-protects. Without it, or if it fails (-errno), they stay.
 */
int huge_start(struct huge *h);

/* An eventfd that becomes readable when the thread has done what it could; -1: it
 * was not started. */
int huge_event_fd(const struct huge *h);

/* Of huge_bytes_before(), what the thread is done with. Any thread. */
uint64_t huge_bytes_settled(const struct huge *h);

/* Ends the thread, done or not, and says with -v what it did. Blocks until a call that is under way
 * is over, for nothing breaks that off: some milliseconds as a rule, two seconds at most. Then the
 * thread is left alone, and the process ends only when the kernel lets go of it. May be NULL, or
 * not started. */
void huge_stop(struct huge *h);

/* Bytes on huge pages before, and how many of those are again as far as was looked. Any
 * thread.
 */
uint64_t huge_bytes_before(const struct huge *h);
uint64_t huge_bytes_after(const struct huge *h);

/* May be NULL. Stops the thread; nothing is freed while that hangs. */
void huge_free(struct huge *h);

#endif
