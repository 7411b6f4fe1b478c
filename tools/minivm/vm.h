/*
 * vm.h - the machine: memory, vCPU threads, and the accelerator that runs them.
 *
 * The main thread owns the state; each vCPU thread runs the guest while `want` is running and parks
 * otherwise. vm_stop() returns when all have parked: no instruction of the guest runs any more.
 */
#ifndef MINIVM_VM_H
#define MINIVM_VM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest.h"
#include "memory.h"
#include "options.h"

struct kvm_run;
struct vm;

struct vcpu {
    struct vm *vm;
    unsigned index;
    pthread_t thread;
    bool parked; /* under vm->lock */
    struct guest_mailbox *mb;
    int64_t tsc_offset; /* the guest's TSC less ours */
    int fd;             /* KVM: -1 without */
    struct kvm_run *run;
};

/* What differs between KVM and threads. `why` takes what a person should know of a failure. */
struct accel {
    const char *name;
    bool (*open)(struct vm *vm, char *why, size_t why_bytes);
    bool (*run)(struct vcpu *v); /* until told to stop; false: the guest died, vm_fail() was said */
    void (*kick)(struct vcpu *v);  /* under vm->lock, by the thread that stops */
    void (*ready)(struct vcpu *v); /* under vm->lock, before run */
    /* The state of a vCPU that is not in RAM: 0 bytes and NULL where there is none. For the main
     * thread while the VM is stopped. False: errno. */
    size_t state_bytes;
    bool (*save)(struct vcpu *v, void *state);
    bool (*load)(struct vcpu *v, const void *state);
};

extern const struct accel accel_kvm, accel_threads;

enum vm_status { VM_INMIGRATE, VM_PAUSED, VM_RUNNING };

struct vm {
    struct options o;
    struct memory memory;
    const struct accel *accel;
    int kvm_fd, vm_fd;
    uint8_t *machine; /* page tables, code, mailboxes: guest.h */
    struct vcpu vcpus[GUEST_MAX_CPUS];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum vm_status status;         /* main thread */
    bool began;                    /* main thread: the guest has run */
    uint64_t handed_ns, loaded_ns; /* main thread: see x-touches; 0: no start from files */
    uint64_t balloon_ns; /* main thread: when pages were last discarded at a rate; 0: not yet */
    bool want_run;       /* under lock */
    bool failed;         /* under lock: the guest died */
    char failure[160];
    int failed_fd; /* eventfd, readable once it has */
    /* One moment of the clocks, and what lies between two ticks of the TSC as known then. */
    uint64_t origin_ns, origin_tsc;
    double ns_per_tick; /* set by the main thread, under lock */
};

/* Everything but the guest's RAM content. On failure `why` says what. */
bool vm_open(struct vm *vm, const struct options *o, char *why, size_t why_bytes);

/* Both: no error if it is so already. vm_stop() returns when the last vCPU has parked. */
void vm_stop(struct vm *vm);
void vm_cont(struct vm *vm);

/* For vCPU threads. */
void vm_fail(struct vcpu *v, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* GUEST_CALL_WAIT: until the guest's wake_tsc, or until it shall stop. */
void vm_wait(struct vcpu *v);

uint64_t vm_now_ns(void);                                  /* CLOCK_MONOTONIC */
uint64_t vm_tsc_to_ns(const struct vcpu *v, uint64_t tsc); /* the guest's TSC, CLOCK_MONOTONIC */
uint64_t vm_ticks_to_ns(const struct vm *vm, uint64_t ticks);
void vm_calibrate(struct vm *vm); /* ns_per_tick anew: the longer ago vm_open(), the better */

#endif
