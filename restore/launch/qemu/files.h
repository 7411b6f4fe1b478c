/* files.h - the files that a QEMU line reads: kernel, initrd, firmware, disks. */
#ifndef VMSNAP_RESTORE_QEMU_FILES_H
#define VMSNAP_RESTORE_QEMU_FILES_H

#include <stdbool.h>

#include "restore/launch/relaunch.h"

/*
 * Looks for each of them, in the line's directory. False: *missing (the caller's to free()) is the
 * first that is not there; NULL where memory was short. What is no plain path (nbd:..., json:...),
 * or a bare name that QEMU looks up in its own directories, counts as there.
 */
bool qemu_files_exist(const struct relaunch *l, char **missing);

#endif
