#include <criterion/criterion.h>
#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "common/inject/x86.h"

#define ERESTARTSYS 512
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516
#define RSP 0x7ffd12345678ull

static struct user_regs_struct in_call(long nr, int64_t result)
{
    return (struct user_regs_struct){.orig_rax = (uint64_t)nr,
                                     .rax = (uint64_t)result,
                                     .rip = 0x401002,
                                     .rsp = RSP,
                                     .rbx = 0xb0b,
                                     .cs = 0x33,
                                     .ss = 0x2b,
                                     .eflags = 0x246};
}

static void is_made_repeatable(struct user_regs_struct regs, bool expected)
{
    int64_t before = (int64_t)regs.rax;
    cr_assert_eq(x86_make_repeatable(&regs), expected);
    cr_assert_eq((int64_t)regs.rax, expected ? -ERESTARTNOHAND : before);
}

Test(inject_x86, calls_that_a_stop_ends_with_eintr_are_restarted)
{
    is_made_repeatable(in_call(SYS_epoll_wait, -EINTR), true);
    is_made_repeatable(in_call(SYS_io_uring_enter, -EINTR), true);
    is_made_repeatable(in_call(SYS_rt_sigtimedwait, -EINTR), true);
    is_made_repeatable(in_call(SYS_epoll_wait, 3), false);
    is_made_repeatable(in_call(SYS_read, -EINTR), false);
    is_made_repeatable(in_call(SYS_close, -EINTR), false);
    struct user_regs_struct regs = in_call(SYS_ioctl, -EINTR);
    is_made_repeatable(regs, false);
    regs.rsi = 0xae80; /* KVM_RUN */
    is_made_repeatable(regs, true);
    regs.orig_rax = (uint64_t)-1; /* not in a call */
    is_made_repeatable(regs, false);
}

Test(inject_x86, absolute_timeouts_need_no_restart_syscall)
{
    struct user_regs_struct regs = in_call(SYS_poll, -ERESTART_RESTARTBLOCK);
    regs.rdx = 100;
    is_made_repeatable(regs, false);
    regs.rdx = 0xffffffff; /* -1 as an int */
    is_made_repeatable(regs, true);
    regs = in_call(SYS_futex, -ERESTART_RESTARTBLOCK);
    regs.rsi = FUTEX_WAIT | FUTEX_PRIVATE_FLAG;
    is_made_repeatable(regs, false);
    regs.rsi = FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME;
    is_made_repeatable(regs, true);
    is_made_repeatable(in_call(SYS_nanosleep, -ERESTART_RESTARTBLOCK), false);
}

Test(inject_x86, the_frame_makes_an_interrupted_call_again)
{
    struct x86_state s = {.regs = in_call(SYS_read, -ERESTARTSYS), .restarted_nr = -1};
    struct user_regs_struct r = x86_repeat_regs(&s);
    cr_assert_eq(r.rax, SYS_read);
    cr_assert_eq(r.rip, 0x401000);
    cr_assert_eq(r.rbx, 0xb0b);
}

Test(inject_x86, the_frame_leaves_a_result_alone)
{
    struct x86_state s = {.regs = in_call(SYS_read, 17), .restarted_nr = -1};
    struct user_regs_struct r = x86_repeat_regs(&s);
    cr_assert_eq(r.rax, 17);
    cr_assert_eq(r.rip, 0x401002);
    s.regs = in_call(SYS_read, -EINTR);
    cr_assert_eq((int64_t)x86_repeat_regs(&s).rax, -EINTR);
}

Test(inject_x86, restart_syscall_is_the_call_before_it_or_eintr)
{
    struct x86_state s = {.regs = in_call(SYS_restart_syscall, -ERESTART_RESTARTBLOCK),
                          .restarted_nr = SYS_nanosleep};
    struct user_regs_struct r = x86_repeat_regs(&s);
    cr_assert_eq(r.rax, SYS_nanosleep);
    cr_assert_eq(r.rip, 0x401000);
    s.restarted_nr = -1;
    r = x86_repeat_regs(&s);
    cr_assert_eq((int64_t)r.rax, -EINTR);
    cr_assert_eq(r.rip, 0x401002);
}

