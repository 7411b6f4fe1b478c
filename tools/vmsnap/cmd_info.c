/* cmd_info.c - `vmsnap info`: what is in an image, without reading its pages. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/format.h"
#include "common/image/reader.h"
#include "common/log.h"
#include "common/target/region.h"
#include "restore/decode/workset.h"
#include "restore/launch/qemu/generation_id.h"
#include "tools/vmsnap/commands.h"
#include "tools/vmsnap/report.h"
#include "tools/vmsnap/terminal.h"

static const char *const usage[] = {"[OPTIONS] IMAGE", NULL};

static const struct operand operands[] = {
    {.name = "IMAGE", .help = "the image to describe"},
    {.name = NULL},
};

static const struct option_spec options[] = {
    {.name = NULL},
};

#define ID_TEXT_MAX 33

/* As the summary of a snapshot has it. */
static char *id_text(char *out, const uint8_t id[16])
{
    for (int i = 0; i < 16; i++)
        sprintf(out + 2 * (size_t)i, "%02x", id[i]);
    return out;
}

static const char *kind_name(uint32_t kind)
{
    switch (kind) {
    case REGION_ANON:
        return "anonymous";
    case REGION_SHARED:
        return "shared";
    case REGION_PRIVATE_FILE:
        return "private-file";
    default:
        return "unknown";
    }
}

static uint64_t count_hot_pages(const struct image *img)
{
    uint64_t n, pages = 0;
    const struct image_hot *hot = image_hot_list(img, &n);
    for (uint64_t i = 0; i < n; i++)
        pages += (unsigned)__builtin_popcountll(hot[i].written);
    return pages;
}

static uint64_t count_ram_bytes(const struct image *img)
{
    uint32_t n;
    uint64_t bytes = 0;
    const struct image_region *r = image_regions(img, &n);
    for (uint32_t i = 0; i < n; i++)
        bytes += r[i].bytes;
    return bytes;
}

/* ---- as JSON ---- */

static void add_number(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer(n > INT64_MAX ? INT64_MAX : (json_int_t)n));
}

/* A value of the description under the same name; null where it is not recorded. */
static void add_recorded(json_t *o, const json_t *description, const char *key)
{
    json_t *value = json_object_get(description, key);
    json_object_set(o, key, value ? value : json_null());
}

/* What a restore with the recorded line gives the guest; NULL: no QEMU's image. */
static const char *vmgenid_name(const json_t *description)
{
    const char *vmm = json_string_value(json_object_get(description, "vmm"));
    return vmm && strcmp(vmm, "qemu") == 0 ? generation_id_name(generation_id_of(description, NULL))
                                           : NULL;
}

