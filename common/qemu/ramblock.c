/*
 * The guest runs on while we ask, and may move its memory about (PCI BARs, the BIOS area): an
 * answer that contradicts an earlier one means that, and everything is asked again, a few times.
 */
#include "common/qemu/ramblock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/qemu/ramblock_parse.h"
#include "common/qemu/ramblock_place.h"

#define ATTEMPTS 4

/* What one attempt works on. */
struct search {
    struct qmp *q;
    const struct target *t;
    uint64_t deadline_ns;
    struct ramblock_line *lines;
    struct placement *places;
    size_t n_lines;
    struct flat_range *ranges;
    uint64_t *range_hva; /* RAMBLOCK_NO_HVA: not RAM any more */
    size_t n_ranges;
    struct mapping_list maps;
    struct span_list spans;
};

static void search_free(struct search *s)
{
    free(s->lines);
    free(s->places);
    free(s->ranges);
    free(s->range_hva);
    mapping_list_free(&s->maps);
    span_list_free(&s->spans);
}

static int ask(struct search *s, const char *line, char **text, struct error *e)
{
    return qmp_hmp(s->q, line, clock_ms_until(s->deadline_ns), text, e);
}

static int no_memory(struct error *e)
{
    return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot list the ramblocks");
}

/* To be asked again: the guest may have moved it meanwhile. */
static int changed(struct error *e, const char *what)
{
    error_set(e, VMSNAP_EXIT_TARGET, 0, "memory block %s is not where QEMU says", what);
    return -EAGAIN;
}

static int ask_blocks(struct search *s, struct error *e)
{
    CLEANUP_FREE char *text = NULL;
    int r = ask(s, "info ramblock", &text, e);
    if (r == 0)
        r = ramblock_parse_list(text, &s->lines, &s->n_lines, e);
    if (r < 0)
        return r;
    s->places = calloc(s->n_lines, sizeof(*s->places));
    if (!s->places)
        return no_memory(e);
    for (size_t i = 0; i < s->n_lines; i++) {
        s->places[i].block = &s->lines[i];
        s->places[i].hva = RAMBLOCK_NO_HVA;
        for (size_t j = 0; j < i; j++)
            if (s->lines[i].name[0] && strcmp(s->lines[i].name, s->lines[j].name) == 0)
                return error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "two ramblocks are named \"%s\"",
                                 s->lines[i].name);
    }
    return 0;
}

static int ask_ranges(struct search *s, struct error *e)
{
    CLEANUP_FREE char *flat = NULL;
    int r = ask(s, "info mtree -f", &flat, e);
    if (r == 0)
        r = ramblock_parse_flat(flat, &s->ranges, &s->n_ranges, e);
    if (r < 0)
        return r;
    s->range_hva = calloc(s->n_ranges, sizeof(*s->range_hva));
    if (!s->range_hva)
        return no_memory(e);
    for (size_t i = 0; i < s->n_ranges; i++) {
        char line[64];
        CLEANUP_FREE char *text = NULL;
        snprintf(line, sizeof(line), "gpa2hva 0x%llx", (unsigned long long)s->ranges[i].gpa);
        r = ask(s, line, &text, e);
        if (r < 0)
            return r;
        if (!ramblock_parse_gpa2hva(text, &s->range_hva[i]))
            s->range_hva[i] = RAMBLOCK_NO_HVA;
    }
    return 0;
}

/* The only block that a range of this name can belong to, or NULL. */
static struct placement *only_block_for(struct search *s, const char *region)
{
    struct placement *found = NULL;
    for (size_t i = 0; i < s->n_lines; i++) {
        if (!ramblock_name_fits(s->lines[i].name, region))
            continue;
        if (found)
            return NULL;
        found = &s->places[i];
    }
    return found;
}

/* Takes the addresses that QEMU says. */
static int place_by_address(struct search *s, struct error *e)
{
    for (size_t i = 0; i < s->n_lines; i++) {
        struct placement *p = &s->places[i];
        if (p->block->hva != RAMBLOCK_NO_HVA &&
            placement_set(p, p->block->hva, "info ramblock", &s->spans) < 0)
            return changed(e, p->block->name);
    }
    for (size_t i = 0; i < s->n_ranges; i++) {
        const struct flat_range *f = &s->ranges[i];
        struct placement *p = only_block_for(s, f->region);
        if (!p || s->range_hva[i] == RAMBLOCK_NO_HVA || s->range_hva[i] < f->offset)
            continue;
        uint64_t hva = s->range_hva[i] - f->offset;
        if (p->hva == hva)
            continue;
        if (p->hva != RAMBLOCK_NO_HVA || placement_set(p, hva, "gpa2hva", &s->spans) < 0)
            return changed(e, p->block->name);
    }
    return 0;
}

