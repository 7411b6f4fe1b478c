#include "common/vmm/vmm_control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/image/format.h"
#include "common/json_text.h"
#include "common/launch.h"
#include "common/vmm/vmm_listens.h"

#define PROTOCOL_VERSION 1
#define CPUS_MAX 65536
#define TEXT_MAX_BYTES 128u
#define USER_END                                                                                   \
    (1ull << 47)               /* of a process's addresses, x86-64 with four levels of page tables \
                                */
#define GUEST_END (1ull << 52) /* of physical addresses, x86-64 */
#define PAGE_BYTES 4096u

/* The key of a description that says so, and with which version of the protocol. */
#define DESCRIPTION_KEY "vmsnap_vmm"

static int nonsense(struct error *e, const char *what)
{
    error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "query-vm: the VMM says %s", what);
    return -EPROTO;
}

/* ---- who it is ---- */

bool vmm_control_greets(const struct qmp *q)
{
    return json_object_get(json_object_get(qmp_greeting(q), "version"), "vmsnap-vmm") != NULL;
}

static int check_version(const struct qmp *q, struct error *e)
{
    const json_t *v = json_object_get(json_object_get(qmp_greeting(q), "version"), "vmsnap-vmm");
    if (json_is_integer(v) && json_integer_value(v) == PROTOCOL_VERSION)
        return 0;
    error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
              "the VMM speaks version %lld of the control protocol; this vmsnap knows version %d",
              (long long)json_integer_value(v), PROTOCOL_VERSION);
    error_hint(e, "use a vmsnap that is as new as the VMM, or the other way about");
    return -EPROTO;
}

/* A text that can stand in a message and in an image: no control characters, not too long. */
static bool is_good_text(const json_t *v, size_t least, size_t most)
{
    const char *text = json_string_value(v);
    size_t len = json_string_length(v);
    if (!text || len < least || len > most || strlen(text) != len)
        return false;
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if (*p < 0x20 || *p == 0x7f || (p[0] == 0xc2 && p[1] < 0xa0))
            return false;
    return true;
}

