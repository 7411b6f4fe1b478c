/*
 * qemu_probe - what vmsnap makes of a QEMU's memory, for tests.
 *
 *   qemu_probe SOCKET PID list     all blocks and GPA ranges as one JSON object
 *   qemu_probe SOCKET PID read NAME OFFSET BYTES
 *                                  a block's bytes, by region_read(), to stdout
 *
 * PID 0: the process behind the socket.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/qemu/hazards.h"
#include "common/qemu/machine.h"
#include "common/qemu/ramblock.h"
#include "common/qmp.h"

#define TIMEOUT_MS 10000
#define READ_PAGES 64u

static int fail(const struct error *e)
{
    fprintf(stderr, "%s\nhint: %s\n", e->message, e->hint);
    return e->exit_code ? e->exit_code : 1;
}

static int print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(value);
    return 0;
}

static json_t *region_object(const struct region *r)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:i, s:b}", "name", r->name, "hva",
                     (json_int_t)r->hva, "bytes", (json_int_t)r->bytes, "max_bytes",
                     (json_int_t)r->max_bytes, "page_bytes", (json_int_t)r->page_bytes, "kind",
                     (int)r->kind, "mergeable", (int)r->mergeable);
}

static json_t *gpa_object(const struct gpa_range *g)
{
    return json_pack("{s:I, s:I, s:i, s:I, s:b}", "gpa", (json_int_t)g->gpa, "bytes",
                     (json_int_t)g->bytes, "region", (int)g->region, "offset",
                     (json_int_t)g->offset, "rom", (int)(g->flags & GPA_ROM));
}

static int list(const struct region_set *blocks, pid_t pid, uint64_t took_ns)
{
    json_t *regions = json_array(), *gpa = json_array();
    for (uint32_t i = 0; i < blocks->count; i++)
        json_array_append_new(regions, region_object(&blocks->items[i]));
    for (uint32_t i = 0; i < blocks->n_gpa; i++)
        json_array_append_new(gpa, gpa_object(&blocks->gpa[i]));
    json_t *all = json_pack("{s:i, s:I, s:o, s:o}", "pid", (int)pid, "took_ns", (json_int_t)took_ns,
                            "regions", regions, "gpa", gpa);
    return print_json(all);
}

/* Writes the pages of one piece that are not all zeros. */
static int write_pages(FILE *f, uint64_t first, unsigned n, const char *buf)
{
    static const char zero[4096];
    for (unsigned i = 0; i < n; i++) {
        uint64_t number = first + i;
        if (memcmp(buf + i * 4096u, zero, 4096) == 0)
            continue;
        if (fwrite(&number, sizeof(number), 1, f) != 1 || fwrite(buf + i * 4096u, 4096, 1, f) != 1)
            return -EIO;
    }
    return 0;
}

static int dump_block(const struct region_set *blocks, const struct target *t, const char *name,
                      const char *path)
{
    static char buf[READ_PAGES * 4096u];
    const struct region *r = NULL;
    for (uint32_t i = 0; i < blocks->count; i++)
        if (strcmp(blocks->items[i].name, name) == 0)
            r = &blocks->items[i];
    CLEANUP_STREAM FILE *f = fopen(path, "we");
    if (!r || !f) {
        fprintf(stderr, "no block %s, or no file %s\n", name, path);
        return 2;
    }
    for (uint64_t at = 0; at < r->bytes; at += READ_PAGES * 4096u) {
        uint64_t left = (r->bytes - at) / 4096;
        unsigned n = left < READ_PAGES ? (unsigned)left : READ_PAGES;
        int err = region_read(r, t, at, n, buf, NULL, NULL);
        if (err == 0)
            err = write_pages(f, at / 4096, n, buf);
        if (err < 0) {
            fprintf(stderr, "%s at %" PRIu64 ": %s\n", name, at, strerror(-err));
            return 1;
        }
    }
    return fflush(f) == 0 ? 0 : 1;
}

static int describe(struct qmp *q, const struct target *t, const char *recorded_path)
{
    struct error e = {0};
    json_t *described = NULL;
    uint64_t from = clock_monotonic_ns();
    if (machine_describe(&described, q, t, TIMEOUT_MS, &e) < 0)
        return fail(&e);
    fprintf(stderr, "described in %llu us\n",
            (unsigned long long)(clock_monotonic_ns() - from) / 1000);
    if (!recorded_path)
        return print_json(described);
    json_t *recorded = json_load_file(recorded_path, 0, NULL);
    int r = recorded ? machine_compare(recorded, described, &e) : -1;
    json_decref(recorded);
    json_decref(described);
    return r < 0 ? fail(&e) : 0;
}

static int hazards(struct qmp *q, const struct target *t, const struct region_set *blocks)
{
    struct error e = {0};
    struct hazard found[HAZARD_MAX];
    size_t n;
    const struct hazard_scope scope = {
        .t = t, .regions = blocks->items, .n_regions = blocks->count};
    if (qemu_hazards_find(found, &n, &scope, q, NULL, TIMEOUT_MS, &e) < 0)
        return fail(&e);
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(all, json_pack("{s:s, s:b, s:b, s:b, s:s}", "name",
                                             found[i].kind->name, "found", (int)found[i].found,
                                             "warning", (int)found[i].warning, "allowable",
                                             (int)found[i].allowable, "reason", found[i].reason));
    return print_json(all);
}

int main(int argc, char **argv)
{
    struct error e = {0};
    struct qmp *q;
    struct target t;
    struct region_set blocks;
    pid_t pid = argc > 3 ? atoi(argv[2]) : -1;
    if (pid < 0)
        return 2;
    log_set_level(LOG_DEBUG);
    if (qmp_connect(&q, argv[1], TIMEOUT_MS, &e) < 0)
        return fail(&e);
    if (pid == 0 && qmp_peer_pid(qmp_fd(q), &pid) < 0)
        return 1;
    uint64_t from = clock_monotonic_ns();
    if (target_open(&t, pid, &e) < 0 || ramblocks_find(&blocks, q, &t, TIMEOUT_MS, &e) < 0)
        return fail(&e);
    int status = 2;
    if (strcmp(argv[3], "list") == 0)
        status = list(&blocks, pid, clock_monotonic_ns() - from);
    else if (strcmp(argv[3], "pages") == 0 && argc == 6)
        status = dump_block(&blocks, &t, argv[4], argv[5]);
    else if (strcmp(argv[3], "describe") == 0)
        status = describe(q, &t, NULL);
    else if (strcmp(argv[3], "compare") == 0 && argc == 5)
        status = describe(q, &t, argv[4]);
    else if (strcmp(argv[3], "hazards") == 0)
        status = hazards(q, &t, &blocks);
    region_set_free(&blocks);
    target_close(&t);
    qmp_close(q);
    return status;
}
