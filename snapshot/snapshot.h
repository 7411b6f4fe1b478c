/* snapshot.h - one live snapshot, from attach to the published image. */
#ifndef VMSNAP_SNAPSHOT_SNAPSHOT_H
#define VMSNAP_SNAPSHOT_SNAPSHOT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

/* Whether memory is protected while the guest still runs (live.h). */
enum snapshot_live {
    LIVE_AUTO, /* where it pays */
    LIVE_ALWAYS,
    LIVE_NEVER,
};

struct snapshot_options {
    const char *qmp_path;    /* NULL: api_path */
    const char *api_path;    /* of a Firecracker */
    int pid;                 /* 0: found through the socket */
    const char *const *maps; /* with api_path: where its memory is (source.h) */
    const char *state_path;  /* the device state goes there as well; NULL: into the image alone */
    const char *image_path;  /* "-": stdout */
    bool overwrite;
    int level;             /* zstd */
    unsigned n_threads;    /* compressors */
    uint64_t buffer_bytes; /* hard cap of page and write buffers */
    uint64_t bwlimit;      /* bytes per second to the image; 0: no limit */
    int timeout_ms;        /* for everything that waits on the VMM */
    int max_stall_ms;
    const char *const *allowed; /* hazard names, NULL-terminated */
    bool progress;              /* a progress line on stderr */
    enum snapshot_live live;
    unsigned n_shards; /* userfaultfds, at most SHARDS_MAX (shard.h); 0: as many as are best */
    unsigned precopy;  /* passes that save before the instant, at most SNAPSHOT_MAX_PRECOPY */
};

#define SNAPSHOT_MAX_PRECOPY 100u

/* The smallest buffer_bytes that works. */
uint64_t snapshot_min_buffer(void);

/*
 * Takes the snapshot: forks, so that the calling process becomes the guardian; blocks until it is
 * done. *summary (new reference) has the keys of CLI.md. Returns 0 or -errno; error_exit codes as
 * published. Must be called before any thread is started.
 */
int snapshot_run(const struct snapshot_options *options, json_t **summary, struct error *e);

struct source;

/* The same from a source that is open already (source.h) and stays the caller's: any VMM that can
 * say where its memory is and can pause. wall_ns counts from this call. */
int snapshot_run_from(struct source *source, const struct snapshot_options *options,
                      json_t **summary, struct error *e);

#endif