static json_t *regions_json(const struct image *img)
{
    json_t *list = json_array();
    uint32_t n;
    const struct image_region *r = image_regions(img, &n);
    for (uint32_t i = 0; i < n; i++) {
        json_t *o = json_object();
        json_object_set_new(o, "name", report_string(r[i].name));
        json_object_set_new(o, "kind", json_string(kind_name(r[i].kind)));
        add_number(o, "bytes", r[i].bytes);
        add_number(o, "max_bytes", r[i].max_bytes);
        add_number(o, "page_bytes", r[i].page_bytes);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *gpa_json(const struct image *img)
{
    json_t *list = json_array();
    uint32_t n_regions;
    uint64_t n;
    const struct image_gpa *g = image_gpa_ranges(img, &n);
    const struct image_region *regions = image_regions(img, &n_regions);
    for (uint64_t i = 0; i < n; i++) {
        json_t *o = json_object();
        add_number(o, "address", g[i].gpa);
        add_number(o, "bytes", g[i].bytes);
        json_object_set_new(o, "region", report_string(regions[g[i].region].name));
        add_number(o, "region_offset", g[i].offset);
        json_object_set_new(o, "rom", json_boolean(g[i].flags & GPA_ROM));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *workset_json(const struct image *img)
{
    struct workset w = {0};
    struct error e = {0};
    int rc = workset_read(&w, img, &e);
    json_t *n = rc ? json_null() : json_integer((json_int_t)w.n);
    workset_free(&w);
    return n;
}

static json_t *summary_json(const struct image *img, const json_t *description, const char *path)
{
    static const char *const recorded[] = {"vm_name", "vmm",         "vmm_version",
                                           "machine", "accelerator", "status"};
    const struct image_trailer *t = image_get_trailer(img);
    char id[ID_TEXT_MAX], instant[FORMAT_MAX];
    uint64_t state_bytes;
    json_t *o = json_object(), *launch = json_object_get(description, "launch");
    image_device_state(img, &state_bytes);
    json_object_set_new(o, "image", report_string(path));
    add_number(o, "format_version", image_get_header(img)->version);
    json_object_set_new(o, "image_id", json_string(id_text(id, t->image_id)));
    json_object_set_new(o, "instant", json_string(format_instant(instant, t->instant_ns)));
    for (size_t i = 0; i < sizeof(recorded) / sizeof(recorded[0]); i++)
        add_recorded(o, description, recorded[i]);
    const char *vmgenid = vmgenid_name(description);
    json_object_set_new(o, "vmgenid", vmgenid ? json_string(vmgenid) : json_null());
    json_t *argv = json_object_get(launch, "argv");
    json_object_set(o, "command_line", argv ? argv : json_null());
    add_number(o, "ram_bytes", count_ram_bytes(img));
    add_number(o, "image_bytes", t->file_bytes);
    add_number(o, "pages_total", t->pages_zero + t->pages_stored + t->pages_poisoned);
    add_number(o, "pages_zero", t->pages_zero);
    add_number(o, "pages_stored", t->pages_stored);
    add_number(o, "pages_poisoned", t->pages_poisoned);
    add_number(o, "pages_from_faults", t->pages_from_faults);
    add_number(o, "hot_pages", count_hot_pages(img));
    json_object_set_new(o, "workset_clusters", workset_json(img));
    add_number(o, "device_state_bytes", state_bytes);
    json_object_set_new(o, "base", json_null());
    json_object_set_new(o, "regions", regions_json(img));
    json_object_set_new(o, "guest_physical_ranges", gpa_json(img));
    return o;
}

/* ---- as text ---- */

/* "name         text". The text is ours, or was made safe. */
static void line_of(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void line_of(const char *name, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    report_line("%-13s%s", name, text);
}

/* A text of the description, safe to print; `otherwise` where it is not recorded or empty. The
 * caller frees it. */
static char *recorded_text(const json_t *description, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(description, key));
    return terminal_text(text && *text ? text : otherwise);
}

static void print_source(const json_t *description)
{
    char *name CLEANUP_FREE = recorded_text(description, "vm_name", "(no name)");
    char *status CLEANUP_FREE = recorded_text(description, "status", "in an unknown state");
    char *vmm CLEANUP_FREE = recorded_text(description, "vmm", "unknown VMM");
    char *version CLEANUP_FREE = recorded_text(description, "vmm_version", "");
    char *machine CLEANUP_FREE = recorded_text(description, "machine", "");
    char *accelerator CLEANUP_FREE = recorded_text(description, "accelerator", "unknown");
    if (!name || !status || !vmm || !version || !machine || !accelerator)
        return;
    line_of("VM", "%s, %s at the instant", name, status);
    line_of("VMM", "%s%s%s", vmm, *version ? " " : "", version);
    if (*machine)
        line_of("machine", "%s, accelerator %s", machine, accelerator);
    else /* a VMM of somebody's own names none */
        line_of("accelerator", "%s", accelerator);
    if (vmgenid_name(description))
        line_of("vmgenid", "%s", generation_id_words(generation_id_of(description, NULL)));
}

/* What restore --learn has left beside the image, if anything. */
static void print_workset(const struct image *img)
{
    struct workset w = {0};
    struct error e = {0};
    int rc = workset_read(&w, img, &e);
    if (rc == 0)
        line_of("working set", "%" PRIu64 " clusters", w.n);
    else if (rc != -ENOENT)
        line_of("working set", "of no use: %s", e.message);
    workset_free(&w);
}

static void print_sizes(const struct image *img)
{
    const struct image_trailer *t = image_get_trailer(img);
    char ram[FORMAT_MAX], stored[FORMAT_MAX], state[FORMAT_MAX];
    uint64_t state_bytes, ram_bytes = count_ram_bytes(img);
    image_device_state(img, &state_bytes);
    line_of("memory",
            "%s in %" PRIu64 " pages: %" PRIu64 " zero, %" PRIu64 " stored, %" PRIu64 " poisoned",
            format_bytes(ram, ram_bytes), t->pages_zero + t->pages_stored + t->pages_poisoned,
            t->pages_zero, t->pages_stored, t->pages_poisoned);
    line_of("stored", "%s (%.1f:1)", format_bytes(stored, t->file_bytes),
            (double)ram_bytes / (double)t->file_bytes);
    line_of("hot pages", "%" PRIu64, count_hot_pages(img));
    print_workset(img);
    line_of("device state", "%s", format_bytes(state, state_bytes));
}

static void print_regions(const struct image *img)
{
    uint32_t n;
    const struct image_region *r = image_regions(img, &n);
    for (uint32_t i = 0; i < n; i++) {
        char bytes[FORMAT_MAX], page[FORMAT_MAX];
        line_of("region", "%s: %s, %s, pages of %s", r[i].name, format_bytes(bytes, r[i].bytes),
                kind_name(r[i].kind), format_bytes(page, r[i].page_bytes));
    }
}

static void print_gpa(const struct image *img)
{
    uint32_t n_regions;
    uint64_t n;
    const struct image_gpa *g = image_gpa_ranges(img, &n);
    const struct image_region *regions = image_regions(img, &n_regions);
    for (uint64_t i = 0; i < n; i++)
        line_of("addresses",
                "0x%010" PRIx64 " to 0x%010" PRIx64 ": %s, from offset 0x%" PRIx64 "%s", g[i].gpa,
                g[i].gpa + g[i].bytes - 1, regions[g[i].region].name, g[i].offset,
                g[i].flags & GPA_ROM ? ", ROM" : "");
}

static void print_poison(const struct image *img)
{
    uint64_t n;
    uint32_t n_regions;
    const struct image_poison *p = image_poison_list(img, &n);
    const struct image_region *regions = image_regions(img, &n_regions);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t offset;
        uint32_t region = image_cluster_region(img, p[i].cluster, &offset);
        for (uint64_t mask = p[i].pages; mask; mask &= mask - 1)
            line_of("poisoned", "%s, offset 0x%" PRIx64, regions[region].name,
                    offset + (uint64_t)__builtin_ctzll(mask) * IMAGE_PAGE_BYTES);
    }
}

/* As a shell takes it. */
static void print_command_line(const json_t *description)
{
    const json_t *argv = json_object_get(json_object_get(description, "launch"), "argv");
    char *text CLEANUP_FREE = NULL;
    size_t len = 0, i;
    const json_t *word;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return;
    json_array_foreach(argv, i, word)
    {
        const char *raw = json_string_value(word);
        char *quoted CLEANUP_FREE = terminal_word(raw ? raw : "");
        fprintf(f, "%s%s", i ? " " : "", quoted ? quoted : "?");
    }
    fclose(f);
    if (json_array_size(argv) > 0)
        report_line("%-13s%s", "command line", text);
}

static void print_text(const struct image *img, const json_t *description, const char *path)
{
    const struct image_trailer *t = image_get_trailer(img);
    char id[ID_TEXT_MAX], instant[FORMAT_MAX];
    line_of("image", "%s, format %u", path, image_get_header(img)->version);
    line_of("id", "%s", id_text(id, t->image_id));
    line_of("instant", "%s", format_instant(instant, t->instant_ns));
    print_source(description);
    print_sizes(img);
    print_regions(img);
    if (log_level() >= LOG_VERBOSE) {
        print_gpa(img);
        print_poison(img);
    }
    print_command_line(description);
}

static int run(const struct command_line *line, struct error *e)
{
    const char *path = line->operand[0];
    struct image *img;
    int r = image_open(&img, path, e);
    if (r < 0)
        return r;
    json_error_t where;
    json_t *description = json_loads(image_description(img), 0, &where);
    if (!json_is_object(description)) {
        error_set(e, VMSNAP_EXIT_IMAGE, 0, "%s: its description is no JSON object", path);
        json_decref(description);
        image_close(img);
        return -EBADMSG;
    }
    if (report_is_json())
        report_object("summary", summary_json(img, description, path));
    else
        print_text(img, description, path);
    json_decref(description);
    image_close(img);
    return VMSNAP_EXIT_DONE;
}

const struct command command_info = {
    .name = "info",
    .summary = "say what is in an image",
    .usage = usage,
    .operands = operands,
    .options = options,
    .run = run,
};
