/*
 * A sink under threads and against ends that hang: pipes that are read slowly, not at all or by
 * nobody, and an fsync that does not come back. A plain program, so that it can run under
 * ThreadSanitizer.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/sink/sink.h"
#include "tests/unit/plain_check.h"

/* What ends within this has not waited for the other side, even on a busy machine. */
#define LIMIT_NS 4000000000ull

static struct sink *open_fd_sink(int fd)
{
    struct sink *sink = NULL;
    struct error e = {0};
    const struct sink_options options = {.n_buffers = SINK_MIN_BUFFERS};
    if (sink_open_fd(&sink, fd, &options, &e)) {
        fprintf(stderr, "%s\n", e.message);
        exit(1);
    }
    return sink;
}

/* ---- records of several threads stay whole ---- */

#define N_WRITERS 4
#define N_RECORDS 4000
#define RECORD_WORDS 900

struct writer {
    struct sink *sink;
    uint32_t id;
    uint64_t offsets[N_RECORDS];
};

static void *write_records(void *opaque)
{
    struct writer *w = opaque;
    uint32_t record[RECORD_WORDS];
    for (uint32_t i = 0; i < N_RECORDS; i++) {
        for (uint32_t j = 0; j < RECORD_WORDS; j++)
            record[j] = w->id << 24 | i;
        if (sink_append(w->sink, record, sizeof(record), &w->offsets[i]))
            abort();
    }
    return NULL;
}

static void check_records(int fd, const struct writer *w)
{
    uint32_t record[RECORD_WORDS];
    unsigned wrong = 0;
    for (uint32_t i = 0; i < N_RECORDS; i++) {
        CHECK(pread(fd, record, sizeof(record), (off_t)w->offsets[i]) == sizeof(record));
        for (uint32_t j = 0; j < RECORD_WORDS; j++)
            wrong += record[j] != (w->id << 24 | i);
    }
    CHECK(wrong == 0);
}

static void threads_do_not_mix(void)
{
    static struct writer writers[N_WRITERS];
    pthread_t threads[N_WRITERS];
    struct error e = {0};
    struct sink *sink = NULL;
    const struct sink_options options = {.overwrite = true, .n_buffers = 6};
    char path[] = "/var/tmp/vmsnap-sink-threads-XXXXXX";
    close(mkstemp(path));
    CHECK(sink_open_file(&sink, path, &options, &e) == 0);
    for (uint32_t i = 0; i < N_WRITERS; i++) {
        writers[i].sink = sink;
        writers[i].id = i;
        CHECK(pthread_create(&threads[i], NULL, write_records, &writers[i]) == 0);
    }
    for (uint32_t i = 0; i < N_WRITERS; i++)
        pthread_join(threads[i], NULL);
    CHECK(sink_commit(sink, &e) == 0);
    CHECK(sink_close(sink) == 0);
    int fd = open(path, O_RDONLY);
    for (uint32_t i = 0; i < N_WRITERS; i++)
        check_records(fd, &writers[i]);
    CHECK(lseek(fd, 0, SEEK_END) == (off_t)N_WRITERS * N_RECORDS * RECORD_WORDS * 4);
    close(fd);
    unlink(path);
}

/* ---- pipes ---- */

#define STREAM_BYTES (7u << 20)

/* Reads all there is, slowly at first. Returns how many bytes were right. */
static void *read_slowly(void *opaque)
{
    int fd = *(int *)opaque;
    static uint8_t buf[30000];
    uintptr_t right = 0;
    ssize_t n;
    for (unsigned rounds = 0; (n = read(fd, buf, sizeof(buf))) > 0; rounds++) {
        for (ssize_t i = 0; i < n; i++)
            right += buf[i] == (uint8_t)(right % 251);
        if (rounds < 20)
            usleep(1000);
    }
    return (void *)right;
}

static void stream_arrives(int write_fd, int read_fd)
{
    static uint8_t piece[251 * 16];
    pthread_t reader;
    void *right;
    struct error e = {0};
    struct sink *sink = open_fd_sink(write_fd);
    for (size_t i = 0; i < sizeof(piece); i++)
        piece[i] = (uint8_t)(i % 251);
    CHECK(pthread_create(&reader, NULL, read_slowly, &read_fd) == 0);
    unsigned n = 0;
    for (; n < STREAM_BYTES; n += sizeof(piece))
        CHECK(sink_append(sink, piece, sizeof(piece), NULL) == 0);
    CHECK(sink_commit(sink, &e) == 0);
    CHECK(sink_close(sink) == 0);
    close(write_fd);
    pthread_join(reader, &right);
    CHECK((uintptr_t)right == n);
    close(read_fd);
}

