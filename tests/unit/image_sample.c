#include "tests/unit/image_sample.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "common/codec.h"

const struct region sample_regions[SAMPLE_REGIONS] = {
    {.name = "ram",
     .bytes = 203 * 4096,
     .max_bytes = 256 * 4096,
     .page_bytes = 4096,
     .kind = REGION_ANON,
     .fd = -1},
    {.name = "/rom@etc/bios",
     .bytes = 4096,
     .max_bytes = 4096,
     .page_bytes = 4096,
     .kind = REGION_SHARED,
     .fd = -1},
    {.name = "zeros",
     .bytes = 2 << 20,
     .max_bytes = 2 << 20,
     .page_bytes = 2 << 20,
     .kind = REGION_PRIVATE_FILE,
     .fd = -1},
};

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* By page number: zero, random bytes, or a repeating text. */
void sample_page(uint32_t region, uint64_t page, void *out)
{
    uint64_t state = (uint64_t)region << 32 | page;
    uint8_t *bytes = out;
    memset(out, 0, IMAGE_PAGE_BYTES);
    if (region == 2 || page % 5 == 4 || (page >= 16 && page < 48))
        return;
    if (page % 3 == 0) {
        for (size_t i = 0; i < IMAGE_PAGE_BYTES; i += 8) {
            uint64_t r = next_random(&state);
            memcpy(bytes + i, &r, 8);
        }
        return;
    }
    for (size_t i = 0; i < IMAGE_PAGE_BYTES; i++)
        bytes[i] = (uint8_t)("the quick brown fox "[(i + page) % 20] + (i % 512 == 0));
}

uint32_t sample_cluster(uint32_t region, uint64_t cluster_in_region, void *out,
                        unsigned *pages_stored)
{
    uint64_t first = cluster_in_region * IMAGE_CLUSTER_PAGES;
    uint64_t left = sample_regions[region].bytes / IMAGE_PAGE_BYTES - first;
    unsigned n = left < IMAGE_CLUSTER_PAGES ? (unsigned)left : IMAGE_CLUSTER_PAGES;
    *pages_stored = 0;
    for (unsigned i = 0; i < n; i++) {
        uint8_t *page = (uint8_t *)out + i * IMAGE_PAGE_BYTES;
        sample_page(region, first + i, page);
        if (region == 0 && first + i == SAMPLE_POISONED_PAGE)
            memset(page, 0, IMAGE_PAGE_BYTES);
        *pages_stored += !codec_is_zero(page, IMAGE_PAGE_BYTES);
    }
    return n * IMAGE_PAGE_BYTES;
}

static int add_cluster(struct image_writer *w, struct codec *codec, uint32_t region, uint64_t c)
{
    _Alignas(8) uint8_t record[sizeof(struct image_record) + IMAGE_FRAME_MAX];
    uint8_t plain[IMAGE_CLUSTER_BYTES];
    unsigned stored;
    uint64_t cluster = image_writer_cluster(w, region, c * IMAGE_CLUSTER_BYTES);
    uint32_t bytes = sample_cluster(region, c, plain, &stored);
    if (stored == 0) {
        image_writer_add_zero(w, cluster);
        return 0;
    }
    int n = codec_encode(codec, plain, bytes, record + sizeof(struct image_record));
    return n < 0 ? n : image_writer_add(w, cluster, record, (uint32_t)n, stored);
}

/* An earlier copy of cluster 1, as a second pass would leave it: other bytes, more pages. */
static int add_superseded(struct image_writer *w, struct codec *codec)
{
    _Alignas(8) uint8_t record[sizeof(struct image_record) + IMAGE_FRAME_MAX];
    uint8_t plain[IMAGE_CLUSTER_BYTES];
    memset(plain, 'x', sizeof(plain));
    int n = codec_encode(codec, plain, sizeof(plain), record + sizeof(struct image_record));
    return n < 0 ? n : image_writer_add(w, 1, record, (uint32_t)n, IMAGE_CLUSTER_PAGES);
}

static int add_all(struct image_writer *w, struct codec *codec)
{
    int r = add_superseded(w, codec);
    for (uint32_t i = 0; i < SAMPLE_REGIONS; i++)
        for (uint64_t c = 0; c * IMAGE_CLUSTER_BYTES < sample_regions[i].bytes && r == 0; c++)
            r = add_cluster(w, codec, i, c);
    return r;
}

static int finish(struct image_writer *w, struct error *e)
{
    static const struct gpa_range gpa[] = {
        {.gpa = 0, .bytes = 100 * 4096, .region = 0, .offset = 0},
        {.gpa = 0x100000, .bytes = 4096, .region = 1, .offset = 0, .flags = GPA_ROM},
        {.gpa = 0x200000, .bytes = 103 * 4096, .region = 0, .offset = 100 * 4096},
    };
    static const struct image_hot hot[] = {{.cluster = 3, .written = 5},
                                           {.cluster = 0, .written = 1}};
    static const struct image_poison poison[] = {
        {.cluster = SAMPLE_POISONED_PAGE / IMAGE_CLUSTER_PAGES,
         .pages = 1u << SAMPLE_POISONED_PAGE % IMAGE_CLUSTER_PAGES}};
    struct image_finish f = {.gpa = gpa,
                             .n_gpa = 3,
                             .hot = hot,
                             .n_hot = 2,
                             .poison = poison,
                             .n_poison = 1,
                             .device_state = "QEVMstate",
                             .device_state_bytes = 9,
                             .description = SAMPLE_DESCRIPTION,
                             .instant_ns = SAMPLE_INSTANT_NS,
                             .pages_from_faults = 7};
    return image_writer_finish(w, &f, e);
}

int sample_write(struct sink *sink, struct error *e)
{
    struct image_writer *w;
    struct codec *codec = codec_new(1);
    if (!codec)
        return -ENOMEM;
    int r = image_writer_open(&w, sink, sample_regions, SAMPLE_REGIONS, e);
    if (r == 0) {
        r = add_all(w, codec);
        r = r ? sink_error(sink, e) : finish(w, e);
        image_writer_close(w);
    }
    codec_free(codec);
    return r ? r : sink_commit(sink, e);
}

int sample_write_file(const char *path, struct error *e)
{
    struct sink *sink;
    const struct sink_options options = {.overwrite = true, .n_buffers = SINK_MIN_BUFFERS};
    int r = sink_open_file(&sink, path, &options, e);
    if (r)
        return r;
    r = sample_write(sink, e);
    int closed = sink_close(sink);
    return r ? r : closed;
}

int sample_in_memory(struct sample_memory *m, struct error *e)
{
    struct sink *sink;
    const struct sink_options options = {.n_buffers = SINK_MIN_BUFFERS};
    m->fd = memfd_create("image", MFD_CLOEXEC);
    int r = sink_open_fd(&sink, m->fd, &options, e);
    if (r)
        return r;
    r = sample_write(sink, e);
    m->n_bytes = sink_offset(sink);
    int closed = sink_close(sink);
    m->bytes = mmap(NULL, m->n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
    return r ? r : closed ? closed : m->bytes == MAP_FAILED ? -errno : 0;
}
