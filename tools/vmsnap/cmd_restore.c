/* cmd_restore.c - `vmsnap restore`: options in, a running guest out, then its exit status. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/format.h"
#include "common/json_text.h"
#include "common/log.h"
#include "restore/listen/listen.h"
#include "restore/restore.h"
#include "restore/supervisor.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/defaults.h"
#include "tools/vmsnap/hazard_option.h"
#include "tools/vmsnap/report.h"
#include "tools/vmsnap/report_file.h"
#include "tools/vmsnap/restore_text.h"
#include "tools/vmsnap/service.h"

enum { PREFETCH_HOT, PREFETCH_NONE };
static const char *const prefetch_orders[] = {"hot", "none", NULL};

enum { ON_DAMAGE_STOP, ON_DAMAGE_POISON };
static const char *const damage_ways[] = {"stop", "poison", NULL};

static struct {
    int prefetch, on_damage, timeout_ms;
    int resume_pid; /* 0: no takeover */
    unsigned n_threads;
    uint64_t bwlimit;
    const char *listen;
    bool print_command, no_fill, learn, paused, detach, sync_clock;
    const char *pidfile, *report_path;
    struct option_list allow;
} args = {.timeout_ms = DEFAULT_TIMEOUT_MS};

static bool detached; /* this is the process of a detached server */
static bool warned;   /* of what else would be the exit status */
static bool damaged;  /* memory was poisoned, since the image is damaged */

static const char *const usage[] = {
    "IMAGE [OPTIONS] [-- VMM ARG...]",
    "--print-command IMAGE",
    "--listen SOCK IMAGE [OPTIONS]",
    "--resume PID [IMAGE] [OPTIONS]",
    NULL,
};

static const struct operand operands[] = {
    {.name = "IMAGE",
     .help = "an image that vmsnap snapshot or vmsnap import made",
     .optional = true,
     .file = FILE_READ},
    {.name = NULL},
};

static const struct option_spec options[] = {
    {.name = "print-command",
     .kind = OPTION_FLAG,
     .to.flag = &args.print_command,
     .help = "print the command line that would run, quoted for a shell, and start nothing"},
    {.name = "listen",
     .kind = OPTION_STRING,
     .to.string = &args.listen,
     .argument = "SOCK",
     .help = "serve the memory of every VMM that connects to this socket, as Firecracker does for "
             "mem_backend type Uffd; until SIGINT or SIGTERM"},
    {.name = "resume",
     .kind = OPTION_INTEGER,
     .to.integer = &args.resume_pid,
     .min = 1,
     .max = INT_MAX,
     .argument = "PID",
     .help = "take over the guest in process PID, whose vmsnap has died: it waits, and goes on; "
             "IMAGE: a repaired or moved copy"},
    {.name = "prefetch",
     .kind = OPTION_CHOICE,
     .to.choice = &args.prefetch,
     .choices = prefetch_orders,
     .argument = "ORDER",
     .help = "what comes in before it is touched: hot, what --learn has recorded and the pages "
             "that the guest wrote after the snapshot (default), or none"},
    {.name = "learn",
     .kind = OPTION_FLAG,
     .to.flag = &args.learn,
     .help = "record what the guest touches in its first minute, and in which order, in "
             "IMAGE.workset, for the next restores; until then nothing else comes in"},
    {.name = "no-fill",
     .kind = OPTION_FLAG,
     .to.flag = &args.no_fill,
     .help = "serve only what the guest touches; the server stays as long as the guest"},
    {.name = "on-damage",
     .kind = OPTION_CHOICE,
     .to.choice = &args.on_damage,
     .choices = damage_ways,
     .argument = "WAY",
     .help = "where the image is damaged: stop, the guest waits when it touches that memory "
             "(default), or poison: with QEMU and KVM it gets a machine check; a Firecracker ends"},
    {.name = "bwlimit",
     .kind = OPTION_SIZE,
     .to.size = &args.bwlimit,
     .min = 64 << 10,
     .max = INT64_MAX,
     .argument = "RATE",
     .help = "bring in at most this many bytes per second of what nobody has touched yet "
             "(default: no limit)"},
    {.name = "threads",
     .kind = OPTION_COUNT,
     .to.count = &args.n_threads,
     .min = 1,
     .max = 256,
     .argument = "N",
     .help = "decompressor threads (default: one per CPU)"},
    {.name = "paused",
     .kind = OPTION_FLAG,
     .to.flag = &args.paused,
     .help = "load the machine and leave it paused"},
    {.name = "detach",
     .kind = OPTION_FLAG,
     .to.flag = &args.detach,
     .help = "return once the guest runs; a server stays until the last page is in"},
    {.name = "sync-clock",
     .kind = OPTION_FLAG,
     .to.flag = &args.sync_clock,
     .help = "set the guest's clock through the QEMU guest agent once it runs; a failure is a "
             "warning"},
    {.name = "pidfile",
     .kind = OPTION_STRING,
     .to.string = &args.pidfile,
     .file = FILE_WRITTEN,
     .argument = "FILE",
     .help =
         "write the VMM's process id there; removed at its end (with --resume: by us from now on; "
         "with --listen: the listener's)"},
    {.name = "report",
     .kind = OPTION_STRING,
     .to.string = &args.report_path,
     .file = FILE_WRITTEN,
     .argument = "FILE",
     .help = "where the server of --detach writes its JSON lines"},
    {.name = "timeout",
     .kind = OPTION_DURATION,
     .to.duration_ms = &args.timeout_ms,
     .min = 1,
     .max = INT_MAX,
     .argument = "DURATION",
     .help = "for everything that waits on the VMM (default 30s)"},
    {.name = "allow",
     .kind = OPTION_LIST,
     .to.list = &args.allow,
     .choices_of = hazard_option_restore_names,
     .argument = "HAZARD",
     .help = "go on in spite of this hazard (see 'vmsnap check --help'); may be repeated"},
    {.name = NULL},
};

