/* cmd_snapshot.c - `vmsnap snapshot`: options in, one live snapshot, the line
 * for the ticket out. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/format.h"
#include "common/publish.h"
#include "common/sink/sink.h"
#include "snapshot/snapshot.h"
#include "tools/vmsnap/closing.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/defaults.h"
#include "tools/vmsnap/hazard_option.h"
#include "tools/vmsnap/report.h"
#include "tools/vmsnap/writing.h"

static struct {
    const char *qmp_path, *api_path, *state_path;
    int pid, level, timeout_ms, max_stall_ms;
    unsigned n_threads, precopy;
    uint64_t buffer_bytes, bwlimit;
    struct option_list allow, maps;
    bool overwrite;
} args = {
    .level = 1,
    .timeout_ms = DEFAULT_TIMEOUT_MS,
    .max_stall_ms = 10000,
    .buffer_bytes = 64u << 20,
};

static const char *const usage[] = {"--qmp SOCK [OPTIONS] IMAGE", "--api SOCK [OPTIONS] IMAGE",
                                    NULL};

static const struct operand operands[] = {
    {.name = "IMAGE",
     .help = "the file to make; - writes the image to stdout",
     .file = FILE_WRITTEN},
    {.name = NULL},
};

static const struct option_spec options[] = {
    {.name = "qmp",
     .kind = OPTION_STRING,
     .to.string = &args.qmp_path,
     .argument = "SOCK",
     .help = "QMP socket of the running QEMU, or control socket of a VMM that speaks vmsnap's own "
             "protocol; no other client may hold it"},
    {.name = "api",
     .kind = OPTION_STRING,
     .to.string = &args.api_path,
     .argument = "SOCK",
     .help = "API socket of a running Firecracker"},
    {.name = "vmstate",
     .kind = OPTION_STRING,
     .to.string = &args.state_path,
     .argument = "FILE",
     .file = FILE_WRITTEN,
     .help = "with --api: write the VM's state to FILE as well, for PUT /snapshot/load; it is in "
             "the image in any case"},
    {.name = "map",
     .kind = OPTION_LIST,
     .to.list = &args.maps,
     .argument = "RANGE",
     .help =
         "with --api: ADDR:LEN[:NAME], guest memory in the VMM's process, repeated from the lowest "
         "guest address on; only where it can't be told for certain"},
    {.name = "pid",
     .kind = OPTION_INTEGER,
     .to.integer = &args.pid,
     .min = 1,
     .max = INT_MAX,
     .argument = "PID",
     .help = "the VMM's process, where it is not the one that listens on SOCK (libvirt)"},
    WRITING_LEVEL(&args.level),
    WRITING_THREADS(&args.n_threads),
    {.name = "buffer",
     .kind = OPTION_SIZE,
     .to.size = &args.buffer_bytes,
     .argument = "SIZE",
     .help = "hard cap of the page buffers; when they are full the guest's writers wait "
             "(default 64MiB; about 11 MiB at least)"},
    {.name = "precopy",
     .kind = OPTION_COUNT,
     .to.count = &args.precopy,
     .min = 0,
     .max = SNAPSHOT_MAX_PRECOPY,
     .argument = "N",
     .help = "save memory N times over before the instant, each time what was written since; fewer "
             "writes wait after it, the image grows (default 0)"},
    WRITING_BWLIMIT(&args.bwlimit),
    {.name = "timeout",
     .kind = OPTION_DURATION,
     .to.duration_ms = &args.timeout_ms,
     .min = 1,
     .max = INT_MAX,
     .argument = "DURATION",
     .help = "for everything that waits on the VMM (default 30s)"},
    {.name = "max-stall",
     .kind = OPTION_DURATION,
     .to.duration_ms = &args.max_stall_ms,
     .min = 1,
     .max = INT_MAX,
     .argument = "DURATION",
     .help = "give up, and set the guest free, when one of its writes was held longer "
             "(default 10s)"},
    {.name = "allow",
     .kind = OPTION_LIST,
     .to.list = &args.allow,
     .choices_of = hazard_option_snapshot_names,
     .argument = "HAZARD",
     .help = "go on in spite of this hazard (see 'vmsnap check --help'); may be repeated"},
    WRITING_OVERWRITE(&args.overwrite),
    {.name = NULL},
};

/* Whether it can be made is found out before the VM is touched. Nothing is left of the try. */
static int try_state_file(struct error *e)
{
    struct publish file;
    int rc = publish_open(&file, args.state_path, args.overwrite, e);
    if (rc)
        error_wrap(e, "--vmstate");
    else
        publish_close(&file);
    return rc;
}

static int check_source(struct error *e)
{
    if (!args.qmp_path && !args.api_path)
        return option_usage_error(e, "--qmp SOCK or --api SOCK is missing");
    if (args.qmp_path && args.api_path)
        return option_usage_error(e, "--qmp and --api exclude each other");
    if (args.qmp_path && (args.state_path || args.maps.count))
        return option_usage_error(e, "%s goes with --api", args.maps.count ? "--map" : "--vmstate");
    return args.state_path ? try_state_file(e) : 0;
}

static int check_args(const struct command_line *line, struct error *e)
{
    int rc = check_source(e);
    if (rc)
        return rc;
    uint64_t least = snapshot_min_buffer();
    if (args.buffer_bytes < least) {
        char text[FORMAT_MAX];
        return option_usage_error(e, "--buffer: at least %s is needed", format_bytes(text, least));
    }
    return writing_check_terminal(line->operand[0], "an image", e);
}

static int run(const struct command_line *line, struct error *e)
{
    int rc = check_args(line, e);
    if (rc)
        return rc;
    if (strcmp(line->operand[0], "-") == 0)
        report_to_stderr();
    struct snapshot_options o = {
        .qmp_path = args.qmp_path,
        .api_path = args.api_path,
        .maps = args.maps.items,
        .state_path = args.state_path,
        .pid = args.pid,
        .image_path = line->operand[0],
        .overwrite = args.overwrite,
        .level = args.level,
        .n_threads = args.n_threads ? args.n_threads : default_threads(),
        .buffer_bytes = args.buffer_bytes,
        .bwlimit = args.bwlimit,
        .precopy = args.precopy,
        .timeout_ms = args.timeout_ms,
        .max_stall_ms = args.max_stall_ms,
        .allowed = args.allow.items,
        .progress = report_wants_progress(),
    };
    json_t *summary = NULL;
    rc = snapshot_run(&o, &summary, e);
    if (rc)
        return rc;
    bool warned = writing_print_warnings(summary);
    closing_snapshot(summary);
    report_object("summary", summary);
    return warned ? VMSNAP_EXIT_WARNINGS : VMSNAP_EXIT_DONE;
}

const struct command command_snapshot = {
    .name = "snapshot",
    .summary = "snapshot a running guest without stopping it",
    .usage = usage,
    .operands = operands,
    .options = options,
    .has_guest = true,
    .publishes = true,
    .run = run,
};
