/*
 * session.h - the time in which the guest runs and its memory comes in: what a restore and a
 * takeover (resume.h) have in common. From a server that answers to the last page, the hand-off,
 * and the VMM's end.
 */
#ifndef VMSNAP_RESTORE_SESSION_H
#define VMSNAP_RESTORE_SESSION_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/image/reader.h"
#include "common/target/target.h"
#include "restore/clock_sync.h"
#include "restore/decode/learn.h"
#include "restore/decode/prefetch.h"
#include "restore/launch/vmm.h"
#include "restore/memory/blocks.h"
#include "restore/memory/page_state.h"
#include "restore/record.h"
#include "restore/restore.h"
#include "restore/serve/fill_progress.h"
#include "restore/serve/serve.h"

/* Who makes it fills in the first part, step by step. */
struct session {
    const struct restore_options *o;
    struct image *img;
    const struct target *target;
    struct vmm *vmm; /* NULL: the VMM is no child of ours */
    struct blocks blocks;
    struct record record;
    struct record_leaving *leaving; /* NULL: it is where it belongs */
    struct page_state state;        /* lies in the record */
    struct whole_file known;        /* the working set of an earlier run, being read */
    bool plan_is_due;               /* as soon as it is */
    struct prefetch prefetch;
    struct learn learn; /* begun: nothing is prefetched */
    struct server *server;
    int target_fd;         /* the VMM's copy of the userfaultfd; -1: none */
    int theirs;            /* the VMM's own userfaultfd, a descriptor of ours; 0: we made it */
    const json_t *machine; /* as compared, or as recorded; may be NULL */
    uint64_t began_ns;     /* the launch, or the takeover */
    uint64_t running_ns;   /* since then */
    bool stays;            /* until the VMM's end, not only until the last page is in */
    bool shows_progress;

    bool begun;
    struct clock_sync *clock; /* NULL: not asked for */
    bool clock_reported;
    struct fill_progress progress;
    uint64_t complete_ns; /* since began_ns; 0: not yet */
    bool learns;          /* and so nothing is filled yet */
    bool handed_off, summarized;
    bool handed_over; /* another vmsnap serves the guest, as somebody asked */
    bool unserved;    /* nobody does: who asked did not come, and we can't go on. It is said */
    struct server_stats last; /* of a server that was ended */
};

/* Settles what is prefetched, and has the image read for it from now on, while the VMM still
 * starts. Waits at most wait_ms for what an earlier run learned (0 where a guest waits for us):
 * session_serve() looks for it again, once faults are answered. What goes wrong is a warning:
 * without it all is only slower. */
void session_plan_prefetch(struct session *s, int wait_ms);

/* Clusters that need nothing any more. */
uint64_t session_count_settled(const struct session *s);

/* Starts the server on `uffd`, which is its own from then on, and its prefetch. */
int session_serve(struct session *s, int uffd, bool takes_over, struct error *e);

/* The guest runs: lets the fill go on. session_accompany() does it unless it is done. */
void session_begin(struct session *s);

/* Lets the fill go on, and returns when the VMM has ended, or (not `stays`) all
 * is done. Reports. */
void session_accompany(struct session *s);

/* After that: 0, or why it is not over for the guest: exit code 11, another vmsnap has taken it
 * over; 1, nobody serves it any more. */
int session_explain_end(const struct session *s, struct error *e);

/* Reports the summary, once. Without a server there has been, it is all zeros. */
void session_summarize(struct session *s);

/* After the registration is gone: closes the VMM's copies of the userfaultfd and of the record. */
int session_close_there(struct session *s, struct error *e);

/* Ends the server and frees everything but the target and the VMM. Any state. */
void session_close(struct session *s);

#endif
