/*
 * A limit on the rate of a sink: what its reader has seen at any time is never more than the rate
 * allows, but for a tenth of a second's worth; and it is not much less either. For a pipe and a
 * file.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/sink/sink.h"
#include "tests/unit/plain_check.h"

#define RATE (4u << 20)
#define TOTAL (3u << 20)
#define RECORD 10000u

struct watcher {
    int fd;
    bool is_file;
    uint64_t from_ns;
    atomic_bool stop;
    uint64_t seen;
    double worst; /* seconds' worth that were seen too early */
};

static uint64_t look(struct watcher *w)
{
    struct stat st;
    char data[65536];
    if (w->is_file) {
        usleep(1000);
        return fstat(w->fd, &st) == 0 ? (uint64_t)st.st_size : 0;
    }
    ssize_t n = read(w->fd, data, sizeof(data));
    if (n <= 0)
        atomic_store(&w->stop, true);
    return w->seen + (n > 0 ? (uint64_t)n : 0);
}

/* Looks after the bytes are there and takes the time after that: being late makes it lenient. */
static void *watch(void *opaque)
{
    struct watcher *w = opaque;
    while (!atomic_load(&w->stop)) {
        w->seen = look(w);
        double allowed = (double)(clock_monotonic_ns() - w->from_ns) / 1e9;
        double early = (double)w->seen / RATE - allowed;
        if (early > w->worst)
            w->worst = early;
    }
    return NULL;
}

static double fill(struct sink *sink)
{
    static const char record[RECORD];
    struct error e = {0};
    uint64_t from = clock_monotonic_ns();
    for (uint64_t n = 0; n < TOTAL; n += RECORD)
        CHECK(sink_append(sink, record, RECORD, NULL) == 0);
    CHECK(sink_commit(sink, &e) == 0);
    return (double)(clock_monotonic_ns() - from) / 1e9;
}

static void check_rate(int to, struct watcher *w)
{
    const struct sink_options options = {.n_buffers = SINK_MIN_BUFFERS, .bytes_per_s = RATE};
    struct sink *sink = NULL;
    struct error e = {0};
    pthread_t thread;
    CHECK(sink_open_fd(&sink, to, &options, &e) == 0);
    w->from_ns = clock_monotonic_ns();
    CHECK(pthread_create(&thread, NULL, watch, w) == 0);
    double seconds = fill(sink);
    CHECK(sink_close(sink) == 0);
    if (!w->is_file)
        close(to);
    else
        atomic_store(&w->stop, true);
    pthread_join(thread, NULL);
    printf("%.2f s for %.2f s' worth, at most %.0f ms early\n", seconds, (double)TOTAL / RATE,
           w->worst * 1e3);
    CHECK(w->worst < 0.1);
    CHECK(seconds > (double)TOTAL / RATE - 0.1);
    CHECK(seconds < (double)TOTAL / RATE * 2 + 1); /* on a busy machine */
}

static void too_low_is_refused(void)
{
    const struct sink_options options = {.n_buffers = SINK_MIN_BUFFERS,
                                         .bytes_per_s = SINK_MIN_RATE - 1};
    struct sink *sink = NULL;
    struct error e = {0};
    CHECK(sink_open_fd(&sink, STDOUT_FILENO, &options, &e) < 0);
}

int main(void)
{
    int ends[2];
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    struct watcher of_pipe = {.fd = ends[0]};
    check_rate(ends[1], &of_pipe);
    CHECK(of_pipe.seen >= TOTAL);
    close(ends[0]);

    char path[] = "/var/tmp/vmsnap-sink-rate-XXXXXX";
    struct watcher of_file = {.fd = mkstemp(path), .is_file = true};
    check_rate(of_file.fd, &of_file);
    struct stat st;
    CHECK(fstat(of_file.fd, &st) == 0 && st.st_size >= TOTAL);
    unlink(path);
    close(of_file.fd);
    too_low_is_refused();
    return check_result();
}
