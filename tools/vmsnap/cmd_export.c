/* cmd_export.c - `vmsnap export`: the guest's memory, or its device state, out of an image, as
 * other tools read them. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/format.h"
#include "common/log.h"
#include "common/publish.h"
#include "common/vmm/firecracker.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/defaults.h"
#include "tools/vmsnap/export_raw.h"
#include "tools/vmsnap/report.h"
#include "tools/vmsnap/writing.h"

enum { FORMAT_RAW, FORMAT_VMSTATE };
static const char *const formats[] = {"raw", "vmstate", NULL};

static struct {
    int format;
    const char *region;
    unsigned n_threads;
    bool overwrite;
} args;

static const char *const usage[] = {"--format raw|vmstate [OPTIONS] IMAGE OUT", NULL};

static const struct operand operands[] = {
    {.name = "IMAGE", .help = "the image to read", .file = FILE_READ},
    {.name = "OUT",
     .help = "the file to make; - writes to stdout, zeros included",
     .file = FILE_WRITTEN},
    {.name = NULL},
};

static const struct option_spec options[] = {
    {.name = "format",
     .kind = OPTION_CHOICE,
     .to.choice = &args.format,
     .choices = formats,
     .required = true,
     .argument = "FORMAT",
     .help = "raw: a sparse file in which offset equals guest-physical address; of a Firecracker, "
             "its memory file; vmstate: the VMM's device state as it wrote it"},
    {.name = "region",
     .kind = OPTION_STRING,
     .to.string = &args.region,
     .argument = "NAME",
     .help = "only this region (see 'vmsnap info'), by its own offsets"},
    {.name = "threads",
     .kind = OPTION_COUNT,
     .to.count = &args.n_threads,
     .min = 1,
     .max = 256,
     .argument = "N",
     .help = "decompressor threads (default: one per CPU)"},
    {.name = "overwrite",
     .kind = OPTION_FLAG,
     .to.flag = &args.overwrite,
     .help = "replace OUT if it exists, once the new one is complete"},
    {.name = NULL},
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    interrupted = number;
}

/* No SA_RESTART: a write to a pipe that nobody reads is to end. */
static void catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* One region from its start to its end. */
static int extent_of_region(const struct image *img, struct export_extent **out, uint64_t *n,
                            struct error *e)
{
    uint32_t n_regions;
    const struct image_region *regions = image_regions(img, &n_regions);
    for (uint32_t i = 0; i < n_regions; i++) {
        if (strcmp(regions[i].name, args.region) != 0)
            continue;
        *out = calloc(1, sizeof(**out));
        if (!*out)
            return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "exporting");
        **out = (struct export_extent){.bytes = regions[i].bytes, .region = i};
        *n = 1;
        return 0;
    }
    option_usage_error(e, "--region: the image has no region '%s'", args.region);
    error_hint(e, "'vmsnap info IMAGE' lists them");
    return -EINVAL;
}

/* What the guest sees, as the image's table of guest-physical ranges has it. */
static int extents_of_guest(const struct image *img, struct export_extent **out, uint64_t *n,
                            struct error *e)
{
    const struct image_gpa *gpa = image_gpa_ranges(img, n);
    if (*n == 0) {
        option_usage_error(e, "the image says nothing of guest-physical addresses");
        error_hint(e, "export its regions one by one with --region NAME");
        return -EINVAL;
    }
    *out = calloc(*n, sizeof(**out));
    if (!*out)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "exporting");
    for (uint64_t i = 0; i < *n; i++)
        (*out)[i] = (struct export_extent){.out_offset = gpa[i].gpa,
                                           .bytes = gpa[i].bytes,
                                           .region = gpa[i].region,
                                           .region_offset = gpa[i].offset};
    return 0;
}

/* The regions one after the other: Firecracker's memory file. */
static int extents_of_file(const struct image *img, struct export_extent **out, uint64_t *n,
                           struct error *e)
{
    uint32_t n_regions;
    uint64_t offset = 0;
    const struct image_region *regions = image_regions(img, &n_regions);
    *out = calloc(n_regions, sizeof(**out));
    if (!*out)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "exporting");
    for (uint32_t i = 0; i < n_regions; i++) {
        (*out)[i] =
            (struct export_extent){.out_offset = offset, .bytes = regions[i].bytes, .region = i};
        offset += regions[i].bytes;
    }
    *n = n_regions;
    return 0;
}

static bool is_of_firecracker(const struct image *img)
{
    json_t *description = json_loads(image_description(img), 0, NULL);
    bool is = firecracker_describes(description);
    json_decref(description);
    return is;
}

static int find_extents(const struct image *img, struct export_extent **out, uint64_t *n,
                        struct error *e)
{
    if (args.region)
        return extent_of_region(img, out, n, e);
    return is_of_firecracker(img) ? extents_of_file(img, out, n, e)
                                  : extents_of_guest(img, out, n, e);
}

/* Into a file that gets its name when it is complete, or to stdout. */
static int export_to(struct export_raw *x, struct error *e)
{
    if (x->stream) {
        x->fd = STDOUT_FILENO;
        return export_raw(x, e);
    }
    struct publish file;
    int r = publish_open(&file, x->name, args.overwrite, e);
    if (r < 0)
        return r;
    x->fd = file.fd;
    r = export_raw(x, e);
    if (r == 0)
        r = publish_commit(&file, e);
    publish_close(&file);
    return r;
}

static void add_warning(json_t *warnings, const char *text)
{
    json_array_append_new(warnings, json_string(text));
    if (!report_is_json())
        log_warn("%s", text);
}

