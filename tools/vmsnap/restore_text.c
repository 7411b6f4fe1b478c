/* restore_text.c - see restore_text.h. */
#include "tools/vmsnap/restore_text.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/error.h"
#include "common/format.h"
#include "common/json_text.h"
#include "tools/vmsnap/closing.h"
#include "tools/vmsnap/report.h"

void restore_text_clock(const json_t *o)
{
    char left[FORMAT_MAX];
    json_int_t behind = json_integer_value(json_object_get(o, "clock_difference_ns"));
    if (json_is_true(json_object_get(o, "clock_synced")))
        report_line("the guest's clock is set, to within %s",
                    format_duration(left, (uint64_t)(behind < 0 ? -behind : behind)));
}

/* Of a VMM that came to --listen it is not known whether its guest runs: its owner lets it. */
static void print_serving(const json_t *o, const char *after, const char *age)
{
    report_line("serving process %" PRIu64 " after %s%s", json_count(o, "vmm_pid"), after, age);
}

void restore_text_running(const json_t *o)
{
    char after[FORMAT_MAX], behind[FORMAT_MAX], age[FORMAT_MAX + 32] = ": taken over";
    const char *known = json_object_get(o, "accelerator") ? closing_accelerator(o) : NULL;
    format_duration(after, json_count(o, "launch_to_running_ns"));
    if (json_is_integer(json_object_get(o, "clock_behind_ns")))
        snprintf(age, sizeof(age), "; its clock is %s behind",
                 format_duration(behind, json_count(o, "clock_behind_ns")));
    if (strcmp(json_text(o, "guest_state", "unknown"), guest_state_name(GUEST_UNKNOWN)) == 0)
        print_serving(o, after, age);
    else
        report_line("guest %s after %s%s%s%s, process %" PRIu64 "%s",
                    json_text(o, "guest_state", "unknown"), after, known ? " (" : "",
                    known ? known : "", known ? ")" : "", json_count(o, "vmm_pid"), age);
    restore_text_clock(o);
}

void restore_text_listening(const json_t *o)
{
    report_line("listening on %s, process %" PRIu64, json_text(o, "socket", "unknown"),
                json_count(o, "listener_pid"));
}

/* At the end of a listener. */
static void print_all(const json_t *o)
{
    uint64_t n = json_count(o, "vms"), left = json_count(o, "vms_left");
    uint64_t refused = json_count(o, "handoffs_refused");
    uint64_t unserved = json_count(o, "vms_unserved");
    char more[160] = "";
    int used = 0;
    if (left > 0)
        used = snprintf(more, sizeof(more), ", %" PRIu64 " left to their servers", left);
    if (unserved > 0)
        snprintf(more + used, sizeof(more) - (size_t)used,
                 ", %" PRIu64 " waiting for 'vmsnap restore --resume PID'", unserved);
    report_closing("%" PRIu64 " VM%s served, %" PRIu64 " of them with all memory in%s; %" PRIu64
                   " handoff%s refused",
                   n, n == 1 ? "" : "s", json_count(o, "vms_complete"), more, refused,
                   refused == 1 ? "" : "s");
}

/* In front of a line of one of many VMs. */
static const char *whose(char out[32], const json_t *o)
{
    out[0] = '\0';
    if (json_count(o, "vmm_pid"))
        snprintf(out, 32, "process %" PRIu64 ": ", json_count(o, "vmm_pid"));
    return out;
}

void restore_text_exit(const json_t *o)
{
    char who[32];
    report_line("%sended", whose(who, o));
}

/* What --learn has recorded, or an earlier run's that was used. */
static void workset_words(char *out, size_t size, const json_t *o)
{
    uint64_t learned = json_count(o, "clusters_learned"), used = json_count(o, "workset_clusters");
    *out = '\0';
    if (learned > 0)
        snprintf(out, size, "; %" PRIu64 " cluster%s learned", learned, learned == 1 ? "" : "s");
    else if (used > 0)
        snprintf(out, size, "; a working set of %" PRIu64 " cluster%s was used", used,
                 used == 1 ? "" : "s");
}

void restore_text_summary(const json_t *o, bool of_many)
{
    if (json_object_get(o, "vms")) {
        print_all(o);
        return;
    }
    if (!json_object_get(o, "demand_faults")) { /* somebody else was it */
        report_closing("process %" PRIu64 ": all memory is in, by another vmsnap",
                       json_count(o, "vmm_pid"));
        return;
    }
    char complete[FORMAT_MAX], p99[FORMAT_MAX];
    uint64_t faults = json_count(o, "demand_faults");
    bool whole = json_is_integer(json_object_get(o, "complete_ns"));
    uint64_t poisoned = json_count(o, "pages_poisoned");
    char who[32] = "";
    if (of_many)
        whose(who, o);
    if (poisoned > 0)
        report_line("%s%" PRIu64 " page%s poisoned: the image is damaged there", who, poisoned,
                    poisoned == 1 ? " is" : "s are");
    char workset[96];
    workset_words(workset, sizeof(workset), o);
    report_closing("%s%s%s; %" PRIu64 " pages prefetched, %" PRIu64 " filled, %" PRIu64
                   " on demand in %" PRIu64 " fault%s, p99 %s%s",
                   who,
                   whole                               ? "all memory is in after "
                   : json_object_get(o, "handed_over") ? "another vmsnap has taken over"
                                                       : "memory is not all in",
                   whole ? format_duration(complete, json_count(o, "complete_ns")) : "",
                   json_count(o, "pages_prefetched"), json_count(o, "pages_filled"),
                   json_count(o, "pages_on_demand"), faults, faults == 1 ? "" : "s",
                   format_duration(p99, json_count(o, "fault_p99_ns")), workset);
}
