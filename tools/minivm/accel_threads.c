/*
 * accel_threads.c - the guest in plain threads, where there is no KVM. It stops between two steps:
 * then its state in RAM is all of it, and entering it again goes on from there.
 */
#include "vm.h"

static _Thread_local struct vcpu *this_vcpu;

void guest_doorbell(struct guest_mailbox *mb, uint64_t call)
{
    (void)mb;
    if (call == GUEST_CALL_WAIT)
        vm_wait(this_vcpu);
}

static bool threads_open(struct vm *vm, char *why, size_t why_bytes)
{
    (void)why, (void)why_bytes;
    for (unsigned i = 0; i < vm->o.cpus; i++)
        memory_map(&vm->memory, vm->vcpus[i].mb->regions, false), vm->vcpus[i].tsc_offset = 0;
    return true;
}

static bool threads_run(struct vcpu *v)
{
    this_vcpu = v;
    guest_main(v->mb, memory_state(&v->vm->memory, v->index), GUEST_WORK);
    return true;
}

static void threads_kick(struct vcpu *v)
{
    v->mb->leave = 1;
}

static void threads_ready(struct vcpu *v)
{
    v->mb->leave = 0;
}

const struct accel accel_threads = {
    .name = "threads",
    .open = threads_open,
    .run = threads_run,
    .kick = threads_kick,
    .ready = threads_ready,
};
