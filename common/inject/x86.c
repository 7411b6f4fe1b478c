/*
 * x86.c - registers and signal frame of a stopped x86-64 thread.
 *
 * The frame is what the kernel itself would put on the stack to run a signal handler (the layout
 * of rt_sigreturn(2), arch/x86/include/uapi/asm/sigcontext.h): all general registers, the signal
 * mask, and the FPU's whole state. Below it nothing but scratch memory:
 *
 *     rsp ->       live stack of the thread
 *                  128 bytes of red zone
 *     fpstate ->   XSAVE image, its size and features in the software bytes of its legacy part
 *     frame ->     return address (the restorer), struct ucontext
 *     scratch ->   buffers of injected calls
 *
 * A thread whose rip is at a `syscall` with rax = 15 and rsp = frame + 8 ("parked") restores
 * everything in one system call. One that is inside an injected call has rsp = frame, and the
 * `ret` behind the `syscall` takes it to the restorer, which does the same.
 */
#include "common/inject/x86.h"

#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

#define RED_ZONE_BYTES 128
#define XSTATE_MAX_BYTES (64u << 10)
#define FXSAVE_BYTES 512u
#define XSAVE_MIN_BYTES 576u /* legacy part and header */
#define FEATURE_FP_SSE 3ull
#define FEATURE_PKRU 9u
#define FEATURE_BITS 63u

#ifndef NT_X86_SHSTK
#define NT_X86_SHSTK 0x204
#endif

/* Software bytes at offset 464 of the legacy part (struct _fpx_sw_bytes). */
struct fpx_software {
    uint32_t magic1, extended_bytes;
    uint64_t features;
    uint32_t xstate_bytes, padding[7];
};
_Static_assert(sizeof(struct fpx_software) == 48, "kernel layout");
#define FPX_OFFSET 464u
#define FPX_MAGIC1 0x46505853u
#define FPX_MAGIC2 0x46505845u

/* What rt_sigreturn reads; the siginfo that follows in a real frame it does not look at. */
struct sigframe {
    uint64_t return_address;
    uint64_t uc_flags, uc_link;
    struct {
        uint64_t sp;
        int32_t flags;
        uint32_t padding;
        uint64_t bytes;
    } uc_stack;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip;
    uint64_t eflags;
    uint16_t cs, gs, fs, ss;
    uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
    uint64_t sigmask;
};
/* glibc's ucontext_t begins with the same fields. */
_Static_assert(offsetof(struct sigframe, r8) == 8 + offsetof(ucontext_t, uc_mcontext), "layout");
_Static_assert(offsetof(struct sigframe, sigmask) == 8 + offsetof(ucontext_t, uc_sigmask),
               "layout");
#define UC_FP_XSTATE 1u
#define UC_SIGCONTEXT_SS 2u
#define UC_STRICT_RESTORE_SS 4u
/* Flags that sigaltstack(2) refuses: rt_sigreturn ignores the refusal and so leaves the thread's
 * alternate signal stack, which ptrace can't read, as it is. */
#define ALTSTACK_KEEP 0x0ff0

int x86_get_regs(pid_t tid, struct user_regs_struct *regs)
{
    struct iovec iov = {.iov_base = regs, .iov_len = sizeof(*regs)};
    return ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &iov) == 0 ? 0 : -errno;
}

/* One call, so that a death of ours comes before or after all of it. */
int x86_set_regs(pid_t tid, const struct user_regs_struct *regs)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)regs, .iov_len = sizeof(*regs)};
    return ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &iov) == 0 ? 0 : -errno;
}

int x86_get_sigmask(pid_t tid, uint64_t *mask)
{
    return ptrace(PTRACE_GETSIGMASK, tid, (void *)sizeof(*mask), mask) == 0 ? 0 : -errno;
}

int x86_set_sigmask(pid_t tid, uint64_t mask)
{
    return ptrace(PTRACE_SETSIGMASK, tid, (void *)sizeof(mask), &mask) == 0 ? 0 : -errno;
}

