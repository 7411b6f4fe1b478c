#include "restore/serve/fill_progress.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/format.h"
#include "common/image/format.h"

#define REPORT_NS 1000000000u

/* The short cluster at a region's end counts as a whole one: finding them takes
 * ten times as long. */
static uint64_t count_stored_bytes(const struct image *img, const struct page_state *done)
{
    uint64_t n = 0, n_clusters = image_get_trailer(img)->n_clusters;
    for (uint64_t cluster = 0; cluster < n_clusters; cluster++)
        n += image_index_entry(img, cluster) != IMAGE_INDEX_ZERO &&
             (!done || page_state_get(done, cluster) == CLUSTER_DONE);
    return n * IMAGE_CLUSTER_BYTES;
}

void fill_progress_take_over(struct fill_progress *p, const struct image *img,
                             const struct page_state *state)
{
    p->already_bytes = count_stored_bytes(img, state);
}

void fill_progress_start(struct fill_progress *p, const struct image *img, bool redraw,
                         bool periodic, uint64_t limit_per_s)
{
    p->total_bytes = count_stored_bytes(img, NULL);
    p->periodic = periodic;
    p->reported_ns = clock_monotonic_ns();
    progress_start(&p->line, "filled", redraw);
    progress_begin_at(&p->line, p->already_bytes);
    p->line.limit_per_s = limit_per_s;
}

static uint64_t damaged_bytes(const struct fill_progress *p, const struct answer_counts *n)
{
    uint64_t bytes = n->clusters_damaged * IMAGE_CLUSTER_BYTES;
    return bytes < p->total_bytes ? bytes : p->total_bytes;
}

/* What was all zeros and demanded counts as well, so that it could come out too large. */
static uint64_t done_bytes(const struct fill_progress *p, const struct answer_counts *n)
{
    uint64_t pages = n->pages_on_demand + n->pages_prefetched + n->pages_ahead + n->pages_filled;
    uint64_t bytes = p->already_bytes + pages * IMAGE_PAGE_BYTES;
    uint64_t most = p->total_bytes - damaged_bytes(p, n);
    return bytes < most ? bytes : most;
}

/* What the figures do not tell: "3.2 MiB can't be restored; guest waits". */
static void make_note(struct fill_progress *p, const struct server_stats *stats, bool all_in)
{
    char bytes[FORMAT_MAX];
    uint64_t damaged = damaged_bytes(p, &stats->counts);
    p->note[0] = '\0';
    if (damaged > 0)
        snprintf(p->note, sizeof(p->note), "%s can't be restored%s", format_bytes(bytes, damaged),
                 stats->guest_waits && !all_in ? "; " : "");
    if (stats->guest_waits && !all_in)
        strncat(p->note, "guest waits", sizeof(p->note) - strlen(p->note) - 1);
    p->line.note = p->note[0] ? p->note : NULL;
}

bool fill_progress_update(struct fill_progress *p, const struct server_stats *stats, bool all_in)
{
    uint64_t bytes = all_in ? p->total_bytes : done_bytes(p, &stats->counts);
    uint64_t now = clock_monotonic_ns();
    p->line.open_ended = p->on_demand || stats->stage == SERVER_INCOMPLETE;
    make_note(p, stats, all_in);
    bool asked = progress_update(&p->line, bytes, p->total_bytes, stats->demand_faults);
    bool due = p->periodic && bytes != p->reported_bytes && now - p->reported_ns >= REPORT_NS;
    if (!asked && !due)
        return false;
    p->reported_ns = now;
    p->reported_bytes = bytes;
    return true;
}

json_t *fill_progress_describe(const struct fill_progress *p, const struct server_stats *stats)
{
    const struct answer_counts *n = &stats->counts;
    int64_t left_ns = progress_left_ns(&p->line, p->reported_bytes, p->total_bytes);
    json_t *o = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "done_bytes",
        (json_int_t)p->reported_bytes, "total_bytes", (json_int_t)p->total_bytes,
        "bytes_per_second", (json_int_t)p->line.bytes_per_s, "demand_faults",
        (json_int_t)stats->demand_faults, "pages_on_demand", (json_int_t)n->pages_on_demand,
        "pages_prefetched", (json_int_t)n->pages_prefetched, "pages_ahead",
        (json_int_t)n->pages_ahead, "pages_filled", (json_int_t)n->pages_filled, "pages_discarded",
        (json_int_t)n->pages_discarded, "clusters_damaged", (json_int_t)n->clusters_damaged);
    if (o)
        json_object_set_new(o, "remaining_ns", left_ns < 0 ? json_null() : json_integer(left_ns));
    return o;
}
