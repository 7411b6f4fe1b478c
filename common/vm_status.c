#include "common/vm_status.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

int vm_status_get(struct qmp *q, int timeout_ms, char *status, struct error *e)
{
    json_t *result = NULL;
    int r = qmp_command(q, "query-status", NULL, -1, timeout_ms, &result, e);
    if (r < 0)
        return r;
    const char *name = json_string_value(json_object_get(result, "status"));
    if (name && *name && strlen(name) < VM_STATUS_BYTES)
        memcpy(status, name, strlen(name) + 1);
    else
        r = error_set(e, VMSNAP_EXIT_TARGET, EPROTO,
                      "QMP command query-status: no status in the "
                      "answer");
    json_decref(result);
    return r;
}

static bool is_one_of(const char *status, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(status, *names) == 0)
            return true;
    return false;
}

int vm_status_check(const char *status, struct error *e)
{
    static const char *const good[] = {"running", "paused", "prelaunch", NULL};
    static const char *const busy[] = {
        "inmigrate", "postmigrate", "finish-migrate", "save-vm", "restore-vm", "colo", NULL};
    if (is_one_of(status, good))
        return 0;
    bool is_busy = is_one_of(status, busy);
    error_set(e, is_busy ? VMSNAP_EXIT_BUSY : VMSNAP_EXIT_TARGET, 0,
              "the VM is in state \"%s\": a snapshot makes sense only of a running or paused VM",
              status);
    error_hint(e, is_busy ? "wait until the migration or save has ended"
                          : "bring the VM to \"running\" or \"paused\" first");
    return -EBUSY;
}