bool x86_has_shadow_stack(pid_t tid)
{
    uint64_t ssp;
    struct iovec iov = {.iov_base = &ssp, .iov_len = sizeof(ssp)};
    return ptrace(PTRACE_GETREGSET, tid, (void *)NT_X86_SHSTK, &iov) == 0;
}

/* Offset and size of each XSAVE component in the standard format (SDM 13.4.3). Asked once, before
 * a thread is stopped: in a VM each CPUID takes tens of microseconds. */
static struct {
    uint32_t offset, bytes;
} components[FEATURE_BITS];

static void ask_components(void)
{
    uint32_t eax, ebx, ecx, edx, xcr0[2];
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
        return;
    __asm__ volatile("xgetbv" : "=a"(xcr0[0]), "=d"(xcr0[1]) : "c"(0));
    uint64_t features = (uint64_t)xcr0[1] << 32 | xcr0[0];
    for (unsigned i = 2; i < FEATURE_BITS; i++) {
        if (features & 1ull << i)
            __cpuid_count(0xd, i, components[i].bytes, components[i].offset, ecx, edx);
    }
}

void x86_prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ask_components);
}

static uint64_t *xstate_features(struct x86_state *s)
{
    return (uint64_t *)(void *)(s->xstate + FXSAVE_BYTES);
}

/* ptrace gives the value of PKRU, but its bit in the header may be clear; a frame without the bit
 * would set PKRU to 0. */
static void note_pkru(struct x86_state *s)
{
    uint32_t offset = components[FEATURE_PKRU].offset, value = 0;
    if (offset == 0 || offset + sizeof(value) > s->xstate_bytes)
        return;
    memcpy(&value, s->xstate + offset, sizeof(value));
    if (value)
        *xstate_features(s) |= 1ull << FEATURE_PKRU;
}

/* Bytes up to the end of the last component in use. The kernel wants no more than the thread may
 * use, and takes what the frame does not name as being in its initial state, which it is. */
static size_t xsave_used_bytes(struct x86_state *s)
{
    size_t end = XSAVE_MIN_BYTES;
    for (unsigned i = 2; i < FEATURE_BITS; i++) {
        size_t component_end = (size_t)components[i].offset + components[i].bytes;
        if ((*xstate_features(s) & 1ull << i) && component_end > end)
            end = component_end;
    }
    return end;
}

static int get_xsave(struct x86_state *s, pid_t tid)
{
    struct iovec iov = {.iov_base = s->xstate, .iov_len = XSTATE_MAX_BYTES};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_X86_XSTATE, &iov) != 0)
        return -errno;
    s->xstate_bytes = iov.iov_len;
    if (s->xstate_bytes < XSAVE_MIN_BYTES)
        return -ENODEV;
    note_pkru(s);
    size_t used = xsave_used_bytes(s);
    if (used > s->xstate_bytes)
        return -EOVERFLOW;
    s->xstate_bytes = used;
    s->has_xsave = true;
    return 0;
}

/* A CPU without XSAVE has only the legacy part. */
static int get_fxsave(struct x86_state *s, pid_t tid)
{
    struct iovec iov = {.iov_base = s->xstate, .iov_len = FXSAVE_BYTES};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRFPREG, &iov) != 0)
        return -errno;
    s->xstate_bytes = FXSAVE_BYTES;
    s->has_xsave = false;
    return 0;
}

int x86_state_get(struct x86_state *s, pid_t tid)
{
    *s = (struct x86_state){0};
    s->xstate = calloc(1, XSTATE_MAX_BYTES);
    if (!s->xstate)
        return -ENOMEM;
    int r = x86_get_regs(tid, &s->regs);
    if (r == 0)
        r = x86_get_sigmask(tid, &s->sigmask);
    if (r == 0) {
        r = get_xsave(s, tid);
        if (r == -ENODEV || r == -EIO || r == -EINVAL)
            r = get_fxsave(s, tid);
    }
    if (r)
        x86_state_free(s);
    return r;
}

