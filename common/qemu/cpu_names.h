/* cpu_names.h - names of CPUID feature bits, for messages. Private to common/qemu. */
#ifndef VMSNAP_COMMON_QEMU_CPU_NAMES_H
#define VMSNAP_COMMON_QEMU_CPU_NAMES_H

#include <stddef.h>

/* The name of bit `bit` of a feature word ("7.0.EBX"), as QEMU's -cpu takes it; where it has none,
 * "CPUID 7.0.EBX bit 5". */
void cpu_feature_name(const char *word, unsigned bit, char *out, size_t size);

#endif
