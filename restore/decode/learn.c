#include "restore/decode/learn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/child.h"
#include "common/clock.h"
#include "common/testhook.h"

#define BEFORE_MS 500    /* to read the file of an earlier run; a restore's start may wait for it */
#define END_GRACE_MS 100 /* for a writer that has said its last word */

static size_t entries_bytes(const struct learn *l)
{
    return l->n_max * sizeof(*l->entries);
}

/* Can a file be made there? None is left of the try. */
static int try_to_write(const char *path, struct error *e)
{
    struct publish p;
    int rc = publish_open(&p, path, true, e);
    if (rc == 0)
        publish_close(&p);
    return rc;
}

/* Of the file that is there, if it is one of this image and its storage answers. */
static uint64_t count_learned(const struct image *img)
{
    struct workset before = {0};
    struct whole_file file = {0};
    struct error e;
    if (workset_begin(&file, img))
        return 0;
    int rc = workset_take(&before, &file, BEFORE_MS, img, &e);
    if (rc == -EINPROGRESS)
        whole_file_end(&file);
    if (rc)
        return 0;
    uint64_t n = before.n;
    workset_free(&before);
    return n;
}

int learn_begin(struct learn *l, const struct image *img, struct error *e)
{
    char path[PATH_MAX];
    *l = (struct learn){.writer_fd = -1};
    int rc = workset_path(img, path, e);
    if (rc == 0)
        rc = try_to_write(path, e);
    if (rc) {
        error_wrap(e, "--learn");
        if (e)
            e->hint[0] = '\0'; /* of who may choose the name */
        error_hint(e, "what is learned goes into a file beside the image: make its directory "
                      "writable (with room in it), put a copy of the image elsewhere, or leave "
                      "out --learn");
        return rc;
    }
    return learn_begin_asked(l, img, count_learned(img), e);
}

int learn_begin_asked(struct learn *l, const struct image *img, uint64_t n_before, struct error *e)
{
    *l = (struct learn){
        .n_max = image_get_trailer(img)->n_clusters, .n_before = n_before, .writer_fd = -1};
    /* Not touched before it is needed: costs what is noted. */
    void *entries = mmap(NULL, entries_bytes(l), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (entries == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "no memory for what is learned");
    l->entries = entries;
    l->img = img;
    return 0;
}

void learn_note(struct learn *l, uint64_t cluster, bool write)
{
    if (!l || !l->img || atomic_load_explicit(&l->over, memory_order_relaxed))
        return;
    uint64_t at = atomic_load_explicit(&l->n, memory_order_relaxed);
    if (at == l->n_max) /* never: a cluster is brought in once */
        return;
    l->entries[at] = cluster | (write ? WORKSET_WRITE : 0);
    atomic_store_explicit(&l->n, at + 1, memory_order_release);
}

void learn_guest_runs(struct learn *l)
{
    l->n_at_start = atomic_load(&l->n);
}

bool learn_goes_on(struct learn *l, uint64_t now_ns)
{
    if (!l->img || atomic_load(&l->over))
        return false;
    if (l->until_ns == 0 && atomic_load(&l->n) > l->n_at_start)
        l->until_ns = now_ns + LEARN_NS;
    return l->until_ns == 0 || (now_ns < l->until_ns && !TESTHOOK_MASKED("learn.minute"));
}

/* ---- the file ---- */

static int write_all(int fd, const void *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)data + done, len - done);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            done += (size_t)n;
    }
    return 0;
}

/* The child. */
static void write_file(void *opaque)
{
    struct learn *l = opaque;
    struct error e = {0};
    int rc = write_all(l->publish.fd, &l->header, sizeof(l->header));
    TESTHOOK_POINT("learn-writing");
    if (rc == 0)
        rc = write_all(l->publish.fd, l->entries, l->n_written * sizeof(*l->entries));
    if (rc == 0)
        rc = publish_commit(&l->publish, &e);
    if (rc)
        publish_close(&l->publish);
    int err = -rc;
    _exit(write(l->writer_fd, &err, sizeof(err)) != sizeof(err));
}

static int start_writer(struct learn *l, struct error *e)
{
    char path[PATH_MAX];
    int ends[2];
    int rc = workset_path(l->img, path, e);
    if (rc == 0)
        rc = publish_open(&l->publish, path, true, e);
    if (rc)
        return rc;
    if (pipe2(ends, O_CLOEXEC)) {
        publish_close(&l->publish);
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make a pipe");
    }
    const int keep[] = {l->publish.fd, l->publish.dir_fd, ends[1]};
    l->writer_fd = ends[1];
    int pidfd = child_fork(keep, 3, write_file, l);
    l->writer_fd = ends[0];
    close(ends[1]);
    if (pidfd < 0) {
        publish_close(&l->publish);
        close(ends[0]);
        return error_set(e, VMSNAP_EXIT_FAILED, -pidfd, "can't start a process");
    }
    l->writer = pidfd;
    l->is_written = true;
    return 0;
}

static bool was_cut_short(const struct learn *l)
{
    bool over = l->until_ns && clock_monotonic_ns() >= l->until_ns;
    return !over && !TESTHOOK_MASKED("learn.minute");
}

void learn_write(struct learn *l)
{
    if (!l->img || atomic_load(&l->over))
        return;
    atomic_store(&l->over, true);
    l->n_written = atomic_load_explicit(&l->n, memory_order_acquire);
    if (l->n_written == 0)
        return;
    if (was_cut_short(l) && l->n_written < l->n_before / 2) {
        l->n_written = 0;
        l->kept = true;
        return;
    }
    workset_fill_header(&l->header, l->img, l->entries, l->n_written);
    if (start_writer(l, &l->failure))
        l->n_written = 0;
}

/* Closes what we have of the file; of a writer that is through nothing is left, under the hidden
 * name neither. */
static void close_file(struct learn *l, bool is_through)
{
    l->publish.linked = is_through;
    publish_close(&l->publish);
    close(l->writer_fd);
    l->writer_fd = -1;
    if (is_through)
        child_end(l->writer, END_GRACE_MS);
    else
        child_leave(l->writer);
    l->is_written = false;
}

static enum learn_news take_failure(struct learn *l, struct error *e)
{
    if (l->failure.exit_code == 0)
        return LEARN_NOTHING;
    l->failure.guest = e->guest;
    *e = l->failure;
    l->failure.exit_code = 0;
    return LEARN_FAILED;
}

enum learn_news learn_poll(struct learn *l, int timeout_ms, struct error *e)
{
    if (l->kept) {
        l->kept = false;
        return LEARN_KEPT;
    }
    if (!l->is_written)
        return take_failure(l, e);
    struct pollfd word = {.fd = l->writer_fd, .events = POLLIN};
    if (poll(&word, 1, timeout_ms) <= 0)
        return LEARN_NOTHING;
    int err;
    if (read(l->writer_fd, &err, sizeof(err)) != sizeof(err))
        err = EOWNERDEAD;
    close_file(l, true);
    if (err == 0)
        return LEARN_WRITTEN;
    l->n_written = 0;
    error_set(e, publish_exit_code(err), err, "--learn: the working set can't be written to %s",
              l->publish.path);
    error_hint(e, "the guest is served as without --learn; make room there, or see why it can't be "
                  "written, and learn with another VM");
    return LEARN_FAILED;
}

void learn_free(struct learn *l)
{
    if (l->is_written)
        close_file(l, false); /* it hangs; it ends by itself when it can */
    if (l->entries)
        munmap(l->entries, entries_bytes(l));
    l->entries = NULL;
    l->img = NULL;
}
