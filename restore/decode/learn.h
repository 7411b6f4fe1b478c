/*
 * learn.h - `--learn`: notes which clusters the guest touches first, and makes the next restore's
 * working set of it (workset.h).
 *
 * While it is noted nothing is prefetched and nothing is filled: a touch of what is there already
 * makes no fault, so only then the order is the guest's own, and the set all that it touched, no
 * more. That lasts for a minute from the first touch after the guest was let run, or until the VMM
 * has ended; then the file is written, and the rest comes in as ever. Should we die before that,
 * the file of an earlier run stays as it is. So it does if the VMM ended within that minute and the
 * guest had touched less than half of what the file says: a guest that was looked at for a second
 * must not spoil what a long run has shown.
 *
 * The server's thread notes. The main thread does everything else; a child of its own writes,
 * since file systems may hang, and who serves a guest must not (common/child.h).
 */
#ifndef VMSNAP_RESTORE_LEARN_H
#define VMSNAP_RESTORE_LEARN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/image/reader.h"
#include "common/publish.h"
#include "restore/decode/workset.h"

#define LEARN_NS 60000000000ull

struct learn {
    const struct image *img; /* NULL: nothing is learned */
    uint64_t *entries;       /* as in the file; room for every cluster */
    uint64_t n_max;
    atomic_ullong n; /* noted so far; the entries below it don't change any more */
    atomic_bool over;

    /* The main thread's own. */
    uint64_t n_at_start; /* when the guest was let run */
    uint64_t until_ns;   /* 0: the guest has touched nothing since */
    uint64_t n_written;  /* the entries of the file, which is being written or there */
    uint64_t n_before;   /* of an earlier run's; 0: there is none */
    bool kept;           /* not told yet */
    struct publish publish;
    struct workset_header header;
    struct error failure; /* the writer could not be started */
    bool is_written;      /* by a process, just now */
    int writer;           /* its pidfd */
    int writer_fd;        /* its word: an errno, or 0 */
};

/* Makes ready to note; refuses if the file could not be written. Before anything is started. */
int learn_begin(struct learn *l, const struct image *img, struct error *e);

/* The same where a guest may wait already: nothing is asked of the file system. `n_before`: as one
 * that asked has found. */
int learn_begin_asked(struct learn *l, const struct image *img, uint64_t n_before, struct error *e);

/* The server's thread: the unit that begins with this cluster was just brought in because somebody
 * touched it. NULL, or over: nothing happens. Never waits. */
void learn_note(struct learn *l, uint64_t cluster, bool write);

/* The guest is let run. */
void learn_guest_runs(struct learn *l);

/* Whether it goes on; false from the minute's end on. */
bool learn_goes_on(struct learn *l, uint64_t now_ns);

/* Ends the noting, and begins to write. What goes wrong is told by learn_poll(). */
void learn_write(struct learn *l);

enum learn_news {
    LEARN_NOTHING,
    LEARN_WRITTEN, /* told once: the file is there */
    LEARN_KEPT,    /* told once: this run was cut short, the file of an earlier one stays */
    LEARN_FAILED,  /* told once: *e says why; the file of an earlier run stays */
};
/* Has the writing come to an end? Waits for it at most that long. */
enum learn_news learn_poll(struct learn *l, int timeout_ms, struct error *e);

void learn_free(struct learn *l);

#endif