/* Until nothing has been appended for a while: all buffers are full. Returns how much fits. */
static uint64_t wait_until_blocked(const struct sink *sink)
{
    uint64_t start = clock_monotonic_ns(), before = UINT64_MAX, now = sink_offset(sink);
    while ((now == 0 || now != before) && clock_monotonic_ns() - start < LIMIT_NS) {
        before = now;
        usleep(100000);
        now = sink_offset(sink);
    }
    CHECK(now == before);
    return now;
}

static void *append_for_ever(void *opaque)
{
    static const char zeros[4096];
    int r;
    while ((r = sink_append(opaque, zeros, sizeof(zeros), NULL)) == 0)
        ;
    return (void *)(intptr_t)r;
}

/* Nobody reads: appenders block, a cancel sets them free, and closing does not wait. */
static void unread_end_can_be_cancelled(int write_fd)
{
    pthread_t threads[3];
    void *r;
    struct error e = {0};
    struct sink *sink = open_fd_sink(write_fd);
    int flags = fcntl(write_fd, F_GETFL);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, append_for_ever, sink) == 0);
    wait_until_blocked(sink);
    uint64_t start = clock_monotonic_ns();
    sink_cancel(sink);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], &r);
        CHECK((intptr_t)r == -ECANCELED);
    }
    CHECK(sink_error(sink, &e) == -ECANCELED && e.message[0]);
    CHECK(sink_close(sink) == 0);
    CHECK(clock_monotonic_ns() - start < LIMIT_NS);
    CHECK(fcntl(write_fd, F_GETFL) == flags); /* others share this description */
}

static void ended_reader_is_epipe(int write_fd, int read_fd)
{
    struct error e = {0};
    struct sink *sink = open_fd_sink(write_fd);
    close(read_fd);
    CHECK((intptr_t)append_for_ever(sink) == -EPIPE);
    CHECK(sink_commit(sink, &e) == -EPIPE);
    CHECK(e.exit_code == VMSNAP_EXIT_FAILED && strstr(e.hint, "reader"));
    CHECK(sink_close(sink) == 0);
    close(write_fd);
}

