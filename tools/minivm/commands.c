/* commands.c - see commands.h. */
#include "commands.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "stats.h"

json_t *request_fail(struct request *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(r->problem, sizeof(r->problem), format, args);
    va_end(args);
    return NULL;
}

static json_t *query_status(struct request *r)
{
    static const char *const names[] = {"inmigrate", "paused", "running"};
    return json_pack("{s:s,s:b}", "status", names[r->vm->status], "running",
                     r->vm->status == VM_RUNNING);
}

static json_t *query_vm(struct request *r)
{
    const struct vm *vm = r->vm;
    json_t *ram =
        json_pack("{s:s,s:I,s:I,s:I}", "name", "ram", "hva", (json_int_t)(uintptr_t)vm->memory.hva,
                  "bytes", (json_int_t)vm->memory.bytes, "gpa", (json_int_t)GUEST_RAM_GPA);
    return json_pack("{s:s,s:s,s:s,s:s,s:i,s:[o]}", "vmm", "minivm", "version", "1", "name", "",
                     "accelerator", vm->accel->name, "cpus", (int)vm->o.cpus, "memory", ram);
}

static json_t *moment(void)
{
    return json_pack("{s:I}", "monotonic_ns", (json_int_t)vm_now_ns());
}

static json_t *stop(struct request *r)
{
    if (r->vm->status == VM_RUNNING) {
        vm_stop(r->vm);
        control_event(r->control, "STOP", moment());
    }
    return json_object();
}

static json_t *cont(struct request *r)
{
    if (r->vm->status == VM_INMIGRATE)
        return request_fail(r, "there is no state yet: load-state comes first");
    if (r->vm->status == VM_PAUSED) {
        control_event(r->control, "RESUME", moment());
        vm_cont(r->vm);
    }
    return json_object();
}

static json_t *quit(struct request *r)
{
    control_quit(r->control);
    return json_object();
}

static json_t *x_stats(struct request *r)
{
    return stats_get(r->vm, true);
}

static const struct command commands[] = {
    {"cont", false, cont},         {"query-status", false, query_status},
    {"query-vm", false, query_vm}, {"quit", false, quit},
    {"stop", false, stop},         {"x-stats", false, x_stats},
};

const struct command *commands_find(const char *name)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}
