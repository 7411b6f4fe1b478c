/* commands.c - see commands.h. */
#include "commands.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "balloon.h"
#include "check.h"
#include "forkdump.h"
#include "report.h"
#include "save.h"
#include "state.h"
#include "stats.h"
#include "touches.h"

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
    json_t *memory = json_array();
    for (unsigned i = 0; i < vm->memory.n_regions; i++) {
        const struct memory_region *g = &vm->memory.regions[i];
        char name[16] = "ram";
        if (i > 0)
            snprintf(name, sizeof(name), "ram%u", i);
        json_array_append_new(memory, json_pack("{s:s,s:I,s:I,s:I}", "name", name, "hva",
                                                (json_int_t)(uintptr_t)g->hva, "bytes",
                                                (json_int_t)g->bytes, "gpa", (json_int_t)g->gpa));
    }
    return json_pack("{s:s,s:s,s:s,s:s,s:i,s:o}", "vmm", "minivm", "version", "1", "name", "",
                     "accelerator", vm->accel->name, "cpus", (int)vm->o.cpus, "memory", memory);
}

static json_t *moment(void)
{
    return json_pack("{s:I}", "monotonic_ns", (json_int_t)vm_now_ns());
}

bool commands_stop(struct control *c, struct vm *vm)
{
    if (vm->status != VM_RUNNING)
        return false;
    vm_stop(vm);
    control_event(c, "STOP", moment());
    return true;
}

void commands_cont(struct control *c, struct vm *vm)
{
    if (vm->status != VM_PAUSED)
        return;
    control_event(c, "RESUME", moment());
    vm_cont(vm);
}

static json_t *stop(struct request *r)
{
    commands_stop(r->control, r->vm);
    return json_object();
}

static json_t *cont(struct request *r)
{
    if (r->vm->status == VM_INMIGRATE)
        return request_fail(r, "there is no state yet: load-state comes first");
    commands_cont(r->control, r->vm);
    return json_object();
}

static json_t *quit(struct request *r)
{
    control_quit(r->control);
    return json_object();
}

static json_t *save_state(struct request *r)
{
    uint64_t bytes;
    if (r->vm->status != VM_PAUSED)
        return request_fail(r, "the VM must be stopped first");
    if (!state_save(r->vm, r->fd, &bytes, r->problem, sizeof(r->problem)))
        return NULL;
    return json_pack("{s:I}", "bytes", (json_int_t)bytes);
}

static json_t *load_state(struct request *r)
{
    if (r->vm->status != VM_INMIGRATE)
        return request_fail(r, "only a VM that was started with --vmsnap-incoming loads a state");
    if (!state_load(r->vm, r->fd, r->problem, sizeof(r->problem)))
        return NULL;
    r->vm->status = VM_PAUSED;
    return json_object();
}

/* An argument that is true or false; it may be left out. */
static bool flag(const struct request *r, const char *name, bool otherwise)
{
    const json_t *value = json_object_get(r->arguments, name);
    return value ? json_is_true(value) : otherwise;
}

static json_t *x_stats(struct request *r)
{
    json_t *stats = stats_get(r->vm, flag(r, "full", true));
    if (flag(r, "reset", false))
        stats_reset(r->vm);
    return stats;
}

static json_t *x_check(struct request *r)
{
    struct check_result c;
    if (r->vm->status != VM_PAUSED)
        return request_fail(r, "the VM must be stopped first");
    bool first_life = !r->vm->o.incoming && !r->vm->o.vmstate;
    int error = check_memory(&r->vm->memory, r->vm->o.cpus, first_life, &c);
    if (error == -EBADMSG)
        return request_fail(r, "not even the pages of the guest's state are right");
    if (error)
        return request_fail(r, "cannot check the memory: %s", strerror(-error));
    json_t *result = json_pack("{s:I,s:I,s:I,s:I,s:I}", "pages", (json_int_t)c.pages,
                               "written_pages", (json_int_t)c.written_pages, "wrong_pages",
                               (json_int_t)c.wrong_pages, "wrong_steps", (json_int_t)c.wrong_steps,
                               "stale_shares", (json_int_t)c.stale_shares);
    if (c.wrong_pages)
        json_object_set_new(result, "first_wrong", json_integer((json_int_t)c.first_wrong));
    report_line("check", json_incref(result));
    return result;
}

