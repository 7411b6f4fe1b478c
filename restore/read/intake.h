/*
 * intake.h - clusters of the image, for the threads of a server. What the page cache holds is read
 * at once, by whoever wants it. For what it does not hold a process waits in our place (reader.h),
 * so that a storage that hangs never hangs a thread of ours: the others go on, and we can be ended.
 */
#ifndef VMSNAP_RESTORE_INTAKE_H
#define VMSNAP_RESTORE_INTAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/codec.h"
#include "common/image/reader.h"
#include "restore/memory/blocks.h"
#include "restore/read/trouble.h"

struct intake;

struct intake_config {
    const struct image *img;
    const struct blocks *blocks;   /* to name what waits */
    struct trouble_list *troubles; /* told of a storage that hangs */
    unsigned n_threads;            /* at most these many call intake_read() at a time */
};

/* Starts no process: that is done when the first is needed. 0 or -errno. */
int intake_open(struct intake **out, const struct intake_config *config);

/* Lets go of every thread that waits in intake_read(), now and later. */
void intake_stop(struct intake *s);

/* After all threads are through. NULL is allowed. */
void intake_close(struct intake *s);

/*
 * Reads, checks and decodes one cluster into `out` (IMAGE_CLUSTER_BYTES) if that needs no waiting
 * for the storage; else, and also when what the page cache holds is wrong: an error (-EAGAIN,
 * -EBADMSG or another), and nothing is said. Any thread, each with its own codec.
 */
int intake_read_now(struct intake *s, uint64_t cluster, struct codec *codec, void *out);

/* For whom something is read. Each has readers of its own: what the guest waits for is never left
 * to one that was started to come behind. */
enum intake_for {
    INTAKE_FOR_FAULT,
    INTAKE_FOR_FILL,
};

/*
 * The same from the storage. What fails its checksum is read once more from the storage itself (one
 * more try, if need be). -EBADMSG: damaged; -ECANCELED: stopped; -EAGAIN: no process could read it;
 * others: could not be read now. *e names region, page and file offset.
 *
 * INTAKE_FOR_FILL: however long it takes, an I/O error is tried INTAKE_TRIES times.
 * INTAKE_FOR_FAULT: an error comes back at once; -EINPROGRESS: the read hangs. It is left to its
 * reader, and who asks for the cluster again, which it should, gets what came of it. (At most
 * HANGING_MAX are left at a time; further ones take as long as they take.) No two threads ask for
 * the same cluster at a time.
 */
#define INTAKE_TRIES 3
int intake_read(struct intake *s, enum intake_for whom, uint64_t cluster, struct codec *codec,
                void *out, struct error *e);

/* Whether what intake_read() returned means that the storage can't read it. */
bool intake_is_error(int status);

/* Some read has not come back for INTAKE_STALL_NS. Any thread. */
#define INTAKE_STALL_NS 3000000000ull
bool intake_is_stalled(struct intake *s);

#endif
