/*
 * kvm_state.c - see kvm_state.h. The TSC is left out on purpose: it is the clock of the VMM's
 * measurements, and the guest keeps nothing that depends on it outside of its mailbox. Local APIC
 * and MP state are left out since there is neither: every vCPU runs always.
 */
#include "kvm_state.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vm.h"

/* In the order in which they are set. */
static const struct {
    unsigned long get, set;
    size_t offset;
} parts[] = {
    {KVM_GET_SREGS, KVM_SET_SREGS, offsetof(struct kvm_state, sregs)},
    {KVM_GET_XCRS, KVM_SET_XCRS, offsetof(struct kvm_state, xcrs)},
    {KVM_GET_XSAVE, KVM_SET_XSAVE, offsetof(struct kvm_state, xsave)},
    {KVM_GET_REGS, KVM_SET_REGS, offsetof(struct kvm_state, regs)},
    {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, offsetof(struct kvm_state, events)},
};

/* PAT, SYSENTER_CS/ESP/EIP, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX. FS and GS base and
 * EFER are in the sregs. */
static const __u32 msrs[] = {0x277,      0x174,      0x175,      0x176,      0xc0000081,
                             0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0xc0000103};

/* One at a time: a processor has some of them only. */
static void save_msrs(const struct vcpu *v, struct kvm_state_msrs *all)
{
    all->count = 0;
    for (size_t i = 0; i < sizeof(msrs) / sizeof(msrs[0]); i++) {
        struct kvm_state_msrs one = {.count = 1, .entries[0].index = msrs[i]};
        if (ioctl(v->fd, KVM_GET_MSRS, &one) == 1)
            all->entries[all->count++] = one.entries[0];
    }
}

bool kvm_state_save(struct vcpu *v, void *state)
{
    struct kvm_state *s = state;
    memset(s, 0, sizeof(*s));
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (ioctl(v->fd, parts[i].get, (char *)s + parts[i].offset) != 0)
            return false;
    save_msrs(v, &s->msrs);
    return true;
}

bool kvm_state_load(struct vcpu *v, const void *state)
{
    struct kvm_state s;
    memcpy(&s, state, sizeof(s));
    if (s.msrs.count > KVM_STATE_MSRS)
        return errno = EINVAL, false;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (ioctl(v->fd, parts[i].set, (char *)&s + parts[i].offset) != 0)
            return false;
    if (ioctl(v->fd, KVM_SET_MSRS, &s.msrs) == (int)s.msrs.count)
        return true;
    return errno = EINVAL, false;
}
