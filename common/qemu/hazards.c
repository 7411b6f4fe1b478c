/*
 * The table of hazards. Each kind has a function that looks for it; all of them are run, so that
 * `vmsnap check` can list everything at once.
 */
#include "common/qemu/hazards.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/qemu/hazards_private.h"
#include "common/qemu/machine_devices.h"

/* Who is asked: QEMU through QMP, or only the kernel about its process, or about its memory blocks.
 */
enum source { OF_VMM, OF_PROCESS, OF_MEMORY };

struct hazard_entry {
    struct hazard_kind kind;
    hazard_look *look;
    enum source source;
};

/* Published names: only ever added to. */
static const struct hazard_entry entries[] = {
    {{"disks", true, VMSNAP_EXIT_HAZARD,
      "a disk of the VM is writable: vmsnap saves memory and devices, not disks"},
     hazard_look_disks,
     OF_VMM},
    {{"balloon", true, VMSNAP_EXIT_HAZARD,
      "a balloon device can discard guest memory while it is being saved: then the snapshot fails "
      "(private memory), or would be wrong (shared memory: always refused)"},
     hazard_look_balloon,
     OF_VMM},
    {{"blocked-migration", true, VMSNAP_EXIT_HAZARD,
      "QEMU says that a device's state can't be moved to another QEMU"},
     hazard_look_blocked,
     OF_VMM},
    {{"vfio", false, VMSNAP_EXIT_HAZARD,
      "a host device is passed through: it writes guest memory past write protection"},
     hazard_look_vfio,
     OF_PROCESS},
    {{"vhost-user", false, VMSNAP_EXIT_HAZARD,
      "another process serves a device and writes guest memory past write protection"},
     hazard_look_vhost_user,
     OF_VMM},
    {{"vdpa", false, VMSNAP_EXIT_HAZARD, "a vDPA device writes guest memory past write protection"},
     hazard_look_vdpa,
     OF_PROCESS},
    {{"shared-memory", false, VMSNAP_EXIT_HAZARD,
      "another process maps guest memory and can write it past write protection"},
     hazard_look_shared,
     OF_PROCESS},
    {{"pinned-memory", false, VMSNAP_EXIT_HAZARD,
      "memory of the VMM is pinned for a device, which writes it past write protection"},
     hazard_look_pinned,
     OF_PROCESS},
    {{"io-uring-buffers", false, VMSNAP_EXIT_HAZARD,
      "memory of the VMM is registered with io_uring, which writes it past write protection"},
     hazard_look_io_uring,
     OF_PROCESS},
    {{"virtio-mem", false, VMSNAP_EXIT_HAZARD,
      "a virtio-mem device plugs and unplugs guest memory while it is being saved"},
     hazard_look_virtio_mem,
     OF_VMM},
    {{"encrypted-guest", false, VMSNAP_EXIT_HAZARD,
      "the guest's memory is encrypted (SEV, TDX): it can't be read"},
     hazard_look_encrypted,
     OF_VMM},
    {{"ksm", false, VMSNAP_EXIT_HAZARD,
      "guest memory that can't be taken from KSM, which removes write protection"},
     hazard_look_ksm,
     OF_MEMORY},
    {{"migration", false, VMSNAP_EXIT_BUSY, "a migration or save of the VM is under way"},
     hazard_look_migration,
     OF_VMM},
    {{"userfaultfd", false, VMSNAP_EXIT_BUSY,
      "guest memory is under another userfaultfd: another snapshot, a migration, a restore"},
     hazard_look_userfaultfd,
     OF_PROCESS},
    {{"traced", false, VMSNAP_EXIT_TARGET, "the VMM is being traced (gdb, strace)"},
     hazard_look_traced,
     OF_PROCESS},
    {{"nested", false, VMSNAP_EXIT_HAZARD,
      "only warned of: the guest runs guests of its own; few restores of such are tested"},
     hazard_look_nested,
     OF_VMM},
    {{"hotplug", false, VMSNAP_EXIT_HAZARD,
      "only warned of: a device was plugged since the VM's start; a restore needs -- VMM ARG..."},
     hazard_look_hotplug,
     OF_VMM},
};
#define N_ENTRIES (sizeof(entries) / sizeof(*entries))
_Static_assert(N_ENTRIES <= HAZARD_MAX, "room for all kinds");

