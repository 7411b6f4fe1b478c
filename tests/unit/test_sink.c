/*
 * What goes into a sink comes out, whatever the end can do; a file has its name only when it is
 * complete; every failure leaves nothing behind and says what failed.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/sink/sink.h"

/* The ways to write a file; each test runs in a process of its own, so the masks stay there. */
enum way { DIRECT, NAMED, PLAIN, PLAIN_NAMED, TMPFS, N_WAYS };

static const char *const masks[N_WAYS] = {
    [DIRECT] = "",
    [NAMED] = "file.tmpfile",
    [PLAIN] = "file.direct",
    [PLAIN_NAMED] = "file.tmpfile,file.direct",
    [TMPFS] = "",
};

static char dir[64];
static char path[96];

static void set_up(enum way way)
{
    snprintf(dir, sizeof(dir), "%s/vmsnap-sink-XXXXXX", way == TMPFS ? "/dev/shm" : "/var/tmp");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/image", dir);
    setenv("VMSNAP_MASK_FEATURES", masks[way], 1);
}

static struct sink *open_sink(bool overwrite)
{
    struct sink *sink;
    struct error e = {0};
    const struct sink_options options = {.overwrite = overwrite, .n_buffers = 4};
    cr_assert_eq(sink_open_file(&sink, path, &options, &e), 0, "%s", e.message);
    return sink;
}

/* Names in the directory, the hidden ones included. */
static unsigned n_names(void)
{
    DIR *d = opendir(dir);
    unsigned n = 0;
    cr_assert_not_null(d);
    for (struct dirent *entry; (entry = readdir(d));)
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(d);
    return n;
}

static void tear_down(void)
{
    unlink(path);
    cr_expect_eq(n_names(), 0, "something was left behind");
    rmdir(dir);
}

static uint8_t byte_at(uint64_t offset)
{
    return (uint8_t)(offset * 2654435761u >> 13);
}

/* Appends bytes [from, to) in pieces of odd lengths. */
static int append_range(struct sink *sink, uint64_t from, uint64_t to)
{
    static uint8_t piece[50000];
    for (size_t n = 1; from < to; from += n, n = n * 7 % 49999 + 1) {
        uint64_t offset;
        if (n > to - from)
            n = to - from;
        for (size_t i = 0; i < n; i++)
            piece[i] = byte_at(from + i);
        int r = sink_append(sink, piece, n, &offset);
        if (r)
            return r;
        cr_assert_eq(offset, from);
    }
    return 0;
}

static void check_fd(int fd, uint64_t n_bytes)
{
    static uint8_t buf[1 << 16];
    uint64_t at = 0;
    ssize_t n;
    while ((n = read(fd, buf, sizeof(buf))) > 0)
        for (ssize_t i = 0; i < n; i++, at++)
            if (buf[i] != byte_at(at))
                cr_assert_fail("byte %llu is wrong", (unsigned long long)at);
    cr_assert_eq(n, 0);
    cr_assert_eq(at, n_bytes);
}

static void check_file(uint64_t n_bytes)
{
    int fd CLEANUP_FD = open(path, O_RDONLY);
    cr_assert_geq(fd, 0);
    check_fd(fd, n_bytes);
}

static void write_whole(uint64_t n_bytes, bool overwrite)
{
    struct error e = {0};
    struct sink *sink = open_sink(overwrite);
    cr_assert_eq(append_range(sink, 0, n_bytes), 0);
    cr_assert_eq(sink_offset(sink), n_bytes);
    cr_assert_eq(sink_commit(sink, &e), 0, "%s", e.message);
    cr_assert_eq(sink_close(sink), 0);
}

ParameterizedTestParameters(sink, file_holds_what_was_appended)
{
    static int ways[] = {DIRECT, NAMED, PLAIN, PLAIN_NAMED, TMPFS};
    return cr_make_param_array(int, ways, N_WAYS);
}

ParameterizedTest(const int *way, sink, file_holds_what_was_appended)
{
    static const uint64_t lengths[] = {
        0, 1, 4095, 4096, SINK_BUFFER_BYTES - 1, SINK_BUFFER_BYTES, SINK_BUFFER_BYTES + 1, 9999999};
    set_up((enum way) * way);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        write_whole(lengths[i], false);
        check_file(lengths[i]);
        cr_assert_eq(n_names(), 1);
        unlink(path);
    }
    tear_down();
}

ParameterizedTestParameters(sink, short_writes_are_gone_on_with)
{
    static int ways[] = {DIRECT, PLAIN, TMPFS};
    return cr_make_param_array(int, ways, 3);
}

ParameterizedTest(const int *way, sink, short_writes_are_gone_on_with)
{
    set_up((enum way) * way);
    setenv("VMSNAP_FAIL_AT", "sink-short-write:2", 1);
    write_whole(3333333, false);
    check_file(3333333);
    tear_down();
}

ParameterizedTestParameters(sink, has_no_name_before_commit)
{
    static int ways[] = {DIRECT, NAMED, TMPFS};
    return cr_make_param_array(int, ways, 3);
}