static void all_pipe_tests(void)
{
    int p[2] = {-1, -1}, s[2] = {-1, -1};
    CHECK(pipe(p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    stream_arrives(p[1], p[0]);
    stream_arrives(s[1], s[0]);
    CHECK(pipe(p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    unread_end_can_be_cancelled(p[1]);
    unread_end_can_be_cancelled(s[1]);
    ended_reader_is_epipe(p[1], p[0]);
    ended_reader_is_epipe(s[1], s[0]);
}

/* ---- the writer process ---- */

/* Our only child. */
static pid_t find_child(void)
{
    char path[64], text[32] = "";
    snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    return (pid_t)atoi(text);
}

static bool has_child(void)
{
    return waitpid(-1, NULL, WNOHANG | __WALL) >= 0 || errno != ECHILD;
}

static struct sink *open_file_sink(const char *path)
{
    struct sink *sink = NULL;
    struct error e = {0};
    const struct sink_options options = {.overwrite = true, .n_buffers = 4};
    CHECK(sink_open_file(&sink, path, &options, &e) == 0);
    return sink;
}

static void killed_writer_is_an_error(void)
{
    char path[] = "/var/tmp/vmsnap-sink-kill-XXXXXX";
    struct error e = {0};
    close(mkstemp(path));
    struct sink *sink = open_file_sink(path);
    CHECK(kill(find_child(), SIGKILL) == 0);
    CHECK((intptr_t)append_for_ever(sink) == -EOWNERDEAD);
    CHECK(sink_commit(sink, &e) == -EOWNERDEAD);
    CHECK(e.exit_code == VMSNAP_EXIT_FAILED && strstr(e.hint, "killed"));
    CHECK(sink_close(sink) == 0 && !has_child());
    unlink(path);
}

/* One that dies while there is nothing to write is noticed all the same, and nobody spins. */
static void killed_idle_writer_is_noticed(void)
{
    char path[] = "/var/tmp/vmsnap-sink-idle-XXXXXX";
    close(mkstemp(path));
    struct sink *sink = open_file_sink(path);
    CHECK(sink_append(sink, "bytes", 5, NULL) == 0); /* stays in its buffer */
    CHECK(kill(find_child(), SIGKILL) == 0);
    uint64_t until = clock_monotonic_ns() + LIMIT_NS;
    while (sink_error(sink, NULL) == 0 && clock_monotonic_ns() < until)
        usleep(1000);
    CHECK(sink_error(sink, NULL) == -EOWNERDEAD);
    CHECK(sink_close(sink) == 0 && !has_child());
    unlink(path);
}

/* The writer is stopped: appenders block, a cancel frees them, nothing of it stays. */
static void stopped_writer_can_be_cancelled(void)
{
    char path[] = "/var/tmp/vmsnap-sink-stop-XXXXXX";
    pthread_t thread;
    void *r;
    close(mkstemp(path));
    struct sink *sink = open_file_sink(path);
    CHECK(kill(find_child(), SIGSTOP) == 0);
    CHECK(pthread_create(&thread, NULL, append_for_ever, sink) == 0);
    CHECK(wait_until_blocked(sink) <= 4 * SINK_BUFFER_BYTES);
    uint64_t start = clock_monotonic_ns();
    sink_cancel(sink);
    pthread_join(thread, &r);
    CHECK((intptr_t)r == -ECANCELED);
    CHECK(sink_close(sink) == 0 && !has_child());
    CHECK(clock_monotonic_ns() - start < LIMIT_NS);
    unlink(path);
}

/* A process that is killed while its writer hangs lets go of all it held at once: here the write
 * end of a pipe stands for the userfaultfd. */
static void killed_parent_lets_go_of_its_descriptors(void)
{
    char path[] = "/var/tmp/vmsnap-sink-parent-XXXXXX", byte;
    int held[2] = {-1, -1}, told[2] = {-1, -1};
    pid_t writer = 0;
    close(mkstemp(path));
    CHECK(pipe2(held, O_CLOEXEC) == 0 && pipe2(told, O_CLOEXEC) == 0);
    pid_t parent = fork();
    if (parent == 0) {
        close(held[0]);
        struct sink *sink = open_file_sink(path);
        pid_t child = find_child();
        kill(child, SIGSTOP);
        if (write(told[1], &child, sizeof(child)) == sizeof(child))
            append_for_ever(sink);
        _exit(1);
    }
    close(held[1]);
    CHECK(read(told[0], &writer, sizeof(writer)) == sizeof(writer));
    usleep(50000);
    uint64_t start = clock_monotonic_ns();
    CHECK(kill(parent, SIGKILL) == 0);
    CHECK(read(held[0], &byte, 1) == 0);
    CHECK(clock_monotonic_ns() - start < LIMIT_NS);
    CHECK(kill(writer, 0) == 0); /* it was there all the time, and held nothing */
    CHECK(kill(writer, SIGKILL) == 0);
    CHECK(waitpid(parent, NULL, 0) == parent);
    close(held[0]);
    close(told[0]);
    close(told[1]);
    unlink(path);
}

/* ---- an end that hangs in the kernel ---- */

#ifdef VMSNAP_TEST_HOOKS
static void *commit(void *opaque)
{
    struct error e = {0};
    return (void *)(intptr_t)sink_commit(opaque, &e);
}

/* The pause point writes its name there. */
static void wait_for_bytes(const char *path)
{
    struct stat st;
    while (stat(path, &st) == 0 && st.st_size == 0)
        usleep(1000);
}

/* The I/O thread hangs where it would call fsync: commit ends with a cancel, close leaves it. */
static void hanging_fsync_is_left_behind(void)
{
    char path[] = "/var/tmp/vmsnap-sink-hang-XXXXXX", log[] = "/var/tmp/vmsnap-sink-log-XXXXXX";
    struct sink *sink = NULL;
    struct error e = {0};
    pthread_t thread;
    void *r;
    const struct sink_options options = {.overwrite = true, .n_buffers = 4};
    close(mkstemp(log));
    close(mkstemp(path));
    setenv("VMSNAP_PAUSE_LOG", log, 1);
    setenv("VMSNAP_PAUSE_AT", "sink-before-fsync", 1);
    CHECK(sink_open_file(&sink, path, &options, &e) == 0);
    CHECK(sink_append(sink, "bytes", 5, NULL) == 0);
    CHECK(pthread_create(&thread, NULL, commit, sink) == 0);
    wait_for_bytes(log);
    uint64_t start = clock_monotonic_ns();
    sink_cancel(sink);
    pthread_join(thread, &r);
    CHECK((intptr_t)r == -ECANCELED);
    CHECK(clock_monotonic_ns() - start < LIMIT_NS);
    CHECK(sink_close(sink) == -EBUSY);
    CHECK(clock_monotonic_ns() - start < 2 * LIMIT_NS);
    int fd = open(path, O_RDONLY); /* what stood there still stands there */
    CHECK(lseek(fd, 0, SEEK_END) == 0);
    close(fd);
    unlink(path);
    unlink(log);
}
#endif

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    threads_do_not_mix();
    all_pipe_tests();
    killed_writer_is_an_error();
    killed_idle_writer_is_noticed();
    stopped_writer_can_be_cancelled();
    killed_parent_lets_go_of_its_descriptors();
#ifdef VMSNAP_TEST_HOOKS
    setenv("VMSNAP_MASK_FEATURES", "pipe.reopen", 1);
    all_pipe_tests();
    hanging_fsync_is_left_behind();
#endif
    return check_result();
}
