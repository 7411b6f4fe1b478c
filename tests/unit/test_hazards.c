/*
 * Hazards as QEMU tells them, from a server that answers what each test wants: a child that reads
 * commands and looks its answer up. The process that is looked at is this one or a child.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/qemu/hazards.h"

#define TIMEOUT_MS 5000

/* What the server answers: `when` is looked for in the command's text. The first that fits. */
struct answer {
    const char *when, *value;
};

static const struct answer plain[] = {
    {"qom-list", "[]"},
    {"query-migrate", "{}"},
    {"info network", "\"hub 0\\r\\n\""},
    {"query-block", "[]"},
    {"confidential-guest-support", "\"\""},
    {"query-kvm", "{\"enabled\": true, \"present\": true}"},
    {"info registers", "\"CR0=80050033 CR4=000006f0\\r\\nEFER=0000000000000d01\\r\\n\""},
    {"\"hotplugged\"", "false"},
    {"\"parent_bus\"", "\"/machine/i440fx/pci.0\""},
    {"\"addr\"", "24"},
    {"qmp_capabilities", "{}"},
    {NULL, NULL},
};

static struct qmp *q;
static struct target t;
static pid_t server;
static struct region region;
static struct hazard found[HAZARD_MAX];
static size_t n_found;
static struct error err;

static const char *look_up(const struct answer *answers, const char *command)
{
    for (; answers && answers->when; answers++)
        if (strstr(command, answers->when))
            return answers->value;
    return NULL;
}

/* Runs in the child. */
static void serve(int fd, const struct answer *special)
{
    FILE *in = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");
    char line[4096], id[64];
    fputs("{\"QMP\": {}}\r\n", out);
    fflush(out);
    while (fgets(line, sizeof(line), in)) {
        const char *at = strstr(line, "\"id\":\"");
        const char *value = look_up(special, line);
        value = value ? value : look_up(plain, line);
        if (!at || sscanf(at + 6, "%63[^\"]", id) != 1)
            break;
        if (value)
            fprintf(out, "{\"return\": %s, \"id\": \"%s\"}\r\n", value, id);
        else
            fprintf(out,
                    "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"%.20s\"}, "
                    "\"id\": \"%s\"}\r\n",
                    "not known", id);
        fflush(out);
    }
    _exit(0);
}

static void start(const struct answer *special)
{
    int fds[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    server = fork();
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fds[0]);
        serve(fds[1], special);
    }
    close(fds[1]);
    cr_assert_eq(qmp_attach(&q, fds[0], TIMEOUT_MS, &err), 0, "%s", err.message);
}

static void tidy(void)
{
    qmp_close(q);
    if (server > 0) {
        kill(server, SIGKILL);
        waitpid(server, NULL, 0);
    }
    target_close(&t);
}

/* Looks at `pid` with one region; the kinds of hazard that are found, comma separated. */
static const char *look_at(pid_t pid, const json_t *described)
{
    static char names[512];
    cr_assert_eq(target_open(&t, pid, &err), 0, "%s", err.message);
    const struct hazard_scope scope = {.t = &t, .regions = &region, .n_regions = 1};
    if (!region.name[0]) {
        strcpy(region.name, "pc.ram");
        region.kind = REGION_ANON;
        region.fd = -1;
    }
    cr_assert_eq(qemu_hazards_find(found, &n_found, &scope, q, described, TIMEOUT_MS, &err), 0,
                 "%s", err.message);
    names[0] = '\0';
    for (size_t i = 0; i < n_found; i++) {
        cr_assert(found[i].reason[0] && found[i].kind->what[0]);
        if (!found[i].found)
            continue;
        strcat(names, names[0] ? "," : "");
        strcat(names, found[i].kind->name);
    }
    return names;
}

static const char *look(const struct answer *special)
{
    start(special);
    return look_at(getpid(), NULL);
}

static const struct hazard *hazard_named(const char *name)
{
    for (size_t i = 0; i < n_found; i++)
        if (strcmp(found[i].kind->name, name) == 0)
            return &found[i];
    cr_assert_fail("no hazard %s", name);
    abort();
}

static int refuse(const char *allowed)
{
    const char *names[] = {allowed, NULL};
    memset(&err, 0, sizeof(err));
    return hazards_refuse(found, n_found, names, &err);
}

TestSuite(hazards, .fini = tidy, .timeout = 20);

