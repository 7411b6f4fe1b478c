/*
 * A sink under threads and against ends that hang: pipes that are read slowly, not at all or by
 * nobody, and an fsync that does not come back. A plain program, so that it can run under
 * ThreadSanitizer.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/sink.h"

static unsigned n_failed;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);              \
            n_failed++;                                                                            \
        }                                                                                          \
    } while (0)

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
    usleep(100000);
    uint64_t filled = sink_offset(sink);
    usleep(50000);
    CHECK(sink_offset(sink) == filled); /* they do block */
    uint64_t start = clock_monotonic_ns();
    sink_cancel(sink);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], &r);
        CHECK((intptr_t)r == -ECANCELED);
    }
    CHECK(sink_error(sink, &e) == -ECANCELED && e.message[0]);
    CHECK(sink_close(sink) == 0);
    CHECK(clock_monotonic_ns() - start < 500000000);
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
    int p[2], s[2];
    CHECK(pipe(p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    stream_arrives(p[1], p[0]);
    stream_arrives(s[1], s[0]);
    CHECK(pipe(p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    unread_end_can_be_cancelled(p[1]);
    unread_end_can_be_cancelled(s[1]);
    ended_reader_is_epipe(p[1], p[0]);
    ended_reader_is_epipe(s[1], s[0]);
}

/* ---- an end that hangs in the kernel ---- */

#ifdef VMSNAP_TEST_HOOKS
static void *commit(void *opaque)
{
    struct error e = {0};
    return (void *)(intptr_t)sink_commit(opaque, &e);
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
    usleep(100000);
    uint64_t start = clock_monotonic_ns();
    sink_cancel(sink);
    pthread_join(thread, &r);
    CHECK((intptr_t)r == -ECANCELED);
    CHECK(clock_monotonic_ns() - start < 500000000);
    CHECK(sink_close(sink) == -EBUSY);
    CHECK(clock_monotonic_ns() - start < 2500000000u);
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
#ifdef VMSNAP_TEST_HOOKS
    setenv("VMSNAP_MASK_FEATURES", "pipe.reopen", 1);
    all_pipe_tests();
    hanging_fsync_is_left_behind();
#endif
    printf("%u checks failed\n", n_failed);
    return n_failed != 0;
}
