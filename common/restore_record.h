/*
 * restore_record.h - what anybody may know of a restore that is under way. Whoever brings a guest's
 * memory in keeps a *record* in the VMM (restore/record.h): a sealed memfd with the head below,
 * which is there from before memory is registered until after the last page is in. As long as it
 * says so, absent memory is not zero memory.
 */
#ifndef VMSNAP_COMMON_RESTORE_RECORD_H
#define VMSNAP_COMMON_RESTORE_RECORD_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/target/target.h"

#define RECORD_NAME "vmsnap-restore"
#define RECORD_LINK "/memfd:" RECORD_NAME " (deleted)" /* in the VMM's /proc/PID/fd */
#define RECORD_MAGIC "vmsnaprr"
#define RECORD_VERSION 5u

/* What it says but for the blocks and the states. */
struct record_facts {
    char magic[8];
    uint32_t version;
    uint32_t n_blocks;
    uint64_t total_bytes;
    uint64_t n_clusters;
    uint64_t states_at;
    uint8_t image_id[16];
    int32_t uffd;       /* -1: none (any more), or `is_theirs` */
    uint32_t is_theirs; /* the VMM's own userfaultfd, never ours to close; blocks by offset */
    char image_path[PATH_MAX]; /* absolute; empty: the image had no name */
};

enum record_stage {
    RECORD_NEW,     /* memory is not attached yet: no guest has run */
    RECORD_READY,   /* it comes in */
    RECORD_RELEASED /* it is in, and registered nowhere any more */
};

/* How the record begins. In the host's own byte order: it never leaves this machine. */
struct record_head {
    struct record_facts facts;
    atomic_uint stage; /* enum record_stage */
};

/* Of the byte per cluster at facts.states_at: its state. What they mean:
 * restore/memory/page_state.h
 */
#define RECORD_STATE_MASK 7u
#define RECORD_STATE_DONE 1u
#define RECORD_STATE_DAMAGED 2u

/* What is seen of it from outside. */
struct restore_look {
    bool under_way;             /* memory may be missing */
    bool served;                /* somebody brings it in; else the guest waits for nobody */
    uint64_t n_done, n_damaged; /* clusters; those that are all zeros need not be brought in */
};

/* The number of the VMM's first descriptor of a record after `after` (-1: of all), or -errno;
 * -ENOENT: none. A process with the memory of two VMs has two, one that a try has left a copy in
 * the same twice. */
int restore_record_next(const struct target *t, int after);

/* True: `fd` is a descriptor of a memfd named as records are, not of a file that
 * is only called so. */
bool restore_record_is(int fd);

/*
 * Looks at the record of a process, if it has one; of several at that with the most to be said.
 * What makes no sense counts as none: then what the kernel says of its memory (VmFlags of smaps)
 * has to do. Holds nobody up but a server that is just about to take the record's lock, which tries
 * again. 0, or -errno when /proc can't be read; -ESRCH: it is ending, and tells nothing.
 */
int restore_look(const struct target *t, struct restore_look *look);

/* In words: "a restore is still bringing its memory in (1.2 GiB so far)". */
void restore_look_words(const struct restore_look *look, char *text, size_t size);

/*
 * Refuses a process whose memory is still being brought in: exit code 11, and what to do about it.
 * A hand-off that is under way just now is waited for, a second at most.
 */
int restore_refuse_under_way(const struct target *t, struct error *e);

#endif