Test(hazards, none)
{
    cr_assert_str_eq(look(NULL), "");
    cr_assert_eq(refuse(NULL), 0);
    size_t n;
    hazard_kinds(&n);
    cr_assert_eq(n_found, n, "every kind is told, found or not");
}

Test(hazards, writable_disk)
{
    static const struct answer a[] = {
        {"query-block",
         "[{\"device\": \"cd0\"},"
         " {\"device\": \"d0\", \"inserted\": {\"ro\": true, \"drv\": \"raw\", \"file\": \"/r\"}},"
         " {\"device\": \"d1\", \"inserted\": {\"ro\": false, \"drv\": \"null-co\"}},"
         " {\"device\": \"\", \"inserted\": {\"ro\": false, \"drv\": \"qcow2\", \"file\": \"/w\","
         "  \"node-name\": \"n7\"}}]"},
        {NULL, NULL}};
    cr_assert_str_eq(look(a), "disks");
    const struct hazard *h = hazard_named("disks");
    cr_assert(strstr(h->reason, "n7") && strstr(h->reason, "/w"), "%s", h->reason);
    cr_assert_eq(refuse(NULL), -EPERM);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_HAZARD);
    cr_assert(strstr(err.message, "disks: ") && strstr(err.hint, "--allow disks"));
    cr_assert_eq(refuse("balloon"), -EPERM);
    cr_assert_eq(refuse("disks"), 0);
}

Test(hazards, read_only_disks_are_none)
{
    static const struct answer a[] = {
        {"query-block", "[{\"device\": \"d0\", \"inserted\": {\"ro\": true, \"file\": \"/r\"}}]"},
        {NULL, NULL}};
    cr_assert_str_eq(look(a), "");
}

static const struct answer with_balloon[] = {
    {"peripheral\"", "[{\"name\": \"b0\", \"type\": \"child<virtio-balloon-pci>\"}]"},
    {NULL, NULL}};

Test(hazards, balloon_over_private_memory)
{
    cr_assert_str_eq(look(with_balloon), "balloon");
    cr_assert_eq(refuse(NULL), -EPERM);
    cr_assert_eq(refuse("balloon"), 0);
}

Test(hazards, balloon_over_a_file)
{
    region.kind = REGION_SHARED;
    strcpy(region.name, "mem0");
    region.fd = memfd_create("mem0", MFD_CLOEXEC);
    cr_assert_str_eq(look(with_balloon), "balloon");
    cr_assert_eq(refuse("balloon"), -EPERM, "no word allows it");
    cr_assert_eq(err.hint[0], '\0');
}

Test(hazards, migration)
{
    static const struct answer a[] = {{"query-migrate", "{\"status\": \"setup\"}"}, {NULL, NULL}};
    cr_assert_str_eq(look(a), "migration");
    cr_assert_eq(refuse("migration"), -EBUSY);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_BUSY);
}

Test(hazards, migration_that_is_over)
{
    static const struct answer a[] = {{"query-migrate", "{\"status\": \"failed\"}"}, {NULL, NULL}};
    cr_assert_str_eq(look(a), "");
}

Test(hazards, blocked_migration)
{
    static const struct answer a[] = {
        {"query-migrate", "{\"blocked-reasons\": [\"9p is mounted\"]}"}, {NULL, NULL}};
    cr_assert_str_eq(look(a), "blocked-migration");
    cr_assert(strstr(hazard_named("blocked-migration")->reason, "9p is mounted"));
    cr_assert_eq(refuse("blocked-migration"), 0);
}

Test(hazards, devices_of_other_processes)
{
    static const struct answer a[] = {
        {"peripheral-anon", "[{\"name\": \"type\", \"type\": \"string\"},"
                            " {\"name\": \"device[0]\", \"type\": \"child<vhost-user-fs-pci>\"},"
                            " {\"name\": \"device[1]\", \"type\": \"child<virtio-mem-pci>\"}]"},
        {"info network", "\"v0: index=0,type=vhost-vdpa,\""},
        {"confidential-guest-support", "\"/objects/sev0\""},
        {NULL, NULL}};
    cr_assert_str_eq(look(a), "vhost-user,vdpa,virtio-mem,encrypted-guest");
    cr_assert_eq(refuse("vhost-user"), -EPERM);
}

Test(hazards, vhost_user_network)
{
    static const struct answer a[] = {{"info network", "\"n: index=0,type=vhost-user,\""},
                                      {NULL, NULL}};
    cr_assert_str_eq(look(a), "vhost-user");
}

