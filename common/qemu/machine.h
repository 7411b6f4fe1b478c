/*
 * machine.h - what a QEMU is: how it was started, and the machine that the guest sees. Recorded in
 * the image at a snapshot, compared before the guest runs at a restore. One JSON object:
 *
 *   vm_name, vmm ("qemu"), vmm_version, machine (the versioned name), accelerator ("kvm"/"tcg"),
 *   cpus: [{type, model features as the guest sees them}], topology {sockets, cores, threads, ...},
 *   devices: [{path, type, hotplugged}], disks: [{device, file, writable}],
 *   launch: {argv, executable, cwd, uid, gid, groups, environment {NAME: value}, fds: [...]}
 *
 * docs/format.md lists every key.
 */
#ifndef VMSNAP_COMMON_QEMU_MACHINE_H
#define VMSNAP_COMMON_QEMU_MACHINE_H

#include <jansson.h>

#include "common/error.h"
#include "common/qemu/qmp.h"
#include "common/target.h"

/* Asks a running QEMU. *out is a new reference. Not in the pause. */
int machine_describe(json_t **out, struct qmp *q, const struct target *t, int timeout_ms,
                     struct error *e);

/* Compares what the guest of `recorded` depends on with `actual`: 0, or -EINVAL with exit code 15
 * and the first difference by name ("CPU feature avx2: recorded on, here off"). */
int machine_compare(const json_t *recorded, const json_t *actual, struct error *e);

#endif