static json_t *x_touches(struct request *r)
{
    json_t *found = touches_get(r->vm, json_object_get(r->arguments, "of"));
    return found ? found : request_fail(r, "of is an array of numbers of writes, from 1 on");
}

/* A whole number that may be left out; false if it is something else. */
static bool number(struct request *r, const char *name, json_int_t otherwise, uint64_t *value)
{
    const json_t *given = json_object_get(r->arguments, name);
    json_int_t n = given ? json_integer_value(given) : otherwise;
    *value = (uint64_t)n;
    return n >= 0 && n <= 1000000000 && (!given || json_is_integer(given));
}

static json_t *x_balloon(struct request *r)
{
    uint64_t pages, rate;
    if (!number(r, "pages", 0, &pages) ||
        !number(r, "rate", (json_int_t)r->vm->o.balloon_rate, &rate))
        return request_fail(r, "pages and rate are numbers");
    if (r->vm->status == VM_INMIGRATE || (pages && r->vm->status != VM_RUNNING))
        return request_fail(r, "only a VM that runs gives pages back");
    r->vm->o.balloon_rate = rate;
    int64_t done = balloon_discard(r->vm, pages);
    if (done < 0)
        return request_fail(r, "cannot discard guest memory: %s", strerror((int)-done));
    struct balloon_pages b = balloon_look(r->vm);
    return json_pack("{s:I,s:I,s:I}", "pages", (json_int_t)b.pages, "discarded",
                     (json_int_t)b.discarded, "reused", (json_int_t)b.reused);
}

static json_t *x_save_files(struct request *r)
{
    const char *state = json_string_value(json_object_get(r->arguments, "vmstate"));
    const char *memory = json_string_value(json_object_get(r->arguments, "memory"));
    if (!state || !memory)
        return request_fail(r, "x-save-files needs the paths vmstate and memory");
    if (r->vm->status != VM_PAUSED)
        return request_fail(r, "the VM must be stopped first");
    return save_files(r->vm, state, memory, r->problem, sizeof(r->problem)) ? json_object() : NULL;
}

/* fork() copies page after page while other threads write: the VM has to stand still for it. */
static json_t *x_fork_dump(struct request *r)
{
    const char *path = json_string_value(json_object_get(r->arguments, "path"));
    uint64_t fork_ns, began_ns = vm_now_ns();
    if (!path)
        return request_fail(r, "x-fork-dump needs a path");
    bool running = commands_stop(r->control, r->vm);
    bool ok = forkdump_start(&r->vm->memory, path, flag(r, "compress", false), &fork_ns, r->problem,
                             sizeof(r->problem));
    if (running)
        commands_cont(r->control, r->vm);
    if (!ok)
        return NULL;
    return json_pack("{s:I,s:I}", "fork_ns", (json_int_t)fork_ns, "pause_ns",
                     (json_int_t)(vm_now_ns() - began_ns));
}

static const struct command commands[] = {
    {"cont", false, cont},
    {"load-state", true, load_state},
    {"query-status", false, query_status},
    {"query-vm", false, query_vm},
    {"quit", false, quit},
    {"save-state", true, save_state},
    {"stop", false, stop},
    {"x-balloon", false, x_balloon},
    {"x-check", false, x_check},
    {"x-fork-dump", false, x_fork_dump},
    {"x-save-files", false, x_save_files},
    {"x-stats", false, x_stats},
    {"x-touches", false, x_touches},
};

const struct command *commands_find(const char *name)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}