Test(hazards, nested_is_a_warning)
{
    static const struct answer a[] = {
        {"info registers", "\"CPU#0\\r\\nCR4=000006f0\\r\\nCPU#1\\r\\nCR4=000026f0\\r\\n\""},
        {NULL, NULL}};
    cr_assert_str_eq(look(a), "nested");
    cr_assert(hazard_named("nested")->warning);
    cr_assert_eq(refuse(NULL), 0);
}

Test(hazards, nested_without_kvm)
{
    static const struct answer a[] = {{"query-kvm", "{\"enabled\": false, \"present\": true}"},
                                      {"info registers", "\"EFER=0000000000001d01\\r\\n\""},
                                      {NULL, NULL}};
    cr_assert_str_eq(look(a), "");
}

Test(hazards, hotplug_is_a_warning)
{
    static const struct answer a[] = {
        {"peripheral\"", "[{\"name\": \"n1\", \"type\": \"child<virtio-net-pci>\"}]"},
        {"\"hotplugged\"", "true"},
        {NULL, NULL}};
    cr_assert_str_eq(look(a), "hotplug");
    cr_assert(strstr(hazard_named("hotplug")->reason, "virtio-net-pci (id n1)"));
    cr_assert_eq(refuse(NULL), 0);
}

/* A child of the test's process does `work` and waits. */
static pid_t child_that(void (*work)(void))
{
    int fds[2];
    char byte;
    cr_assert_eq(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work();
        (void)!write(fds[1], "x", 1);
        pause();
    }
    cr_assert_eq(read(fds[0], &byte, 1), 1);
    return pid;
}

static int memory_fd;

static void map_for_writing(void)
{
    (void)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
}

static void map_for_reading(void)
{
    (void)mmap(NULL, 4096, PROT_READ, MAP_SHARED, memory_fd, 0);
}

static void do_nothing(void)
{
}

/* Whether `fellow` beside a target that maps the memory, too, is found to share it. */
static bool is_shared_with(void (*fellow)(void))
{
    memory_fd = memfd_create("mem0", MFD_CLOEXEC);
    cr_assert_eq(ftruncate(memory_fd, 4096), 0);
    region.kind = REGION_SHARED;
    strcpy(region.name, "mem0");
    region.fd = memory_fd;
    pid_t target = child_that(map_for_writing), other = child_that(fellow);
    start(NULL);
    bool shared = strcmp(look_at(target, NULL), "shared-memory") == 0;
    if (shared) {
        char pid[16];
        snprintf(pid, sizeof(pid), "%d", (int)other);
        cr_assert(strstr(hazard_named("shared-memory")->reason, pid));
        cr_assert_eq(refuse("shared-memory"), -EPERM);
    }
    kill(target, SIGKILL);
    kill(other, SIGKILL);
    waitpid(target, NULL, 0);
    waitpid(other, NULL, 0);
    return shared;
}

Test(hazards, memory_that_another_process_writes)
{
    cr_assert(is_shared_with(map_for_writing));
}

Test(hazards, memory_that_another_process_reads)
{
    cr_assert_not(is_shared_with(map_for_reading));
}

Test(hazards, memory_of_one_process)
{
    cr_assert_not(is_shared_with(do_nothing));
}

Test(hazards, of_a_process_without_qmp)
{
    cr_assert_eq(target_open(&t, getpid(), &err), 0);
    struct hazard_scope scope = {.t = &t};
    cr_assert_eq(hazards_find(found, &n_found, &scope, NULL, 0, NULL, &err), 0, "%s", err.message);
    cr_assert(n_found >= 5);
    for (size_t i = 0; i < n_found; i++)
        cr_assert(!found[i].found && strcmp(found[i].kind->name, "disks") != 0);
}

Test(hazards, what_can_not_be_told_is_an_error)
{
    static const struct answer a[] = {{"info network", "{}"}, {NULL, NULL}};
    start(a);
    cr_assert_eq(target_open(&t, getpid(), &err), 0);
    const struct hazard_scope scope = {.t = &t};
    cr_assert_lt(qemu_hazards_find(found, &n_found, &scope, q, NULL, TIMEOUT_MS, &err), 0);
    cr_assert_eq(err.exit_code, VMSNAP_EXIT_TARGET);
}

Test(hazards, published_names)
{
    size_t n;
    const struct hazard_kind *kinds = hazard_kinds(&n);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < i; k++)
            cr_assert_str_neq(kinds[i].name, kinds[k].name);
}
