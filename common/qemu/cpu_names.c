/*
 * Bits from the Intel SDM (CPUID instruction), the AMD APM volume 3 appendix E and, for leaf
 * 0x40000001, the kernel's Documentation/virt/kvm/x86/cpuid.rst; words in the spelling of QEMU's
 * -cpu properties.
 */
#include "common/qemu/cpu_names.h"

#include <stdio.h>
#include <string.h>

/* Bits from 0 up, "-" for one without a name. */
static const struct {
    const char *word, *bits;
} tables[] = {
    {"1.EDX",
     "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush "
     "- ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"},
    {"1.ECX",
     "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - "
     "pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c "
     "rdrand hypervisor"},
    {"6.EAX", "- - arat"},
    {"7.0.EBX", "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - "
                "avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt "
                "avx512pf avx512er avx512cd sha-ni avx512bw avx512vl"},
    {"7.0.ECX", "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni "
                "avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote "
                "- movdiri movdir64b - sgxlc pks"},
    {"7.0.EDX", "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - "
                "serialize - tsx-ldtrk - - arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 "
                "spec-ctrl stibp - arch-capabilities core-capability ssbd"},
    {"7.1.EAX", "- - - - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc"},
    {"D.1.EAX", "xsaveopt xsavec xgetbv1 xsaves xfd"},
    {"80000001.EDX",
     "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 "
     "- mp nx - mmxext mmx fxsr fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow"},
    {"80000001.ECX", "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch "
                     "osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext "
                     "perfctr-core perfctr-nb"},
    {"80000007.EDX", "- - - - - - - - invtsc"},
    {"80000008.EBX",
     "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - - - - - - "
     "- - amd-ssbd virt-ssbd amd-no-ssb"},
    {"8000000A.EDX",
     "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - "
     "pause-filter - pfthreshold avic - v-vmsave-vmload vgif"},
    {"40000001.EAX",
     "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi "
     "kvm-pv-unhalt - kvm-pv-tlb-flush - - kvm-pv-ipi kvm-poll-control "
     "kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id - - - - - - - "
     "kvmclock-stable-bit"},
};

/* The `n`-th blank-separated word of a list; its length, 0 when there are fewer. */
static int nth_word(const char *list, unsigned n, const char **word)
{
    for (; n > 0; n--) {
        list = strchr(list, ' ');
        if (!list)
            return 0;
        list++;
    }
    *word = list;
    return (int)strcspn(list, " ");
}

void cpu_feature_name(const char *word, unsigned bit, char *out, size_t size)
{
    for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++) {
        const char *name = NULL;
        int len = strcmp(tables[i].word, word) == 0 ? nth_word(tables[i].bits, bit, &name) : 0;
        if (len > 0 && *name != '-') {
            snprintf(out, size, "%.*s", len, name);
            return;
        }
    }
    snprintf(out, size, "CPUID %s bit %u", word, bit);
}
