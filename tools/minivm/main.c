/* main.c - minivm, the reference VMM: README.md. */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "control.h"
#include "options.h"
#include "report.h"
#include "sandbox.h"
#include "save.h"
#include "state.h"
#include "stats.h"
#include "uffd.h"
#include "vm.h"

static struct vm vm;

/*
 * The vCPUs may have all CPUs: so that `stop` does not wait for one of them to be put aside, this
 * thread goes first where that is allowed. It is for this thread alone: what is started from now on
 * (the threads of a check, the child of a fork) begins as usual.
 */
static void go_first(void)
{
    const struct sched_param p = {.sched_priority = 1};
    sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &p);
}

/* From the files of a snapshot: as in Firecracker nobody is asked whether pages come. */
static bool resume(char *why, size_t why_bytes)
{
    go_first();
    int uffd = vm.o.uffd_backend ? uffd_open(&vm, why, why_bytes) : 0;
    if (uffd < 0 || (vm.o.seccomp && !sandbox_enter(why, why_bytes)))
        return false;
    vm.handed_ns = vm_now_ns();
    if (vm.o.uffd_backend && !uffd_hand_off(&vm, uffd, why, why_bytes))
        return false;
    if (!save_resume(&vm, why, why_bytes))
        return false;
    vm.loaded_ns = vm_now_ns();
    if (!vm.o.paused)
        vm_cont(&vm);
    return true;
}

static bool start(struct control **control, const struct options *o, char *why, size_t why_bytes)
{
    /* First, so that the signals it takes are blocked in every thread. */
    *control = control_open(&vm, why, why_bytes);
    if (!*control || !vm_open(&vm, o, why, why_bytes))
        return false;
    fprintf(stderr, "minivm: accelerator %s\n", vm.accel->name);
    if (o->report && !report_open(o->report)) {
        snprintf(why, why_bytes, "%s: %s", o->report, strerror(errno));
        return false;
    }
    report_line("start", json_pack("{s:s,s:I,s:I,s:s,s:i}", "accelerator", vm.accel->name,
                                   "memory_bytes", (json_int_t)o->memory_bytes, "populated_bytes",
                                   (json_int_t)o->populate_bytes, "kind",
                                   memory_kind_names[o->kind], "cpus", (int)o->cpus));
    if (o->control && !control_listen(*control, o->control, why, why_bytes))
        return false;
    if (o->api && !control_listen_api(*control, o->api, why, why_bytes))
        return false;
    if (o->vmstate)
        return resume(why, why_bytes);
    if (!o->incoming)
        memory_fill(&vm.memory, o);
    go_first();
    if (o->seccomp && !o->incoming && !sandbox_enter(why, why_bytes))
        return false;
    if (o->incoming)
        return control_connect(*control, o->incoming, why, why_bytes);
    vm.status = VM_PAUSED;
    if (!o->paused)
        vm_cont(&vm);
    return true;
}

/* What the state says of the machine goes before the command line. */
static bool take_machine(struct options *o)
{
    char why[200] = "";
    if (!o->vmstate || state_peek(o->vmstate, o, why, sizeof(why)))
        return options_fit(o);
    fprintf(stderr, "minivm: %s\n", why);
    return false;
}

int main(int argc, char **argv)
{
    struct options o;
    struct control *control;
    char why[200] = "";
    if (!options_parse(&o, argc, argv))
        return 2;
    if (!take_machine(&o))
        return 1;
    if (!start(&control, &o, why, sizeof(why))) {
        fprintf(stderr, "minivm: %s\n", why);
        return 1;
    }
    bool alive = control_run(control);
    report_line("end", stats_get(&vm, true));
    if (!alive) {
        fprintf(stderr, "minivm: the guest is dead: %s\n", vm.failure);
        return 1;
    }
    return 0;
}
