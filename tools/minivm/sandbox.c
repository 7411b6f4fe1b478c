/*
 * sandbox.c - see sandbox.h. Firecracker's own filters (resources/seccomp of its source) trap what
 * is not on their list. This one has the calls of its three kinds of thread, and those that glibc
 * takes in their place or that our own commands need. As there, no mapping is made executable, and
 * memfd_create (but with the flags of its network device), userfaultfd and prctl are not allowed.
 */
#include "sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define JUMP(code, k, yes, no) ((struct sock_filter)BPF_JUMP(BPF_JMP | (code) | BPF_K, k, yes, no))
#define LOAD(field)                                                                                \
    ((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field)))
#define END(action) ((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action))

static const unsigned allowed[] = {
    /* Firecracker's */
    SYS_accept4, SYS_brk, SYS_clock_gettime, SYS_close, SYS_connect, SYS_epoll_ctl, SYS_epoll_pwait,
    SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat, SYS_fsync, SYS_ftruncate,
    SYS_futex, SYS_getrandom, SYS_gettid, SYS_ioctl, SYS_lseek, SYS_madvise, SYS_mincore,
    SYS_mprotect, SYS_mremap, SYS_msync, SYS_munmap, SYS_open, SYS_read, SYS_readv, SYS_recvfrom,
    SYS_recvmsg, SYS_restart_syscall, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_yield, SYS_sendmsg, SYS_sendto, SYS_sigaltstack, SYS_socket, SYS_stat,
    SYS_timerfd_settime, SYS_tkill, SYS_write, SYS_writev,
    /* ours: of glibc, of the threads that check memory, of the control socket */
    SYS_clone, SYS_clone3, SYS_clock_nanosleep, SYS_getpid, SYS_newfstatat, SYS_openat, SYS_poll,
    SYS_pread64, SYS_pwrite64, SYS_rseq, SYS_sched_getaffinity, SYS_set_robust_list, SYS_setsockopt,
    SYS_shutdown, SYS_tgkill, SYS_unlink};

#define N_ALLOWED (sizeof(allowed) / sizeof(allowed[0]))
#define MAX_FILTER (N_ALLOWED + 16)

/* Its length. */
static unsigned short write_filter(struct sock_filter *f)
{
    struct sock_filter *p = f;
    *p++ = LOAD(arch);
    *p++ = JUMP(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
    *p++ = END(SECCOMP_RET_TRAP);
    *p++ = LOAD(nr);
    for (size_t i = 0; i < N_ALLOWED; i++)
        *p++ = JUMP(BPF_JEQ, allowed[i], (unsigned char)(N_ALLOWED - i + 2), 0);
    *p++ = JUMP(BPF_JEQ, SYS_mmap, 0, 3);
    *p++ = LOAD(args[2]);
    *p++ = JUMP(BPF_JSET, PROT_EXEC, 1, 0);
    *p++ = END(SECCOMP_RET_ALLOW);
    *p++ = END(SECCOMP_RET_TRAP);
    return (unsigned short)(p - f);
}

bool sandbox_enter(char *why, size_t why_bytes)
{
    struct sock_filter filter[MAX_FILTER];
    struct sock_fprog program = {.len = write_filter(filter), .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0)
        return true;
    snprintf(why, why_bytes, "no seccomp filter: %s", strerror(errno));
    return false;
}
