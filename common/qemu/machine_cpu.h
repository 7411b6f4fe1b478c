/* machine_cpu.h - the CPUs of a QEMU as its guest sees them. Private to common/qemu. */
#ifndef VMSNAP_COMMON_QEMU_MACHINE_CPU_H
#define VMSNAP_COMMON_QEMU_MACHINE_CPU_H

#include <jansson.h>

#include "common/error.h"
#include "common/qemu/qom.h"

/*
 * *out is a new array, one object per CPU in QEMU's order:
 *   type       QOM type, e.g. "qemu64-x86_64-cpu"
 *   place      {socket-id, core-id, ...} as QEMU gives it
 *   hotplugged
 *   identity   {vendor, family, model, stepping, model-id, level, xlevel, phys-bits, apic-id, ...}
 *   words      {"1.EDX": 126614525, "7.0.EBX": ...}: CPUID feature words that are not zero
 *   features   names of what CPUID words don't show and is on: VMX capabilities, Hyper-V
 *              enlightenments, ARCH_CAPABILITIES; of the first CPU only (QEMU gives all the same)
 */
int machine_describe_cpus(json_t **out, struct qom *m, bool kvm, struct error *e);

/* The first difference of two such arrays, as words in `text`; false when there is none. */
bool machine_cpus_differ(const json_t *recorded, const json_t *actual, char *text, size_t size);

#endif
