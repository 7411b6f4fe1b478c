/*
 * The table of hazards. Each kind has a function that looks for it; all of them are run, so that
 * `vmsnap check` can list everything at once.
 */
#include "common/hazards.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/hazards_private.h"

struct hazard_entry {
    struct hazard_kind kind;
    hazard_look *look; /* what the kernel shows; NULL: only a VMM can tell */
    bool of_memory;    /* there is nothing to look at without memory blocks */
};

/* Published names: only ever added to. */
static const struct hazard_entry entries[] = {
    {{"disks", true, VMSNAP_EXIT_HAZARD,
      "a disk of the VM is writable: vmsnap saves memory and devices, not disks"},
     NULL,
     false},
    {{"balloon", true, VMSNAP_EXIT_HAZARD,
      "a balloon device can discard guest memory while it is being saved: then the snapshot fails "
      "(private memory), or would be wrong (shared memory: always refused)"},
     NULL,
     false},
    {{"blocked-migration", true, VMSNAP_EXIT_HAZARD,
      "QEMU says that a device's state can't be moved to another QEMU"},
     NULL,
     false},
    {{"vfio", false, VMSNAP_EXIT_HAZARD,
      "a host device is passed through: it writes guest memory past write protection"},
     hazard_look_vfio,
     false},
    {{"vhost-user", false, VMSNAP_EXIT_HAZARD,
      "another process serves a device and writes guest memory past write protection"},
     NULL,
     false},
    {{"vdpa", false, VMSNAP_EXIT_HAZARD, "a vDPA device writes guest memory past write protection"},
     hazard_look_vdpa,
     false},
    {{"shared-memory", false, VMSNAP_EXIT_HAZARD,
      "another process maps guest memory and can write it past write protection"},
     hazard_look_shared,
     false},
    {{"pinned-memory", false, VMSNAP_EXIT_HAZARD,
      "memory of the VMM is pinned for a device, which writes it past write protection"},
     hazard_look_pinned,
     false},
    {{"io-uring-buffers", false, VMSNAP_EXIT_HAZARD,
      "memory of the VMM is registered with io_uring, which writes it past write protection"},
     hazard_look_io_uring,
     false},
    {{"virtio-mem", false, VMSNAP_EXIT_HAZARD,
      "a virtio-mem device plugs and unplugs guest memory while it is being saved"},
     NULL,
     false},
    {{"encrypted-guest", false, VMSNAP_EXIT_HAZARD,
      "the guest's memory is encrypted (SEV, TDX): it can't be read"},
     NULL,
     false},
    {{"ksm", false, VMSNAP_EXIT_HAZARD,
      "guest memory that can't be taken from KSM, which removes write protection"},
     hazard_look_ksm,
     true},
    {{"migration", false, VMSNAP_EXIT_BUSY, "a migration or save of the VM is under way"},
     NULL,
     false},
    {{"userfaultfd", false, VMSNAP_EXIT_BUSY,
      "guest memory is under another userfaultfd: another snapshot, a migration, a restore"},
     hazard_look_userfaultfd,
     false},
    {{"traced", false, VMSNAP_EXIT_TARGET, "the VMM is being traced (gdb, strace)"},
     hazard_look_traced,
     false},
    {{"nested", false, VMSNAP_EXIT_HAZARD,
      "only warned of: the guest runs guests of its own; few restores of such are tested"},
     NULL,
     false},
    {{"hotplug", false, VMSNAP_EXIT_HAZARD,
      "only warned of: a device was plugged since the VM's start; a restore needs -- VMM ARG..."},
     NULL,
     false},
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

void hazard_found(struct hazard *h, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(h->reason, sizeof(h->reason), fmt, ap);
    va_end(ap);
    h->found = true;
}

static const struct hazard_probe *probe_of(const struct hazard_kind *kind,
                                           const struct hazard_probe *probes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(probes[i].name, kind->name) == 0)
            return &probes[i];
    return NULL;
}

int hazards_find(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                 const struct hazard_probe *probes, size_t n, void *opaque, struct error *e)
{
    struct hazard_search s = {.scope = scope};
    int r = hazard_list_fds(&s, e);
    *count = 0;
    for (size_t i = 0; i < N_ENTRIES && r == 0; i++) {
        const struct hazard_entry *entry = &entries[i];
        hazard_look *look = entry->of_memory && !scope->regions ? NULL : entry->look;
        const struct hazard_probe *probe = probe_of(&entry->kind, probes, n);
        if (!look && !probe)
            continue;
        struct hazard *h = &out[(*count)++];
        *h = (struct hazard){.kind = &entry->kind, .allowable = entry->kind.allowable};
        snprintf(h->reason, sizeof(h->reason), "nothing seen");
        if (look)
            r = look(&s, h, e);
        if (r == 0 && probe && !h->found)
            r = probe->look(opaque, h, e);
        if (r < 0)
            error_wrap(e, "looking for the hazard %s", h->kind->name);
    }
    json_decref(s.fds);
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
