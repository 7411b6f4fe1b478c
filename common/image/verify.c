/*
 * verify.c - looks at every byte of an image.
 *
 * The records that the index names are sorted by their place in the file and shared out in chunks;
 * a worker walks its chunk front to back. What stands between two records that are named must
 * itself be records (earlier copies of clusters that were saved again); their lengths come from
 * their own zstd frames. So every byte between header and sections lies under a checksum that is
 * looked at, and a damaged record costs only itself: the next named one is known by its offset.
 * Header, sections and trailer were checked when the image was opened; they are read again.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* XXH3_state_t on the stack */
#include <xxhash.h>

#include "common/image/internal.h"
#include "common/thread.h"

#define CHUNK_RECORDS 256u
#define WINDOW_BYTES (1u << 20)
#define RECORD_MAX (sizeof(struct image_record) + IMAGE_FRAME_MAX)
#define MAX_THREADS 256u

struct verify {
    const struct image *img;
    const struct image_verify_calls *calls;
    uint64_t *sorted; /* the clusters that have a record, by its offset */
    uint64_t n_sorted;
    uint64_t n_chunks;
    _Atomic uint64_t next_chunk;
    _Atomic uint64_t bytes_read;
    _Atomic int failure;  /* what ended a worker early: -errno */
    pthread_mutex_t lock; /* the fields below, and calls->damage */
    uint64_t pages_damaged, places_damaged;
};

/* A worker's view of the file. */
struct window {
    struct verify *v;
    struct codec *codec;
    uint8_t *buf; /* WINDOW_BYTES */
    uint64_t start, len;
    uint64_t limit; /* where the chunk ends: no need to read further */
};

static void note_damage(struct verify *v, uint64_t cluster, uint64_t offset, const char *what)
{
    pthread_mutex_lock(&v->lock);
    v->places_damaged++;
    if (cluster != UINT64_MAX)
        v->pages_damaged += image_cluster_bytes(v->img, cluster) / IMAGE_PAGE_BYTES;
    if (v->calls->damage)
        v->calls->damage(v->calls->opaque, cluster, offset, what);
    pthread_mutex_unlock(&v->lock);
}

/* Bytes [offset, offset + len) of the file, NULL when they can't be read. */
static const uint8_t *window_at(struct window *w, uint64_t offset, uint64_t len)
{
    const uint64_t end = offset + len > w->limit ? offset + len : w->limit;
    if (offset >= w->start && offset + len <= w->start + w->len)
        return w->buf + (offset - w->start);
    w->start = offset;
    w->len = end - offset < WINDOW_BYTES ? end - offset : WINDOW_BYTES;
    if (image_pread(w->v->img, w->buf, w->len, offset, NULL) < 0) {
        w->len = len; /* a bad sector further on is no fault of this record */
        if (image_pread(w->v->img, w->buf, w->len, offset, NULL) < 0) {
            w->len = 0;
            return NULL;
        }
    }
    atomic_fetch_add_explicit(&w->v->bytes_read, w->len, memory_order_relaxed);
    return w->buf;
}

/* A record that the index names. */
static const char *check_named(struct window *w, uint64_t cluster)
{
    const struct image *img = w->v->img;
    uint8_t plain[IMAGE_CLUSTER_BYTES];
    uint64_t entry = img->index[cluster], frame_bytes = IMAGE_INDEX_BYTES(entry);
    const uint8_t *record =
        window_at(w, IMAGE_INDEX_OFFSET(entry), sizeof(struct image_record) + frame_bytes);
    if (!record)
        return "can't be read";
    const char *wrong = image_check_record(img, record, frame_bytes, cluster);
    if (!wrong && codec_decode(w->codec, record + sizeof(struct image_record), frame_bytes, plain,
                               image_cluster_bytes(img, cluster)) < 0)
        wrong = "its zstd frame does not decode";
    return wrong;
}

