/*
 * workset.h - the file IMAGE.workset: which clusters a guest of this image touched, in the order of
 * its first touches (docs/format.md, "The working set"). It names clusters and holds none of their
 * content, so whoever writes one can make a restore slow and nothing worse.
 */
#ifndef VMSNAP_RESTORE_WORKSET_H
#define VMSNAP_RESTORE_WORKSET_H

#include <assert.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/image/reader.h"
#include "restore/read/whole_file.h"

#define WORKSET_MAGIC "VMSNAPWS"
#define WORKSET_VERSION 1u
#define WORKSET_SUFFIX ".workset"

struct workset_header {
    char magic[8]; /* WORKSET_MAGIC */
    uint32_t version;
    uint32_t reserved;    /* zero */
    uint8_t image_id[16]; /* of the image that it belongs to */
    uint64_t n_clusters;  /* of that image */
    uint64_t n_entries;   /* that follow */
    uint64_t checksum;    /* XXH3-64 of the whole file, this field as zero */
    uint64_t reserved2;   /* zero */
};
static_assert(sizeof(struct workset_header) == 64, "on-disk size");

/* An entry: the cluster's number, and whether the first touch was a write. */
#define WORKSET_WRITE (1ull << 63)
#define WORKSET_CLUSTER(entry) ((entry) & ~WORKSET_WRITE)

struct workset {
    uint64_t *entries; /* each names a cluster of the image; some may be named twice */
    uint64_t n;
};

/* Where the working set of an image stands: beside the file that is open, whatever name it was
 * opened by. -ENOENT: the image has no name (any more). */
int workset_path(const struct image *img, char path[PATH_MAX], struct error *e);

/* What a file holds, if that is one of this image. Else -errno, and *e says why it is of no use. An
 * allocation is never larger than the image's own index. `name` is for messages. */
int workset_parse(struct workset *w, const void *data, size_t bytes, const char *name,
                  const struct image *img, struct error *e);

/* Begins to read the one that lies beside the image, if any, in a process. 0 or -errno. */
int workset_begin(struct whole_file *f, const struct image *img);

/* Takes what was read, and ends the process. -EINPROGRESS: not yet, within timeout_ms; call again,
 * or whole_file_end(). -ENOENT: there is none. Else as workset_parse(). */
int workset_take(struct workset *w, struct whole_file *f, int timeout_ms, const struct image *img,
                 struct error *e);

/* Both, for whoever only wants to tell of it: waits two seconds for a storage that hangs. */
int workset_read(struct workset *w, const struct image *img, struct error *e);

void workset_free(struct workset *w);

/* The header of a file with these entries. */
void workset_fill_header(struct workset_header *h, const struct image *img, const uint64_t *entries,
                         uint64_t n);

#endif
