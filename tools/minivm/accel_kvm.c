/*
 * accel_kvm.c - the guest on KVM vCPUs: 64-bit code in ring 3, where it also runs at full speed on
 * hosts whose KVM has no hardware to lean on; an identity map of 2 MiB pages; no interrupts, no
 * exceptions, no devices but the doorbell, an address without memory. A store there leaves KVM_RUN
 * as KVM_EXIT_MMIO.
 *
 * Before anything else each vCPU runs the guest's calibration, which touches no RAM: it shows that
 * the guest runs here at all, and what its TSC is against ours.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blob.h"
#include "kvm_state.h"
#include "vm.h"

#define KICK_SIGNAL SIGUSR1
#define MAX_CPUID 256u
#define CALIBRATIONS 16

#define PTE_PRESENT_WRITE_USER 0x7ull
#define PTE_HUGE_USED 0xe0ull /* large page, accessed, dirty */

static void on_kick(int number)
{
    (void)number; /* it is there to end KVM_RUN */
}

/* Maps the first `gib` GiB of guest-physical memory at the same virtual addresses. */
static void make_map(uint8_t *machine, uint64_t gib)
{
    uint64_t *pml4 = (uint64_t *)(void *)(machine + GUEST_MAP_OFFSET);
    uint64_t *pdpt = pml4 + 512, base = GUEST_MACHINE_GPA + GUEST_MAP_OFFSET;
    pml4[0] = (base + 0x1000) | PTE_PRESENT_WRITE_USER;
    for (uint64_t i = 0; i < gib; i++) {
        uint64_t *directory = pdpt + 512 + 512 * i;
        pdpt[i] = (base + 0x2000 + 0x1000 * i) | PTE_PRESENT_WRITE_USER;
        for (uint64_t j = 0; j < 512; j++)
            directory[j] = i << 30 | j << 21 | PTE_PRESENT_WRITE_USER | PTE_HUGE_USED;
    }
}

static bool set_slots(struct vm *vm)
{
    struct kvm_userspace_memory_region machine = {.slot = 0,
                                                  .guest_phys_addr = GUEST_MACHINE_GPA,
                                                  .memory_size = GUEST_MAILBOX_OFFSET +
                                                                 vm->o.cpus * GUEST_MAILBOX_BYTES,
                                                  .userspace_addr = (uintptr_t)vm->machine};
    bool ok = ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &machine) == 0;
    for (unsigned i = 0; ok && i < vm->memory.n_regions; i++) {
        const struct memory_region *r = &vm->memory.regions[i];
        struct kvm_userspace_memory_region ram = {.slot = i + 1,
                                                  .guest_phys_addr = r->gpa,
                                                  .memory_size = r->bytes,
                                                  .userspace_addr = (uintptr_t)r->hva};
        ok = ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &ram) == 0;
    }
    return ok;
}

static bool set_cpuid(struct vcpu *v)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + MAX_CPUID * sizeof(c->entries[0]));
    if (!c)
        return false;
    c->nent = MAX_CPUID;
    bool ok = ioctl(v->vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, c) == 0 &&
              ioctl(v->fd, KVM_SET_CPUID2, c) == 0;
    free(c);
    return ok;
}

/* Long mode, ring 3, flat segments. Ring 0 is emulated, thousands of times slower, where KVM has no
 * hardware below it. */
static bool set_long_mode(struct vcpu *v)
{
    struct kvm_sregs s;
    struct kvm_segment code = {.limit = ~0u, .selector = 0x33, .present = 1, .type = 11};
    code.dpl = 3, code.s = 1, code.l = 1, code.g = 1;
    struct kvm_segment data = code;
    data.selector = 0x2b, data.type = 3, data.l = 0, data.db = 1;
    if (ioctl(v->fd, KVM_GET_SREGS, &s) != 0)
        return false;
    s.cs = code;
    s.ss = s.ds = s.es = s.fs = s.gs = data;
    s.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
    s.cr3 = GUEST_MACHINE_GPA + GUEST_MAP_OFFSET;
    s.cr4 = 0x620;  /* OSXMMEXCPT OSFXSR PAE */
    s.efer = 0x500; /* LMA LME */
    return ioctl(v->fd, KVM_SET_SREGS, &s) == 0;
}

/* The registers of a call of guest_main() that has just begun. */
static bool set_entry(struct vcpu *v, enum guest_mode mode)
{
    uint64_t state = GUEST_RAM_GPA + (uint64_t)v->index * GUEST_PAGE_BYTES;
    uint64_t code = GUEST_MACHINE_GPA + GUEST_CODE_OFFSET;
    uint64_t stack = mode == GUEST_WORK ? state + GUEST_PAGE_BYTES : code + GUEST_CODE_BYTES;
    struct kvm_regs r = {
        .rip = code,
        .rsp = stack - 8, /* as after a call */
        .rflags = 2,
        .rdi = GUEST_MACHINE_GPA + GUEST_MAILBOX_OFFSET + v->index * GUEST_MAILBOX_BYTES,
        .rsi = state,
        .rdx = mode,
    };
    return ioctl(v->fd, KVM_SET_REGS, &r) == 0;
}

