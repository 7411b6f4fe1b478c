/*
 * x86_restart.c - what becomes of the system call that a stop has interrupted.
 *
 * The kernel leaves a code in rax that its signal code acts upon when the thread goes on: restart
 * it (-512, -513, -514), continue it through restart_syscall with the time that is left (-516), or
 * none: the call is over. In our frame none of this works, as rt_sigreturn forgets it: there a call
 * can only be made again from its beginning.
 *
 * So the calls for which this is exactly right are made to restart that way from the first moment
 * on. Of the others (relative timeouts: nanosleep, poll, FUTEX_WAIT) an end through the frame makes
 * the timeout begin anew; the normal end does not use the frame.
 */
#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/inject/x86.h"

#define CODE_SEGMENT_64 0x33

/* Codes that a system call returns to the kernel's signal code, never to user space. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

#define KVM_RUN_REQUEST 0xae80u
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

bool x86_in_syscall(const struct user_regs_struct *regs)
{
    return (int64_t)regs->orig_rax >= 0 && regs->cs == CODE_SEGMENT_64;
}

/* Calls that end with EINTR when a process is stopped and continued, even without any handler
 * (signal(7) lists them), and did nothing yet when they do. */
static bool eintr_means_nothing(const struct user_regs_struct *regs)
{
    switch (regs->orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_rt_sigtimedwait:
    case SYS_io_uring_enter:
        return true;
    case SYS_ioctl:
        return (uint32_t)regs->rsi == KVM_RUN_REQUEST;
    default:
        return false;
    }
}

/* Calls that continue through restart_syscall though their timeout is absolute, or endless. */
static bool has_no_relative_timeout(const struct user_regs_struct *regs)
{
    switch (regs->orig_rax) {
    case SYS_poll:
        return (int)regs->rdx < 0;
    case SYS_futex:
        return (regs->rsi & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
    default:
        return false;
    }
}

bool x86_make_repeatable(struct user_regs_struct *regs)
{
    int64_t result = (int64_t)regs->rax;
    if (!x86_in_syscall(regs))
        return false;
    if (!(result == -EINTR && eintr_means_nothing(regs)) &&
        !(result == -ERESTART_RESTARTBLOCK && has_no_relative_timeout(regs)))
        return false;
    regs->rax = (uint64_t)-ERESTARTNOHAND;
    return true;
}

/*
 * A call with a relative timeout that was interrupted before (by us, by a debugger, by SIGSTOP)
 * goes on as restart_syscall, with the registers of the original call but for its number. That
 * number is in the code, which compilers make as `mov $number,%eax; syscall`.
 */
void x86_find_restarted(struct x86_state *s, const struct target *t)
{
    uint8_t code[7]; /* b8 imm32 0f 05 */
    uint32_t nr;
    s->restarted_nr = -1;
    if (s->regs.orig_rax != SYS_restart_syscall ||
        target_read(t, s->regs.rip - sizeof(code), code, sizeof(code)) != (ssize_t)sizeof(code))
        return;
    memcpy(&nr, code + 1, sizeof(nr));
    bool has_restart =
        nr == SYS_poll || nr == SYS_nanosleep || nr == SYS_clock_nanosleep || nr == SYS_futex;
    if (code[0] == 0xb8 && code[5] == 0x0f && code[6] == 0x05 && has_restart)
        s->restarted_nr = (long)nr;
}

static bool is_restart_code(int64_t result)
{
    return result == -ERESTARTSYS || result == -ERESTARTNOINTR || result == -ERESTARTNOHAND ||
           result == -ERESTART_RESTARTBLOCK;
}

struct user_regs_struct x86_repeat_regs(const struct x86_state *s)
{
    struct user_regs_struct regs = s->regs;
    if (!is_restart_code((int64_t)regs.rax))
        return regs;
    long nr = regs.orig_rax == SYS_restart_syscall ? s->restarted_nr : (long)regs.orig_rax;
    if (nr < 0) {
        regs.rax = (uint64_t)-EINTR; /* as after a signal handler */
        return regs;
    }
    regs.rax = (uint64_t)nr;
    regs.rip -= 2; /* `syscall` and `int $0x80` both have two bytes */
    return regs;
}