const struct hazard_kind *hazard_kinds(size_t *count)
{
    static struct hazard_kind kinds[N_ENTRIES];
    for (size_t i = 0; i < N_ENTRIES; i++)
        kinds[i] = entries[i].kind;
    *count = N_ENTRIES;
    return kinds;
}

bool hazard_allowable(const char *name)
{
    for (size_t i = 0; i < N_ENTRIES; i++)
        if (strcmp(entries[i].kind.name, name) == 0)
            return entries[i].kind.allowable;
    return false;
}

void hazard_found(struct hazard *h, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(h->reason, sizeof(h->reason), fmt, ap);
    va_end(ap);
    h->found = true;
}

int hazard_search_open(struct hazard_search *s, const struct hazard_scope *scope, struct error *e)
{
    *s = (struct hazard_search){.scope = scope, .qom = qom_within(scope->q, scope->timeout_ms)};
    if (!scope->q)
        return hazard_list_fds(s, e);
    s->devices = json_incref(json_object_get(scope->described, "devices"));
    int r = s->devices ? 0 : machine_describe_devices(&s->devices, &s->qom, e);
    if (r == 0)
        r = qom_ask(&s->qom, "query-migrate", NULL, &s->migration, e);
    if (r == 0)
        r = qmp_hmp(scope->q, "info network", clock_ms_until(s->qom.deadline_ns), &s->network, e);
    if (r == 0)
        r = hazard_list_fds(s, e);
    return r;
}

void hazard_search_close(struct hazard_search *s)
{
    json_decref(s->devices);
    json_decref(s->migration);
    json_decref(s->fds);
    free(s->network);
}

/* Whether there is something to look at. */
static bool can_look(const struct hazard_entry *entry, const struct hazard_scope *scope)
{
    switch (entry->source) {
    case OF_VMM:
        return scope->q != NULL;
    case OF_MEMORY:
        return scope->regions != NULL;
    case OF_PROCESS:
        return true;
    }
    return false;
}

int hazards_find(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                 struct error *e)
{
    struct hazard_search s;
    int r = hazard_search_open(&s, scope, e);
    *count = 0;
    for (size_t i = 0; i < N_ENTRIES && r == 0; i++) {
        if (!can_look(&entries[i], scope))
            continue;
        struct hazard *h = &out[(*count)++];
        *h = (struct hazard){.kind = &entries[i].kind, .allowable = entries[i].kind.allowable};
        snprintf(h->reason, sizeof(h->reason), "nothing seen");
        r = entries[i].look(&s, h, e);
        if (r < 0)
            error_wrap(e, "looking for the hazard %s", h->kind->name);
    }
    hazard_search_close(&s);
    return r;
}

static bool is_allowed(const struct hazard *h, const char *const *allowed)
{
    for (; h->allowable && allowed && *allowed; allowed++)
        if (strcmp(*allowed, h->kind->name) == 0)
            return true;
    return false;
}

int hazards_refuse(const struct hazard *items, size_t count, const char *const *allowed,
                   struct error *e)
{
    for (size_t i = 0; i < count; i++) {
        const struct hazard *h = &items[i];
        if (!h->found || h->warning || is_allowed(h, allowed))
            continue;
        error_set(e, h->kind->exit_code, 0, "%s: %s", h->kind->name, h->reason);
        if (h->allowable)
            error_hint(e, "if that is what you want: --allow %s", h->kind->name);
        return h->kind->exit_code == VMSNAP_EXIT_BUSY ? -EBUSY : -EPERM;
    }
    return 0;
}
