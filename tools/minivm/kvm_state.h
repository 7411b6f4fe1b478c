/* kvm_state.h - the state of a KVM vCPU, as KVM itself lays it out. */
#ifndef MINIVM_KVM_STATE_H
#define MINIVM_KVM_STATE_H

#include <linux/kvm.h>
#include <stdbool.h>

#define KVM_STATE_MSRS 16u

/* KVM's own struct kvm_msrs, with room for its entries. */
struct kvm_state_msrs {
    __u32 count, pad;
    struct kvm_msr_entry entries[KVM_STATE_MSRS];
};

struct kvm_state {
    struct kvm_sregs sregs;
    struct kvm_xcrs xcrs;
    struct kvm_xsave xsave;
    struct kvm_state_msrs msrs;
    struct kvm_regs regs;
    struct kvm_vcpu_events events;
};

struct vcpu;
bool kvm_state_save(struct vcpu *v, void *state);
bool kvm_state_load(struct vcpu *v, const void *state);

#endif
