#include "tools/vmsnap/closing.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/format.h"
#include "common/json_text.h"
#include "tools/vmsnap/report.h"

#define WORTH_TELLING_NS 100000000u

const char *closing_accelerator(const json_t *summary)
{
    const char *name = json_text(summary, "accelerator", "unknown accelerator");
    return strcmp(name, "kvm") == 0 ? "KVM" : strcmp(name, "tcg") == 0 ? "TCG" : name;
}

/* "paused 3.1 ms (KVM)". A guest that was paused before was not paused by us. */
static void pause_words(char *out, size_t size, const json_t *summary)
{
    char pause[FORMAT_MAX];
    const char *accelerator = closing_accelerator(summary);
    if (strcmp(json_text(summary, "guest_state", "running"), "paused") == 0)
        snprintf(out, size, "was paused already (%s)", accelerator);
    else
        snprintf(out, size, "paused %s (%s)",
                 format_duration(pause, json_count(summary, "pause_ns")), accelerator);
}

/* "; writes waited 3.3 s for buffers": the guest was held back. */
static void throttled_words(char *out, size_t size, const json_t *summary)
{
    char waited[FORMAT_MAX];
    uint64_t ns = json_count(summary, "throttled_ns");
    *out = '\0';
    if (ns >= WORTH_TELLING_NS)
        snprintf(out, size, "; writes waited %s for buffers", format_duration(waited, ns));
}

void closing_snapshot(const json_t *summary)
{
    char pause[128], throttled[128], ram[FORMAT_MAX], stored[FORMAT_MAX], wall[FORMAT_MAX],
        p99[FORMAT_MAX];
    uint64_t ram_bytes = json_count(summary, "ram_bytes");
    uint64_t image_bytes = json_count(summary, "image_bytes");
    uint64_t faults = json_count(summary, "write_faults");
    double ratio = image_bytes ? (double)ram_bytes / (double)image_bytes : 0;
    pause_words(pause, sizeof(pause), summary);
    throttled_words(throttled, sizeof(throttled), summary);
    report_closing("%s; %s RAM, %s stored (%.1f:1) in %s; %" PRIu64
                   " write fault%s%s%s%s; guest %s",
                   pause, format_bytes(ram, ram_bytes), format_bytes(stored, image_bytes), ratio,
                   format_duration(wall, json_count(summary, "wall_ns")), faults,
                   faults == 1 ? "" : "s", faults ? ", p99 " : "",
                   faults ? format_duration(p99, json_count(summary, "fault_p99_ns")) : "",
                   throttled, json_text(summary, "guest_state", "running"));
}

void closing_import(const json_t *summary)
{
    char ram[FORMAT_MAX], stored[FORMAT_MAX], wall[FORMAT_MAX], state[FORMAT_MAX];
    uint64_t ram_bytes = json_count(summary, "ram_bytes");
    uint64_t image_bytes = json_count(summary, "image_bytes");
    uint64_t state_bytes = json_count(summary, "device_state_bytes");
    double ratio = image_bytes ? (double)ram_bytes / (double)image_bytes : 0;
    report_closing("%s RAM, %s stored (%.1f:1) in %s; %s%s", format_bytes(ram, ram_bytes),
                   format_bytes(stored, image_bytes), ratio,
                   format_duration(wall, json_count(summary, "wall_ns")),
                   state_bytes ? "vmstate of " : "no vmstate",
                   state_bytes ? format_bytes(state, state_bytes) : "");
}
