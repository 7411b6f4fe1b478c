/* cmd_import.c - `vmsnap import`: an image out of what another program has saved of a VM. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/sink/sink.h"
#include "snapshot/import/import.h"
#include "tools/vmsnap/closing.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/defaults.h"
#include "tools/vmsnap/report.h"
#include "tools/vmsnap/writing.h"

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
    WRITING_LEVEL(&args.level),
    WRITING_THREADS(&args.n_threads),
    WRITING_BWLIMIT(&args.bwlimit),
    WRITING_OVERWRITE(&args.overwrite),
    {.name = NULL},
};

static int check_args(const struct command_line *line, struct error *e)
{
    if (strcmp(line->operand[SOURCE], "firecracker") != 0) {
        option_usage_error(e, "unknown SOURCE '%s'", line->operand[SOURCE]);
        error_hint(e, "it is one of: firecracker");
        return -EINVAL;
    }
    return writing_check_terminal(line->operand[IMAGE], "an image", e);
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
    bool warned = writing_print_warnings(summary);
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
