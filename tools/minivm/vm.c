/* vm.c - see vm.h. */
#include "vm.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CALIBRATION_NS 5000000u
#define SLOT_NS 100000000u
#define BURST_NS 1000000u
#define IDLE_NS 100000000u

uint64_t vm_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The TSC and the clock of one moment: the closest of a few pairs. */
static void read_clocks(uint64_t *ns, uint64_t *tsc)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 8; i++) {
        uint64_t before = guest_tsc(), now = vm_now_ns(), after = guest_tsc();
        if (after - before < best) {
            best = after - before;
            *ns = now;
            *tsc = before + best / 2;
        }
    }
}

void vm_calibrate(struct vm *vm)
{
    uint64_t ns = 0, tsc = 0;
    read_clocks(&ns, &tsc);
    pthread_mutex_lock(&vm->lock);
    vm->ns_per_tick = (double)(ns - vm->origin_ns) / (double)(tsc - vm->origin_tsc);
    pthread_mutex_unlock(&vm->lock);
}

uint64_t vm_ticks_to_ns(const struct vm *vm, uint64_t ticks)
{
    return (uint64_t)((double)ticks * vm->ns_per_tick);
}

uint64_t vm_tsc_to_ns(const struct vcpu *v, uint64_t tsc)
{
    int64_t ticks = (int64_t)(tsc - (uint64_t)v->tsc_offset - v->vm->origin_tsc);
    return v->vm->origin_ns + (uint64_t)(int64_t)((double)ticks * v->vm->ns_per_tick);
}

void vm_fail(struct vcpu *v, const char *format, ...)
{
    struct vm *vm = v->vm;
    va_list args;
    pthread_mutex_lock(&vm->lock);
    if (!vm->failed) {
        int n = snprintf(vm->failure, sizeof(vm->failure), "vCPU %u: ", v->index);
        va_start(args, format);
        vsnprintf(vm->failure + n, sizeof(vm->failure) - (size_t)n, format, args);
        va_end(args);
        vm->failed = true;
        eventfd_write(vm->failed_fd, 1);
    }
    pthread_mutex_unlock(&vm->lock);
}

void vm_wait(struct vcpu *v)
{
    struct vm *vm = v->vm;
    pthread_mutex_lock(&vm->lock);
    uint64_t wake_ns = vm_tsc_to_ns(v, v->mb->wake_tsc);
    struct timespec t = {.tv_sec = (time_t)(wake_ns / 1000000000u),
                         .tv_nsec = (long)(wake_ns % 1000000000u)};
    while (vm->want_run && vm_now_ns() < wake_ns)
        pthread_cond_timedwait(&vm->changed, &vm->lock, &t);
    pthread_mutex_unlock(&vm->lock);
}

/* Until the VM shall run. A guest that died stays parked. */
static void park(struct vcpu *v, bool alive)
{
    struct vm *vm = v->vm;
    pthread_mutex_lock(&vm->lock);
    v->parked = true;
    pthread_cond_broadcast(&vm->changed);
    while (!vm->want_run || !alive)
        pthread_cond_wait(&vm->changed, &vm->lock);
    v->parked = false;
    vm->accel->ready(v);
    pthread_mutex_unlock(&vm->lock);
}

static void *vcpu_main(void *arg)
{
    struct vcpu *v = arg;
    char name[16];
    snprintf(name, sizeof(name), "vcpu%u", v->index % 1000);
    pthread_setname_np(pthread_self(), name);
    for (bool alive = true;; alive = v->vm->accel->run(v))
        park(v, alive);
    return NULL;
}

static bool all_parked(const struct vm *vm)
{
    for (unsigned i = 0; i < vm->o.cpus; i++)
        if (!vm->vcpus[i].parked)
            return false;
    return true;
}

void vm_stop(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->want_run = false;
    for (unsigned i = 0; i < vm->o.cpus; i++)
        if (!vm->vcpus[i].parked)
            vm->accel->kick(&vm->vcpus[i]);
    pthread_cond_broadcast(&vm->changed);
    while (!all_parked(vm))
        pthread_cond_wait(&vm->changed, &vm->lock);
    pthread_mutex_unlock(&vm->lock);
    if (vm->status == VM_RUNNING)
        vm->status = VM_PAUSED;
}

