#include "restore/decode/workset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/codec.h"

#define READ_MS 2000

int workset_path(const struct image *img, char path[PATH_MAX], struct error *e)
{
    int rc = whole_file_beside(image_fd(img), WORKSET_SUFFIX, path);
    if (rc == -ENOENT)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOENT, "the image has no name");
    return rc ? error_set(e, VMSNAP_EXIT_FAILED, -rc, "can't tell where the image is") : 0;
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

int workset_parse(struct workset *w, const void *data, size_t bytes, const char *name,
                  const struct image *img, struct error *e)
{
    struct workset_header h;
    *w = (struct workset){0};
    if (bytes < sizeof(h))
        return useless(e, name, "not a working set");
    memcpy(&h, data, sizeof(h));
    int rc = check_header(&h, bytes, name, img, e);
    if (rc)
        return rc;
    CLEANUP_FREE uint64_t *entries = calloc(h.n_entries + 1, sizeof(*entries));
    if (!entries)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "%s", name);
    memcpy(entries, (const char *)data + sizeof(h), h.n_entries * sizeof(*entries));
    rc = check_entries(&h, entries, name, e);
    if (rc)
        return rc;
    *w = (struct workset){.entries = take_ptr(&entries), .n = h.n_entries};
    return 0;
}

int workset_begin(struct whole_file *f, const struct image *img)
{
    /* One entry more than any has, so that it shows when it is too long. */
    uint64_t max = (image_get_trailer(img)->n_clusters + 1) * sizeof(uint64_t);
    return whole_file_begin(f, image_fd(img), WORKSET_SUFFIX, sizeof(struct workset_header) + max);
}

int workset_take(struct workset *w, struct whole_file *f, int timeout_ms, const struct image *img,
                 struct error *e)
{
    size_t bytes;
    *w = (struct workset){0};
    int rc = whole_file_wait(f, timeout_ms);
    if (rc == -EINPROGRESS)
        return rc;
    const void *data = whole_file_content(f, &bytes);
    if (rc == -EOWNERDEAD)
        error_set(e, VMSNAP_EXIT_FAILED, 0, "the process that reads it was killed");
    else if (rc)
        error_set(e, VMSNAP_EXIT_FAILED, -rc, "reading %s", whole_file_path(f));
    else
        rc = workset_parse(w, data, bytes, whole_file_path(f), img, e);
    whole_file_end(f);
    return rc;
}

int workset_read(struct workset *w, const struct image *img, struct error *e)
{
    struct whole_file f = {0};
    *w = (struct workset){0};
    int rc = workset_begin(&f, img);
    if (rc)
        return rc == -ENOENT ? rc : error_set(e, VMSNAP_EXIT_FAILED, -rc, "it can't be looked for");
    rc = workset_take(w, &f, READ_MS, img, e);
    if (rc == -EINPROGRESS) {
        whole_file_end(&f);
        error_set(e, VMSNAP_EXIT_FAILED, 0, "the storage does not answer");
    }
    return rc;
}

void workset_free(struct workset *w)
{
    free(w->entries);
    *w = (struct workset){0};
}
