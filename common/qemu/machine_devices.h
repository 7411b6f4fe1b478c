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
 *   place       of PCI devices that -device or device_add made: "pcie.0/04.0/00.0", the root bus's
 *               name, then slot and function (hexadecimal) of each bridge on the way and the device
 * It covers what -device and device_add make and what the machine type itself brings.
 */
int machine_describe_devices(json_t **out, struct qom *m, struct error *e);

/* *out is a new array: the PCI functions on root buses as {place, vendor, device, subsystem_vendor,
 * subsystem}; place: "BUS:SLOT.FUNCTION", hexadecimal. */
int machine_describe_pci(json_t **out, struct qom *m, struct error *e);

/* *out is a new array, one object per block device: {device, qdev, node, file, format, inserted,
 * writable}. */
int machine_describe_disks(json_t **out, struct qom *m, struct error *e);

/* The first difference, order ignored, as words; false when there is none. */
bool machine_devices_differ(const json_t *recorded, const json_t *actual, char *text, size_t size);
bool machine_pci_differ(const json_t *recorded, const json_t *actual, char *text, size_t size);

#endif
