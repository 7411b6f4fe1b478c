#include "restore/check.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/format.h"
#include "common/image/reader.h"
#include "common/json_text.h"
#include "restore/decode/workset.h"
#include "restore/launch/image_owner.h"
#include "restore/launch/qemu/generation_id.h"
#include "restore/launch/vmm_kind.h"
#include "restore/memory/attach.h"

struct check {
    void (*item)(void *opaque, const struct restore_check_item *item);
    void *opaque;
    struct image *img;
    json_t *description;
    const struct vmm_kind *kind;
    struct relaunch launch;
};

/* Says one item: `problem` NULL means that all is well, and `reason` is what was seen. */
static void say(struct check *c, const char *name, const struct error *problem, const char *reason)
{
    char text[sizeof(problem->message) + sizeof(problem->hint) + 16];
    struct restore_check_item item = {.name = name, .ok = !problem, .reason = reason};
    if (problem) {
        snprintf(text, sizeof(text), "%s%s%s", problem->message, problem->hint[0] ? "; " : "",
                 problem->hint);
        item.reason = text;
        item.exit_code = problem->exit_code;
    }
    c->item(c->opaque, &item);
}

static bool say_result(struct check *c, const char *name, int rc, const struct error *problem,
                       const char *reason)
{
    say(c, name, rc ? problem : NULL, reason);
    return rc == 0;
}

static bool check_image(struct check *c, const char *path)
{
    struct error e = {0};
    if (image_open(&c->img, path, &e)) {
        say(c, "image", &e, NULL);
        return false;
    }
    c->description = json_loads(image_description(c->img), 0, NULL);
    if (!json_is_object(c->description)) {
        error_set(&e, VMSNAP_EXIT_IMAGE, 0, "%s: its description can't be read", path);
        say(c, "image", &e, NULL);
        return false;
    }
    c->kind = vmm_kind_of(c->description);
    char reason[256], instant[FORMAT_MAX];
    snprintf(reason, sizeof(reason), "a snapshot of %s (%s, %s, %s); its index is whole",
             format_instant(instant, image_get_trailer(c->img)->instant_ns),
             json_text(c->description, "vm_name", "a VM without a name"),
             json_text(c->description, "machine", json_text(c->description, "vmm", "?")),
             json_text(c->description, "accelerator", "?"));
    say(c, "image", NULL, reason);
    return true;
}

/* A recorded line needs an image that can be trusted. */
static void check_owner(struct check *c, const char *path)
{
    struct error e = {0};
    int rc = image_owner_check(image_fd(c->img), path, &e);
    say_result(c, "image-owner", rc, &e,
               "its recorded command line may be run: only its owner could have changed it");
}

static void check_kernel(struct check *c)
{
    struct error e = {0};
    int rc = attach_check_kernel(c->img, &e);
    say_result(c, "image-kernel", rc, &e, "this kernel can do what the image's memory needs");
}

static bool check_plan(struct check *c, char *const *vmm_argv)
{
    struct error e = {0};
    int rc = c->kind->plan(&c->launch, c->description, vmm_argv, &e);
    return say_result(c, "command-line", rc, &e,
                      vmm_argv ? "the given command line" : "the recorded command line");
}

/* The program that the line starts; a given line's is looked up in PATH when it starts. */
static void check_executable(struct check *c)
{
    struct error e = {0};
    const char *file = c->launch.executable;
    if (!file)
        return;
    int rc = access(file, X_OK) ? -errno : 0;
    if (rc)
        error_set(&e, VMSNAP_EXIT_VMM, -rc, "the recorded VMM %s can't be run", file);
    say_result(c, "executable", rc, &e, file);
}

/* A VMM that lacks one does not start. */
static void check_files(struct check *c)
{
    struct error e = {0};
    CLEANUP_FREE char *missing = NULL;
    if (!c->kind->files_exist)
        return;
    bool all = c->kind->files_exist(&c->launch, &missing);
    if (!all)
        error_set(&e, VMSNAP_EXIT_VMM, ENOENT, "the command line's file %s",
                  missing ? missing : "(unnamed)");
    say_result(c, "files", !all, &e,
               "kernel, firmware and disks that the command line names are there");
}

