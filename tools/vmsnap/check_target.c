#include "tools/vmsnap/check_target.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/format.h"
#include "common/image/format.h"
#include "common/qemu/hazards.h"
#include "common/qemu/machine.h"
#include "common/qemu/ramblock.h"
#include "common/qmp.h"
#include "common/restore_record.h"
#include "common/target/target.h"
#include "common/vm_status.h"
#include "common/vmm/firecracker_api.h"
#include "common/vmm/firecracker_memory.h"
#include "common/vmm/vmm_control.h"
#include "common/vmm/vmm_listens.h"
#include "restore/launch/qemu/generation_id.h"

static void list_hazards(struct check_list *list, const struct hazard *found, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct hazard *h = &found[i];
        if (!h->found)
            check_ok(list, h->kind->name, "%s", h->reason);
        else if (h->warning)
            check_note(list, h->kind->name, "%s", h->reason);
        else
            check_refused(list, h->kind->name, h->kind->exit_code,
                          h->allowable ? h->kind->name : NULL, "%s", h->reason);
    }
}

/* q: of a QEMU, else NULL. */
static void check_hazards(struct check_list *list, const struct hazard_scope *scope, struct qmp *q,
                          int timeout_ms)
{
    struct error e = {0};
    struct hazard found[HAZARD_MAX];
    size_t n;
    if (q ? qemu_hazards_find(found, &n, scope, q, NULL, timeout_ms, &e)
          : hazards_find(found, &n, scope, NULL, 0, NULL, &e)) {
        check_failed(list, "hazards", &e);
        return;
    }
    list_hazards(list, found, n);
}

static bool check_access(struct check_list *list, struct target *t, int pid)
{
    struct error e = {0};
    if (target_open(t, pid, &e)) {
        check_failed(list, "process", &e);
        return false;
    }
    char exe[PATH_MAX] = "?";
    ssize_t n = readlinkat(t->proc_fd, "exe", exe, sizeof(exe) - 1);
    if (n > 0)
        exe[n] = '\0';
    check_ok(list, "process", "%d (%.200s): its memory can be read", pid, exe);
    return true;
}

static bool check_status(struct check_list *list, struct qmp *q, int timeout_ms)
{
    struct error e = {0};
    char status[VM_STATUS_BYTES];
    if (vm_status_get(q, timeout_ms, status, &e) || vm_status_check(status, &e)) {
        check_failed(list, "run-state", &e);
        return false;
    }
    check_ok(list, "run-state", "%s%s", status,
             strcmp(status, "running") == 0 ? "" : ": it stays so, and is restored so");
    return true;
}

static const char *kind_words(enum region_kind kind)
{
    switch (kind) {
    case REGION_ANON:
        return "private";
    case REGION_SHARED:
        return "shared";
    case REGION_PRIVATE_FILE:
        return "private, of a file";
    }
    return "?";
}

/* How much of the blocks lies in huge pages of either kind. */
static uint64_t huge_bytes(const struct region_set *blocks, const struct target *t)
{
    struct mapping_list maps;
    uint64_t sum = 0;
    if (target_mappings(t, &maps, NULL))
        return 0;
    for (uint32_t i = 0; i < blocks->count; i++) {
        const struct region *r = &blocks->items[i];
        for (size_t k = 0; k < maps.count; k++)
            if (maps.items[k].start >= r->hva && maps.items[k].end <= r->hva + r->max_bytes)
                sum += maps.items[k].anon_huge_bytes;
    }
    mapping_list_free(&maps);
    return sum;
}

