/* machine_devices.h - devices and disks of a QEMU. Private to common/qemu. */
#ifndef VMSNAP_COMMON_QEMU_MACHINE_DEVICES_H
#define VMSNAP_COMMON_QEMU_MACHINE_DEVICES_H

#include <jansson.h>

#include "common/error.h"
#include "common/qemu/qom.h"

/*
 * *out is a new array, one object per device:
 *   path        QOM path
 *   type        QOM type, e.g. "virtio-net-pci"
 *   id          of -device, where it has one
 *   hotplugged  true when it came after the start, and so is not on the command line
 * It covers what -device and device_add make and what the machine type itself brings.
 */
int machine_describe_devices(json_t **out, struct qom *m, struct error *e);

/* *out is a new array: every PCI function as {path, vendor, device, subsystem_vendor, subsystem}:
 * where a guest looks for its devices. path: "ROOT-BUS:SLOT.FUNCTION", behind bridges followed by
 * "/SLOT.FUNCTION" (all hexadecimal). */
int machine_describe_pci(json_t **out, struct qom *m, struct error *e);

/* *out is a new array, one object per block device: {device, qdev, node, file, format, inserted,
 * writable}. */
int machine_describe_disks(json_t **out, struct qom *m, struct error *e);

/* The first difference, order ignored, as words; false when there is none. */
bool machine_devices_differ(const json_t *recorded, const json_t *actual, char *text, size_t size);
bool machine_pci_differ(const json_t *recorded, const json_t *actual, char *text, size_t size);

#endif
