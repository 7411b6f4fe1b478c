/*
 * machine.h - what a QEMU is: how it was started, and the machine that the guest sees. Recorded in
 * the image at a snapshot, compared before the guest runs at a restore. One JSON object:
 *
 *   vmm          "qemu"
 *   vmm_version  "7.2.22 (Debian ...)"
 *   vm_name      of -name; "" without
 *   status       run state when it was asked, e.g. "running", "paused"
 *   machine      the versioned machine type, e.g. "pc-i440fx-7.2"
 *   accelerator  "kvm" or "tcg"
 *   topology     {cpus, maxcpus, sockets, dies, cores, threads, ...}
 *   memory       {size, max-size, slots}
 *   cpus         machine_cpu.h
 *   devices, pci, disks   machine_devices.h
 *   generation_id  what a vmgenid device shows the guest; left out without one
 *   launch       launch.h
 *
 * docs/format.md lists every key.
 */
#ifndef VMSNAP_COMMON_QEMU_MACHINE_H
#define VMSNAP_COMMON_QEMU_MACHINE_H

#include <jansson.h>

#include "common/error.h"
#include "common/qmp.h"
#include "common/target/target.h"

/* Asks a running QEMU. *out is a new reference. Not in the pause. */
int machine_describe(json_t **out, struct qmp *q, const struct target *t, int timeout_ms,
                     struct error *e);

/* The devices that came after the start, as a text ("virtio-net-pci (id net1), ..."); the caller
 * free()s it. NULL when there are none. */
char *machine_hotplugged(const json_t *described);

/* Compares what the guest of `recorded` depends on with `actual`: 0, or -EINVAL with exit code 15
 * and the first difference by name ("CPU feature avx2: recorded on, here off"). Order of devices
 * does not matter, nor do disks' files, paths and everything else that the guest can't see.
 * `recorded` comes from a file: whatever it holds does no harm. */
int machine_compare(const json_t *recorded, const json_t *actual, struct error *e);

#endif
