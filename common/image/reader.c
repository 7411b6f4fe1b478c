/*
 * reader.c - opens an image and reads its clusters.
 *
 * The order of belief: the file's size (from the kernel), header, trailer (each under its own
 * checksum), the section table's geometry, each section's checksum, then what the sections say
 * about each other (image/check.c). Only then is anything handed out. The file may change under us
 * at any time: nothing is mapped, what was checked is a private copy, and a cluster is checked each
 * time it is read.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/image/internal.h"
#include "common/testhook.h"

int image_damaged(const struct image *img, struct error *e, uint64_t offset, const char *fmt, ...)
{
    char what[384];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    error_set(e, VMSNAP_EXIT_IMAGE, 0, "%s: %s (at file offset %llu)", img->name, what,
              (unsigned long long)offset);
    if (e)
        e->err = EBADMSG;
    return -EBADMSG;
}

int image_pread(const struct image *img, void *buf, size_t len, uint64_t offset, struct error *e)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(img->fd, (char *)buf + done, len - done, (off_t)(offset + done));
        if (n == 0)
            return image_damaged(img, e, offset + done, "the file ends here");
        if (n < 0 && errno != EINTR) {
            int err = errno;
            return error_set(e, VMSNAP_EXIT_IMAGE, err, "%s: reading at file offset %llu",
                             img->name, (unsigned long long)(offset + done));
        }
        if (n > 0)
            done += (size_t)n;
    }
    return 0;
}

uint64_t image_record_seed(const struct image *img)
{
    uint64_t seed;
    memcpy(&seed, img->header.image_id, sizeof(seed));
    return seed;
}

static const struct image_section *find_section(const struct image *img,
                                                enum image_section_type type)
{
    for (uint32_t i = 0; i < img->trailer.n_sections; i++)
        if (img->trailer.sections[i].type == (uint32_t)type)
            return &img->trailer.sections[i];
    return NULL;
}

uint64_t image_section_offset(const struct image *img, enum image_section_type type, uint64_t at)
{
    const struct image_section *section = find_section(img, type);
    return section ? section->offset + 8 + at : 0;
}

/*
 * Reads one section into private memory (one zero byte is put behind it). Its length is bounded by
 * the file's size (image_check_trailer). *n is its number of items.
 */
static int load_section(const struct image *img, enum image_section_type type, size_t item_bytes,
                        void *out, uint64_t *n, struct error *e)
{
    const struct image_section *section = find_section(img, type);
    if (!section)
        return image_damaged(img, e, img->file_bytes - sizeof(img->trailer),
                             "section %d is missing", type);
    if (section->bytes % item_bytes != 0)
        return image_damaged(img, e, section->offset, "section %d has %llu bytes", type,
                             (unsigned long long)section->bytes);
    uint64_t frame_bytes = section->bytes + 8;
    char *buf = malloc(frame_bytes + 1);
    if (!buf)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "%s: section %d of %llu bytes", img->name,
                         type, (unsigned long long)section->bytes);
    int r = image_pread(img, buf, frame_bytes, section->offset, e);
    const uint32_t expected[2] = {IMAGE_SKIP_SECTION, (uint32_t)section->bytes};
    if (r == 0 && (memcmp(buf, expected, sizeof(expected)) != 0 ||
                   codec_checksum(buf, frame_bytes, 0) != section->checksum))
        r = image_damaged(img, e, section->offset, "section %d is damaged", type);
    if (r < 0) {
        free(buf);
        return r;
    }
    memmove(buf, buf + 8, section->bytes);
    buf[section->bytes] = '\0';
    *(void **)out = buf;
    *n = section->bytes / item_bytes;
    return 0;
}