static int check_answer(const json_t *answer, struct error *e)
{
    static const struct {
        const char *key;
        size_t least;
        const char *problem;
    } texts[] = {
        {"vmm", 1, "no good name of its kind (\"vmm\")"},
        {"version", 1, "no good \"version\""},
        {"name", 0, "no good \"name\" of the VM"},
        {"accelerator", 1, "no good \"accelerator\""},
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        if (!is_good_text(json_object_get(answer, texts[i].key), texts[i].least, TEXT_MAX_BYTES))
            return nonsense(e, texts[i].problem);
    if (strcmp(json_text(answer, "vmm", ""), "qemu") == 0)
        return nonsense(e, "that it is QEMU, which speaks another protocol");
    const json_t *cpus = json_object_get(answer, "cpus");
    if (!json_is_integer(cpus) || json_integer_value(cpus) < 1 ||
        json_integer_value(cpus) > CPUS_MAX)
        return nonsense(e, "no good number of \"cpus\"");
    return 0;
}

int vmm_control_query(json_t **answer, struct qmp *q, int timeout_ms, struct error *e)
{
    json_t *got = NULL;
    int r = check_version(q, e);
    if (r == 0)
        r = qmp_command(q, "query-vm", NULL, -1, timeout_ms, &got, e);
    if (r == 0)
        r = check_answer(got, e);
    if (r < 0)
        json_decref(got);
    else
        *answer = got;
    return r;
}

/* ---- its memory ---- */

/* A number of a block that is no negative one. */
static bool take_number(const json_t *block, const char *key, uint64_t *out)
{
    const json_t *v = json_object_get(block, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static int bad_block(struct error *e, const char *name, const char *what)
{
    error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "query-vm: memory block '%s' %s", name, what);
    return -EPROTO;
}

/* Checks what can be told of one block alone. */
static int take_block(struct region *r, struct gpa_range *g, const json_t *block, size_t index,
                      struct error *e)
{
    const json_t *name = json_object_get(block, "name");
    if (!is_good_text(name, 1, REGION_NAME_MAX - 1)) {
        error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "query-vm: memory block %zu has no good name",
                  index);
        return -EPROTO;
    }
    *r = (struct region){.fd = -1};
    memcpy(r->name, json_string_value(name), json_string_length(name) + 1);
    if (!take_number(block, "hva", &r->hva) || !take_number(block, "bytes", &r->bytes) ||
        !take_number(block, "gpa", &g->gpa))
        return bad_block(e, r->name, "lacks a number: hva, bytes and gpa are needed");
    if (r->bytes == 0 || r->bytes % PAGE_BYTES || r->hva % PAGE_BYTES || g->gpa % PAGE_BYTES)
        return bad_block(e, r->name, "is empty or not whole pages");
    if (r->hva == 0 || r->hva >= USER_END || r->bytes > USER_END - r->hva)
        return bad_block(e, r->name, "lies outside of a process's addresses");
    if (g->gpa >= GUEST_END || r->bytes > GUEST_END - g->gpa)
        return bad_block(e, r->name, "lies outside of a guest's addresses");
    r->max_bytes = g->bytes = r->bytes;
    return 0;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

/* Holds block `i` against those before it. */
static int check_others(const struct region_set *s, uint32_t i, struct error *e)
{
    const struct region *r = &s->items[i];
    for (uint32_t k = 0; k < i; k++) {
        const struct region *o = &s->items[k];
        if (strcmp(r->name, o->name) == 0)
            return bad_block(e, r->name, "is there twice");
        if (overlap(r->hva, r->bytes, o->hva, o->bytes))
            return bad_block(e, r->name, "overlaps another one in the process");
        if (overlap(s->gpa[i].gpa, r->bytes, s->gpa[k].gpa, o->bytes))
            return bad_block(e, r->name, "overlaps another one in the guest");
    }
    return 0;
}

static int compare_gpa(const void *a, const void *b)
{
    const struct gpa_range *x = a, *y = b;
    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

/* What the kernel says of it: mapped whole, of a kind that can be protected, whole pages of it. */
static int classify(struct region *r, const struct target *t, const struct mapping_list *maps,
                    struct error *e)
{
    int err = region_classify(r, t, maps, e);
    if (err < 0)
        return err;
    if (r->hva % r->page_bytes || r->bytes % r->page_bytes)
        return bad_block(e, r->name, "does not fill whole huge pages");
    return 0;
}

static int take_blocks(struct region_set *out, const json_t *blocks, const struct target *t,
                       const struct mapping_list *maps, struct error *e)
{
    for (size_t i = 0; i < json_array_size(blocks); i++) {
        struct gpa_range *g = &out->gpa[i];
        int r = take_block(&out->items[i], g, json_array_get(blocks, i), i, e);
        if (r < 0)
            return r;
        g->region = (uint32_t)i;
        out->count = out->n_gpa = (uint32_t)i + 1;
        r = check_others(out, (uint32_t)i, e);
        if (r == 0)
            r = classify(&out->items[i], t, maps, e);
        if (r < 0)
            return r;
    }
    qsort(out->gpa, out->n_gpa, sizeof(*out->gpa), compare_gpa);
    return 0;
}

int vmm_control_find_memory(struct region_set *out, const json_t *answer, const struct target *t,
                            struct error *e)
{
    const json_t *blocks = json_object_get(answer, "memory");
    size_t n = json_array_size(blocks);
    struct mapping_list maps = {0};
    *out = (struct region_set){0};
    if (n == 0 || n > IMAGE_MAX_REGIONS)
        return nonsense(e, n ? "too many memory blocks" : "nothing of its \"memory\"");
    out->items = calloc(n, sizeof(*out->items));
    out->gpa = calloc(n, sizeof(*out->gpa));
    int r = 0;
    if (!out->items || !out->gpa)
        r = error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot list the memory blocks");
    if (r == 0)
        r = target_mappings(t, &maps, e);
    if (r == 0)
        r = take_blocks(out, blocks, t, &maps, e);
    mapping_list_free(&maps);
    if (r < 0)
        region_set_free(out);
    return r;
}

/* ---- its description ---- */

bool vmm_control_describes(const json_t *description)
{
    return json_object_get(description, DESCRIPTION_KEY) != NULL;
}

static json_int_t total_bytes(const json_t *answer)
{
    json_int_t sum = 0;
    size_t i;
    const json_t *block;
    json_array_foreach(json_object_get(answer, "memory"), i, block)
    {
        sum += json_integer_value(json_object_get(block, "bytes"));
    }
    return sum;
}

int vmm_control_describe(json_t **out, const json_t *answer, const char *status,
                         const struct target *t, struct error *e)
{
    json_t *launch = NULL, *listens = NULL;
    int r = launch_describe(&launch, t, launch_scan_paths, e);
    if (r == 0)
        r = vmm_listens(&listens, t, e);
    if (r < 0) {
        json_decref(launch);
        error_wrap(e, "describing the VM");
        return r;
    }
    *out = json_pack("{s:i, s:O, s:O, s:O, s:s, s:O, s:{s:O}, s:{s:I}, s:o, s:o}", DESCRIPTION_KEY,
                     PROTOCOL_VERSION, "vmm", json_object_get(answer, "vmm"), "vmm_version",
                     json_object_get(answer, "version"), "vm_name", json_object_get(answer, "name"),
                     "status", status, "accelerator", json_object_get(answer, "accelerator"),
                     "topology", "cpus", json_object_get(answer, "cpus"), "memory", "size",
                     total_bytes(answer), "listens", listens, "launch", launch);
    return *out ? 0 : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot describe the VM");
}

static int differs(struct error *e, const char *what, const char *recorded, const char *here)
{
    error_set(e, VMSNAP_EXIT_MISMATCH, 0,
              "the VM is not the one that was recorded: %s: recorded %.100s, here %.100s", what,
              recorded, here);
    error_hint(e, "start the VMM as it was: `vmsnap restore --print-command IMAGE` shows the line");
    return -EINVAL;
}

int vmm_control_compare(const json_t *recorded, const json_t *answer, struct error *e)
{
    static const char *const keys[] = {"vmm", "accelerator"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        const char *a = json_text(recorded, keys[i], "(nothing)");
        const char *b = json_text(answer, keys[i], "(nothing)");
        if (strcmp(a, b) != 0)
            return differs(e, keys[i], a, b);
    }
    const json_t *cpus = json_object_get(json_object_get(recorded, "topology"), "cpus");
    const json_t *here = json_object_get(answer, "cpus");
    if (json_is_integer(cpus) && json_integer_value(cpus) == json_integer_value(here))
        return 0;
    char a[32], b[32];
    snprintf(a, sizeof(a), "%lld", (long long)json_integer_value(cpus));
    snprintf(b, sizeof(b), "%lld", (long long)json_integer_value(here));
    return differs(e, "CPUs", a, b);
}
