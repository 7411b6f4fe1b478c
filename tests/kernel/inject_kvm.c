/*
 * Injection into the only thread of a process, while it runs a guest in ioctl(KVM_RUN): the guest
 * runs on, KVM_RUN does not come back for our sake, also when the injecting process is killed.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inject_runs.h"
#include "ktest.h"

#define GUEST_BYTES 0x10000
#define COUNTER 0x2000 /* 32 bits, counted up by the guest */
#define FLAG 0x2004    /* set by the test: the guest leaves by an `out` */

/* 16-bit code at 0x1000. */
static const uint8_t guest_code[] = {
    0x66, 0xff, 0x06, 0x00, 0x20, /* loop: incl 0x2000 */
    0x80, 0x3e, 0x04, 0x20, 0x00, /* cmpb $0, 0x2004 */
    0x74, 0xf4,                   /* je loop */
    0xc6, 0x06, 0x04, 0x20, 0x00, /* movb $0, 0x2004 */
    0xe6, 0x10,                   /* out %al, $0x10 */
    0xeb, 0xeb,                   /* jmp loop */
};

static uint8_t *guest; /* shared by the test and the process */
static struct kvm_run *run;
static int vcpu;

static volatile uint32_t *counter(void)
{
    return (volatile uint32_t *)(void *)(guest + COUNTER);
}

static bool set_registers(void)
{
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) != 0)
        return false;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    return ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0 && ioctl(vcpu, KVM_SET_REGS, &regs) == 0;
}

static bool setup_guest(struct blocked *b)
{
    (void)b;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_userspace_memory_region region = {.memory_size = GUEST_BYTES,
                                                 .userspace_addr = (uintptr_t)guest};
    if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0)
        return false;
    int bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (vcpu < 0 || bytes <= 0)
        return false;
    run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    return run != MAP_FAILED && set_registers();
}

static void args_run(struct blocked *b, uint64_t args[6])
{
    (void)b;
    args[0] = (uint64_t)vcpu;
    args[1] = KVM_RUN;
}

static void wake_guest(struct blocked *b)
{
    (void)b;
    __atomic_store_n(guest + FLAG, 1, __ATOMIC_RELEASE);
}

static const char *verify_run(struct blocked *b, int64_t result)
{
    (void)b;
    if (result != 0)
        return "KVM_RUN failed";
    return run->exit_reason == KVM_EXIT_IO ? NULL : "not the exit that the guest makes";
}

/* The guest has counted since we looked. */
static bool guest_runs(const struct blocked *b)
{
    (void)b;
    uint32_t before = *counter();
    ktest_nap();
    return *counter() != before;
}

static const struct blocking_kind kvm_run = {
    .name = "KVM_RUN",
    .nr = SYS_ioctl,
    .stop_gives_eintr = true,
    .setup = setup_guest,
    .arguments = args_run,
    .wake = wake_guest,
    .verify = verify_run,
    .is_blocked = guest_runs,
};

int main(int argc, char **argv)
{
    const struct ktest_case cases[] = {
        {"injected into KVM_RUN", inject_run_calls, &kvm_run},
        {"killed while in KVM_RUN", inject_run_killed, &kvm_run},
    };
    guest = ktest_shared(GUEST_BYTES);
    memcpy(guest + 0x1000, guest_code, sizeof(guest_code));
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
