/* Reasons not to start a line: each is found, by its name, and only where it is one. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"
#include "restore/launch/image_owner.h"
#include "restore/launch/qemu/files.h"
#include "restore/launch/qemu/refuse.h"

static char dir[] = "/tmp/vmsnap-unit-XXXXXX";
static struct error e;

static void setup(void)
{
    log_set_level(LOG_QUIET);
    strcpy(dir + strlen(dir) - 6, "XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(refuse, .init = setup, .fini = teardown);
TestSuite(owner, .init = setup, .fini = teardown);

static const char *in_dir(const char *name)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static bool only_seven(int fd)
{
    return fd == 7;
}

/* The name of the first reason, or "" for none. %s in `option` is the directory. */
static const char *reason_of(bool recorded, const json_t *description, const char *allowed,
                             const char *option, const char *value)
{
    static char name[64];
    char text[256];
    snprintf(text, sizeof(text), "%s", value ? value : "");
    char *at = strstr(text, "DIR");
    if (at) {
        char copy[256];
        snprintf(copy, sizeof(copy), "%.*s%s%s", (int)(at - text), text, dir, at + 3);
        strcpy(text, copy);
    }
    char *argv[] = {"qemu-system-x86_64", (char *)option, value ? text : NULL, NULL};
    struct relaunch l = {.recorded = recorded, .argv = argv, .argc = value ? 3 : 2, .cwd = dir};
    const char *const allow[] = {allowed, NULL};
    memset(&e, 0, sizeof(e));
    int rc = qemu_refuse(&l, description, allow, only_seven, &e);
    if (rc == 0)
        return "";
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_HAZARD);
    cr_assert_neq(e.hint[0], '\0');
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(e.message, ":"), e.message);
    return name;
}

static const char *recorded(const char *option, const char *value)
{
    return reason_of(true, NULL, NULL, option, value);
}

static const char *given(const char *option, const char *value)
{
    return reason_of(false, NULL, NULL, option, value);
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(fd, 1), 0);
    return fd;
}

Test(refuse, a_socket_in_use_but_not_a_dead_one)
{
    static const char option[] = "unix:DIR/s,server,nowait";
    cr_assert_str_eq(given("-qmp", option), "");
    int fd = listen_unix(in_dir("s"));
    cr_assert_str_eq(given("-qmp", option), "in-use");
    cr_assert_str_eq(recorded("-qmp", option), "in-use");
    cr_assert_str_eq(recorded("-qmp", "unix:s,server,nowait"), "in-use", "relative to cwd");
    cr_assert_str_eq(given("-qmp", "unix:DIR/s"), "", "a client of it is no harm");
    /* the owner has noticed nothing */
    fcntl(fd, F_SETFL, O_NONBLOCK);
    cr_assert_eq(accept(fd, NULL, NULL), -1);
    close(fd);
    cr_assert_str_eq(given("-qmp", option), "", "the file is left, nobody listens");
}

Test(refuse, a_port_in_use)
{
    struct sockaddr_in address = {0};
    socklen_t len = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert_eq(listen(fd, 1), 0);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    char option[64];
    snprintf(option, sizeof(option), "tcp:127.0.0.1:%d,server,nowait", ntohs(address.sin_port));
    cr_assert_str_eq(given("-qmp", option), "in-use");
    close(fd);
    cr_assert_str_eq(given("-qmp", option), "");
}

static int make_file(const char *name, const char *content)
{
    int fd = open(in_dir(name), O_RDWR | O_CREAT, 0600);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, content, strlen(content)), (ssize_t)strlen(content));
    return fd;
}

Test(refuse, a_memory_file_that_holds_data_or_is_mapped)
{
    static const char option[] = "memory-backend-file,id=m,size=1M,mem-path=DIR/m,share=on";
    cr_assert_str_eq(given("-object", option), "");
    int fd = make_file("m", "");
    cr_assert_eq(ftruncate(fd, 1 << 20), 0);
    cr_assert_str_eq(given("-object", option), "", "a file that is all hole");
    void *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    cr_assert_neq(map, MAP_FAILED);
    cr_assert_str_eq(given("-object", option), "mem-path");
    munmap(map, 4096);
    cr_assert_str_eq(given("-object", option), "");
    cr_assert_eq(pwrite(fd, "x", 1, 4096), 1);
    cr_assert_str_eq(given("-object", option), "mem-path");
    cr_assert_str_eq(given("-mem-path", "DIR/m"), "mem-path");
    cr_assert_str_eq(given("-mem-path", "DIR"), "", "a directory");
    close(fd);
}

Test(refuse, memory_shared_with_another_process)
{
    cr_assert_str_eq(given("-netdev", "vhost-user,id=n,chardev=c"), "vhost-user");
    cr_assert_str_eq(given("-device", "vhost-user-fs-pci,chardev=c"), "vhost-user");
    cr_assert_str_eq(given("-device", "virtio-net-pci"), "");
}

