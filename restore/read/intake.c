/*
 * intake.c - see intake.h.
 *
 * What "at once" means: mincore() says that the pages are in the page cache, and then
 * preadv2(RWF_NOWAIT) copies them. RWF_NOWAIT alone would start reading what is not there, and that
 * can wait: for the file's block map, for a place in the disk's queue. Where a file system has no
 * RWF_NOWAIT (NFS, FUSE) even a read of cached pages may ask its server, so that all is left to the
 * readers. tmpfs lacks it too, but has nothing to wait for.
 *
 * A thread takes a reader for one cluster at a time, so that there are never more of them than
 * threads; but for those whose read hangs. Where the image is needed for a fault the thread leaves
 * such a one (hanging.h) and reads something else: parts of an image may be unreadable while others
 * are sound.
 */
#include "restore/read/intake.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/child.h"
#include "common/clock.h"
#include "common/image/format.h"
#include "common/log.h"
#include "restore/read/hanging.h"
#include "restore/read/reader.h"
#include "restore/read/resident.h"

#define LOOK_MS 100              /* how often a thread that waits looks whether it is to stop */
#define RETRY_FIRST_MS 50        /* after an I/O error; four times as long after the next */
#define PATIENCE_NS 200000000ull /* of who reads for a fault, with a storage that hangs */
#define PATIENCE_BESIDE_NS 20000000ull

static_assert(IMAGE_RECORD_MAX <= READER_BYTES, "a record fits into a reader's buffer");

/* Readers that are idle; room for as many as there are threads. */
struct pool {
    struct reader *idle;
    unsigned n_idle;
};

struct intake {
    struct intake_config config;
    struct resident resident;
    struct reader *readers; /* what the pools point into */
    int nowait_flag;        /* of preadv2(): RWF_NOWAIT, or 0 where nothing can wait */
    bool all_by_readers;

    pthread_mutex_t lock; /* of the pools; held for a moment only */
    struct pool pools[INTAKE_FOR_FILL + 1];
    struct hanging hanging; /* reads for faults */

    atomic_bool stop;
    atomic_uint n_stalled; /* reads */
};

/* ---- at once ---- */

/* Where it can't be told, RWF_NOWAIT will. */
static bool is_resident(const struct intake *s, uint64_t offset, uint64_t bytes)
{
    return !resident_can_tell(&s->resident) || resident_has(&s->resident, offset, bytes);
}

static int read_cached(struct intake *s, uint64_t offset, uint32_t bytes, void *to)
{
    if (s->all_by_readers || (s->nowait_flag && !is_resident(s, offset, bytes)))
        return -EAGAIN;
    struct iovec iov = {.iov_base = to, .iov_len = bytes};
    ssize_t n = preadv2(image_fd(s->config.img), &iov, 1, (off_t)offset, s->nowait_flag);
    return n == (ssize_t)bytes ? 0 : -EAGAIN;
}

int intake_read_now(struct intake *s, uint64_t cluster, struct codec *codec, void *out)
{
    uint8_t record[IMAGE_RECORD_MAX];
    uint32_t bytes;
    uint64_t offset = image_cluster_record(s->config.img, cluster, &bytes);
    int rc = bytes > 0 ? read_cached(s, offset, bytes, record) : 0;
    return rc ? rc : image_decode_cluster(s->config.img, cluster, codec, record, out, NULL);
}

/* ---- by a reader ---- */

static int start_reader(struct intake *s, enum intake_for whom, struct reader *r)
{
    enum reader_rank rank = whom == INTAKE_FOR_FAULT ? READER_AS_CALLER : READER_BEHIND;
    return reader_start(r, image_fd(s->config.img), rank);
}

/* Who holds the lock may have lost its CPU to the guest (calm.h), and a fault may wait for us: it
 * is never waited for. */
static int take_reader(struct intake *s, enum intake_for whom, struct reader *r)
{
    struct pool *p = &s->pools[whom];
    bool locked = pthread_mutex_trylock(&s->lock) == 0, any = locked && p->n_idle > 0;
    if (any)
        *r = p->idle[--p->n_idle];
    if (locked)
        pthread_mutex_unlock(&s->lock);
    return any ? 0 : start_reader(s, whom, r);
}

static void give_reader(struct intake *s, enum intake_for whom, struct reader *r)
{
    struct pool *p = &s->pools[whom];
    if (atomic_load(&s->stop)) { /* it may hang: it must not be used again */
        reader_stop(r);
        return;
    }
    bool locked = pthread_mutex_trylock(&s->lock) == 0;
    bool room = locked && p->n_idle < s->config.n_threads;
    if (room)
        p->idle[p->n_idle++] = *r;
    if (locked)
        pthread_mutex_unlock(&s->lock);
    if (!room)
        reader_stop(r);
}