static void print_running(const json_t *o)
{
    warned = json_array_size(json_object_get(o, "warnings")) > 0;
    restore_text_running(o);
}

/* Of --listen each line says whose it is. */
static void print_summary(const json_t *o)
{
    damaged = json_count(o, "pages_poisoned") > 0;
    restore_text_summary(o, args.listen);
}

static void print_exit(const json_t *o)
{
    if (args.listen)
        restore_text_exit(o);
}

/* To the service manager: texts without anything that came from the image. */
static void tell_running(const json_t *o)
{
    if (args.detach)
        service_ready_as((pid_t)json_count(o, "vmm_pid"));
    else
        service_ready("guest %s; memory comes in as it is touched",
                      json_text(o, "guest_state", "unknown"));
}

static void tell_listening(const json_t *o)
{
    if (args.detach)
        service_ready_as((pid_t)json_count(o, "listener_pid"));
    else
        service_ready("listening for VMs");
}

static void tell_progress(const json_t *o)
{
    char done[FORMAT_MAX], total[FORMAT_MAX], rate[FORMAT_MAX];
    if (strcmp(json_text(o, "guest_state", "unknown"), "waiting") == 0)
        return; /* what is to be done about that was told */
    service_status("filled %s of %s, %s/s", format_bytes(done, json_count(o, "done_bytes")),
                   format_bytes(total, json_count(o, "total_bytes")),
                   format_bytes(rate, json_count(o, "bytes_per_second")));
}

static void tell_summary(const json_t *o)
{
    /* One without figures is of memory that somebody else has brought in. */
    bool whole =
        json_is_integer(json_object_get(o, "complete_ns")) || !json_object_get(o, "demand_faults");
    service_status(whole ? "all memory is in" : "memory is not all in");
}

static void tell_exit(const json_t *o)
{
    service_stopping("the VMM has ended with status %d", (int)json_count(o, "exit_status"));
}

/* What each kind of object is besides a line of JSON. */
static const struct {
    const char *type;
    void (*print)(const json_t *object);
    void (*tell)(const json_t *object);
    bool for_file; /* no result: only a detached server writes it down */
} reports[] = {
    {"listening", restore_text_listening, tell_listening, false},
    {"running", print_running, tell_running, false},
    {"clock", restore_text_clock, NULL, false},
    {"progress", NULL, tell_progress, true},
    {"summary", print_summary, tell_summary, false},
    {"exit", print_exit, tell_exit, false},
};

static void on_report(void *opaque, const char *type, json_t *object)
{
    (void)opaque;
    bool for_file = false;
    for (size_t i = 0; i < sizeof(reports) / sizeof(reports[0]); i++) {
        if (strcmp(type, reports[i].type) != 0)
            continue;
        for_file = reports[i].for_file;
        if (reports[i].print)
            reports[i].print(object);
        /* With --listen the others come from processes of which there are many. */
        if (reports[i].tell && (!args.listen || reports[i].tell == tell_listening))
            reports[i].tell(object);
    }
    if (for_file && !detached) {
        json_decref(object);
        return;
    }
    if (detached)
        report_file_begin();
    report_object(type, object);
    if (detached)
        report_file_look_ahead();
}

/* To the service manager: what the guest waits for has no name here (it came from the image), but
 * the hint, which is ours, says what to do. */
static void tell_trouble(const struct error *e)
{
    if (e->guest == GUEST_WAITING && !args.listen)
        service_status("guest WAITS for memory%s%s", e->hint[0] ? "; " : "", e->hint);
}

/* The detached server has no stderr: its errors stand among its other lines. */
static void on_trouble(void *opaque, const struct error *e)
{
    (void)opaque;
    tell_trouble(e);
    if (!detached) {
        report_error(e, true);
        return;
    }
    report_file_begin();
    report_object("error", report_describe_error(e));
    report_file_look_ahead();
}

