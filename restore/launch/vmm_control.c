/*
 * A VMM of somebody's own (docs/vmm.md): its line is replayed word by word, with --vmsnap-incoming
 * PATH at its end; the state goes over as a memfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/hazards.h"
#include "common/vm_status.h"
#include "common/vmm/vmm_control.h"
#include "restore/launch/vmm_kind.h"

#define INCOMING "--vmsnap-incoming"

/* ---- the line ---- */

/* How many words at `words` are what a restore adds. */
static size_t count_incoming(char *const *words)
{
    size_t len = strlen(INCOMING);
    if (strcmp(words[0], INCOMING) == 0)
        return words[1] ? 2 : 1;
    return strncmp(words[0], INCOMING "=", len + 1) == 0 ? 1 : 0;
}

static int copy_line(struct relaunch *l, char *const *words)
{
    int rc = 0;
    while (*words && rc == 0) {
        size_t n = count_incoming(words);
        if (n > 0)
            relaunch_say_dropped(words[0], n > 1 ? words[1] : NULL, l->recorded);
        else
            rc = relaunch_add_word(l, words[0]);
        words += n > 0 ? n : 1;
    }
    return rc;
}

static int control_plan(struct relaunch *out, const json_t *description, char *const *vmm_argv,
                        struct error *e)
{
    char **recorded = NULL;
    int rc = relaunch_begin(out, description, vmm_argv, &recorded, e);
    if (rc == 0 && copy_line(out, vmm_argv ? vmm_argv : recorded))
        rc = relaunch_no_memory(e);
    relaunch_free_words(recorded);
    if (rc)
        relaunch_free(out);
    return rc;
}

static int control_add_private(struct relaunch *l, const char *socket_path, struct error *e)
{
    return relaunch_add_word(l, INCOMING) || relaunch_add_word(l, socket_path)
               ? relaunch_no_memory(e)
               : 0;
}

/* ---- reasons not to start it ---- */

/* Whether a word of the line names this path, by itself or behind "=", ":" or the like. */
static bool names_path(const struct relaunch *l, const char *path)
{
    size_t len = strlen(path);
    for (size_t i = 1; i < l->argc; i++)
        for (const char *at = l->argv[i]; (at = strstr(at, path)); at++)
            if ((at == l->argv[i] || strchr("=:,", at[-1])) && (!at[len] || at[len] == ','))
                return true;
    return false;
}

/* The UNIX sockets that the VM listened on when it was snapshotted, where the line names them: the
 * line of a VMM that we know nothing of does not say which sockets it opens. */
