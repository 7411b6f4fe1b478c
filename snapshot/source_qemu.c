/*
 * A QEMU guest as a source: found through its QMP socket, its memory through ramblock.c, its
 * description through machine.c. The engine opens it before it forks, so that worker and guardian
 * share the connection; only one of them uses it at a time (the guardian after the worker's death).
 */
#include "snapshot/source_qemu.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/inject.h"
#include "common/log.h"
#include "common/qemu/hazards.h"
#include "common/qemu/machine.h"
#include "common/qemu/qom.h"
#include "common/testhook.h"
#include "common/vm_status.h"

/* A piece holds the VM's mmap_lock for about half a millisecond (6-10 ms per GiB measured). */
#define KSM_PIECE_BYTES (64ull << 20)

static int refuse_state(struct source_qemu *s, struct error *e)
{
    char status[VM_STATUS_BYTES];
    int r = vm_status_get(s->q, s->base.timeout_ms, status, e);
    return r < 0 ? r : vm_status_check(status, e);
}

/* Finds the VM's process, the one named or the one that listens on the socket, and takes it for
 * this snapshot. */
static int find_process(struct source_qemu *s, int qmp_socket, pid_t pid, struct error *e)
{
    if (pid <= 0) {
        int r = qmp_peer_pid(qmp_socket, &pid);
        if (r < 0) {
            error_set(e, VMSNAP_EXIT_TARGET, -r,
                      "cannot tell which process is behind the QMP socket");
            error_hint(e, "name the VM's process with --pid");
            return r;
        }
    }
    int r = target_open(&s->base.target, pid, e);
    return r < 0 ? r : target_lock(&s->base.target, e);
}

/* The process is looked at before the greeting is waited for: it says at once that another
 * snapshot holds the socket. */
static int connect_and_find(struct source_qemu *s, const char *qmp_path, pid_t pid, struct error *e)
{
    int timeout_ms = s->base.timeout_ms;
    CLEANUP_FD int fd = -1;
    int r = qmp_dial(&fd, qmp_path, timeout_ms, e);
    if (r < 0)
        return r;
    r = find_process(s, fd, pid, e);
    if (r < 0)
        return r;
    r = qmp_attach(&s->q, fd, timeout_ms, e);
    if (r < 0) {
        error_wrap(e, "QMP socket %s", qmp_path);
        return r;
    }
    take_fd(&fd);
    return 0;
}

static int find_memory(struct source_qemu *s, bool pid_given, struct error *e)
{
    int r = qmp_hmp(s->q, "info ramblock", s->base.timeout_ms, &s->blocks_text, e);
    if (r == 0)
        r = ramblocks_find(&s->blocks, s->q, &s->base.target, s->base.timeout_ms, e);
    if (r < 0) {
        if (!pid_given && e && e->exit_code == VMSNAP_EXIT_TARGET)
            error_hint(e,
                       "process %d listens on the QMP socket; if it only passes commands on to "
                       "QEMU (libvirtd does), name QEMU's own process with --pid",
                       (int)s->base.target.pid);
        return r;
    }
    s->base.regions = s->blocks.items;
    s->base.n_regions = s->blocks.count;
    s->base.gpa = s->blocks.gpa;
    s->base.n_gpa = s->blocks.n_gpa;
    return 0;
}

int source_qemu_list_plugged(struct qmp *q, int timeout_ms, json_t **plugged, struct error *e)
{
    static const char *const nodes[] = {"/machine/peripheral", "/machine/peripheral-anon"};
    struct qom m = qom_within(q, timeout_ms);
    json_t *all = json_array();
    int r = 0;
    for (size_t i = 0; i < sizeof(nodes) / sizeof(*nodes) && r == 0; i++) {
        json_t *list = NULL;
        r = qom_list(&m, nodes[i], &list, e);
        if (r == 0)
            json_array_append_new(all, list);
    }
    if (r < 0)
        json_decref(all);
    else
        *plugged = all;
    return r;
}

/* Hazards that are only told: exit code 3. */
static void tell_warnings(const struct source_qemu *s, json_t *warnings)
{
    for (size_t i = 0; i < s->n_hazards; i++)
        if (s->hazards[i].found && s->hazards[i].warning)
            json_array_append_new(
                warnings, json_sprintf("%s: %s", s->hazards[i].kind->name, s->hazards[i].reason));
}

static int qemu_describe(struct source *base, json_t **description, json_t *warnings,
                         struct error *e)
{
    struct source_qemu *s = source_qemu_of(base);
    struct hazard_scope scope = {.q = s->q,
                                 .t = &base->target,
                                 .regions = base->regions,
                                 .n_regions = base->n_regions,
                                 .timeout_ms = base->timeout_ms};
    json_t *described = NULL;
    int r = source_qemu_list_plugged(s->q, base->timeout_ms, &s->plugged, e);
    if (r == 0)
        r = machine_describe(&described, s->q, &base->target, base->timeout_ms, e);
    scope.described = described;
    if (r == 0)
        r = hazards_find(s->hazards, &s->n_hazards, &scope, e);
    if (r < 0) {
        json_decref(described);
        return r;
    }
    tell_warnings(s, warnings);
    *description = described;
    return 0;
}