/* A record that no index entry names, in [offset, end). Returns its length, or 0 and *wrong. */
static uint64_t check_unnamed(struct window *w, uint64_t offset, uint64_t end, const char **wrong)
{
    const struct image *img = w->v->img;
    uint8_t plain[IMAGE_CLUSTER_BYTES];
    struct image_record prefix;
    uint64_t avail = end - offset < RECORD_MAX ? end - offset : RECORD_MAX;
    *wrong = "bytes that belong to no record";
    const uint8_t *record = avail > sizeof(prefix) ? window_at(w, offset, avail) : NULL;
    if (!record)
        return 0;
    int n = codec_frame_bytes(record + sizeof(prefix), avail - sizeof(prefix));
    if (n < 0)
        return 0;
    *wrong = image_check_record(img, record, (uint64_t)n, UINT64_MAX);
    if (*wrong)
        return 0;
    memcpy(&prefix, record, sizeof(prefix));
    if (prefix.cluster >= img->trailer.n_clusters ||
        codec_decode(w->codec, record + sizeof(prefix), (size_t)n, plain,
                     image_cluster_bytes(img, prefix.cluster)) < 0) {
        *wrong = "an unused record that does not decode";
        return 0;
    }
    return sizeof(prefix) + (uint64_t)n;
}

/* Everything from `offset` to `end`, where no named record starts. */
static void walk_gap(struct window *w, uint64_t offset, uint64_t end)
{
    while (offset < end) {
        const char *wrong;
        uint64_t n = check_unnamed(w, offset, end, &wrong);
        if (n == 0) {
            note_damage(w->v, UINT64_MAX, offset, wrong);
            return; /* where the next one would start is not known */
        }
        offset += n;
    }
}

static uint64_t sorted_offset(const struct verify *v, uint64_t i)
{
    return i < v->n_sorted ? IMAGE_INDEX_OFFSET(v->img->index[v->sorted[i]])
                           : v->img->trailer.records_end;
}

static void walk_chunk(struct window *w, uint64_t chunk)
{
    struct verify *v = w->v;
    uint64_t i = chunk * CHUNK_RECORDS, last = i + CHUNK_RECORDS;
    uint64_t at = chunk == 0 ? sizeof(struct image_header) : sorted_offset(v, i);
    if (last > v->n_sorted)
        last = v->n_sorted;
    w->limit = sorted_offset(v, last);
    for (; i < last; i++) {
        uint64_t cluster = v->sorted[i], entry = v->img->index[cluster];
        uint64_t offset = IMAGE_INDEX_OFFSET(entry);
        walk_gap(w, at, offset);
        const char *wrong = offset < at ? "its record overlaps another" : check_named(w, cluster);
        if (wrong)
            note_damage(v, cluster, offset, wrong);
        uint64_t end = offset + sizeof(struct image_record) + IMAGE_INDEX_BYTES(entry);
        at = end > at ? end : at;
    }
    if (at > w->limit)
        note_damage(v, UINT64_MAX, w->limit, "two records overlap");
    walk_gap(w, at, w->limit);
}

/* Takes chunks until none is left. Reports progress when it is the calling thread's. */
static int work(struct verify *v, bool is_caller)
{
    const struct image *img = v->img;
    struct window w = {.v = v, .codec = codec_new(1), .buf = malloc(WINDOW_BYTES)};
    int r = w.codec && w.buf ? 0 : -ENOMEM;
    while (r == 0) {
        uint64_t chunk = atomic_fetch_add(&v->next_chunk, 1);
        if (chunk >= v->n_chunks)
            break;
        walk_chunk(&w, chunk);
        if (is_caller && v->calls->progress)
            v->calls->progress(v->calls->opaque, atomic_load(&v->bytes_read), img->file_bytes);
    }
    codec_free(w.codec);
    free(w.buf);
    return r;
}

static void *worker(void *opaque)
{
    struct verify *v = opaque;
    int r = work(v, false);
    if (r < 0)
        atomic_store(&v->failure, r);
    return NULL;
}

/* The records, on n_threads threads, this one being one of them. */
static int check_records(struct verify *v, unsigned n_threads)
{
    pthread_t threads[MAX_THREADS];
    unsigned n = 0;
    if (n_threads > MAX_THREADS)
        n_threads = MAX_THREADS;
    while (n + 1 < n_threads && n + 1 < v->n_chunks && thread_start(&threads[n], worker, v) == 0)
        n++;
    int r = work(v, true);
    while (n > 0)
        pthread_join(threads[--n], NULL);
    return r < 0 ? r : atomic_load(&v->failure);
}

/* ---- sorting ---- */

static int by_offset(const void *a, const void *b, void *opaque)
{
    const uint64_t *index = opaque;
    uint64_t x = index[*(const uint64_t *)a], y = index[*(const uint64_t *)b];
    return (x > y) - (x < y);
}

