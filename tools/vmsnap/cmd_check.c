/* cmd_check.c - `vmsnap check`: what this kernel, a guest, an image allow, item by item. */
#include <limits.h>

#include "common/kernel.h"
#include "restore/check.h"
#include "tools/vmsnap/check_list.h"
#include "tools/vmsnap/check_target.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/defaults.h"
#include "tools/vmsnap/hazard_option.h"
#include "tools/vmsnap/service.h"

#define KERNEL_ITEMS_MAX 64

static struct {
    const char *qmp_path, *api_path;
    struct option_list maps;
    int pid, timeout_ms;
} args = {.timeout_ms = DEFAULT_TIMEOUT_MS};

static const char *const usage[] = {"[--qmp SOCK | --api SOCK | --pid PID] [IMAGE [-- VMM...]]",
                                    NULL};

static const struct operand operands[] = {
    {.name = "IMAGE", .help = "an image: can it be restored here?", .optional = true},
    {.name = NULL},
};

static const struct option_spec options[] = {
    {.name = "qmp",
     .kind = OPTION_STRING,
     .to.string = &args.qmp_path,
     .argument = "SOCK",
     .help = "QMP socket of a running QEMU, or control socket of another VMM: can it be "
             "snapshotted?"},
    {.name = "api",
     .kind = OPTION_STRING,
     .to.string = &args.api_path,
     .argument = "SOCK",
     .help = "API socket of a running Firecracker: can it be snapshotted?"},
    {.name = "map",
     .kind = OPTION_LIST,
     .to.list = &args.maps,
     .argument = "RANGE",
     .help = "with --api: as 'vmsnap snapshot' has it"},
    {.name = "pid",
     .kind = OPTION_INTEGER,
     .to.integer = &args.pid,
     .min = 1,
     .max = INT_MAX,
     .argument = "PID",
     .help = "its process, where it is not the one that listens on SOCK; without SOCK only what "
             "the kernel says of it is looked at"},
    {.name = "timeout",
     .kind = OPTION_DURATION,
     .to.duration_ms = &args.timeout_ms,
     .min = 1,
     .max = INT_MAX,
     .argument = "DURATION",
     .help = "for everything that waits on the VMM (default 30s)"},
    {.name = NULL},
};

static void check_kernel(struct check_list *list)
{
    struct kernel_item items[KERNEL_ITEMS_MAX];
    size_t n = kernel_list(items, KERNEL_ITEMS_MAX);
    for (size_t i = 0; i < n; i++) {
        if (items[i].ok)
            check_ok(list, items[i].name, "%s", items[i].reason);
        else if (items[i].required)
            check_refused(list, items[i].name, VMSNAP_EXIT_KERNEL, NULL, "%s", items[i].reason);
        else
            check_note(list, items[i].name, "%s", items[i].reason);
    }
}

static void say_image_item(void *opaque, const struct restore_check_item *item)
{
    struct check_list *list = opaque;
    if (item->ok)
        check_ok(list, item->name, "%s", item->reason);
    else if (item->exit_code == 0)
        check_note(list, item->name, "%s", item->reason);
    else
        check_refused(list, item->name, (enum vmsnap_exit)item->exit_code, item->allow, "%s",
                      item->reason);
}

/* Asked for with an image: it is of use to a unit that restores one. */
static void check_service(struct check_list *list)
{
    const char *library;
    if (service_possible(&library))
        check_ok(list, "service-manager", "a unit of Type=notify is told when the guest runs (%s)",
                 library);
    else
        check_note(list, "service-manager",
                   "a unit of Type=notify would not be told when the guest runs: %s", library);
}

static int run(const struct command_line *line, struct error *e)
{
    struct check_list list = {0};
    if (line->rest && !line->operand[0])
        return option_usage_error(e, "a command line after -- needs an IMAGE before it");
    if (line->rest && !line->rest[0])
        return option_usage_error(e, "no command line after --");
    if (args.qmp_path && args.api_path)
        return option_usage_error(e, "--qmp and --api exclude each other");
    if (args.maps.count && !args.api_path)
        return option_usage_error(e, "--map goes with --api");
    check_kernel(&list);
    if (args.qmp_path)
        check_vm(&list, args.qmp_path, args.pid, args.timeout_ms);
    else if (args.api_path)
        check_firecracker(&list, args.api_path, args.maps.items, args.pid, args.timeout_ms);
    else if (args.pid)
        check_process(&list, args.pid);
    if (line->operand[0]) {
        int rc = restore_check(line->operand[0], line->rest, say_image_item, &list, e);
        if (rc)
            return rc;
        check_service(&list);
    }
    return check_finish(&list);
}

const struct command command_check = {
    .name = "check",
    .summary = "say what this kernel, a guest or an image allows, and what is in the way",
    .usage = usage,
    .operands = operands,
    .options = options,
    .rest = "VMM ARG...",
    .more_help = hazard_option_help,
    .run = run,
};
