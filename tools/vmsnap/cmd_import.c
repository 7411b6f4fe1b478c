/* cmd_import.c - `vmsnap import`: an image out of what another program has saved of a VM. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/sink.h"
#include "snapshot/import.h"
#include "tools/vmsnap/closing.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/defaults.h"
#include "tools/vmsnap/report.h"

static struct {
    const char *state_path;
    int level;
    unsigned n_threads;
    uint64_t bwlimit;
    bool overwrite;
} args = {.level = 1};

static const char *const usage[] = {"firecracker [OPTIONS] MEMFILE IMAGE", NULL};

enum { SOURCE, MEMFILE, IMAGE };
static const struct operand operands[] = {
    {.name = "SOURCE", .help = "who has saved the VM: firecracker"},
    {.name = "MEMFILE",
     .help = "Firecracker's memory file (mem_file_path of /snapshot/create)",
     .file = FILE_READ},
    {.name = "IMAGE",
     .help = "the file to make; - writes the image to stdout",
     .file = FILE_WRITTEN},
    {.name = NULL},
};

static const struct option_spec options[] = {
    {.name = "vmstate",
     .kind = OPTION_STRING,
     .to.string = &args.state_path,
     .file = FILE_READ,
     .argument = "FILE",
     .help = "carry Firecracker's state file (snapshot_path) along in the image; 'vmsnap export "
             "--format vmstate' gives it back"},
    {.name = "level",
     .kind = OPTION_INTEGER,
     .to.integer = &args.level,
     .min = 1,
     .max = 19,
     .argument = "N",
     .help = "zstd level, 1 to 19 (default 1)"},
    {.name = "threads",
     .kind = OPTION_COUNT,
     .to.count = &args.n_threads,
     .min = 1,
     .max = 256,
     .argument = "N",
     .help = "compressor threads (default: one per CPU)"},
    {.name = "bwlimit",
     .kind = OPTION_SIZE,
     .to.size = &args.bwlimit,
     .min = SINK_MIN_RATE,
     .max = INT64_MAX,
     .argument = "RATE",
     .help = "write at most this many bytes per second (64K or more; K, M, G as in sizes)"},
    {.name = "overwrite",
     .kind = OPTION_FLAG,
     .to.flag = &args.overwrite,
     .help = "replace IMAGE if it exists, once the new one is complete"},
    {.name = NULL},
};

static int check_args(const struct command_line *line, struct error *e)
{
    if (strcmp(line->operand[SOURCE], "firecracker") != 0) {
        option_usage_error(e, "unknown SOURCE '%s'", line->operand[SOURCE]);
        error_hint(e, "it is one of: firecracker");
        return -EINVAL;
    }
    if (strcmp(line->operand[IMAGE], "-") == 0 && isatty(STDOUT_FILENO)) {
        option_usage_error(e, "an image is not written to a terminal");
        error_hint(e, "send stdout to a file or a pipe, or name a file instead of -");
        return -EINVAL;
    }
    return 0;
}

static bool print_warnings(const json_t *summary)
{
    json_t *warnings = json_object_get(summary, "warnings");
    size_t i;
    json_t *text;
    json_array_foreach(warnings, i, text)
    {
        if (!report_is_json())
            log_warn("%s", json_string_value(text));
    }
    return json_array_size(warnings) > 0;
}

static int run(const struct command_line *line, struct error *e)
{
    int rc = check_args(line, e);
    if (rc)
        return rc;
    if (strcmp(line->operand[IMAGE], "-") == 0)
        report_to_stderr();
    const struct import_options o = {
        .memory_path = line->operand[MEMFILE],
        .state_path = args.state_path,
        .image_path = line->operand[IMAGE],
        .overwrite = args.overwrite,
        .level = args.level,
        .n_threads = args.n_threads ? args.n_threads : default_threads(),
        .bwlimit = args.bwlimit,
        .progress = report_wants_progress(),
    };
    json_t *summary = NULL;
    rc = import_run(&o, &summary, e);
    if (rc)
        return rc;
    json_object_set_new(summary, "image", report_string(o.image_path));
    json_object_set_new(summary, "memory_file", report_string(o.memory_path));
    json_object_set_new(summary, "vmstate",
                        o.state_path ? report_string(o.state_path) : json_null());
    bool warned = print_warnings(summary);
    closing_import(summary);
    report_object("summary", summary);
    return warned ? VMSNAP_EXIT_WARNINGS : VMSNAP_EXIT_DONE;
}

const struct command command_import = {
    .name = "import",
    .summary = "make an image of a Firecracker snapshot's files",
    .usage = usage,
    .operands = operands,
    .options = options,
    .publishes = true,
    .run = run,
};