static void on_detached(void *opaque)
{
    (void)opaque;
    detached = true;
    service_leave();
    report_setup(report_file() != NULL, true);
    report_to_stream(report_file());
}

/* A VM may live for days after a listener that was killed: another one must have the file. */
static void on_vm_process(void *opaque)
{
    (void)opaque;
    report_file_unlock_here();
}

/* The first of what is only for a VMM that vmsnap starts; NULL: nothing of it was given.
 * `taken_over`: and what a server has from the start. */
static const char *find_for_start(const struct command_line *line, bool taken_over)
{
    const struct {
        const char *name;
        bool given;
    } all[] = {
        {"a command line after --", line->rest},
        {"--print-command", args.print_command},
        {"--paused", args.paused},
        {"--sync-clock", args.sync_clock},
        {"--allow", args.allow.count > 0},
        {"--detach", taken_over && args.detach},
        {"--learn", taken_over && args.learn},
        {"--report", taken_over && args.report_path},
    };
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i].given)
            return all[i].name;
    return NULL;
}

static int check_resume(const struct command_line *line, struct error *e)
{
    const char *name = find_for_start(line, true);
    return name ? option_usage_error(e,
                                     "%s can't be given with --resume, which takes over a VMM that "
                                     "runs and stays until all its memory is in",
                                     name)
                : 0;
}

static int check_listen(const struct command_line *line, struct error *e)
{
    const char *name = find_for_start(line, false);
    return name ? option_usage_error(
                      e, "%s can't be given with --listen, which serves VMMs that others start",
                      name)
                : 0;
}

static int check_args(const struct command_line *line, struct error *e)
{
    if (args.resume_pid)
        return args.listen ? option_usage_error(e, "either --resume or --listen")
                           : check_resume(line, e);
    if (!line->operand[0])
        return option_usage_error(e, "IMAGE is missing");
    if (args.report_path && !args.detach)
        return option_usage_error(e, "--report is for the server of --detach");
    if (args.listen)
        return check_listen(line, e);
    if (args.print_command && line->rest)
        return option_usage_error(e, "--print-command shows the recorded command line: nothing "
                                     "can follow --");
    if (args.sync_clock && args.paused)
        return option_usage_error(e, "--sync-clock needs a guest that runs");
    return 0;
}

static int print_command(const char *image_path, struct error *e)
{
    char *text = NULL;
    int rc = restore_print_command(image_path, &text, e);
    if (rc)
        return rc;
    report_line("%s", text);
    report_object("summary", json_pack("{s:o}", "command", report_string(text)));
    free(text);
    return VMSNAP_EXIT_DONE;
}

static int run(const struct command_line *line, struct error *e)
{
    int rc = check_args(line, e);
    if (rc)
        return rc;
    e->guest = args.resume_pid ? GUEST_UNKNOWN : GUEST_NOT_STARTED;
    if (args.print_command)
        return print_command(line->operand[0], e);
    rc = args.report_path ? report_file_open(args.report_path, e) : 0;
    if (rc)
        return rc;
    if (args.listen && args.detach && !args.report_path)
        log_warn("--detach without --report: what goes wrong from now on (a VM refused, a damaged "
                 "image) is told nowhere");
    service_open();
    service_status(args.resume_pid ? "the guest is taken over"
                   : args.listen   ? "the socket is made"
                                   : "the VMM comes up");
    struct restore_options o = {
        .image_path = line->operand[0],
        .vmm_argv = line->rest,
        .prefetch_hot = args.prefetch == PREFETCH_HOT,
        .learn = args.learn,
        .no_fill = args.no_fill,
        .poison_damage = args.on_damage == ON_DAMAGE_POISON,
        .bytes_per_s = args.bwlimit,
        .n_threads = args.n_threads ? args.n_threads : default_threads(),
        .paused = args.paused,
        .detach = args.detach,
        .pidfile = args.pidfile,
        .timeout_ms = args.timeout_ms,
        .sync_clock = args.sync_clock,
        .allowed = args.allow.items,
        .progress = report_wants_progress() && !args.detach,
        .report = on_report,
        .trouble = on_trouble,
        .detached = on_detached,
        .vm_process = on_vm_process,
    };
    if (args.resume_pid) {
        rc = supervisor_resume(&o, args.resume_pid, e);
        return rc == 0 && damaged ? VMSNAP_EXIT_WARNINGS : rc;
    }
    int status = 0;
    rc = args.listen ? listen_run(&o, args.listen, e) : restore_run(&o, &status, e);
    if (rc < 0)
        report_file_abandon();
    if (args.listen)
        service_stopping("no more VMs are taken");
    if (rc || args.listen)
        return rc;
    return args.detach && warned ? VMSNAP_EXIT_WARNINGS : status;
}

const struct command command_restore = {
    .name = "restore",
    .summary = "start a guest from an image; its memory comes in as it is touched",
    .usage = usage,
    .operands = operands,
    .options = options,
    .rest = "VMM ARG...",
    .has_guest = true,
    .publishes = true,
    .run = run,
};