static int load_tables(struct image *img, struct error *e)
{
    uint64_t n_regions = 0, n_clusters = 0;
    int r = load_section(img, IMAGE_SECTION_REGIONS, sizeof(*img->regions), &img->regions,
                         &n_regions, e);
    if (r < 0)
        return r;
    if (n_regions == 0 || n_regions > IMAGE_MAX_REGIONS)
        return image_damaged(img, e, image_section_offset(img, IMAGE_SECTION_REGIONS, 0),
                             "%llu regions", (unsigned long long)n_regions);
    img->n_regions = (uint32_t)n_regions;
    r = load_section(img, IMAGE_SECTION_INDEX, sizeof(*img->index), &img->index, &n_clusters, e);
    if (r < 0)
        return r;
    if (n_clusters != img->trailer.n_clusters)
        return image_damaged(img, e, image_section_offset(img, IMAGE_SECTION_INDEX, 0),
                             "an index of %llu clusters where the trailer says %llu",
                             (unsigned long long)n_clusters,
                             (unsigned long long)img->trailer.n_clusters);
    r = load_section(img, IMAGE_SECTION_GPA, sizeof(*img->gpa), &img->gpa, &img->n_gpa, e);
    if (r == 0)
        r = load_section(img, IMAGE_SECTION_HOT, sizeof(*img->hot), &img->hot, &img->n_hot, e);
    if (r == 0)
        r = load_section(img, IMAGE_SECTION_POISON, sizeof(*img->poison), &img->poison,
                         &img->n_poison, e);
    return r;
}

static int load_opaque(struct image *img, struct error *e)
{
    uint64_t bytes = 0;
    int r = load_section(img, IMAGE_SECTION_DEVICE_STATE, 1, &img->device_state,
                         &img->device_state_bytes, e);
    if (r == 0)
        r = load_section(img, IMAGE_SECTION_DESCRIPTION, 1, &img->description, &bytes, e);
    if (r == 0 && strlen(img->description) != bytes)
        r = image_damaged(img, e, image_section_offset(img, IMAGE_SECTION_DESCRIPTION, 0),
                          "a zero byte in the description");
    return r;
}

static int load_ends(struct image *img, struct error *e)
{
    const uint64_t least = sizeof(img->header) + sizeof(img->trailer);
    size_t have = img->file_bytes < sizeof(img->header) ? img->file_bytes : sizeof(img->header);
    int r = image_pread(img, &img->header, have, 0, e);
    if (r < 0)
        return r;
    if (have < 16 || memcmp(img->header.magic, IMAGE_HEADER_MAGIC, 8) != 0) {
        r = image_damaged(img, e, 0, "not a vmsnap image");
        error_hint(e, "is this the file that `vmsnap snapshot` wrote? Check the path; of a "
                      "Firecracker's memory file 'vmsnap import firecracker' makes an image");
        return r;
    }
    if (img->file_bytes < least) {
        r = image_damaged(img, e, img->file_bytes, "the image is truncated");
        error_hint(e, "the file is incomplete: copy it again, or take another snapshot");
        return r;
    }
    r = image_check_header(img, e);
    if (r == 0)
        r = image_pread(img, &img->trailer, sizeof(img->trailer),
                        img->file_bytes - sizeof(img->trailer), e);
    return r == 0 ? image_check_trailer(img, e) : r;
}

static int load_all(struct image *img, struct error *e)
{
    static int (*const steps[])(struct image *, struct error *) = {load_ends, load_tables,
                                                                   load_opaque};
    static int (*const checks[])(const struct image *, struct error *) = {
        image_check_regions, image_check_index, image_check_gpa, image_check_hot,
        image_check_poison};
    int r = 0;
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]) && r == 0; i++)
        r = steps[i](img, e);
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]) && r == 0; i++)
        r = checks[i](img, e);
    return r;
}

#define ONLY_FILES "an image is read at random: store a piped one in a file first"

static int learn_size(struct image *img, struct error *e)
{
    struct stat st;
    if (fstat(img->fd, &st) < 0)
        return error_set(e, VMSNAP_EXIT_IMAGE, errno, "%s", img->name);
    if (!S_ISREG(st.st_mode)) {
        error_set(e, VMSNAP_EXIT_IMAGE, 0, "%s: not a regular file", img->name);
        error_hint(e, ONLY_FILES);
        return -EINVAL;
    }
    img->file_bytes = (uint64_t)st.st_size;
    return 0;
}

