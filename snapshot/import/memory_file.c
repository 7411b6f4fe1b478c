/*
 * The page cache. A memory file is large, and often it has just been written and is in the cache as
 * a whole: then it is read from there, and stays. What is not there is read in pieces of a megabyte
 * without reading ahead, and dropped again at once, so that other files keep their place. Which of
 * the two it is, RWF_NOWAIT tells: it reads only what is there. O_DIRECT would go to the disk for
 * all of it.
 */
#include "snapshot/import/memory_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "common/image/format.h"

#define HINT                                                                                       \
    "give the file that PUT /snapshot/create wrote to mem_file_path; that of snapshot_path goes "  \
    "with --vmstate"

/* Whether it begins as images do. */
static bool is_image(int fd)
{
    char magic[sizeof(((struct image_header *)NULL)->magic)];
    return pread(fd, magic, sizeof(magic), offsetof(struct image_header, magic)) ==
               (ssize_t)sizeof(magic) &&
           memcmp(magic, IMAGE_HEADER_MAGIC, sizeof(magic)) == 0;
}

int memory_file_open(struct memory_file *f, const char *path, struct error *e)
{
    *f = (struct memory_file){.path = path};
    f->fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO is to be refused, not awaited */
    if (f->fd < 0 || fstat(f->fd, &f->before)) {
        int rc = error_set(e, VMSNAP_EXIT_FAILED, errno, "can't open the memory file %s", path);
        error_hint(e, HINT);
        return rc;
    }
    f->bytes = (uint64_t)f->before.st_size;
    /* Before the first read: what is read ahead is megabytes. */
    posix_fadvise(f->fd, 0, 0, POSIX_FADV_RANDOM);
    const char *wrong = !S_ISREG(f->before.st_mode)        ? "not a regular file"
                        : f->bytes == 0                    ? "empty"
                        : is_image(f->fd)                  ? "an image of vmsnap already"
                        : f->bytes % IMAGE_PAGE_BYTES != 0 ? "no multiple of 4096 bytes long"
                                                           : NULL;
    if (wrong) {
        error_set(e, VMSNAP_EXIT_IMAGE, 0, "%s is no memory file: it is %s", path, wrong);
        error_hint(e, HINT);
        return -EINVAL;
    }
    return 0;
}

static int can_not_read(const struct memory_file *f, int err, uint64_t offset, struct error *e)
{
    return error_set(e, VMSNAP_EXIT_FAILED, err, "can't read %s at byte %llu", f->path,
                     (unsigned long long)offset);
}

static int changed(const struct memory_file *f, struct error *e)
{
    int r = error_set(e, VMSNAP_EXIT_FAILED, EBUSY, "%s was changed while it was read", f->path);
    error_hint(e, "import it once nothing writes to it any more");
    return r;
}

int memory_file_next_data(const struct memory_file *f, uint64_t from, uint64_t *start,
                          uint64_t *end, struct error *e)
{
    *start = *end = f->bytes;
    if (from >= f->bytes)
        return 0;
    off_t data = lseek(f->fd, (off_t)from, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return 0; /* holes up to the end, or the file has become shorter: seen at the end */
    off_t hole = data < 0 ? -1 : lseek(f->fd, data, SEEK_HOLE);
    if (hole < 0 && errno != EINVAL)
        return can_not_read(f, errno, from, e);
    if (hole < 0) { /* a file system that can't tell */
        *start = from;
        return 0;
    }
    uint64_t first = (uint64_t)data - (uint64_t)data % IMAGE_CLUSTER_BYTES;
    uint64_t last = (uint64_t)hole + IMAGE_CLUSTER_BYTES - 1;
    last -= last % IMAGE_CLUSTER_BYTES;
    if (first < f->bytes) /* it may have grown */
        *start = first;
    if (last < f->bytes)
        *end = last;
    return 0;
}

static uint64_t count_bytes(const struct iovec *iov, int n_iov)
{
    uint64_t bytes = 0;
    for (int i = 0; i < n_iov; i++)
        bytes += iov[i].iov_len;
    return bytes;
}

int memory_file_read(struct memory_file *f, uint64_t offset, const struct iovec *iov, int n_iov,
                     struct error *e)
{
    uint64_t bytes = count_bytes(iov, n_iov);
    ssize_t got = preadv2(f->fd, iov, n_iov, (off_t)offset, RWF_NOWAIT);
    if (got < 0 || (uint64_t)got < bytes) {
        do
            got = preadv(f->fd, iov, n_iov, (off_t)offset);
        while (got < 0 && errno == EINTR);
        posix_fadvise(f->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
    }
    if (got < 0)
        return can_not_read(f, errno, offset, e);
    if ((uint64_t)got < bytes)
        return changed(f, e);
    f->read_bytes += bytes;
    return 0;
}

int memory_file_check_unchanged(const struct memory_file *f, struct error *e)
{
    struct stat now;
    if (fstat(f->fd, &now))
        return can_not_read(f, errno, 0, e);
    if (now.st_size != f->before.st_size || now.st_mtim.tv_sec != f->before.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != f->before.st_mtim.tv_nsec)
        return changed(f, e);
    return 0;
}

void memory_file_close(struct memory_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}