static int sort_records(struct verify *v)
{
    const struct image *img = v->img;
    uint64_t n = 0;
    for (uint64_t c = 0; c < img->trailer.n_clusters; c++)
        n += img->index[c] != IMAGE_INDEX_ZERO;
    v->sorted = malloc((n ? n : 1) * sizeof(*v->sorted));
    if (!v->sorted)
        return -ENOMEM;
    for (uint64_t c = 0; c < img->trailer.n_clusters; c++)
        if (img->index[c] != IMAGE_INDEX_ZERO)
            v->sorted[v->n_sorted++] = c;
    qsort_r(v->sorted, n, sizeof(*v->sorted), by_offset, img->index);
    v->n_chunks = n / CHUNK_RECORDS + 1; /* at least one: what stands there may be unnamed */
    return 0;
}

/* ---- header, sections, trailer ---- */

/* Compares what was read at open with what stands there now. */
static void check_end(struct verify *v, const void *expected, uint64_t offset, const char *what)
{
    uint8_t buf[4096];
    if (image_pread(v->img, buf, sizeof(buf), offset, NULL) < 0 ||
        memcmp(buf, expected, sizeof(buf)) != 0)
        note_damage(v, UINT64_MAX, offset, what);
    atomic_fetch_add(&v->bytes_read, sizeof(buf));
}

/* Sections of types that we do not know have not been read yet: so all are read here. */
static int check_section(struct verify *v, const struct image_section *s)
{
    const uint32_t expected[2] = {IMAGE_SKIP_SECTION, (uint32_t)s->bytes};
    const uint64_t frame_bytes = s->bytes + 8;
    bool good = true;
    XXH3_state_t state;
    char *buf = malloc(WINDOW_BYTES);
    if (!buf)
        return -ENOMEM;
    XXH3_64bits_reset(&state);
    for (uint64_t done = 0; done < frame_bytes && good;) {
        uint64_t n = frame_bytes - done < WINDOW_BYTES ? frame_bytes - done : WINDOW_BYTES;
        good = image_pread(v->img, buf, n, s->offset + done, NULL) == 0 &&
               (done > 0 || memcmp(buf, expected, sizeof(expected)) == 0);
        XXH3_64bits_update(&state, buf, n);
        done += n;
        atomic_fetch_add(&v->bytes_read, n);
    }
    if (!good || XXH3_64bits_digest(&state) != s->checksum)
        note_damage(v, UINT64_MAX, s->offset, "a damaged section");
    free(buf);
    return 0;
}

static int check_rest(struct verify *v)
{
    const struct image *img = v->img;
    int r = 0;
    check_end(v, &img->header, 0, "a damaged header");
    for (uint32_t i = 0; i < img->trailer.n_sections && r == 0; i++)
        r = check_section(v, &img->trailer.sections[i]);
    check_end(v, &img->trailer, img->file_bytes - sizeof(img->trailer), "a damaged trailer");
    return r;
}

int image_verify(const struct image *img, unsigned n_threads,
                 const struct image_verify_calls *calls, struct image_verify_result *result,
                 struct error *e)
{
    struct verify v = {.img = img, .calls = calls, .lock = PTHREAD_MUTEX_INITIALIZER};
    int r = sort_records(&v);
    if (r == 0)
        r = check_records(&v, n_threads);
    if (r == 0)
        r = check_rest(&v);
    free(v.sorted);
    *result = (struct image_verify_result){.pages_damaged = v.pages_damaged,
                                           .places_damaged = v.places_damaged,
                                           .bytes_read = atomic_load(&v.bytes_read)};
    for (uint32_t i = 0; i < img->n_regions; i++)
        result->pages_checked += img->regions[i].bytes / IMAGE_PAGE_BYTES;
    if (r < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, -r, "checking %s", img->name);
    if (v.places_damaged == 0)
        return 0;
    error_set(e, VMSNAP_EXIT_IMAGE, 0, "%s: %llu damaged place%s, %llu damaged pages of %llu",
              img->name, (unsigned long long)result->places_damaged,
              result->places_damaged == 1 ? "" : "s", (unsigned long long)result->pages_damaged,
              (unsigned long long)result->pages_checked);
    error_hint(e, "copy the image again from where it is whole, or take another snapshot");
    return -EBADMSG;
}