ParameterizedTest(const int *way, sink, has_no_name_before_commit)
{
    set_up((enum way) * way);
    struct sink *sink = open_sink(false);
    cr_assert_eq(append_range(sink, 0, 3 << 20), 0);
    cr_assert_lt(access(path, F_OK), 0);
    cr_assert_eq(n_names(), *way == NAMED ? 1 : 0);
    cr_assert_eq(access(sink_temporary_path(sink), F_OK), *way == NAMED ? 0 : -1);
    cr_assert_eq(sink_close(sink), 0);
    tear_down();
}

Test(sink, an_existing_image_is_refused)
{
    struct sink *sink;
    struct error e = {0};
    const struct sink_options options = {.n_buffers = 4};
    set_up(DIRECT);
    write_whole(1000, false);
    cr_assert_eq(sink_open_file(&sink, path, &options, &e), -EEXIST);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_FAILED);
    cr_assert_not_null(strstr(e.message, "/image exists"), "%s", e.message);
    cr_assert_not_null(strstr(e.hint, "--overwrite"));
    cr_assert_lt(sink_open_file(&sink, dir, &options, &e), 0);
    cr_assert_not_null(strstr(e.message, "not a regular file"), "%s", e.message);
    check_file(1000);
    tear_down();
}

ParameterizedTestParameters(sink, an_image_that_came_meanwhile_is_left_alone)
{
    static int ways[] = {DIRECT, NAMED};
    return cr_make_param_array(int, ways, 2);
}

ParameterizedTest(const int *way, sink, an_image_that_came_meanwhile_is_left_alone)
{
    struct error e = {0};
    set_up((enum way) * way);
    struct sink *sink = open_sink(false);
    cr_assert_eq(append_range(sink, 0, 5000000), 0);
    write_whole(1000, false);
    cr_assert_eq(sink_commit(sink, &e), -EEXIST);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_FAILED);
    cr_assert_not_null(strstr(e.message, "exists"), "%s", e.message);
    sink_close(sink);
    check_file(1000);
    tear_down();
}

ParameterizedTestParameters(sink, overwrite_replaces_only_at_commit)
{
    static int ways[] = {DIRECT, NAMED, TMPFS};
    return cr_make_param_array(int, ways, 3);
}

ParameterizedTest(const int *way, sink, overwrite_replaces_only_at_commit)
{
    struct error e = {0};
    set_up((enum way) * way);
    write_whole(1000, true);
    struct sink *sink = open_sink(true);
    cr_assert_eq(append_range(sink, 0, 4444444), 0);
    check_file(1000);
    cr_assert_eq(sink_commit(sink, &e), 0, "%s", e.message);
    sink_close(sink);
    check_file(4444444);
    sink = open_sink(true);
    sink_close(sink);
    check_file(4444444);
    tear_down();
}

Test(sink, overwrite_follows_a_link_and_replaces_only_files)
{
    char real[128];
    struct stat st;
    struct sink *sink;
    struct error e = {0};
    const struct sink_options options = {.overwrite = true, .n_buffers = 4};
    set_up(DIRECT);
    snprintf(real, sizeof(real), "%s/real", dir);
    cr_assert_eq(close(open(real, O_CREAT | O_WRONLY, 0600)), 0);
    cr_assert_eq(symlink("real", path), 0);
    write_whole(12345, true);
    check_file(12345);
    cr_assert_eq(lstat(path, &st), 0);
    cr_assert(S_ISLNK(st.st_mode));
    cr_assert_eq(stat(real, &st), 0);
    cr_assert_eq(st.st_size, 12345);
    cr_assert_lt(sink_open_file(&sink, dir, &options, &e), 0);
    cr_assert_not_null(strstr(e.message, "not a regular file"), "%s", e.message);
    cr_assert_lt(sink_open_file(&sink, "/dev/null", &options, &e), 0);
    cr_assert_lt(sink_open_file(&sink, "/nonexistent/image", &options, &e), 0);
    cr_assert_lt(sink_open_file(&sink, "/var/tmp/", &options, &e), 0);
    unlink(real);
    tear_down();
}

/* ---- failures ---- */

/* Appends until the sink says no, then commits; returns what commit said. */
static int write_until_failure(struct sink *sink, struct error *e)
{
    for (uint64_t at = 0; at < 64 << 20; at += 1 << 20)
        if (append_range(sink, at, at + (1 << 20)))
            break;
    int r = sink_commit(sink, e);
    cr_assert_eq(sink_error(sink, NULL), r);
    cr_assert_eq(sink_append(sink, "x", 1, NULL) < 0, 1);
    return r;
}

static void fails_with(enum way way, const char *hook, int r, enum vmsnap_exit exit_code)
{
    struct error e = {0};
    set_up(way);
    setenv("VMSNAP_FAIL_AT", hook, 1);
    struct sink *sink = open_sink(false);
    cr_assert_eq(write_until_failure(sink, &e), r, "%s: %s", hook, e.message);
    cr_assert_eq(e.exit_code, exit_code);
    cr_assert_not_null(strstr(e.message, path), "%s", e.message);
    cr_assert_not_null(strstr(e.message, "at byte"), "%s", e.message);
    cr_assert_eq(sink_close(sink), 0);
    cr_assert_lt(access(path, F_OK), 0);
    tear_down();
}

