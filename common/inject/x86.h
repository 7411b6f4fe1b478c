/*
 * x86.h - what injection knows of x86-64: the registers of a stopped thread, code of the
 * target that can be borrowed, and a signal frame that brings the thread back by itself.
 * Private to common/inject/.
 */
#ifndef VMSNAP_COMMON_INJECT_X86_H
#define VMSNAP_COMMON_INJECT_X86_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "common/error.h"
#include "common/target/target.h"

/* Addresses in the target. */
struct x86_code {
    uint64_t syscall_ret; /* `syscall; ret` */
    uint64_t restorer;    /* `mov $15,%rax; syscall`: libc's __restore_rt, or the same bytes */
};

/* Searches the target's executable mappings: the vdso and the C library first. -ENOENT: no such
 * code; others: not found, and some of the code could not be read. Reads at most the executable
 * memory of the target, once. */
int x86_find_code(struct x86_code *code, const struct target *t, const struct mapping_list *maps);

/* What the kernel's registers of a stopped thread say. */
struct x86_state {
    struct user_regs_struct regs;
    uint64_t sigmask;
    uint8_t *xstate; /* XSAVE image, or the 512 bytes of FXSAVE on a CPU without XSAVE */
    size_t xstate_bytes;
    bool has_xsave;
    long restarted_nr; /* x86_find_restarted(); -1: not known */
};

/* Asks the CPU once what is needed later. Before a thread is stopped: it is slow in a VM. */
void x86_prepare(void);

/* Reads it all from a stopped thread. -errno of ptrace. Ends with x86_state_free(). */
int x86_state_get(struct x86_state *s, pid_t tid);
void x86_state_free(struct x86_state *s);

int x86_get_regs(pid_t tid, struct user_regs_struct *regs);
int x86_set_regs(pid_t tid, const struct user_regs_struct *regs);
int x86_get_sigmask(pid_t tid, uint64_t *mask);
int x86_set_sigmask(pid_t tid, uint64_t mask);

/* True when a user shadow stack is on: a borrowed `ret` would end the thread. */
bool x86_has_shadow_stack(pid_t tid);

/* In a system call, in 64-bit code. */
bool x86_in_syscall(const struct user_regs_struct *regs);

/*
 * For a thread that has just been stopped in a system call: makes the kernel restart the call from
 * its beginning where that is the right thing and the kernel would do something else. True when
 * the registers have been changed.
 */
bool x86_make_repeatable(struct user_regs_struct *regs);

/* Notes which call a thread that is in restart_syscall is really in, from the code before it. */
void x86_find_restarted(struct x86_state *s, const struct target *t);

/* The registers of the frame: with them the thread makes the interrupted call again. */
struct user_regs_struct x86_repeat_regs(const struct x86_state *s);

/* Where things lie on the thread's stack, from high to low. */
struct x86_frame {
    uint64_t fpstate, frame, scratch; /* addresses in the target */
    uint64_t end;                     /* one past the last byte written */
    size_t bytes;                     /* of the image, from `frame` to `end` */
};

/* Plans a frame of this state below the red zone of its stack, with `scratch_bytes` below it. */
void x86_frame_plan(struct x86_frame *f, const struct x86_state *s, size_t scratch_bytes);

/* Makes the bytes of the frame; *out is malloc()ed. */
int x86_frame_build(const struct x86_frame *f, const struct x86_state *s,
                    const struct x86_code *code, uint8_t **out);

/* A thread let go with these registers runs rt_sigreturn on the frame, and nothing else. */
void x86_park(struct user_regs_struct *regs, const struct x86_code *code,
              const struct x86_frame *f);

/* Turns the parked thread's rt_sigreturn, at its entry, into another call that returns into the
 * restorer. */
void x86_set_call(struct user_regs_struct *regs, const struct x86_frame *f, long nr,
                  const uint64_t args[6]);

#endif
