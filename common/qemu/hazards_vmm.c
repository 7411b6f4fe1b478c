/* Hazards that QEMU itself says, through QMP. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/qemu/hazards_private.h"

void hazard_found(struct hazard *h, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(h->reason, sizeof(h->reason), fmt, ap);
    va_end(ap);
    h->found = true;
}

static int ask(struct hazard_search *s, const char *command, json_t **result, struct error *e)
{
    return qmp_command(s->scope->q, command, NULL, -1, clock_ms_until(s->deadline_ns), result, e);
}

static const char *text_of(const json_t *object, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text && *text ? text : otherwise;
}

/* A disk with a medium that the guest (or an operator's job) can write. */
int hazard_look_disks(struct hazard_search *s, struct hazard *h, struct error *e)
{
    json_t *blocks = NULL;
    int r = ask(s, "query-block", &blocks, e);
    size_t i;
    const json_t *b;
    json_array_foreach(blocks, i, b)
    {
        const json_t *inserted = json_object_get(b, "inserted");
        if (!inserted || json_is_true(json_object_get(inserted, "ro")))
            continue;
        const char *node = text_of(inserted, "node-name", "?");
        hazard_found(h,
                     "%.60s (%.140s) is writable: it goes on changing after the snapshot's instant",
                     text_of(b, "device", node), text_of(inserted, "file", "?"));
        break;
    }
    json_decref(blocks);
    return r;
}

/* Outgoing or incoming; "completed", "failed" and "cancelled" are over. */
int hazard_look_migration(struct hazard_search *s, struct hazard *h, struct error *e)
{
    static const char *const over[] = {"none", "completed", "failed", "cancelled"};
    json_t *migration = NULL;
    int r = ask(s, "query-migrate", &migration, e);
    const char *status = text_of(migration, "status", "none");
    bool active = true;
    for (size_t i = 0; i < sizeof(over) / sizeof(*over); i++)
        active &= strcmp(status, over[i]) != 0;
    if (active)
        hazard_found(h, "the VM is being migrated or saved (query-migrate says \"%.40s\")", status);
    json_decref(migration);
    return r;
}
