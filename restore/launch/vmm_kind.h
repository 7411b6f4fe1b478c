/*
 * vmm_kind.h - what differs between the VMMs that a restore can start: one table of operations
 * each. All on the main thread, before the guest runs; on failure the VMM that was started is
 * ended.
 */
#ifndef VMSNAP_RESTORE_VMM_KIND_H
#define VMSNAP_RESTORE_VMM_KIND_H

#include <jansson.h>

#include "common/error.h"
#include "common/image/reader.h"
#include "common/qmp.h"
#include "common/target/region.h"
#include "restore/launch/refuse.h"
#include "restore/launch/relaunch.h"

struct vmm_kind {
    const char *name;

    /* ---- before anything is started ---- */

    /*
     * Plans the launch of the VM that `description` describes. vmm_argv NULL: the recorded line.
     * Says (log) what it drops. Exit codes: 13 (the recorded line makes no sense), 15 (the given
     * line can't be that VM's). The caller ends with relaunch_free(), also after a failure.
     */
    int (*plan)(struct relaunch *out, const json_t *description, char *const *vmm_argv,
                struct error *e);

    /* refuse.h: the first reason (exit code 14), or a list of all that were looked for. */
    int (*refuse)(const struct relaunch *l, const json_t *description, const char *const *allowed,
                  bool (*inherited)(int fd), struct error *e);
    int (*list_hazards)(const struct relaunch *l, const json_t *description,
                        bool (*inherited)(int fd), struct restore_hazard *out, size_t *count,
                        struct error *e);

    /* Whether the files are there that the line reads (qemu/files.h); NULL: the
     * line does not say. */
    bool (*files_exist)(const struct relaunch *l, char **missing);

    /* Adds what makes the VMM wait for its state, and connect to `socket_path`. */
    int (*add_private)(struct relaunch *l, const char *socket_path, struct error *e);

    /* ---- started, waiting for its state ---- */

    /* What was started, as it says itself; holds it against the recorded description: exit code 15
     * and the first difference. *actual (new reference, has "accelerator") is set in either case.
     */
    int (*compare)(json_t **actual, const json_t *description, struct qmp *q,
                   const struct target *t, int timeout_ms, struct error *e);

    /* Its memory blocks. `actual` is what compare() gave. */
    int (*find_memory)(struct region_set *out, const json_t *actual, struct qmp *q,
                       const struct target *t, int timeout_ms, struct error *e);

    /* Gives it its device state. Its faults must be answered meanwhile: what it loads reads guest
     * memory. Exit code 16 (it refused), 17. */
    int (*load)(struct qmp *q, const struct target *t, const struct image *img,
                const json_t *description, int timeout_ms, struct error *e);

    /* Lets the guest run. */
    int (*resume)(struct qmp *q, int timeout_ms, struct error *e);

    /* Connects to an agent in the running guest (common/qemu/agent.h); NULL: it can't have one.
     * Whatever fails here fails no restore. */
    int (*open_agent)(int *fd, const json_t *actual, struct qmp *q, const struct target *t,
                      int timeout_ms, struct error *e);
};

extern const struct vmm_kind vmm_kind_qemu;    /* restore/launch/qemu/ */
extern const struct vmm_kind vmm_kind_control; /* vmm_control.c: over the protocol of docs/vmm.md */

/* Whose image this is: never NULL. */
const struct vmm_kind *vmm_kind_of(const json_t *description);

/* 0, or exit code 15: the image is of a VMM that vmsnap does not start (Firecracker); *e says what
 * to do instead. */
int vmm_kind_check_started(const json_t *description, const char *image_path, struct error *e);

#endif