Test(inject_x86, only_64_bit_code_in_a_system_call_will_do)
{
    struct user_regs_struct regs = in_call(SYS_read, -ERESTARTSYS);
    cr_assert(x86_in_syscall(&regs));
    regs.cs = 0x23;
    cr_assert_not(x86_in_syscall(&regs));
    regs = in_call(-1, 0);
    cr_assert_not(x86_in_syscall(&regs));
}

/* A frame of every size that an FPU image can have lies as the kernel and the ABI want it. */
Test(inject_x86, frames_leave_the_red_zone_alone_and_are_aligned)
{
    static const size_t sizes[] = {512, 576, 832, 2696, 11008};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (uint64_t shift = 0; shift < 64; shift += 8) {
            struct x86_state s = {
                .regs.rsp = RSP + shift, .xstate_bytes = sizes[i], .has_xsave = sizes[i] > 512};
            struct x86_frame f;
            x86_frame_plan(&f, &s, 1024);
            cr_assert_leq(f.end, s.regs.rsp - 128);
            cr_assert_geq(f.end, f.fpstate + sizes[i] + (s.has_xsave ? 4 : 0));
            cr_assert_eq(f.fpstate % 64, 0);
            cr_assert_eq(f.bytes, f.end - f.frame);
            cr_assert_leq(f.scratch + 1024, f.frame);
            cr_assert_lt(s.regs.rsp - f.scratch, 16384);
        }
    }
}

/* The bytes, against glibc's own idea of a ucontext_t. */
Test(inject_x86, the_frame_is_what_rt_sigreturn_reads)
{
    const struct x86_code code = {.syscall_ret = 0x1111, .restorer = 0x2222};
    struct x86_state s = {.regs = in_call(SYS_ppoll, -ERESTARTNOHAND),
                          .sigmask = 0x123456789abcdef0,
                          .xstate = calloc(1, 832),
                          .xstate_bytes = 832,
                          .has_xsave = true,
                          .restarted_nr = -1};
    uint64_t features = 7;
    memset(s.xstate, 0x5c, 832);
    memcpy(s.xstate + 512, &features, sizeof(features));
    struct x86_frame f;
    uint8_t *image;
    x86_frame_plan(&f, &s, 1024);
    cr_assert_eq(x86_frame_build(&f, &s, &code, &image), 0);

    uint64_t return_address;
    ucontext_t uc;
    memcpy(&return_address, image, sizeof(return_address));
    memcpy(&uc, image + 8, offsetof(ucontext_t, uc_sigmask) + 8);
    cr_assert_eq(return_address, 0x2222);
    cr_assert_eq(uc.uc_mcontext.gregs[REG_RAX], SYS_ppoll);
    cr_assert_eq(uc.uc_mcontext.gregs[REG_RIP], 0x401000);
    cr_assert_eq((uint64_t)uc.uc_mcontext.gregs[REG_RSP], RSP);
    cr_assert_eq(uc.uc_mcontext.gregs[REG_RBX], 0xb0b);
    cr_assert_eq(uc.uc_mcontext.gregs[REG_EFL], 0x246);
    cr_assert_eq(uc.uc_mcontext.gregs[REG_CSGSFS] & 0xffff, 0x33);
    cr_assert_eq((uintptr_t)uc.uc_mcontext.fpregs, f.fpstate);
    cr_assert_eq(memcmp(&uc.uc_sigmask, &s.sigmask, 8), 0);

    const uint8_t *fp = image + (f.fpstate - f.frame);
    uint32_t magic1, extended, size, magic2;
    memcpy(&magic1, fp + 464, 4);
    memcpy(&extended, fp + 468, 4);
    memcpy(&size, fp + 480, 4);
    memcpy(&magic2, fp + 832, 4);
    cr_assert_eq(magic1, 0x46505853);
    cr_assert_eq(extended, 836);
    cr_assert_eq(size, 832);
    cr_assert_eq(magic2, 0x46505845);
    cr_assert_eq(memcmp(fp, s.xstate, 464), 0);
    cr_assert_eq(memcmp(fp + 512, s.xstate + 512, 320), 0);
    free(image);
    x86_state_free(&s);
}