int image_open_fd(struct image **out, int fd, const char *name, struct error *e)
{
    struct image *img = calloc(1, sizeof(*img));
    if (!img) {
        close(fd);
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "%s", name);
    }
    img->fd = fd;
    img->name = strdup(name);
    int r = img->name ? 0 : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "%s", name);
    if (r == 0)
        r = learn_size(img, e);
    if (r == 0)
        r = load_all(img, e);
    if (r < 0) {
        if (e && e->exit_code == VMSNAP_EXIT_IMAGE)
            error_hint(e, "copy the image again from where it is whole, or take another snapshot");
        image_close(img);
        return r;
    }
    *out = img;
    return 0;
}

int image_open(struct image **out, const char *path, struct error *e)
{
    /* O_NONBLOCK: a FIFO must not hang us before it is refused. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int err = errno;
    if (fd >= 0)
        return image_open_fd(out, fd, path, e);
    error_set(e, VMSNAP_EXIT_FAILED, err, "opening image %s", path);
    if (strcmp(path, "-") == 0) /* no image comes from a pipe */
        error_hint(e, ONLY_FILES);
    else if (err == ENXIO)
        error_hint(e, "a socket lies there: an image is a file (--listen SOCK, then IMAGE)");
    else if (err != EACCES && err != EPERM)
        error_hint(e, "check the path");
    else
        error_hint(e,
                   "an image is readable by its owner only: run vmsnap as that user, or as root");
    return -err;
}

void image_close(struct image *img)
{
    if (!img)
        return;
    close(img->fd);
    free(img->name);
    free(img->regions);
    free(img->gpa);
    free(img->index);
    free(img->hot);
    free(img->poison);
    free(img->device_state);
    free(img->description);
    free(img);
}

int image_fd(const struct image *img)
{
    return img->fd;
}

const struct image_header *image_get_header(const struct image *img)
{
    return &img->header;
}

const struct image_trailer *image_get_trailer(const struct image *img)
{
    return &img->trailer;
}

const struct image_region *image_regions(const struct image *img, uint32_t *n)
{
    *n = img->n_regions;
    return img->regions;
}

const struct image_gpa *image_gpa_ranges(const struct image *img, uint64_t *n)
{
    *n = img->n_gpa;
    return img->gpa;
}

const struct image_hot *image_hot_list(const struct image *img, uint64_t *n)
{
    *n = img->n_hot;
    return img->hot;
}

const struct image_poison *image_poison_list(const struct image *img, uint64_t *n)
{
    *n = img->n_poison;
    return img->poison;
}

const void *image_device_state(const struct image *img, uint64_t *bytes)
{
    *bytes = img->device_state_bytes;
    return img->device_state;
}

const char *image_description(const struct image *img)
{
    return img->description;
}

uint64_t image_index_entry(const struct image *img, uint64_t cluster)
{
    assert(cluster < img->trailer.n_clusters);
    return img->index[cluster];
}

bool image_is_zero(const struct image *img, uint64_t cluster, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (image_index_entry(img, cluster + i) != IMAGE_INDEX_ZERO)
            return false;
    return true;
}

uint32_t image_cluster_region(const struct image *img, uint64_t cluster, uint64_t *offset)
{
    assert(cluster < img->trailer.n_clusters);
    uint32_t low = 0, high = img->n_regions;
    while (high - low > 1) { /* the last region that does not start behind it */
        uint32_t middle = low + (high - low) / 2;
        if (img->regions[middle].first_cluster <= cluster)
            low = middle;
        else
            high = middle;
    }
    *offset = (cluster - img->regions[low].first_cluster) * IMAGE_CLUSTER_BYTES;
    return low;
}

uint32_t image_cluster_bytes(const struct image *img, uint64_t cluster)
{
    uint64_t offset;
    uint32_t region = image_cluster_region(img, cluster, &offset);
    uint64_t left = img->regions[region].bytes - offset;
    return left < IMAGE_CLUSTER_BYTES ? (uint32_t)left : IMAGE_CLUSTER_BYTES;
}

