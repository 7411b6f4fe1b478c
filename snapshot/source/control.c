/* What any VMM with a control socket needs around the pause: its process, hazards that the kernel
 * shows, disk files, KSM. */
#include "snapshot/source/control.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/inject/inject.h"
#include "common/json_text.h"
#include "common/qemu/hazards.h"
#include "common/testhook.h"
#include "common/vm_status.h"

/* A piece holds the VM's mmap_lock for about half a millisecond (6-10 ms per GiB measured). */
#define KSM_PIECE_BYTES (64ull << 20)

void source_link_close(struct source_link *link)
{
    qmp_close(link->q);
    target_close(&link->target);
}

int source_control_init(struct source_control *c, const struct source_ops *ops,
                        const struct source_link *link, int timeout_ms, struct error *e)
{
    c->base.ops = ops;
    c->base.timeout_ms = timeout_ms;
    c->base.target = link->target;
    c->q = link->q;
    c->disk_sync.socket = -1;
    c->state_fd = -1;
    c->stop_event_us = c->resume_event_us = -1;
    void *page =
        mmap(NULL, sizeof(*c->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot open the VM");
    c->shared = page;
    return 0;
}

void source_control_close(struct source_control *c)
{
    disk_sync_stop(&c->disk_sync);
    if (c->state_fd >= 0)
        close(c->state_fd);
    region_set_free(&c->memory);
    target_close(&c->base.target);
    qmp_close(c->q);
    if (c->shared)
        munmap(c->shared, sizeof(*c->shared));
}

int source_control_refuse_state(struct source_control *c, struct error *e)
{
    char status[VM_STATUS_BYTES];
    int r = vm_status_get(c->q, c->base.timeout_ms, status, e);
    return r < 0 ? r : vm_status_check(status, e);
}

void source_control_show_memory(struct source_control *c)
{
    c->base.regions = c->memory.items;
    c->base.n_regions = c->memory.count;
    c->base.gpa = c->memory.gpa;
    c->base.n_gpa = c->memory.n_gpa;
}

/* ---- hazards ---- */

/* Hazards that are only told: exit code 3. */
static void tell_warnings(const struct source_control *c, json_t *warnings)
{
    for (size_t i = 0; i < c->n_hazards; i++)
        if (c->hazards[i].found && c->hazards[i].warning)
            json_array_append_new(
                warnings, json_printed("%s: %s", c->hazards[i].kind->name, c->hazards[i].reason));
}

int source_control_find_hazards(struct source_control *c, const json_t *described, json_t *warnings,
                                struct error *e)
{
    const struct hazard_scope scope = {
        .t = &c->base.target, .regions = c->base.regions, .n_regions = c->base.n_regions};
    int r = described ? qemu_hazards_find(c->hazards, &c->n_hazards, &scope, c->q, described,
                                          c->base.timeout_ms, e)
                      : hazards_find(c->hazards, &c->n_hazards, &scope, NULL, 0, NULL, e);
    if (r == 0)
        tell_warnings(c, warnings);
    return r;
}

/* After describe. */
int source_control_refuse_hazards(struct source *base, const char *const *allowed, struct error *e)
{
    const struct source_control *c = source_control_of(base);
    return hazards_refuse(c->hazards, c->n_hazards, allowed, e);
}

/* ---- KSM ---- */

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
                error_hint(e, "start the VM with its memory not mergeable (QEMU: -machine "
                              "mem-merge=off)");
                r = -EPERM;
                break;
            }
        }
    }
    mapping_list_free(&maps);
    return r;
}

int source_control_prepare_memory(struct source *base, struct error *e)
{
    int r = disk_sync_start(&source_control_of(base)->disk_sync, &base->target, e);
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

int source_control_restore_memory(struct source *base, struct error *e)
{
    int r = advise_mergeable(base, MADV_MERGEABLE, e);
    if (r < 0)
        error_wrap(e, "cannot give the guest's memory back to KSM");
    return r;
}
