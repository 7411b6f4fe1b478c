/* refuse.h - reasons not to start a QEMU command line: as struct vmm_kind has them. */
#ifndef VMSNAP_RESTORE_QEMU_REFUSE_H
#define VMSNAP_RESTORE_QEMU_REFUSE_H

#include "restore/launch/refuse.h"

int qemu_refuse(const struct relaunch *l, const json_t *description, const char *const *allowed,
                bool (*inherited)(int fd), struct error *e);
int qemu_list_hazards(const struct relaunch *l, const json_t *description,
                      bool (*inherited)(int fd), struct restore_hazard *out, size_t *count,
                      struct error *e);

#endif