static bool is_doorbell(const struct kvm_run *run, uint64_t call)
{
    uint64_t value = 0;
    if (run->exit_reason != KVM_EXIT_MMIO || !run->mmio.is_write ||
        run->mmio.phys_addr != GUEST_DOORBELL_GPA || run->mmio.len != sizeof(value))
        return false;
    memcpy(&value, run->mmio.data, sizeof(value));
    return value == call;
}

/* The exit itself takes a while, so the smallest difference is the truest. */
static bool calibrate(struct vcpu *v)
{
    uint64_t best = UINT64_MAX;
    if (!set_entry(v, GUEST_CALIBRATE))
        return false;
    for (int i = 0; i < CALIBRATIONS; i++) {
        uint64_t before = guest_tsc();
        if (ioctl(v->fd, KVM_RUN, 0) != 0 || !is_doorbell(v->run, GUEST_CALL_HELLO))
            return false;
        uint64_t after = guest_tsc();
        if (i > 0 && after - before < best) {
            best = after - before;
            v->tsc_offset = (int64_t)(v->mb->hello_tsc - (before + best / 2));
        }
    }
    v->run->immediate_exit = 1;
    return ioctl(v->fd, KVM_RUN, 0) != 0 && errno == EINTR && set_entry(v, GUEST_WORK);
}

static bool open_vcpu(struct vcpu *v, int run_bytes)
{
    memory_map(&v->vm->memory, v->mb->regions, true);
    v->fd = ioctl(v->vm->vm_fd, KVM_CREATE_VCPU, v->index);
    if (v->fd < 0)
        return false;
    v->run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    return v->run != MAP_FAILED && set_cpuid(v) && set_long_mode(v) && calibrate(v);
}

static bool open_vcpus(struct vm *vm, char *why, size_t why_bytes)
{
    int run_bytes = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    for (unsigned i = 0; i < vm->o.cpus; i++) {
        struct vcpu *v = &vm->vcpus[i];
        if (run_bytes <= 0 || !open_vcpu(v, run_bytes)) {
            snprintf(why, why_bytes, "vCPU %u does not run 64-bit code: errno %d, exit reason %d",
                     i, errno, v->run && v->run != MAP_FAILED ? (int)v->run->exit_reason : -1);
            return false;
        }
    }
    return true;
}

static bool open_vm(struct vm *vm, char *why, size_t why_bytes)
{
    vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm_fd < 0) {
        snprintf(why, why_bytes, "/dev/kvm: %s", strerror(errno));
        return false;
    }
    vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
    if (vm->vm_fd >= 0 && set_slots(vm))
        return open_vcpus(vm, why, why_bytes);
    snprintf(why, why_bytes, "KVM makes no VM: %s", strerror(errno));
    return false;
}

/* What was opened until it turned out that there is no KVM here. */
static void close_vm(struct vm *vm)
{
    for (unsigned i = 0; i < vm->o.cpus; i++) {
        if (vm->vcpus[i].fd >= 0)
            close(vm->vcpus[i].fd);
        vm->vcpus[i].fd = -1;
    }
    if (vm->vm_fd >= 0)
        close(vm->vm_fd);
    if (vm->kvm_fd >= 0)
        close(vm->kvm_fd);
}

static bool kvm_open(struct vm *vm, char *why, size_t why_bytes)
{
    struct sigaction action = {.sa_handler = on_kick};
    sigaction(KICK_SIGNAL, &action, NULL);
    memcpy(vm->machine + GUEST_CODE_OFFSET, blob_code, blob_bytes);
    const struct memory_region *last = &vm->memory.regions[vm->memory.n_regions - 1];
    make_map(vm->machine, (last->gpa + last->bytes + (1ull << 30) - 1) >> 30);
    vm->vm_fd = -1;
    bool ok = open_vm(vm, why, why_bytes);
    if (!ok)
        close_vm(vm);
    return ok;
}

/* One round in the guest. 1: go on; 0: it was told to leave; -1: it died. */
static int run_once(struct vcpu *v)
{
    if (ioctl(v->fd, KVM_RUN, 0) != 0) {
        if (errno == EINTR)
            return v->run->immediate_exit ? 0 : 1;
        vm_fail(v, "KVM_RUN: %s", strerror(errno));
        return -1;
    }
    if (!is_doorbell(v->run, GUEST_CALL_WAIT)) {
        vm_fail(v, "KVM_RUN ended with exit reason %u", v->run->exit_reason);
        return -1;
    }
    vm_wait(v);
    return 1;
}

/* An exit is complete only after another KVM_RUN; with immediate_exit that is all which it does. So
 * the only way out of here is one that ended with EINTR. */
static bool kvm_run(struct vcpu *v)
{
    int r;
    do
        r = run_once(v);
    while (r > 0);
    return r == 0;
}

/* KVM looks at immediate_exit when KVM_RUN begins; the signal is for a guest that runs. */
static void kvm_kick(struct vcpu *v)
{
    __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_RELEASE);
    pthread_kill(v->thread, KICK_SIGNAL);
}

static void kvm_ready(struct vcpu *v)
{
    v->run->immediate_exit = 0;
}

const struct accel accel_kvm = {
    .name = "kvm",
    .open = kvm_open,
    .run = kvm_run,
    .kick = kvm_kick,
    .ready = kvm_ready,
    .state_bytes = sizeof(struct kvm_state),
    .save = kvm_state_save,
    .load = kvm_state_load,
};
