/*
 * Finds out who is behind a control socket. The process is found and taken for this snapshot before
 * the greeting is waited for: that says at once that another snapshot holds the socket. The
 * greeting then tells which VMM it is.
 */
#include <unistd.h>

#include "common/cleanup.h"
#include "common/restore_record.h"
#include "common/vmm/vmm_control.h"
#include "common/vmm/vmm_listens.h"
#include "snapshot/source/control.h"

int source_link_find_process(struct source_link *link, int control_socket, pid_t pid,
                             struct error *e)
{
    int r = pid > 0 ? 0 : vmm_behind(control_socket, &pid, e);
    if (r == 0)
        r = target_open(&link->target, pid, e);
    if (r == 0)
        r = target_lock(&link->target, e);
    return r < 0 ? r : restore_refuse_under_way(&link->target, e);
}

static int connect_and_find(struct source_link *link, const char *path, pid_t pid, int timeout_ms,
                            struct error *e)
{
    CLEANUP_FD int fd = -1;
    int r = qmp_dial(&fd, path, timeout_ms, e);
    if (r < 0)
        return r;
    r = source_link_find_process(link, fd, pid, e);
    if (r < 0)
        return r;
    r = qmp_attach_dialled(&link->q, fd, timeout_ms, e);
    if (r < 0) {
        error_wrap(e, "QMP socket %s", path);
        return r;
    }
    take_fd(&fd);
    return 0;
}

int source_open(struct source **out, const char *qmp_path, pid_t pid, int timeout_ms,
                struct error *e)
{
    struct source_link link = {
        .target = TARGET_NONE,
        .pid_given = pid > 0,
    };
    int r = connect_and_find(&link, qmp_path, pid, timeout_ms, e);
    if (r < 0) {
        source_link_close(&link);
        return r;
    }
    return vmm_control_greets(link.q) ? source_vmm_open(out, &link, timeout_ms, e)
                                      : source_qemu_open(out, &link, timeout_ms, e);
}