static void report_stall(struct intake *s, uint64_t cluster, uint64_t ns)
{
    uint32_t bytes;
    const struct block *b = blocks_find_cluster(s->config.blocks, cluster);
    struct error e = {.guest = GUEST_RUNNING};
    error_set(&e, VMSNAP_EXIT_FAILED, 0,
              "the image's storage does not answer: reading memory block '%s' at offset 0x%" PRIx64
              " (at file offset %" PRIu64 ") has taken %" PRIu64 " s so far",
              b ? b->region.name : "?", b ? block_cluster_offset(b, cluster) : 0,
              image_cluster_record(s->config.img, cluster, &bytes), ns / 1000000000u);
    error_hint(&e, "the guest waits where it touches memory that is not in yet; it goes on when "
                   "the storage does");
    trouble_add(s->config.troubles, &e);
}

/* A reading that hangs counts as stalled after a while; not one whose reader gets no CPU. */
static void note_stall(struct intake *s, struct reading *r)
{
    uint64_t ns = clock_monotonic_ns() - r->began_ns;
    if (r->stalls || ns <= INTAKE_STALL_NS || child_is_starved(r->reader.pidfd))
        return;
    r->stalls = true;
    if (atomic_fetch_add(&s->n_stalled, 1) == 0)
        report_stall(s, r->cluster, ns);
}

/* It is answered, or its reader has ended. */
static void note_end(struct intake *s, const struct reading *r, bool answered)
{
    uint64_t ns = clock_monotonic_ns() - r->began_ns;
    if (r->stalls && atomic_fetch_sub(&s->n_stalled, 1) == 1 && answered)
        log_warn("the image's storage answers again, after %" PRIu64 " s", ns / 1000000000u);
}

/* Waits for the answer: 0, -EINPROGRESS (not within patience_ns), -ECANCELED or -EOWNERDEAD. */
static int await(struct intake *s, struct reading *r, uint64_t patience_ns, int64_t *result)
{
    uint64_t began = clock_monotonic_ns();
    for (;;) {
        uint64_t waited = clock_monotonic_ns() - began;
        uint64_t left_ms = patience_ns > waited ? (patience_ns - waited) / 1000000 : 0;
        int rc = reader_wait(&r->reader, left_ms < LOOK_MS ? (int)left_ms : LOOK_MS, result);
        if (rc) {
            note_end(s, r, rc > 0);
            return rc < 0 ? rc : 0;
        }
        note_stall(s, r);
        if (atomic_load(&s->stop))
            return -ECANCELED;
        if (left_ms == 0)
            return -EINPROGRESS;
    }
}

/* The answer to a reading, whose record lies in its buffer then: 0, -EBADMSG (the file ends there)
 * or -errno. -EINPROGRESS: it is left alone. */
static int take_answer(struct intake *s, struct reading *r, uint64_t patience_ns, struct error *e)
{
    uint32_t bytes;
    int64_t n = 0;
    image_cluster_record(s->config.img, r->cluster, &bytes);
    int rc = await(s, r, patience_ns, &n);
    if (rc == -EINPROGRESS) {
        if (hanging_leave(&s->hanging, r))
            return rc;
        rc = await(s, r, UINT64_MAX, &n);
    }
    if (rc == 0 && n < 0)
        rc = (int)n;
    if (rc == 0 && n == (int64_t)bytes)
        return 0;
    return image_cluster_unread(s->config.img, r->cluster, -rc, e);
}

/* What intake_read() is after. */
struct want {
    enum intake_for whom;
    uint64_t cluster;
    bool fresh; /* past the page cache */
    bool anew;  /* by a reader that is started for it */
};

/* Asks for a cluster's record. 0, or -errno: nobody can. */
static int begin_reading(struct intake *s, struct reading *r, const struct want *w)
{
    uint32_t bytes;
    uint64_t offset = image_cluster_record(s->config.img, w->cluster, &bytes);
    *r = (struct reading){
        .cluster = w->cluster, .fresh = w->fresh, .began_ns = clock_monotonic_ns()};
    int rc = w->anew ? start_reader(s, w->whom, &r->reader) : take_reader(s, w->whom, &r->reader);
    if (rc == 0)
        rc = reader_ask(&r->reader, offset, bytes, w->fresh);
    if (rc)
        reader_stop(&r->reader);
    return rc;
}

/* The read of a cluster that is asked for here, or was left; and how long to wait for it. What
 * others hang beside is likely to hang as well. */
static int get_reading(struct intake *s, struct reading *r, const struct want *w,
                       uint64_t *patience_ns)
{
    *patience_ns = 0;
    if (w->whom == INTAKE_FOR_FAULT && hanging_take(&s->hanging, w->cluster, r))
        return 0;
    if (w->whom == INTAKE_FOR_FILL)
        *patience_ns = UINT64_MAX;
    else
        *patience_ns = hanging_any(&s->hanging) ? PATIENCE_BESIDE_NS : PATIENCE_NS;
    return begin_reading(s, r, w);
}