static void describe_memory(struct check_list *list, const struct region_set *blocks,
                            const struct target *t)
{
    uint64_t bytes = 0, unit = IMAGE_CLUSTER_BYTES;
    const struct region *largest = &blocks->items[0];
    char size[FORMAT_MAX], unit_text[FORMAT_MAX], huge[FORMAT_MAX];
    for (uint32_t i = 0; i < blocks->count; i++) {
        const struct region *r = &blocks->items[i];
        bytes += r->bytes;
        largest = r->bytes > largest->bytes ? r : largest;
        unit = r->page_bytes > unit ? r->page_bytes : unit;
    }
    check_ok(list, "memory", "%" PRIu32 " blocks, %s; the largest, %s, is %s memory", blocks->count,
             format_bytes(size, bytes), largest->name, kind_words(largest->kind));
    check_ok(list, "fault-unit", "a first write saves %s%s", format_bytes(unit_text, unit),
             unit > IMAGE_CLUSTER_BYTES ? " (a page of hugetlbfs)" : "");
    check_ok(list, "huge-pages", "%s of it in transparent huge pages",
             format_bytes(huge, huge_bytes(blocks, t)));
}

/* The blocks of a QEMU, or of a VMM that speaks our own protocol (docs/vmm.md). */
static int find_memory(struct region_set *blocks, struct qmp *q, const struct target *t,
                       int timeout_ms, struct error *e)
{
    json_t *vm = NULL;
    if (!vmm_control_greets(q))
        return ramblocks_find(blocks, q, t, timeout_ms, e);
    int rc = vmm_control_query(&vm, q, timeout_ms, e);
    if (rc == 0)
        rc = vmm_control_find_memory(blocks, vm, t, e);
    json_decref(vm);
    return rc;
}

static void check_memory(struct check_list *list, struct qmp *q, const struct target *t,
                         int timeout_ms)
{
    struct error e = {0};
    struct region_set blocks;
    if (find_memory(&blocks, q, t, timeout_ms, &e)) {
        check_failed(list, "memory", &e);
        return;
    }
    describe_memory(list, &blocks, t);
    const struct hazard_scope scope = {.t = t, .regions = blocks.items, .n_regions = blocks.count};
    check_hazards(list, &scope, vmm_control_greets(q) ? NULL : q, timeout_ms);
    region_set_free(&blocks);
}

/* Whether a guest restored from it could tell. */
static void check_generation_id(struct check_list *list, struct qmp *q, const struct target *t,
                                int timeout_ms)
{
    struct error e = {0};
    json_t *described = NULL;
    if (vmm_control_greets(q))
        return;
    if (machine_describe(&described, q, t, timeout_ms, &e)) {
        check_failed(list, "machine", &e);
        return;
    }
    enum generation_id id = generation_id_of(described, NULL);
    if (id == GENERATION_ID_RENEWED)
        check_ok(list, "vmgenid", "%s", generation_id_words(id));
    else
        check_note(list, "vmgenid", "%s", generation_id_words(id));
    json_decref(described);
}

/* False: nobody brings in the guest's memory, so that the VMM itself may wait for a page of it and
 * never answer. */
static bool expect_answers(struct check_list *list, const struct target *t)
{
    struct restore_look look;
    char words[256];
    if (restore_look(t, &look) || !look.under_way || look.served)
        return true;
    restore_look_words(&look, words, sizeof(words));
    check_refused(list, "userfaultfd", VMSNAP_EXIT_BUSY, NULL, "%s", words);
    return false;
}

static pid_t find_peer(struct check_list *list, int fd, const char *item, const char *path)
{
    struct error e = {0};
    pid_t peer = -1;
    if (vmm_behind(fd, &peer, &e) == 0)
        return peer;
    error_wrap(&e, "%s", path);
    check_failed(list, item, &e);
    return -1;
}

/* t: NULL where its process can't be looked into. */
static void check_answers(struct check_list *list, struct qmp *q, const struct target *t,
                          int timeout_ms)
{
    bool good = check_status(list, q, timeout_ms);
    if (!good || !t)
        return;
    check_memory(list, q, t, timeout_ms);
    check_generation_id(list, q, t, timeout_ms);
}