static int check_in_use(struct refuse_scope *s)
{
    size_t i;
    const json_t *path;
    json_array_foreach(json_object_get(s->description, "listens"), i, path)
    {
        const char *text = json_string_value(path);
        int rc =
            text && *text && names_path(s->launch, text) ? refuse_look_unix(s, text, false) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

static int check_descriptors(struct refuse_scope *s)
{
    size_t i;
    const json_t *one;
    json_array_foreach(json_object_get(json_object_get(s->description, "launch"), "fds"), i, one)
    {
        json_int_t fd = json_integer_value(json_object_get(one, "fd"));
        if (fd > STDERR_FILENO && (fd > INT32_MAX || !s->inherited((int)fd)))
            return refuse_found(s,
                                "the descriptor %lld that the VMM had inherited does not exist "
                                "here",
                                (long long)fd);
    }
    return 0;
}

static const struct refuse_check checks[] = {
    {HAZARD_IN_USE, false, check_in_use,
     "end who listens there (the source VM?), or have other addresses on the command line "
     "after --"},
    {HAZARD_INHERITED_FD, true, check_descriptors,
     "open it at the same number when you call vmsnap, or give a command line after --"},
};
#define N_CHECKS (sizeof(checks) / sizeof(checks[0]))

static struct refuse_scope scope_for(const struct relaunch *l, const json_t *description,
                                     bool (*inherited)(int fd))
{
    return (struct refuse_scope){
        .launch = l, .description = description, .cwd_fd = -1, .inherited = inherited};
}

static int control_refuse(const struct relaunch *l, const json_t *description,
                          const char *const *allowed, bool (*inherited)(int fd), struct error *e)
{
    struct refuse_scope s = scope_for(l, description, inherited);
    int rc = refuse_scope_open(&s, e);
    if (rc == 0)
        rc = refuse_run(&s, checks, N_CHECKS, allowed, e);
    refuse_scope_close(&s);
    return rc;
}

static int control_list_hazards(const struct relaunch *l, const json_t *description,
                                bool (*inherited)(int fd), struct restore_hazard *out,
                                size_t *count, struct error *e)
{
    struct refuse_scope s = scope_for(l, description, inherited);
    *count = 0;
    int rc = refuse_scope_open(&s, e);
    if (rc == 0)
        refuse_list(&s, checks, N_CHECKS, out, count);
    refuse_scope_close(&s);
    return rc;
}

/* ---- the VMM, waiting ---- */

static int check_status(struct qmp *q, const char *wanted, int timeout_ms, struct error *e)
{
    char status[VM_STATUS_BYTES];
    int rc = vm_status_get(q, timeout_ms, status, e);
    if (rc == 0 && strcmp(status, wanted) != 0)
        rc = error_set(e, VMSNAP_EXIT_VMM, EPROTO,
                       "the VMM that was started is in state \"%s\" instead of \"%s\"", status,
                       wanted);
    return rc;
}

static int control_compare(json_t **actual, const json_t *description, struct qmp *q,
                           const struct target *t, int timeout_ms, struct error *e)
{
    (void)t;
    if (!vmm_control_greets(q)) {
        error_set(e, VMSNAP_EXIT_MISMATCH, EPROTO,
                  "the VMM that was started does not speak the control protocol of the recorded "
                  "one");
        error_hint(e, "give the command line of the recorded VMM after --");
        return -EPROTO;
    }
    int rc = vmm_control_query(actual, q, timeout_ms, e);
    if (rc == 0)
        rc = vmm_control_compare(description, *actual, e);
    return rc ? rc : check_status(q, "inmigrate", timeout_ms, e);
}

/* What another process maps is not ours to fill: it may be the memory of the running source. */
static int refuse_shared(const struct region_set *found, const struct target *t, struct error *e)
{
    struct hazard hazards[HAZARD_MAX];
    const struct hazard_scope scope = {.t = t, .regions = found->items, .n_regions = found->count};
    size_t n;
    int rc = hazards_find(hazards, &n, &scope, NULL, 0, NULL, e);
    for (size_t i = 0; rc == 0 && i < n; i++)
        if (strcmp(hazards[i].kind->name, "shared-memory") == 0)
            rc = hazards_refuse(&hazards[i], 1, NULL, e);
    return rc;
}

static int control_find_memory(struct region_set *out, const json_t *actual, struct qmp *q,
                               const struct target *t, int timeout_ms, struct error *e)
{
    (void)q, (void)timeout_ms;
    int rc = vmm_control_find_memory(out, actual, t, e);
    if (rc)
        return rc;
    rc = refuse_shared(out, t, e);
    if (rc)
        region_set_free(out);
    return rc;
}

/* A memfd that holds the state; *fd is open for reading alone, at its start. */
static int make_state_fd(const void *state, uint64_t len, int *fd, struct error *e)
{
    char path[64];
    CLEANUP_FD int whole = memfd_create("vmsnap-device-state", MFD_CLOEXEC);
    const char *at = state;
    while (whole >= 0 && len > 0) {
        ssize_t n = write(whole, at, len);
        if (n <= 0)
            break;
        at += n;
        len -= (uint64_t)n;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", whole);
    *fd = whole < 0 || len > 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    return *fd < 0 ? error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make a memfd for the state")
                   : 0;
}

static int control_load(struct qmp *q, const struct target *t, const struct image *img,
                        const json_t *description, int timeout_ms, struct error *e)
{
    (void)t;
    (void)description;
    uint64_t len;
    const void *state = image_device_state(img, &len);
    CLEANUP_FD int fd = -1;
    int rc = make_state_fd(state, len, &fd, e);
    if (rc)
        return rc;
    rc = qmp_command(q, "load-state", NULL, fd, timeout_ms, NULL, e);
    if (rc == -EPROTO && e)
        e->exit_code = VMSNAP_EXIT_VMM;
    if (rc)
        error_wrap(e, "the VMM has not taken the saved state");
    return rc ? rc : check_status(q, "paused", timeout_ms, e);
}

static int control_resume(struct qmp *q, int timeout_ms, struct error *e)
{
    return qmp_command(q, "cont", NULL, -1, timeout_ms, NULL, e);
}

const struct vmm_kind vmm_kind_control = {
    .name = "control",
    .plan = control_plan,
    .refuse = control_refuse,
    .list_hazards = control_list_hazards,
    .add_private = control_add_private,
    .compare = control_compare,
    .find_memory = control_find_memory,
    .load = control_load,
    .resume = control_resume,
};
