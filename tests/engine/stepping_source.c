#include "tests/engine/stepping_source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/image/reader.h"

static struct stepping_source *of(struct source *s)
{
    return (struct stepping_source *)s;
}

static int describe(struct source *s, json_t **description, json_t *warnings, struct error *e)
{
    (void)s, (void)warnings, (void)e;
    *description = json_pack("{s:s}", "vm_name", "stepping");
    return 0;
}

static int refuse_hazards(struct source *s, const char *const *allowed, struct error *e)
{
    (void)s, (void)allowed, (void)e;
    return 0;
}

static int nothing(struct source *s, struct error *e)
{
    (void)s, (void)e;
    return 0;
}

static int pause_process(struct source *s, bool *was_running, struct error *e)
{
    *was_running = true;
    if (of(s)->pausing)
        of(s)->pausing(of(s));
    if (!stepping_pause(of(s)->board))
        return error_set(e, VMSNAP_EXIT_TIMEOUT, ETIMEDOUT, "the process does not pause");
    return 0;
}

/* The device state: how far each writer is. */
static int save_state(struct source *s, void **buf, size_t *len, struct error *e)
{
    struct stepping_board *board = of(s)->board;
    *len = sizeof(*board);
    *buf = malloc(*len);
    if (!*buf)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    memcpy(*buf, board, *len);
    return 0;
}

static int resume(struct source *s, struct error *e)
{
    (void)e;
    stepping_resume(of(s)->board);
    if (of(s)->resumed)
        of(s)->resumed(of(s));
    return 0;
}

static void pause_times(const struct source *s, struct pause_times *times)
{
    (void)s, (void)times;
}

static void close_nothing(struct source *s)
{
    (void)s;
}

static const struct source_ops ops = {
    .name = "stepping",
    .describe = describe,
    .refuse_hazards = refuse_hazards,
    .prepare_memory = nothing,
    .restore_memory = nothing,
    .pause = pause_process,
    .save_state = save_state,
    .resume = resume,
    .resume_after_death = nothing,
    .pause_times = pause_times,
    .close = close_nothing,
};

bool stepping_source_open(struct stepping_source *s, struct stepping_board *board)
{
    struct error e = {0};
    memset(s, 0, sizeof(*s));
    s->board = board;
    s->pid = stepping_start(board);
    s->base = (struct source){.ops = &ops, .regions = s->regions, .timeout_ms = 10000};
    if (target_open(&s->base.target, s->pid, &e) ||
        target_mappings(&s->base.target, &s->maps, &e)) {
        printf("%s\n", e.message);
        return false;
    }
    for (uint32_t i = 0; i < board->n_blocks; i++) {
        const struct stepping_block *b = &board->blocks[i];
        struct region *r = &s->regions[s->base.n_regions];
        if (!b->hva)
            continue;
        snprintf(r->name, sizeof(r->name), "%u", i);
        r->hva = b->hva;
        r->bytes = r->max_bytes = b->n_pages * 4096;
        if (region_classify(r, &s->base.target, &s->maps, &e)) {
            printf("%s\n", e.message);
            return false;
        }
        s->base.n_regions++;
    }
    return true;
}

void stepping_source_close(struct stepping_source *s)
{
    for (uint32_t i = 0; i < s->base.n_regions; i++)
        region_close(&s->regions[i]);
    mapping_list_free(&s->maps);
    target_close(&s->base.target);
    stepping_stop(s->pid);
}

struct snapshot_options stepping_options(const char *image_path)
{
    return (struct snapshot_options){.image_path = image_path,
                                     .overwrite = true,
                                     .level = 1,
                                     .n_threads = 2,
                                     .buffer_bytes = snapshot_min_buffer(),
                                     .timeout_ms = 10000,
                                     .max_stall_ms = 20000};
}

/* Judges one region; `b` says how far its writer was. */
static long judge_region(struct image *img, const struct image_region *r,
                         const struct stepping_block *b, struct codec *codec)
{
    static unsigned char data[IMAGE_CLUSTER_BYTES];
    struct error e = {0};
    long wrong = 0;
    for (uint64_t p = 0; p < b->n_pages; p++) {
        uint64_t cluster = r->first_cluster + p / IMAGE_CLUSTER_PAGES;
        unsigned in_cluster = p % IMAGE_CLUSTER_PAGES;
        if (in_cluster == 0 && image_read_cluster(img, cluster, codec, data, &e)) {
            printf("%s\n", e.message);
            return -1;
        }
        if (image_cluster_poison(img, cluster) >> in_cluster & 1)
            continue;
        uint64_t value = stepping_expected(b, p);
        if (stepping_page_is(data + in_cluster * 4096u, value))
            continue;
        if (wrong++ < 3) {
            uint64_t there;
            memcpy(&there, data + in_cluster * 4096u, sizeof(there));
            printf("block %s page %llu: %llu there, %llu wanted (step %llu, next %llu)\n", r->name,
                   (unsigned long long)p, (unsigned long long)there, (unsigned long long)value,
                   (unsigned long long)b->step, (unsigned long long)b->next);
        }
    }
    return wrong;
}

long stepping_judge(const char *image_path)
{
    struct image *img;
    struct error e = {0};
    if (image_open(&img, image_path, &e)) {
        printf("%s\n", e.message);
        return -1;
    }
    struct codec *codec = codec_new(1);
    uint64_t bytes;
    const struct stepping_board *board = image_device_state(img, &bytes);
    uint32_t n;
    const struct image_region *regions = image_regions(img, &n);
    long wrong = bytes == sizeof(*board) ? 0 : -1;
    for (uint32_t i = 0; wrong >= 0 && i < n; i++) {
        long more = judge_region(img, &regions[i], &board->blocks[atoi(regions[i].name)], codec);
        wrong = more < 0 ? -1 : wrong + more;
    }
    codec_free(codec);
    image_close(img);
    return wrong;
}

static long count_in(struct image *img, const struct image_region *r, struct codec *codec)
{
    static unsigned char data[IMAGE_CLUSTER_BYTES];
    struct error e = {0};
    long n = 0;
    for (uint64_t at = 0; at < r->bytes; at += IMAGE_CLUSTER_BYTES) {
        if (image_read_cluster(img, r->first_cluster + at / IMAGE_CLUSTER_BYTES, codec, data, &e))
            return -1;
        for (uint64_t p = 0; p < IMAGE_CLUSTER_BYTES && at + p < r->bytes; p += 4096)
            n += !codec_is_zero(data + p, 4096);
    }
    return n;
}

long stepping_count_stored(const char *image_path)
{
    struct image *img;
    if (image_open(&img, image_path, NULL))
        return -1;
    struct codec *codec = codec_new(1);
    uint32_t n;
    const struct image_region *regions = image_regions(img, &n);
    long stored = 0;
    for (uint32_t i = 0; stored >= 0 && i < n; i++) {
        long more = count_in(img, &regions[i], codec);
        stored = more < 0 ? -1 : stored + more;
    }
    codec_free(codec);
    image_close(img);
    return stored;
}