/* Names the poisoned pages: what stands for them in OUT is not what the guest had there. */
static json_t *warn_of_poison(const struct export_raw *x)
{
    json_t *warnings = json_array();
    uint32_t n_regions;
    const struct image_region *regions = image_regions(x->img, &n_regions);
    char text[512];
    for (uint64_t i = 0; i < x->pages_poisoned && i < EXPORT_POISON_NAMED; i++) {
        snprintf(text, sizeof(text),
                 "poisoned page left out: region %s, offset 0x%" PRIx64
                 ", output offset 0x%" PRIx64,
                 regions[x->poisoned[i].region].name, x->poisoned[i].region_offset,
                 x->poisoned[i].out_offset);
        add_warning(warnings, text);
    }
    if (x->pages_poisoned > EXPORT_POISON_NAMED) {
        snprintf(text, sizeof(text), "%" PRIu64 " more poisoned pages left out",
                 x->pages_poisoned - EXPORT_POISON_NAMED);
        add_warning(warnings, text);
    }
    return warnings;
}

static void say_done(const struct export_raw *x, const char *image, uint64_t wall_ns)
{
    char whole[FORMAT_MAX], written[FORMAT_MAX], wall[FORMAT_MAX];
    json_t *o =
        json_pack("{s:o, s:o, s:s, s:I, s:I, s:I, s:I, s:o}", "image", report_string(image),
                  "output", report_string(x->name), "format", formats[args.format], "output_bytes",
                  (json_int_t)x->out_bytes, "written_bytes", (json_int_t)x->written_bytes,
                  "pages_poisoned", (json_int_t)x->pages_poisoned, "wall_ns", (json_int_t)wall_ns,
                  "warnings", warn_of_poison(x));
    report_object("summary", o);
    report_closing("%s: %s, %s written in %s", x->name, format_bytes(whole, x->out_bytes),
                   format_bytes(written, x->written_bytes), format_duration(wall, wall_ns));
}

/* ---- the device state ---- */

static int write_all(int fd, const char *data, uint64_t bytes, const char *name, struct error *e)
{
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && (errno != EINTR || interrupted)) {
            int r = error_set(e,
                              interrupted == SIGINT ? VMSNAP_EXIT_SIGINT
                              : interrupted         ? VMSNAP_EXIT_SIGTERM
                                                    : publish_exit_code(errno),
                              errno, "writing %s", name);
            publish_hint(e);
            return r;
        }
        data += n > 0 ? n : 0;
        bytes -= n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

/* As export_to(). */
static int write_state(const char *path, const void *state, uint64_t bytes, struct error *e)
{
    if (strcmp(path, "-") == 0)
        return write_all(STDOUT_FILENO, state, bytes, "standard output", e);
    struct publish file;
    int r = publish_open(&file, path, args.overwrite, e);
    if (r < 0)
        return r;
    r = write_all(file.fd, state, bytes, path, e);
    if (r == 0)
        r = publish_commit(&file, e);
    publish_close(&file);
    return r;
}

static int export_state(const struct image *img, const struct command_line *line, struct error *e)
{
    uint64_t bytes, began = clock_monotonic_ns();
    const void *state = image_device_state(img, &bytes);
    char size[FORMAT_MAX];
    if (args.region)
        return option_usage_error(e, "--region goes with --format raw");
    if (bytes == 0) {
        option_usage_error(e, "the image %s has no device state", line->operand[0]);
        error_hint(e, "'vmsnap import firecracker --vmstate FILE' puts it there");
        return -EINVAL;
    }
    int r = write_state(line->operand[1], state, bytes, e);
    if (r < 0)
        return r;
    report_object("summary",
                  json_pack("{s:o, s:o, s:s, s:I, s:I, s:I, s:[]}", "image",
                            report_string(line->operand[0]), "output",
                            report_string(line->operand[1]), "format", formats[args.format],
                            "output_bytes", (json_int_t)bytes, "written_bytes", (json_int_t)bytes,
                            "wall_ns", (json_int_t)(clock_monotonic_ns() - began), "warnings"));
    report_closing("%s: vmstate of %s", line->operand[1], format_bytes(size, bytes));
    return VMSNAP_EXIT_DONE;
}

static int export_image(const struct image *img, const struct command_line *line, struct error *e)
{
    struct export_extent *extents CLEANUP_FREE = NULL;
    struct export_raw x = {.img = img,
                           .name = line->operand[1],
                           .n_threads = args.n_threads ? args.n_threads : default_threads(),
                           .progress = report_wants_progress(),
                           .interrupted = &interrupted};
    uint64_t began = clock_monotonic_ns();
    int r = find_extents(img, &extents, &x.n_extents, e);
    if (r < 0)
        return r;
    x.extents = extents;
    if (strcmp(x.name, "-") == 0) {
        x.stream = true;
        x.name = "standard output";
    }
    r = export_to(&x, e);
    if (r < 0)
        return r;
    say_done(&x, line->operand[0], clock_monotonic_ns() - began);
    return x.pages_poisoned ? VMSNAP_EXIT_WARNINGS : VMSNAP_EXIT_DONE;
}

static int run(const struct command_line *line, struct error *e)
{
    bool to_stdout = strcmp(line->operand[1], "-") == 0;
    if (writing_check_terminal(line->operand[1], "memory", e))
        return -EINVAL;
    if (to_stdout)
        report_to_stderr();
    struct image *img;
    int r = image_open(&img, line->operand[0], e);
    if (r < 0)
        return r;
    catch_interrupts();
    r = args.format == FORMAT_VMSTATE ? export_state(img, line, e) : export_image(img, line, e);
    image_close(img);
    return r;
}

const struct command command_export = {
    .name = "export",
    .summary = "write the memory of an image, or its device state, to a file",
    .usage = usage,
    .operands = operands,
    .options = options,
    .publishes = true,
    .run = run,
};
