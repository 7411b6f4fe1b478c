/* hazards_private.h - what the files of hazards.c share. Private to common/qemu/hazards*.c. */
#ifndef VMSNAP_COMMON_QEMU_HAZARDS_PRIVATE_H
#define VMSNAP_COMMON_QEMU_HAZARDS_PRIVATE_H

#include <jansson.h>

#include "common/qemu/hazards.h"
#include "common/qemu/qom.h"

/* What several kinds look at, fetched once. */
struct hazard_search {
    const struct hazard_scope *scope;
    struct qom qom;
    json_t *devices;   /* machine_describe_devices() */
    json_t *migration; /* query-migrate */
    char *network;     /* info network */
    json_t *fds;       /* the target's descriptors: [{fd, target}] */
};

int hazard_search_open(struct hazard_search *s, const struct hazard_scope *scope, struct error *e);
void hazard_search_close(struct hazard_search *s);

/* Fills s->fds from /proc/PID/fd. */
int hazard_list_fds(struct hazard_search *s, struct error *e);

/* Each looks for one kind: sets h->found and h->reason. -errno only when it cannot tell. */
typedef int hazard_look(struct hazard_search *s, struct hazard *h, struct error *e);

/* What QEMU says (hazards_vmm.c). */
hazard_look hazard_look_disks, hazard_look_balloon, hazard_look_blocked, hazard_look_virtio_mem,
    hazard_look_vhost_user, hazard_look_encrypted, hazard_look_migration, hazard_look_nested,
    hazard_look_hotplug;

/* What the kernel says of the process (hazards_process.c). */
hazard_look hazard_look_vfio, hazard_look_vdpa, hazard_look_shared, hazard_look_pinned,
    hazard_look_io_uring, hazard_look_userfaultfd, hazard_look_ksm, hazard_look_traced;

/* Marks a hazard as found, with the reason. */
void hazard_found(struct hazard *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
