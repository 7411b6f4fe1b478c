/* cmd_verify.c - `vmsnap verify`: every byte of an image read, each damaged place named. */
#include <inttypes.h>

#include "common/clock.h"
#include "common/format.h"
#include "common/image/reader.h"
#include "common/progress.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/defaults.h"
#include "tools/vmsnap/report.h"

static struct {
    unsigned n_threads;
} args;

static const char *const usage[] = {"[OPTIONS] IMAGE", NULL};

static const struct operand operands[] = {
    {.name = "IMAGE", .help = "the image to check"},
    {.name = NULL},
};

static const struct option_spec options[] = {
    {.name = "threads",
     .kind = OPTION_COUNT,
     .to.count = &args.n_threads,
     .min = 1,
     .max = 256,
     .argument = "N",
     .help = "threads that check (default: one per CPU)"},
    {.name = NULL},
};

struct job {
    const struct image *img;
    struct progress progress;
};

/* One damaged place. By one thread at a time. */
static void print_damage(void *opaque, uint64_t cluster, uint64_t offset, const char *what)
{
    const struct image *img = ((struct job *)opaque)->img;
    json_t *o = json_pack("{s:I, s:s}", "image_offset", (json_int_t)offset, "reason", what);
    if (cluster == UINT64_MAX) {
        report_line("at image offset %" PRIu64 ": %s", offset, what);
        report_object("damage", o);
        return;
    }
    uint64_t from;
    uint32_t n_regions, region = image_cluster_region(img, cluster, &from);
    const char *name = image_regions(img, &n_regions)[region].name;
    uint32_t bytes = image_cluster_bytes(img, cluster);
    report_line("region %s, bytes 0x%" PRIx64 " to 0x%" PRIx64 ", at image offset %" PRIu64 ": %s",
                name, from, from + bytes - 1, offset, what);
    json_object_set_new(o, "region", report_string(name));
    json_object_set_new(o, "region_offset", json_integer((json_int_t)from));
    json_object_set_new(o, "pages", json_integer(bytes / IMAGE_PAGE_BYTES));
    report_object("damage", o);
}

static void show_progress(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    struct job *job = opaque;
    progress_update(&job->progress, done_bytes, total_bytes, 0);
}

static int verify(const struct image *img, struct image_verify_result *result, struct error *e)
{
    struct job job = {.img = img};
    const struct image_verify_calls calls = {
        .damage = print_damage, .progress = show_progress, .opaque = &job};
    progress_start(&job.progress, "checked", report_wants_progress());
    int r =
        image_verify(img, args.n_threads ? args.n_threads : default_threads(), &calls, result, e);
    progress_finish(&job.progress);
    return r;
}

static json_t *make_summary(const char *path, const struct image_verify_result *result,
                            uint64_t wall_ns)
{
    return json_pack("{s:o, s:I, s:I, s:I, s:I, s:I}", "image", report_string(path),
                     "pages_checked", (json_int_t)result->pages_checked, "pages_damaged",
                     (json_int_t)result->pages_damaged, "places_damaged",
                     (json_int_t)result->places_damaged, "image_bytes_read",
                     (json_int_t)result->bytes_read, "wall_ns", (json_int_t)wall_ns);
}

static int run(const struct command_line *line, struct error *e)
{
    const char *path = line->operand[0];
    struct image *img;
    struct image_verify_result result;
    uint64_t began = clock_monotonic_ns();
    int r = image_open(&img, path, e);
    if (r < 0)
        return r;
    r = verify(img, &result, e);
    image_close(img);
    if (r < 0 && e->exit_code != VMSNAP_EXIT_IMAGE)
        return r;
    uint64_t wall_ns = clock_monotonic_ns() - began;
    report_object("summary", make_summary(path, &result, wall_ns));
    if (r < 0)
        return r;
    char bytes[FORMAT_MAX], wall[FORMAT_MAX];
    report_closing("%s: %" PRIu64 " pages in %s, none damaged, checked in %s", path,
                   result.pages_checked, format_bytes(bytes, result.bytes_read),
                   format_duration(wall, wall_ns));
    return VMSNAP_EXIT_DONE;
}

const struct command command_verify = {
    .name = "verify",
    .summary = "read every byte of an image and check every checksum",
    .usage = usage,
    .operands = operands,
    .options = options,
    .run = run,
};
