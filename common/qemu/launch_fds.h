/* launch_fds.h - which inherited descriptors a QEMU command line names. */
#ifndef VMSNAP_COMMON_QEMU_LAUNCH_FDS_H
#define VMSNAP_COMMON_QEMU_LAUNCH_FDS_H

#include "common/launch.h"

/* A launch_scan: descriptors in options ("tap,fd=3", "fds=3:4") and in paths. */
int qemu_launch_scan(json_t *fds, const struct target *t, const char *option, const char *value);

#endif
