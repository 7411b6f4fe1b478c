/* blocking.c - the process that makes the calls and checks itself. */
#include "blocking.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checked_syscall.h"
#include "common/clock.h"
#include "ktest.h"

sigset_t blocked_mask;
uint64_t blocked_since_ns;
static stack_t normal_altstack;

static void on_signal(int signal)
{
    (void)signal;
}

/* A mask and an alternate stack that a damaged frame would lose. */
static bool set_signals(void)
{
    static char stack[64 << 10];
    struct sigaction sa = {.sa_handler = on_signal};
    stack_t ss = {.ss_sp = stack, .ss_size = sizeof(stack)};
    sigaction(SIGUSR1, &sa, NULL);
    sigaction(SIGUSR2, &sa, NULL);
    sigemptyset(&blocked_mask);
    sigaddset(&blocked_mask, SIGUSR2);
    sigaddset(&blocked_mask, SIGRTMIN + 3);
    return sigaltstack(&ss, NULL) == 0 && sigaltstack(NULL, &normal_altstack) == 0 &&
           sigprocmask(SIG_SETMASK, &blocked_mask, NULL) == 0;
}

static const char *verify_signals(void)
{
    sigset_t mask;
    stack_t altstack;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    sigaltstack(NULL, &altstack);
    for (int i = 1; i < 65; i++) {
        if (sigismember(&mask, i) != sigismember(&blocked_mask, i))
            return "the signal mask is another";
    }
    if (altstack.ss_sp != normal_altstack.ss_sp || altstack.ss_size != normal_altstack.ss_size ||
        altstack.ss_flags != normal_altstack.ss_flags)
        return "the alternate signal stack is another";
    return NULL;
}

static bool is_forgiven(struct blocked *b)
{
    if (!b->kind->stop_gives_eintr || atomic_load(&b->may_eintr) == 0)
        return false;
    atomic_fetch_sub(&b->may_eintr, 1);
    atomic_fetch_add(&b->eintrs, 1);
    return true;
}

static const char *one_round(struct blocked *b)
{
    uint64_t args[6] = {0};
    int64_t result;
    b->kind->arguments(b, args);
    blocked_since_ns = clock_monotonic_ns();
    const char *wrong;
    do {
        wrong = checked_syscall(&result, b->kind->nr, args);
        if (wrong)
            return wrong;
    } while (result == -EINTR && is_forgiven(b));
    wrong = b->kind->verify(b, result);
    return wrong ? wrong : verify_signals();
}

static int process(void *opaque)
{
    struct blocked *b = opaque;
    if (!checked_syscall_init(true) && !checked_syscall_init(false))
        return KTEST_FAIL;
    snprintf(b->components, sizeof(b->components), "%s", checked_syscall_components());
    if (!set_signals() || (b->kind->setup && !b->kind->setup(b)))
        return KTEST_SKIP;
    for (;;) {
        const char *wrong = one_round(b);
        if (wrong) {
            snprintf(b->message, sizeof(b->message), "%s: %s", b->kind->name, wrong);
            atomic_store(&b->broken, 1);
            return 1;
        }
        atomic_fetch_add(&b->rounds, 1);
    }
}

struct blocked *blocked_start(const struct blocking_kind *kind)
{
    struct blocked *b = ktest_shared(sizeof(*b));
    b->kind = kind;
    if (pipe(b->pipe) != 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, b->sock) != 0)
        abort();
    b->pid = ktest_spawn(process, b);
    if (blocked_wait(b))
        return b;
    return NULL;
}

static bool is_blocked(const struct blocked *b)
{
    if (b->kind->is_blocked)
        return b->kind->is_blocked(b);
    return ktest_blocked_in(b->pid, b->pid) == b->kind->nr;
}

bool blocked_wait(const struct blocked *b)
{
    return KTEST_WAIT(is_blocked(b) || ktest_ended(b->pid)) && !ktest_ended(b->pid);
}

const char *blocked_finish_round(struct blocked *b, int round)
{
    static char text[200];
    siginfo_t si = {0};
    /* One that wakes itself may have begun a new round before it was looked at. */
    int enough = round + (b->kind->wakes_itself ? 2 : 1);
    if (b->kind->wake)
        b->kind->wake(b);
    if (KTEST_WAIT(atomic_load(&b->rounds) >= enough || ktest_ended(b->pid)) &&
        !ktest_ended(b->pid))
        return NULL;
    waitid(P_PID, (id_t)b->pid, &si, WEXITED | WNOHANG | WNOWAIT);
    if (atomic_load(&b->broken))
        return b->message;
    if (si.si_pid != b->pid)
        return "it does not come back";
    snprintf(text, sizeof(text), "%s: the process died (code %d, status %d)", b->kind->name,
             si.si_code, si.si_status);
    return text;
}
