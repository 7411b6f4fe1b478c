#include "restore/decode/workset.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/codec.h"

int workset_path(const struct image *img, char path[PATH_MAX], struct error *e)
{
    char link[64];
    struct stat here, there;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", image_fd(img));
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "can't find where the image is");
    path[n] = '\0';
    /* Of a file without a name the kernel says "NAME (deleted)", which may be another file. */
    if (fstat(image_fd(img), &here) || stat(path, &there) || here.st_ino != there.st_ino ||
        here.st_dev != there.st_dev)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOENT, "the image has no name");
    if ((size_t)n + sizeof(WORKSET_SUFFIX) > PATH_MAX)
        return error_set(e, VMSNAP_EXIT_FAILED, ENAMETOOLONG, "%.200s...", path);
    memcpy(path + n, WORKSET_SUFFIX, sizeof(WORKSET_SUFFIX));
    return 0;
}

static uint64_t checksum(const struct workset_header *h, const uint64_t *entries, uint64_t n)
{
    struct workset_header zeroed = *h;
    zeroed.checksum = 0;
    return codec_checksum2(&zeroed, sizeof(zeroed), entries, n * sizeof(*entries));
}

void workset_fill_header(struct workset_header *h, const struct image *img, const uint64_t *entries,
                         uint64_t n)
{
    *h = (struct workset_header){.version = WORKSET_VERSION,
                                 .n_clusters = image_get_trailer(img)->n_clusters,
                                 .n_entries = n};
    memcpy(h->magic, WORKSET_MAGIC, sizeof(h->magic));
    memcpy(h->image_id, image_get_header(img)->image_id, sizeof(h->image_id));
    h->checksum = checksum(h, entries, n);
}

static int useless(struct error *e, const char *name, const char *what)
{
    error_set(e, VMSNAP_EXIT_IMAGE, 0, "%s: %s", name, what);
    return -EBADMSG;
}

static int read_all(int fd, void *buf, size_t len, uint64_t offset)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));
        if (n == 0)
            return -ENODATA;
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            done += (size_t)n;
    }
    return 0;
}

/* Whether the header is one, of this image, and of a file of this length. */
static int check_header(const struct workset_header *h, uint64_t file_bytes, const char *name,
                        const struct image *img, struct error *e)
{
    uint64_t n_clusters = image_get_trailer(img)->n_clusters;
    if (memcmp(h->magic, WORKSET_MAGIC, sizeof(h->magic)) != 0)
        return useless(e, name, "not a working set");
    if (h->version != WORKSET_VERSION)
        return useless(e, name, "a working set of another version");
    if (memcmp(h->image_id, image_get_header(img)->image_id, sizeof(h->image_id)) != 0 ||
        h->n_clusters != n_clusters)
        return useless(e, name, "the working set of another image");
    /* No cluster is first touched twice: this bounds what is allocated. */
    if (h->n_entries > n_clusters)
        return useless(e, name, "a working set larger than the image");
    if (file_bytes != sizeof(*h) + h->n_entries * sizeof(uint64_t))
        return useless(e, name, "a working set of the wrong length");
    return 0;
}

static int check_entries(const struct workset_header *h, const uint64_t *entries, const char *name,
                         struct error *e)
{
    if (checksum(h, entries, h->n_entries) != h->checksum)
        return useless(e, name, "the working set is damaged");
    for (uint64_t i = 0; i < h->n_entries; i++)
        if (WORKSET_CLUSTER(entries[i]) >= h->n_clusters)
            return useless(e, name, "the working set names clusters that do not exist");
    return 0;
}

int workset_read_fd(struct workset *w, int fd, const char *name, const struct image *img,
                    struct error *e)
{
    struct workset_header h;
    struct stat st;
    *w = (struct workset){0};
    if (fstat(fd, &st))
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "%s", name);
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof(h))
        return useless(e, name, "not a working set");
    int rc = read_all(fd, &h, sizeof(h), 0);
    if (rc)
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "reading %s", name);
    rc = check_header(&h, (uint64_t)st.st_size, name, img, e);
    if (rc)
        return rc;
    size_t bytes = h.n_entries * sizeof(uint64_t);
    CLEANUP_FREE uint64_t *entries = calloc(h.n_entries + 1, sizeof(*entries));
    if (!entries)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "%s", name);
    rc = read_all(fd, entries, bytes, sizeof(h));
    if (rc)
        return error_set(e, VMSNAP_EXIT_FAILED, -rc, "reading %s", name);
    rc = check_entries(&h, entries, name, e);
    if (rc)
        return rc;
    *w = (struct workset){.entries = take_ptr(&entries), .n = h.n_entries};
    return 0;
}

int workset_read(struct workset *w, const struct image *img, struct error *e)
{
    char path[PATH_MAX];
    *w = (struct workset){0};
    if (workset_path(img, path, e))
        return -ENOENT;
    /* O_NONBLOCK: whatever lies under that name must not hang us. */
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "opening %s", path);
    return workset_read_fd(w, fd, path, img, e);
}

void workset_free(struct workset *w)
{
    free(w->entries);
    *w = (struct workset){0};
}
