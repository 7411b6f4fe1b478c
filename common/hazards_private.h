/* hazards_private.h - what hazards.c and hazards_process.c share. */
#ifndef VMSNAP_COMMON_HAZARDS_PRIVATE_H
#define VMSNAP_COMMON_HAZARDS_PRIVATE_H

#include <jansson.h>

#include "common/hazards.h"

/* What several kinds look at, fetched once. */
struct hazard_search {
    const struct hazard_scope *scope;
    json_t *fds; /* the target's descriptors: [{fd, target}] */
};

/* Fills s->fds from /proc/PID/fd. */
int hazard_list_fds(struct hazard_search *s, struct error *e);

/* Each looks for one kind: sets h->found and h->reason. -errno only when it cannot tell. */
typedef int hazard_look(struct hazard_search *s, struct hazard *h, struct error *e);
hazard_look hazard_look_vfio, hazard_look_vdpa, hazard_look_shared, hazard_look_pinned,
    hazard_look_io_uring, hazard_look_userfaultfd, hazard_look_ksm, hazard_look_traced;

#endif