/* What was before the guest first ran was no gap in its work. */
static void begin(struct vm *vm)
{
    for (unsigned i = 0; i < vm->o.cpus; i++) {
        struct vcpu *v = &vm->vcpus[i];
        v->mb->next_tsc = v->mb->last_tsc = guest_tsc() + (uint64_t)v->tsc_offset;
    }
    vm->began = true;
}

void vm_cont(struct vm *vm)
{
    if (!vm->began)
        begin(vm);
    for (unsigned i = 0; i < vm->o.cpus; i++)
        vm->vcpus[i].mb->epoch++;
    pthread_mutex_lock(&vm->lock);
    vm->want_run = true;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
    vm->status = VM_RUNNING;
}

/* Shared, so that fork() does not make copies on write of it; present, so that nothing faults. */
static bool open_machine(struct vm *vm)
{
    uint64_t bytes = GUEST_MAILBOX_OFFSET + vm->o.cpus * GUEST_MAILBOX_BYTES;
    vm->machine =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return vm->machine != MAP_FAILED;
}

static void set_mailbox(struct vcpu *v)
{
    struct vm *vm = v->vm;
    struct guest_mailbox *mb = v->mb;
    double ticks_per_ns = 1 / vm->ns_per_tick;
    mb->epoch = guest_mix(vm->origin_ns + (uint64_t)getpid());
    mb->interval_ticks = vm->o.rate ? (uint64_t)(1e9 * ticks_per_ns / (double)vm->o.rate) : 0;
    mb->burst_ticks = (uint64_t)(BURST_NS * ticks_per_ns);
    mb->idle_ticks = (uint64_t)(IDLE_NS * ticks_per_ns);
    mb->slot_ticks = (uint64_t)(SLOT_NS * ticks_per_ns);
    mb->slot_start = vm->origin_tsc + (uint64_t)v->tsc_offset;
}

static bool start_vcpus(struct vm *vm)
{
    for (unsigned i = 0; i < vm->o.cpus; i++) {
        set_mailbox(&vm->vcpus[i]);
        int error = pthread_create(&vm->vcpus[i].thread, NULL, vcpu_main, &vm->vcpus[i]);
        if (error)
            return errno = error, false;
    }
    pthread_mutex_lock(&vm->lock);
    while (!all_parked(vm))
        pthread_cond_wait(&vm->changed, &vm->lock);
    pthread_mutex_unlock(&vm->lock);
    return true;
}

static bool open_accel(struct vm *vm, char *why, size_t why_bytes)
{
    if (vm->o.accel != ACCEL_THREADS) {
        vm->accel = &accel_kvm;
        if (accel_kvm.open(vm, why, why_bytes))
            return true;
        if (vm->o.accel == ACCEL_KVM)
            return false;
        fprintf(stderr, "minivm: no KVM here (%s): the guest runs in threads\n", why);
    }
    vm->accel = &accel_threads;
    return accel_threads.open(vm, why, why_bytes);
}

/* Condition variables that count by CLOCK_MONOTONIC, as all of minivm does. */
static void init_locks(struct vm *vm)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

bool vm_open(struct vm *vm, const struct options *o, char *why, size_t why_bytes)
{
    memset(vm, 0, sizeof(*vm));
    vm->o = *o;
    init_locks(vm);
    read_clocks(&vm->origin_ns, &vm->origin_tsc);
    int r = memory_open(&vm->memory, o);
    if (r != 0 || !open_machine(vm) || (vm->failed_fd = eventfd(0, EFD_CLOEXEC)) < 0) {
        snprintf(why, why_bytes, "no memory for the guest: %s%s", strerror(r ? -r : errno),
                 o->kind == MEMORY_HUGETLBFS ? " (see /proc/sys/vm/nr_hugepages)" : "");
        return false;
    }
    for (unsigned i = 0; i < o->cpus; i++)
        vm->vcpus[i] = (struct vcpu){
            .vm = vm,
            .index = i,
            .fd = -1,
            .mb = (void *)(vm->machine + GUEST_MAILBOX_OFFSET + i * GUEST_MAILBOX_BYTES)};
    if (!open_accel(vm, why, why_bytes))
        return false;
    while (vm_now_ns() - vm->origin_ns < CALIBRATION_NS)
        usleep(500);
    vm_calibrate(vm);
    if (start_vcpus(vm))
        return true;
    snprintf(why, why_bytes, "cannot start the vCPU threads: %s", strerror(errno));
    return false;
}