/* After describe. */
static int qemu_refuse_hazards(struct source *base, const char *const *allowed, struct error *e)
{
    const struct source_qemu *s = source_qemu_of(base);
    return hazards_refuse(s->hazards, s->n_hazards, allowed, e);
}

/*
 * KSM takes write protection off with no event when it merges a page, even while protected. QEMU
 * marks its memory mergeable by default. MADV_UNMERGEABLE both unmerges and keeps ksmd away;
 * whether ksmd runs now does not matter, since it may be started at any moment.
 */
static int advise_mergeable(struct source *base, int advice, struct error *e)
{
    for (uint32_t i = 0; i < base->n_regions; i++) {
        const struct region *r = &base->regions[i];
        if (!r->mergeable)
            continue;
        int err = inject_madvise(&base->target, r->hva, r->max_bytes, advice, KSM_PIECE_BYTES,
                                 base->timeout_ms, e);
        if (err < 0) {
            error_wrap(e, "memory block %s", r->name);
            return err;
        }
    }
    return 0;
}

/* Nothing of the guest's memory may be left to KSM. */
static int check_unmerged(const struct source *base, struct error *e)
{
    struct mapping_list maps;
    int r = target_mappings(&base->target, &maps, e);
    for (uint32_t i = 0; r == 0 && i < base->n_regions; i++) {
        const struct region *block = &base->regions[i];
        for (size_t k = 0; k < maps.count; k++) {
            const struct mapping *m = &maps.items[k];
            if (m->mergeable && m->start < block->hva + block->max_bytes && m->end > block->hva) {
                error_set(e, VMSNAP_EXIT_HAZARD, 0,
                          "ksm: memory block %s could not be taken from KSM, which removes write "
                          "protection",
                          block->name);
                error_hint(e, "start the VM with -machine mem-merge=off");
                r = -EPERM;
                break;
            }
        }
    }
    mapping_list_free(&maps);
    return r;
}

static int qemu_prepare_memory(struct source *base, struct error *e)
{
    int r = disk_sync_start(&source_qemu_of(base)->disk_sync, &base->target, e);
    if (r < 0)
        return r;
    r = advise_mergeable(base, MADV_UNMERGEABLE, e);
    TESTHOOK_POINT("source-unmerged");
    if (r < 0) {
        error_wrap(e, "cannot take the guest's memory from KSM");
        return r;
    }
    return check_unmerged(base, e);
}

static int qemu_restore_memory(struct source *base, struct error *e)
{
    int r = advise_mergeable(base, MADV_MERGEABLE, e);
    if (r < 0)
        error_wrap(e, "cannot give the guest's memory back to KSM");
    return r;
}

static void qemu_close(struct source *base)
{
    struct source_qemu *s = source_qemu_of(base);
    disk_sync_stop(&s->disk_sync);
    if (s->state_fd >= 0)
        close(s->state_fd);
    region_set_free(&s->blocks);
    target_close(&base->target);
    qmp_close(s->q);
    free(s->blocks_text);
    json_decref(s->plugged);
    if (s->shared)
        munmap(s->shared, sizeof(*s->shared));
    free(s);
}

static const struct source_ops qemu_ops = {
    .name = "qemu",
    .describe = qemu_describe,
    .refuse_hazards = qemu_refuse_hazards,
    .prepare_memory = qemu_prepare_memory,
    .restore_memory = qemu_restore_memory,
    .pause = source_qemu_pause,
    .save_state = source_qemu_save_state,
    .resume = source_qemu_resume,
    .resume_after_death = source_qemu_resume_after_death,
    .pause_times = source_qemu_pause_times,
    .close = qemu_close,
};

static struct source_qemu *source_new(int timeout_ms)
{
    struct source_qemu *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    s->base.ops = &qemu_ops;
    s->base.timeout_ms = timeout_ms;
    s->base.target = (struct target){.pidfd = -1, .proc_fd = -1, .pagemap_fd = -1, .mem_fd = -1};
    s->state_fd = -1;
    s->state_fdset = -1;
    s->disk_sync.socket = -1;
    s->stop_event_us = s->resume_event_us = -1;
    void *page =
        mmap(NULL, sizeof(*s->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        free(s);
        return NULL;
    }
    s->shared = page;
    return s;
}

int source_qemu_open(struct source **out, const char *qmp_path, pid_t pid, int timeout_ms,
                     struct error *e)
{
    struct source_qemu *s = source_new(timeout_ms);
    if (!s)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot open the VM");
    int r = connect_and_find(s, qmp_path, pid, e);
    if (r == 0)
        r = refuse_state(s, e);
    if (r == 0)
        r = find_memory(s, pid > 0, e);
    if (r < 0) {
        qemu_close(&s->base);
        return r;
    }
    *out = &s->base;
    return 0;
}