/* Only a VMM that was started shows what it is. */
static void say_not_compared(struct check *c)
{
    struct restore_check_item item = {
        .name = "machine",
        .reason = "not compared, since nothing is started: machine, memory, CPU and devices; "
                  "restore does it before the guest runs, and ends with 15 if they differ"};
    c->item(c->opaque, &item);
}

static void check_accelerator(struct check *c)
{
    struct error e = {0};
    const char *name = json_text(c->description, "accelerator", "?");
    int rc = strcmp(name, "kvm") == 0 && access("/dev/kvm", R_OK | W_OK) ? -errno : 0;
    if (rc)
        error_set(&e, VMSNAP_EXIT_MISMATCH, -rc,
                  "the guest ran on KVM, and /dev/kvm can't be opened");
    say_result(c, "accelerator", rc, &e, name);
}

/* Whether a guest can tell that it is one of several; refuses nothing. */
static void check_generation_id(struct check *c)
{
    if (c->kind != &vmm_kind_qemu)
        return;
    enum generation_id id = generation_id_of(c->description, c->launch.argv);
    struct restore_check_item item = {
        .name = "vmgenid", .ok = id == GENERATION_ID_RENEWED, .reason = generation_id_words(id)};
    c->item(c->opaque, &item);
}

/* What an earlier --learn has left; refuses nothing. */
static void check_workset(struct check *c)
{
    struct workset w = {0};
    struct error e = {0};
    char reason[sizeof(e.message) + 32];
    int rc = workset_read(&w, c->img, &e);
    if (rc == 0)
        snprintf(reason, sizeof(reason), "%llu clusters, which come in first",
                 (unsigned long long)w.n);
    else if (rc == -ENOENT)
        snprintf(reason, sizeof(reason), "none beside the image; restore --learn records one");
    else
        snprintf(reason, sizeof(reason), "of no use: %s", e.message);
    workset_free(&w);
    struct restore_check_item item = {.name = "working-set", .ok = rc == 0, .reason = reason};
    c->item(c->opaque, &item);
}

static int check_hazards(struct check *c, struct error *e)
{
    size_t most, count;
    restore_hazard_kinds(&most);
    CLEANUP_FREE struct restore_hazard *found = calloc(most, sizeof(*found));
    if (!found)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "cannot look for hazards");
    int rc =
        c->kind->list_hazards(&c->launch, c->description, relaunch_fd_inherited, found, &count, e);
    if (rc) {
        say(c, "working-directory", e, NULL);
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        const struct restore_hazard *h = &found[i];
        struct restore_check_item item = {.name = h->kind->name,
                                          .ok = !h->found,
                                          .exit_code = VMSNAP_EXIT_HAZARD,
                                          .allow = h->kind->allowable ? h->kind->name : NULL,
                                          .reason = h->found ? h->reason : "nothing seen"};
        c->item(c->opaque, &item);
    }
    return 0;
}

/* What vmsnap starts, with all that could be in the way. */
static int check_launch(struct check *c, const char *image_path, char *const *vmm_argv,
                        struct error *e)
{
    if (!vmm_argv)
        check_owner(c, image_path);
    if (!check_plan(c, vmm_argv))
        return 0;
    check_executable(c);
    check_files(c);
    check_generation_id(c);
    say_not_compared(c);
    return check_hazards(c, e);
}

/* What vmsnap only serves: no command line can start it. */
static void say_served(struct check *c, char *const *vmm_argv, const struct error *why)
{
    char reason[sizeof(why->message) + sizeof(why->hint) + 16];
    snprintf(reason, sizeof(reason), "%s; %s", why->message, why->hint);
    say(c, "command-line", vmm_argv ? why : NULL, reason);
}

int restore_check(const char *image_path, char *const *vmm_argv,
                  void (*item)(void *opaque, const struct restore_check_item *item), void *opaque,
                  struct error *e)
{
    struct check c = {.item = item, .opaque = opaque};
    int rc = 0;
    if (check_image(&c, image_path)) {
        check_kernel(&c);
        check_accelerator(&c);
        check_workset(&c);
        struct error served = {0};
        if (vmm_kind_check_started(c.description, image_path, &served))
            say_served(&c, vmm_argv, &served);
        else
            rc = check_launch(&c, image_path, vmm_argv, e);
    }
    relaunch_free(&c.launch);
    json_decref(c.description);
    if (c.img)
        image_close(c.img);
    return rc;
}
