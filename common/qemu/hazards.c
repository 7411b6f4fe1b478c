/*
 * The table of hazards. Each kind has a function that looks for it; all of them are run, so that
 * `vmsnap check` can list everything at once.
 */
#include "common/qemu/hazards.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/qemu/hazards_private.h"

struct hazard_entry {
    struct hazard_kind kind;
    int (*look)(struct hazard_search *s, struct hazard *h, struct error *e);
};

static const struct hazard_entry entries[] = {
    {{"disks", true, VMSNAP_EXIT_HAZARD,
      "a disk of the VM is writable: vmsnap saves memory and devices, not disks"},
     hazard_look_disks},
    {{"migration", false, VMSNAP_EXIT_BUSY, "a migration of the VM is under way"},
     hazard_look_migration},
};
#define N_ENTRIES (sizeof(entries) / sizeof(*entries))

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

int hazards_find(struct hazard *out, size_t *count, const struct hazard_scope *scope,
                 struct error *e)
{
    struct hazard_search s = {.scope = scope,
                              .deadline_ns =
                                  clock_monotonic_ns() + (uint64_t)scope->timeout_ms * 1000000u};
    int r = 0;
    *count = 0;
    for (size_t i = 0; i < N_ENTRIES && r == 0; i++) {
        struct hazard *h = &out[(*count)++];
        memset(h, 0, sizeof(*h));
        h->kind = &entries[i].kind;
        snprintf(h->reason, sizeof(h->reason), "nothing seen");
        r = entries[i].look(&s, h, e);
        if (r < 0)
            error_wrap(e, "looking for the hazard %s", h->kind->name);
    }
    return r;
}

static bool is_allowed(const struct hazard_kind *kind, const char *const *allowed)
{
    for (; kind->allowable && allowed && *allowed; allowed++)
        if (strcmp(*allowed, kind->name) == 0)
            return true;
    return false;
}

int hazards_refuse(const struct hazard *items, size_t count, const char *const *allowed,
                   struct error *e)
{
    for (size_t i = 0; i < count; i++) {
        const struct hazard *h = &items[i];
        if (!h->found || h->warning || is_allowed(h->kind, allowed))
            continue;
        int err = h->kind->exit_code == VMSNAP_EXIT_BUSY ? EBUSY : EPERM;
        error_set(e, h->kind->exit_code, 0, "%s: %s", h->kind->name, h->reason);
        if (h->kind->allowable)
            error_hint(e, "if that is what you want: --allow %s", h->kind->name);
        return -err;
    }
    return 0;
}
