#include "restore/decode/prefetch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/thread.h"
#include "restore/read/reader.h"
#include "restore/read/resident.h"

#define WINDOW 1024u /* clusters: 16 MiB of memory */
#define SWEEPER_NICE 10
#define LOOK_MS 100 /* how often a thread that waits looks whether it is to stop */

/* Records of a window with less than that between them are read as one. */
#define GAP_BYTES (128u << 10)
/* The kernel reads no more for one call than the device's read-ahead (128 KiB by default). */
#define ADVICE_BYTES (128u << 10)

/* ---- the order ---- */

/* The first cluster of the huge page that it was part of; of other memory itself. */
static uint64_t unit_of(const struct image *img, uint64_t cluster)
{
    uint64_t offset;
    uint32_t n, region = image_cluster_region(img, cluster, &offset);
    uint64_t page = image_regions(img, &n)[region].page_bytes;
    return page > IMAGE_CLUSTER_BYTES ? cluster - offset % page / IMAGE_CLUSTER_BYTES : cluster;
}

/* Appends, unless it is there already. `seen`: a bit per cluster. */
static void append(struct prefetch *p, uint8_t *seen, uint64_t cluster, uint64_t flag)
{
    cluster = unit_of(p->img, cluster);
    uint8_t bit = (uint8_t)(1u << cluster % 8);
    if (seen[cluster / 8] & bit)
        return;
    seen[cluster / 8] |= bit;
    p->entries[p->n++] = cluster | flag;
}

int prefetch_plan(struct prefetch *p, const struct image *img, const struct workset *learned,
                  bool hot)
{
    uint64_t n_clusters = image_get_trailer(img)->n_clusters, n_hot;
    const struct image_hot *list = image_hot_list(img, &n_hot);
    uint64_t n_max = (learned ? learned->n : 0) + (hot ? n_hot : 0);
    if (n_max > n_clusters)
        n_max = n_clusters;
    *p = (struct prefetch){.img = img};
    if (n_max == 0)
        return 0;
    CLEANUP_FREE uint8_t *seen = calloc(n_clusters / 8 + 1, 1);
    p->entries = malloc(n_max * sizeof(*p->entries));
    if (!seen || !p->entries) {
        free(p->entries);
        p->entries = NULL;
        return -ENOMEM;
    }
    for (uint64_t i = 0; learned && i < learned->n; i++)
        append(p, seen, WORKSET_CLUSTER(learned->entries[i]), learned->entries[i] & WORKSET_WRITE);
    p->n_learned = p->n;
    for (uint64_t i = 0; hot && i < n_hot; i++)
        append(p, seen, list[i].cluster, WORKSET_WRITE);
    return 0;
}

/* ---- reading ahead ---- */

struct extent {
    uint64_t offset, end;
};

static int compare_extents(const void *a, const void *b)
{
    uint64_t x = ((const struct extent *)a)->offset, y = ((const struct extent *)b)->offset;
    return (x > y) - (x < y);
}

/* Where the records of a window lie, by offset; returns how many there are. */
static unsigned list_extents(const struct prefetch *p, uint64_t from, struct extent *extents)
{
    unsigned n = 0;
    for (uint64_t at = from; at < p->n && at < from + WINDOW; at++) {
        uint64_t entry = image_index_entry(p->img, WORKSET_CLUSTER(p->entries[at]));
        if (entry == IMAGE_INDEX_ZERO)
            continue;
        uint64_t offset = IMAGE_INDEX_OFFSET(entry);
        extents[n++] = (struct extent){offset, offset + sizeof(struct image_record) +
                                                   IMAGE_INDEX_BYTES(entry)};
    }
    qsort(extents, n, sizeof(*extents), compare_extents);
    return n;
}

struct sweeper {
    const struct prefetch *plan;
    struct resident resident;
    struct reader reader;
    bool has_reader; /* started when the first is needed */
};

/* The call may wait for the disk's queue, or hang: a process makes it. False: stop. */
static bool advise(struct sweeper *s, uint64_t offset, uint64_t bytes)
{
    int64_t result;
    if (!s->has_reader && reader_start(&s->reader, image_fd(s->plan->img), READER_BEHIND))
        return false;
    s->has_reader = true;
    int rc = reader_advise(&s->reader, offset, bytes);
    while (rc == 0 && !atomic_load(&s->plan->stop))
        rc = reader_wait(&s->reader, LOOK_MS, &result);
    return rc > 0;
}

static bool will_need(struct sweeper *s, const struct extent *e)
{
    for (uint64_t at = e->offset; at < e->end; at += ADVICE_BYTES) {
        uint64_t len = e->end - at < ADVICE_BYTES ? e->end - at : ADVICE_BYTES;
        if (!resident_has(&s->resident, at, len) && !advise(s, at, len))
            return false;
    }
    return true;
}

static bool sweep_window(struct sweeper *s, uint64_t from)
{
    struct extent extents[WINDOW] = {{0}};
    unsigned n = list_extents(s->plan, from, extents);
    for (unsigned i = 0; i < n && !atomic_load(&s->plan->stop);) {
        struct extent sweep = extents[i++];
        while (i < n && extents[i].offset <= sweep.end + GAP_BYTES) {
            if (extents[i].end > sweep.end)
                sweep.end = extents[i].end;
            i++;
        }
        if (!will_need(s, &sweep))
            return false;
    }
    return true;
}

static void *run_reader(void *opaque)
{
    const struct prefetch *p = opaque;
    struct sweeper s = {.plan = p};
    thread_go_nice(0, SWEEPER_NICE);
    resident_open(&s.resident, image_fd(p->img), image_get_trailer(p->img)->file_bytes);
    for (uint64_t at = 0; at < p->n && !atomic_load(&p->stop); at += WINDOW)
        if (!sweep_window(&s, at))
            break;
    if (s.has_reader)
        reader_stop(&s.reader);
    resident_close(&s.resident);
    return NULL;
}

void prefetch_begin_reading(struct prefetch *p)
{
    p->has_reader = p->n > 0 && thread_start(&p->reader, run_reader, p) == 0;
}

void prefetch_free(struct prefetch *p)
{
    atomic_store(&p->stop, true);
    if (p->has_reader)
        pthread_join(p->reader, NULL);
    free(p->entries);
    p->entries = NULL;
    p->n = 0;
    p->has_reader = false;
}