/* One read of a cluster from the storage. As intake_read(), and -EOWNERDEAD: its reader died. */
static int read_once(struct intake *s, struct want *w, struct codec *codec, void *out,
                     struct error *e)
{
    uint8_t record[IMAGE_RECORD_MAX];
    struct reading r;
    uint64_t patience_ns;
    int rc = get_reading(s, &r, w, &patience_ns);
    if (rc == -EOWNERDEAD)
        return rc;
    if (rc) {
        error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't start a process that reads the image");
        return -EAGAIN;
    }
    w->fresh = r.fresh;
    rc = take_answer(s, &r, patience_ns, e);
    if (rc == -EINPROGRESS)
        return rc;
    if (rc == 0)
        memcpy(record, r.reader.buffer, sizeof(record));
    if (rc == -EOWNERDEAD || rc == -ECANCELED)
        reader_stop(&r.reader);
    else
        give_reader(s, w->whom, &r.reader);
    /* Nothing is held now: `out` may be memory that goes away (window.h). */
    return rc ? rc : image_decode_cluster(s->config.img, w->cluster, codec, record, out, e);
}

static void pause_after(struct intake *s, int tries)
{
    for (int ms = RETRY_FIRST_MS << 2 * tries; ms > 0 && !atomic_load(&s->stop); ms -= 10)
        usleep(10000);
}

/* Whether another try now is worth while: the reader died, which says nothing about the storage; or
 * (who fills has the time) after a pause. */
static bool tries_again(struct intake *s, const struct want *w, int rc, int tries)
{
    if (tries + 1 >= INTAKE_TRIES || rc == -EINPROGRESS || rc == -ECANCELED)
        return false;
    if (rc == -EOWNERDEAD)
        return true;
    if (w->whom == INTAKE_FOR_FILL)
        pause_after(s, tries);
    return w->whom == INTAKE_FOR_FILL;
}

int intake_read(struct intake *s, enum intake_for whom, uint64_t cluster, struct codec *codec,
                void *out, struct error *e)
{
    int rc = intake_read_now(s, cluster, codec, out);
    struct want w = {.whom = whom, .cluster = cluster, .fresh = rc == -EBADMSG};
    for (int tries = 0; rc; tries++) {
        rc = read_once(s, &w, codec, out, e);
        if (rc == -EBADMSG && !w.fresh)
            w.fresh = true;
        else if (rc == -EBADMSG || !tries_again(s, &w, rc, tries))
            break;
        w.anew = rc == -EOWNERDEAD; /* who kills one may kill all that were there */
    }
    if (rc != -EOWNERDEAD)
        return rc;
    error_set(e, VMSNAP_EXIT_FAILED, 0, "the processes that read the image are killed");
    return -EAGAIN;
}

bool intake_is_error(int status)
{
    return status && status != -EINPROGRESS && status != -EAGAIN && status != -ECANCELED;
}

bool intake_is_stalled(struct intake *s)
{
    return atomic_load(&s->n_stalled) > 0;
}

/* ---- the whole ---- */

int intake_open(struct intake **out, const struct intake_config *config)
{
    struct intake *s = calloc(1, sizeof(*s));
    struct statfs fs;
    if (!s)
        return -ENOMEM;
    s->config = *config;
    s->readers = calloc(2 * (size_t)config->n_threads, sizeof(*s->readers));
    if (!s->readers) {
        free(s);
        return -ENOMEM;
    }
    s->pools[INTAKE_FOR_FAULT].idle = s->readers;
    s->pools[INTAKE_FOR_FILL].idle = s->readers + config->n_threads;
    pthread_mutex_init(&s->lock, NULL);
    hanging_init(&s->hanging);
    bool in_memory = fstatfs(image_fd(config->img), &fs) == 0 && fs.f_type == TMPFS_MAGIC;
    s->nowait_flag = in_memory ? 0 : RWF_NOWAIT;
    s->all_by_readers = !in_memory && !resident_has_nowait(image_fd(config->img));
    if (!in_memory && !s->all_by_readers)
        resident_open(&s->resident, image_fd(config->img),
                      image_get_trailer(config->img)->file_bytes);
    *out = s;
    return 0;
}

void intake_stop(struct intake *s)
{
    atomic_store(&s->stop, true);
}

void intake_close(struct intake *s)
{
    if (!s)
        return;
    for (int whom = INTAKE_FOR_FAULT; whom <= INTAKE_FOR_FILL; whom++)
        for (unsigned i = 0; i < s->pools[whom].n_idle; i++)
            reader_stop(&s->pools[whom].idle[i]);
    hanging_free(&s->hanging);
    resident_close(&s->resident);
    pthread_mutex_destroy(&s->lock);
    free(s->readers);
    free(s);
}
