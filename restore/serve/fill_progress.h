/*
 * fill_progress.h - how far the memory of a restored guest has come in: a line on stderr
 * (common/progress.h), and the object "progress" for whoever keeps the JSON lines.
 */
#ifndef VMSNAP_RESTORE_FILL_PROGRESS_H
#define VMSNAP_RESTORE_FILL_PROGRESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/image/reader.h"
#include "common/progress.h"
#include "restore/memory/page_state.h"
#include "restore/serve/serve.h"

struct fill_progress {
    struct progress line;
    uint64_t total_bytes;   /* of all clusters that hold anything */
    uint64_t already_bytes; /* of these, in before this server began */
    bool periodic;
    bool on_demand; /* the caller's to set: nothing comes in but what is touched */
    char note[96];  /* the line's */
    uint64_t reported_ns, reported_bytes;
};

/* A takeover: what is in already counts. Before the server starts. Looks at the whole index, as
 * fill_progress_start() does: a millisecond for 16 GiB. */
void fill_progress_take_over(struct fill_progress *p, const struct image *img,
                             const struct page_state *state);

/* `redraw`: whether there is a line without being asked; `periodic`: objects without being asked;
 * `limit_per_s`: the fill's, in bytes; 0: none. */
void fill_progress_start(struct fill_progress *p, const struct image *img, bool redraw,
                         bool periodic, uint64_t limit_per_s);

/*
 * Call as often as is convenient. True: it is time for an object, since something has changed and
 * the last one is a second old, or since a signal asks for it. `all_in`: whatever was discarded or
 * unmapped on the way, nothing more comes in.
 */
bool fill_progress_update(struct fill_progress *p, const struct server_stats *stats, bool all_in);

/* The object, as docs/vmsnap.1 lists it, for the figures of the last update. New reference. */
json_t *fill_progress_describe(const struct fill_progress *p, const struct server_stats *stats);

#endif