Test(refuse, of_a_recorded_line_only)
{
    int fd = make_file("log", "text");
    cr_assert_str_eq(recorded("-serial", "file:DIR/log"), "truncated-file");
    cr_assert_str_eq(given("-serial", "file:DIR/log"), "");
    cr_assert_str_eq(reason_of(true, NULL, "truncated-file", "-serial", "file:DIR/log"), "");
    cr_assert_eq(ftruncate(fd, 0), 0);
    cr_assert_str_eq(recorded("-serial", "file:DIR/log"), "", "nothing in it");
    close(fd);
    cr_assert_str_eq(recorded("-qmp", "unix:DIR/q,server"), "wait-on");
    cr_assert_str_eq(given("-qmp", "unix:DIR/q,server"), "");
    cr_assert_str_eq(recorded("-snapshot", NULL), "snapshot-option");
    cr_assert_str_eq(given("-snapshot", NULL), "");
}

Test(refuse, descriptors_that_are_not_here)
{
    cr_assert_str_eq(recorded("-add-fd", "fd=9,set=1"), "inherited-fd");
    cr_assert_str_eq(recorded("-netdev", "tap,id=n,fds=7:9"), "inherited-fd");
    cr_assert_str_eq(recorded("-netdev", "tap,id=n,vhostfd=9"), "inherited-fd");
    cr_assert_str_eq(recorded("-netdev", "tap,id=n,fds=7:7"), "");
    cr_assert_str_eq(recorded("-chardev", "socket,id=c,fd=name"), "");
    cr_assert_str_eq(given("-add-fd", "fd=9,set=1"), "");
}

Test(refuse, what_the_description_says)
{
    json_t *d = json_pack("{s:[{s:s, s:b}], s:[{s:s, s:b}]}", "devices", "path", "/machine/a",
                          "hotplugged", 0, "disks", "file", "/d", "writable", 0);
    json_t *device = json_array_get(json_object_get(d, "devices"), 0);
    json_t *disk = json_array_get(json_object_get(d, "disks"), 0);
    cr_assert_str_eq(reason_of(true, d, NULL, "-S", NULL), "");
    json_object_set_new(disk, "writable", json_true());
    cr_assert_str_eq(reason_of(true, d, NULL, "-S", NULL), "disks");
    cr_assert_str_eq(reason_of(true, d, "disks", "-S", NULL), "");
    cr_assert_str_eq(reason_of(false, d, NULL, "-S", NULL), "");
    json_object_set_new(device, "hotplugged", json_true());
    cr_assert_str_eq(reason_of(true, d, "disks", "-S", NULL), "hot-plugged");
    cr_assert_str_eq(reason_of(true, d, "hot-plugged", "-S", NULL), "hot-plugged",
                     "not one that can be allowed");
    json_decref(d);
}

static int owner_says(void)
{
    int fd = open(in_dir("image"), O_RDONLY);
    cr_assert_geq(fd, 0);
    int rc = image_owner_check(fd, in_dir("image"), &e);
    close(fd);
    return rc ? e.exit_code : 0;
}

Test(owner, only_what_nobody_else_can_write)
{
    close(make_file("image", "x"));
    cr_assert_eq(owner_says(), 0);
    cr_assert_eq(chmod(in_dir("image"), 0660), 0);
    cr_assert_eq(owner_says(), VMSNAP_EXIT_HAZARD);
    cr_assert_eq(chmod(in_dir("image"), 0644), 0);
    cr_assert_eq(chmod(dir, 0777), 0);
    cr_assert_eq(owner_says(), VMSNAP_EXIT_HAZARD);
    cr_assert_eq(chmod(dir, 01777), 0);
    cr_assert_eq(owner_says(), 0, "a sticky directory, as /tmp is");
    cr_assert_eq(chmod(dir, 0700), 0);
    if (geteuid() == 0) {
        cr_assert_eq(chown(in_dir("image"), 65534, 65534), 0);
        cr_assert_eq(owner_says(), VMSNAP_EXIT_HAZARD);
    }
}

/* What a line reads: the first that is not there, or NULL. */
static const char *missing_of(char *option, char *value)
{
    static char text[256];
    char *argv[] = {"qemu-system-x86_64", option, value, NULL};
    struct relaunch l = {.argv = argv, .argc = 3, .cwd = dir};
    char *missing = NULL;
    if (qemu_files_exist(&l, &missing))
        return NULL;
    snprintf(text, sizeof(text), "%s", missing);
    free(missing);
    return text;
}

Test(refuse, files_that_the_line_reads)
{
    static char *const gone[][3] = {{"-kernel", "gone", "gone"},
                                    {"-initrd", "/nonexistent/i", "/nonexistent/i"},
                                    {"-drive", "if=none,file=gone,format=raw", "gone"},
                                    {"-blockdev", "driver=file,filename=gone", "gone"},
                                    {"-blockdev",
                                     "{\"driver\":\"qcow2\",\"file\":{\"driver\":"
                                     "\"file\",\"filename\":\"gone\"}}",
                                     "gone"}};
    static char *const fine[][2] = {{"-kernel", "/"},
                                    {"-bios", "bios-microvm.bin"},
                                    {"-drive", "file=nbd:localhost:1"},
                                    {"-drive", "if=none,id=cd"},
                                    {"-cdrom", ""},
                                    {"-append", "gone"}};
    for (size_t i = 0; i < sizeof(gone) / sizeof(gone[0]); i++)
        cr_assert_str_eq(missing_of(gone[i][0], gone[i][1]), gone[i][2]);
    for (size_t i = 0; i < sizeof(fine) / sizeof(fine[0]); i++)
        cr_assert_null(missing_of(fine[i][0], fine[i][1]), "%s", fine[i][1]);
}