void x86_state_free(struct x86_state *s)
{
    free(s->xstate);
    *s = (struct x86_state){0};
}

void x86_frame_plan(struct x86_frame *f, const struct x86_state *s, size_t scratch_bytes)
{
    size_t fp_bytes = s->xstate_bytes + (s->has_xsave ? sizeof(uint32_t) : 0);
    uint64_t top = s->regs.rsp - RED_ZONE_BYTES;
    f->fpstate = (top - fp_bytes) & ~63ull; /* XRSTOR wants 64 */
    f->frame = (f->fpstate - sizeof(struct sigframe)) & ~15ull;
    f->scratch = (f->frame - scratch_bytes) & ~15ull;
    f->end = f->fpstate + fp_bytes;
    f->bytes = f->end - f->frame;
}

static void fill_sigframe(struct sigframe *sf, const struct x86_frame *f, const struct x86_state *s,
                          const struct x86_code *code)
{
    const struct user_regs_struct r = x86_repeat_regs(s);
    *sf = (struct sigframe){
        .return_address = code->restorer,
        .uc_flags = (s->has_xsave ? UC_FP_XSTATE : 0) | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
        .uc_stack = {.flags = ALTSTACK_KEEP},
        .r8 = r.r8,
        .r9 = r.r9,
        .r10 = r.r10,
        .r11 = r.r11,
        .r12 = r.r12,
        .r13 = r.r13,
        .r14 = r.r14,
        .r15 = r.r15,
        .rdi = r.rdi,
        .rsi = r.rsi,
        .rbp = r.rbp,
        .rbx = r.rbx,
        .rdx = r.rdx,
        .rax = r.rax,
        .rcx = r.rcx,
        .rsp = r.rsp,
        .rip = r.rip,
        .eflags = r.eflags,
        .cs = (uint16_t)r.cs,
        .ss = (uint16_t)r.ss,
        .oldmask = s->sigmask,
        .fpstate = f->fpstate,
        .sigmask = s->sigmask,
    };
}

int x86_frame_build(const struct x86_frame *f, const struct x86_state *s,
                    const struct x86_code *code, uint8_t **out)
{
    uint8_t *image = calloc(1, f->bytes);
    if (!image)
        return -ENOMEM;
    struct sigframe sf;
    fill_sigframe(&sf, f, s, code);
    memcpy(image, &sf, sizeof(sf));
    uint8_t *fp = image + (f->fpstate - f->frame);
    memcpy(fp, s->xstate, s->xstate_bytes);
    struct fpx_software software = {0};
    if (s->has_xsave) {
        uint64_t features;
        memcpy(&features, s->xstate + FXSAVE_BYTES, sizeof(features));
        software.magic1 = FPX_MAGIC1;
        software.extended_bytes = (uint32_t)(s->xstate_bytes + sizeof(uint32_t));
        software.features = features | FEATURE_FP_SSE;
        software.xstate_bytes = (uint32_t)s->xstate_bytes;
        const uint32_t magic2 = FPX_MAGIC2;
        memcpy(fp + s->xstate_bytes, &magic2, sizeof(magic2));
    }
    memcpy(fp + FPX_OFFSET, &software, sizeof(software));
    *out = image;
    return 0;
}

void x86_park(struct user_regs_struct *regs, const struct x86_code *code, const struct x86_frame *f)
{
    regs->rip = code->syscall_ret;
    regs->rsp = f->frame + sizeof(uint64_t);
    regs->rax = SYS_rt_sigreturn;
    regs->orig_rax = (uint64_t)-1; /* no system call to restart */
}

void x86_set_call(struct user_regs_struct *regs, const struct x86_frame *f, long nr,
                  const uint64_t args[6])
{
    regs->orig_rax = (uint64_t)nr;
    regs->rax = (uint64_t)-ENOSYS;
    regs->rdi = args[0];
    regs->rsi = args[1];
    regs->rdx = args[2];
    regs->r10 = args[3];
    regs->r8 = args[4];
    regs->r9 = args[5];
    regs->rsp = f->frame;
}