uint64_t image_cluster_poison(const struct image *img, uint64_t cluster)
{
    uint64_t low = 0, high = img->n_poison;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (img->poison[middle].cluster == cluster)
            return img->poison[middle].pages;
        if (img->poison[middle].cluster < cluster)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

const char *image_check_record(const struct image *img, const void *record, uint64_t frame_bytes,
                               uint64_t cluster)
{
    struct image_record prefix;
    memcpy(&prefix, record, sizeof(prefix));
    if (prefix.skip_magic != IMAGE_SKIP_RECORD || prefix.skip_bytes != sizeof(prefix) - 8)
        return "no cluster record stands here";
    uint64_t sum = codec_checksum((const char *)record + offsetof(struct image_record, cluster),
                                  sizeof(prefix.cluster) + frame_bytes, image_record_seed(img));
    if (sum != prefix.checksum && !TESTHOOK_BROKEN("checksum-ignored"))
        return "the cluster's checksum does not match";
    if (cluster != UINT64_MAX && prefix.cluster != cluster)
        return "another cluster's record stands here";
    return NULL;
}

/* What a person needs to find the damage: region, offset in it, file offset. */
static int damaged_cluster(const struct image *img, uint64_t cluster, const char *what,
                           struct error *e)
{
    uint64_t offset;
    uint32_t region = image_cluster_region(img, cluster, &offset);
    return image_damaged(img, e, IMAGE_INDEX_OFFSET(img->index[cluster]),
                         "region %s, bytes %#llx to %#llx: %s", img->regions[region].name,
                         (unsigned long long)offset,
                         (unsigned long long)offset + image_cluster_bytes(img, cluster) - 1, what);
}

uint64_t image_cluster_record(const struct image *img, uint64_t cluster, uint32_t *bytes)
{
    uint64_t entry = image_index_entry(img, cluster);
    *bytes = 0;
    if (entry == IMAGE_INDEX_ZERO)
        return 0;
    assert(IMAGE_INDEX_BYTES(entry) <= IMAGE_FRAME_MAX); /* image_check_index() */
    *bytes = (uint32_t)sizeof(struct image_record) + IMAGE_INDEX_BYTES(entry);
    return IMAGE_INDEX_OFFSET(entry);
}

int image_decode_cluster(const struct image *img, uint64_t cluster, struct codec *codec,
                         const void *record, void *out, struct error *e)
{
    uint32_t bytes = image_cluster_bytes(img, cluster), record_bytes;
    image_cluster_record(img, cluster, &record_bytes);
    if (record_bytes == 0) {
        memset(out, 0, bytes);
        return 0;
    }
    uint32_t frame_bytes = record_bytes - (uint32_t)sizeof(struct image_record);
    const char *frame = (const char *)record + sizeof(struct image_record);
    const char *wrong = image_check_record(img, record, frame_bytes, cluster);
    if (!wrong && codec_decode(codec, frame, frame_bytes, out, bytes))
        wrong = "its zstd frame does not decode";
    return wrong ? damaged_cluster(img, cluster, wrong, e) : 0;
}

int image_cluster_unread(const struct image *img, uint64_t cluster, int err, struct error *e)
{
    uint64_t offset;
    uint32_t region = image_cluster_region(img, cluster, &offset);
    if (err == 0)
        return damaged_cluster(img, cluster, "the file ends before", e);
    return error_set(e, VMSNAP_EXIT_FAILED, err,
                     "%s: region %s, bytes %#llx to %#llx: reading at file offset %llu", img->name,
                     img->regions[region].name, (unsigned long long)offset,
                     (unsigned long long)offset + image_cluster_bytes(img, cluster) - 1,
                     (unsigned long long)IMAGE_INDEX_OFFSET(img->index[cluster]));
}

int image_read_cluster(const struct image *img, uint64_t cluster, struct codec *codec, void *out,
                       struct error *e)
{
    uint8_t record[IMAGE_RECORD_MAX];
    uint32_t bytes;
    uint64_t offset = image_cluster_record(img, cluster, &bytes);
    int r = bytes > 0 ? image_pread(img, record, bytes, offset, e) : 0;
    return r < 0 ? r : image_decode_cluster(img, cluster, codec, record, out, e);
}
