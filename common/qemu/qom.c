#include "common/qemu/qom.h"

#include <errno.h>

#include "common/clock.h"

struct qom qom_within(struct qmp *q, int timeout_ms)
{
    return (struct qom){.q = q,
                        .deadline_ns = clock_monotonic_ns() + (uint64_t)timeout_ms * 1000000u};
}

int qom_ask(struct qom *m, const char *command, json_t *arguments, json_t **result, struct error *e)
{
    return qmp_command(m->q, command, arguments, -1, clock_ms_until(m->deadline_ns), result, e);
}

int qom_get(struct qom *m, const char *path, const char *property, json_t **value, struct error *e)
{
    int r = qom_ask(m, "qom-get", json_pack("{s:s, s:s}", "path", path, "property", property),
                    value, e);
    if (r < 0)
        error_wrap(e, "%s of %s", property, path);
    return r;
}

/* True when the last command failed because of what it named, not of the connection. */
static bool named_nothing(const struct qom *m)
{
    return qmp_failed_with(m->q, "GenericError") || qmp_failed_with(m->q, "DeviceNotFound");
}

int qom_get_if_any(struct qom *m, const char *path, const char *property, json_t **value,
                   struct error *e)
{
    *value = NULL;
    int r = qom_get(m, path, property, value, e);
    return r == -EPROTO && named_nothing(m) ? 0 : r;
}

int qom_list(struct qom *m, const char *path, json_t **list, struct error *e)
{
    *list = NULL;
    int r = qom_ask(m, "qom-list", json_pack("{s:s}", "path", path), list, e);
    if (r == -EPROTO && named_nothing(m)) {
        *list = json_array();
        return *list ? 0 : error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot list %s", path);
    }
    if (r == 0 && !json_is_array(*list)) {
        json_decref(*list);
        *list = NULL;
        return error_set(e, VMSNAP_EXIT_TARGET, EPROTO, "QMP command qom-list: no list for %s",
                         path);
    }
    return r;
}