ParameterizedTestParameters(sink, failures_publish_nothing)
{
    static int ways[] = {DIRECT, NAMED, PLAIN, PLAIN_NAMED, TMPFS};
    return cr_make_param_array(int, ways, N_WAYS);
}

ParameterizedTest(const int *way, sink, failures_publish_nothing)
{
    fails_with((enum way) * way, "sink-enospc:3", -ENOSPC, VMSNAP_EXIT_NO_SPACE);
}

Test(sink, an_io_error_publishes_nothing)
{
    fails_with(DIRECT, "sink-eio:2", -EIO, VMSNAP_EXIT_FAILED);
}

Test(sink, a_failed_fsync_publishes_nothing)
{
    fails_with(DIRECT, "sink-fsync", -EIO, VMSNAP_EXIT_FAILED);
}

/* A small tmpfs that is mounted nowhere: a descriptor of its root. */
static int make_small_tmpfs(void)
{
    if (geteuid() != 0)
        cr_assert_eq(unshare(CLONE_NEWUSER | CLONE_NEWNS), 0);
    int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
    cr_assert_geq(fs, 0);
    cr_assert_eq(fsconfig(fs, FSCONFIG_SET_STRING, "size", "5m", 0), 0);
    cr_assert_eq(fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), 0);
    int root = fsmount(fs, FSMOUNT_CLOEXEC, 0);
    cr_assert_geq(root, 0);
    close(fs);
    return root;
}

/* A file system that is really full. */
Test(sink, a_full_file_system_is_exit_18)
{
    struct error e = {0};
    struct statfs fs;
    set_up(DIRECT);
    tear_down();
    int root = make_small_tmpfs();
    snprintf(dir, sizeof(dir), "/proc/self/fd/%d", root);
    snprintf(path, sizeof(path), "%s/image", dir);
    struct sink *sink = open_sink(false);
    cr_assert_eq(write_until_failure(sink, &e), -ENOSPC);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_NO_SPACE);
    cr_assert_not_null(strstr(e.message, "No space left"), "%s", e.message);
    cr_assert_not_null(strstr(e.message, "at byte 5242880"), "%s", e.message);
    cr_assert_neq(e.hint[0], '\0');
    sink_close(sink);
    cr_assert_eq(n_names(), 0);
    cr_assert_eq(statfs(dir, &fs), 0);
    cr_assert_eq(fs.f_bfree, fs.f_blocks, "the space was not given back");
    close(root);
}

/* `ulimit -f`: an error like any other, no SIGXFSZ that ends the process. */
Test(sink, a_file_size_limit_is_an_error)
{
    struct error e = {0};
    const struct rlimit limit = {3 << 20, 3 << 20};
    set_up(DIRECT);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct sink *sink = open_sink(false);
    cr_assert_eq(write_until_failure(sink, &e), -EFBIG, "%s", e.message);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_FAILED);
    sink_close(sink);
    tear_down();
}

Test(sink, too_few_buffers_are_refused)
{
    struct sink *sink;
    struct error e = {0};
    set_up(DIRECT);
    for (unsigned n = 0; n < SINK_MIN_BUFFERS; n++) {
        const struct sink_options options = {.n_buffers = n};
        cr_assert_eq(sink_open_file(&sink, path, &options, &e), -EINVAL);
    }
    tear_down();
}

/* ---- descriptors ---- */

static struct sink *open_fd_sink(int fd)
{
    struct sink *sink;
    struct error e = {0};
    const struct sink_options options = {.n_buffers = SINK_MIN_BUFFERS};
    cr_assert_eq(sink_open_fd(&sink, fd, &options, &e), 0, "%s", e.message);
    return sink;
}

Test(sink, dev_full_is_exit_18)
{
    struct error e = {0};
    struct sink *sink = open_fd_sink(open("/dev/full", O_WRONLY));
    cr_assert_eq(write_until_failure(sink, &e), -ENOSPC);
    cr_assert_eq(e.exit_code, VMSNAP_EXIT_NO_SPACE);
    cr_assert_eq(sink_close(sink), 0);
}

Test(sink, a_redirect_goes_on_where_the_file_stands)
{
    struct error e = {0};
    set_up(DIRECT);
    int fd CLEANUP_FD = open(path, O_CREAT | O_RDWR, 0600);
    uint8_t first[3] = {byte_at(0), byte_at(1), byte_at(2)};
    cr_assert_eq(write(fd, first, 3), 3);
    struct sink *sink = open_fd_sink(fd);
    uint8_t more[5] = {byte_at(3), byte_at(4), byte_at(5), byte_at(6), byte_at(7)};
    cr_assert_eq(sink_append(sink, more, 5, NULL), 0);
    cr_assert_eq(sink_commit(sink, &e), 0, "%s", e.message);
    cr_assert_eq(sink_close(sink), 0);
    check_file(8);
    tear_down();
}