void check_vm(struct check_list *list, const char *qmp_path, int pid, int timeout_ms)
{
    struct error e = {0};
    struct qmp *q = NULL;
    struct target t;
    CLEANUP_FD int fd = -1;
    if (qmp_dial(&fd, qmp_path, timeout_ms, &e)) {
        check_failed(list, "qmp", &e);
        return;
    }
    pid_t peer = pid > 0 ? pid : find_peer(list, fd, "qmp", qmp_path);
    if (peer <= 0)
        return;
    bool opened = check_access(list, &t, peer);
    if (!opened || expect_answers(list, &t)) {
        if (qmp_attach_dialled(&q, fd, timeout_ms, &e)) {
            error_wrap(&e, "QMP socket %s", qmp_path);
            check_failed(list, "qmp", &e);
        } else {
            take_fd(&fd);
            check_ok(list, "qmp", "%s answers", qmp_path);
            check_answers(list, q, opened ? &t : NULL, timeout_ms);
            qmp_close(q);
        }
    }
    if (opened)
        target_close(&t);
}

/* ---- a Firecracker ---- */

static void check_firecracker_memory(struct check_list *list, struct http *h,
                                     const struct target *t, const char *version,
                                     const char *const *maps, int timeout_ms)
{
    struct error e = {0};
    struct region_set blocks = {0};
    struct hazard found[HAZARD_MAX];
    json_t *machine = NULL, *config = NULL;
    uint64_t bytes;
    size_t n = 0;
    int rc = firecracker_get_memory(h, timeout_ms, &machine, &bytes, &e);
    if (rc == 0)
        rc = firecracker_find_memory(&blocks, t, bytes, version, maps, &e);
    json_decref(machine);
    if (rc) {
        check_failed(list, "memory", &e);
        return;
    }
    describe_memory(list, &blocks, t);
    const struct hazard_scope scope = {.t = t, .regions = blocks.items, .n_regions = blocks.count};
    rc = firecracker_get(h, "/vm/config", timeout_ms, &config, &e);
    if (rc == 0 && !config)
        check_note(list, "config", "the VMM does not tell of its disks and its balloon");
    if (rc == 0)
        rc = firecracker_find_hazards(found, &n, &scope, config, &e);
    if (rc)
        check_failed(list, "hazards", &e);
    else
        list_hazards(list, found, n);
    json_decref(config);
    region_set_free(&blocks);
}

static void check_microvm(struct check_list *list, struct http *h, const struct target *t,
                          const char *api_path, const char *const *maps, int timeout_ms)
{
    struct error e = {0};
    struct firecracker_info info;
    if (firecracker_get_info(h, timeout_ms, &info, &e)) {
        check_failed(list, "api", &e);
        return;
    }
    check_ok(list, "api", "%s answers: Firecracker %s, microVM \"%s\"", api_path, info.version,
             info.id);
    if (firecracker_check_state(&info, &e)) {
        check_failed(list, "run-state", &e);
        return;
    }
    check_ok(list, "run-state", "%s",
             info.state == FIRECRACKER_RUNNING ? "running" : "paused: it stays so");
    check_firecracker_memory(list, h, t, info.version, maps, timeout_ms);
}

void check_firecracker(struct check_list *list, const char *api_path, const char *const *maps,
                       int pid, int timeout_ms)
{
    struct error e = {0};
    struct http *h = NULL;
    struct target t;
    CLEANUP_FD int fd = -1;
    int rc = http_open(&h, api_path, &e);
    if (rc == 0)
        rc = http_dial(h, &fd, timeout_ms, &e);
    pid_t peer = rc || pid > 0 ? pid : find_peer(list, fd, "api", api_path);
    if (rc)
        check_failed(list, "api", &e);
    else if (peer > 0 && check_access(list, &t, peer)) {
        if (expect_answers(list, &t))
            check_microvm(list, h, &t, api_path, maps, timeout_ms);
        target_close(&t);
    }
    http_close(h);
}

void check_process(struct check_list *list, int pid)
{
    struct target t;
    if (!check_access(list, &t, pid))
        return;
    const struct hazard_scope scope = {.t = &t};
    check_hazards(list, &scope, NULL, 0);
    check_note(list, "qmp", "not asked: give --qmp for what only the VMM knows");
    target_close(&t);
}