/* The block that has `len` bytes from `hva` on, as an index of out->items; -1 for none. */
static int64_t region_at(const struct region_set *out, uint64_t hva, uint64_t len)
{
    for (uint32_t i = 0; i < out->count; i++) {
        const struct region *r = &out->items[i];
        if (hva >= r->hva && hva - r->hva < r->max_bytes && len <= r->max_bytes - (hva - r->hva))
            return i;
    }
    return -1;
}

static int compare_gpa(const void *a, const void *b)
{
    const struct gpa_range *x = a, *y = b;
    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

/* True when the range is of a block that is not saved: QEMU gave it no name to migrate it by. */
static bool is_unnamed(const struct search *s, const struct flat_range *f)
{
    for (size_t i = 0; i < s->n_lines; i++)
        if (ramblock_name_fits(s->lines[i].name, f->region))
            return false;
    return true;
}

/* What the guest sees of the blocks. A range must be where its name and offset say. */
static int fill_gpa(struct region_set *out, const struct search *s, struct error *e)
{
    out->gpa = calloc(s->n_ranges, sizeof(*out->gpa));
    if (!out->gpa)
        return no_memory(e);
    for (size_t i = 0; i < s->n_ranges; i++) {
        const struct flat_range *f = &s->ranges[i];
        if (is_unnamed(s, f))
            continue;
        if (s->range_hva[i] == RAMBLOCK_NO_HVA)
            return changed(e, f->region);
        int64_t at = region_at(out, s->range_hva[i], f->bytes);
        if (at < 0 || !ramblock_name_fits(out->items[at].name, f->region) ||
            s->range_hva[i] - out->items[at].hva != f->offset)
            return changed(e, f->region);
        out->gpa[out->n_gpa++] = (struct gpa_range){.gpa = f->gpa,
                                                    .bytes = f->bytes,
                                                    .region = (uint32_t)at,
                                                    .flags = f->rom ? GPA_ROM : 0,
                                                    .offset = f->offset};
    }
    qsort(out->gpa, out->n_gpa, sizeof(*out->gpa), compare_gpa);
    return 0;
}

/* The regions of all blocks that have a name: QEMU migrates no others, nor do we save them. */
static int fill_regions(struct region_set *out, const struct search *s, struct error *e)
{
    out->items = calloc(s->n_lines, sizeof(*out->items));
    if (!out->items)
        return no_memory(e);
    for (size_t i = 0; i < s->n_lines; i++) {
        const struct ramblock_line *b = &s->lines[i];
        if (!b->name[0]) {
            log_debug("an unnamed ramblock of %llu bytes is left out, as QEMU's migration does",
                      (unsigned long long)b->total);
            continue;
        }
        struct region *r = &out->items[out->count];
        memcpy(r->name, b->name, sizeof(r->name));
        r->hva = s->places[i].hva;
        r->bytes = b->used;
        r->max_bytes = b->total;
        r->fd = -1;
        out->count++;
        int err = region_classify(r, s->t, &s->maps, e);
        if (err < 0)
            return err;
        log_debug("ramblock %s: %llu bytes at 0x%llx (by %s)", r->name,
                  (unsigned long long)r->bytes, (unsigned long long)r->hva, s->places[i].how);
    }
    return 0;
}

/* One attempt. -EAGAIN: the guest moved something meanwhile. */
static int search_run(struct search *s, struct region_set *out, struct error *e)
{
    int r = ask_blocks(s, e);
    if (r == 0)
        r = ask_ranges(s, e);
    if (r == 0)
        r = target_mappings(s->t, &s->maps, e);
    if (r == 0)
        r = span_list_find(&s->spans, &s->maps, e);
    if (r == 0 && s->spans.count == 0)
        r = error_set(e, VMSNAP_EXIT_TARGET, EINVAL, "process %d has no guest memory",
                      (int)s->t->pid);
    if (r == 0)
        r = place_by_address(s, e);
    if (r == 0)
        r = placement_rest(s->places, s->n_lines, &s->spans, s->t, &s->maps, e);
    if (r == 0)
        r = fill_regions(out, s, e);
    if (r == 0)
        r = fill_gpa(out, s, e);
    return r;
}

int ramblocks_find(struct region_set *out, struct qmp *q, const struct target *t, int timeout_ms,
                   struct error *e)
{
    uint64_t deadline_ns = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    int r = -EAGAIN;
    memset(out, 0, sizeof(*out));
    for (int i = 0; i < ATTEMPTS && r == -EAGAIN; i++) {
        struct search s = {.q = q, .t = t, .deadline_ns = deadline_ns};
        r = search_run(&s, out, e);
        search_free(&s);
        if (r < 0)
            region_set_free(out);
    }
    if (r == -EAGAIN)
        error_hint(e, "process %d may not be the VM behind this QMP socket: name it with --pid",
                   (int)t->pid);
    return r;
}
