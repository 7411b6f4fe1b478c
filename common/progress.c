#include "common/progress.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/format.h"

#define REDRAW_NS 200000000u
#define SAMPLE_NS 150000000u
#define WINDOW_NS 3000000000u
#define LEFT_MAX_S 359999.0 /* beyond it nothing is foretold */

static volatile sig_atomic_t requested;

void progress_request(void)
{
    requested = 1;
}

static void on_signal(int number)
{
    (void)number;
    progress_request();
}

void progress_catch_signal(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
}

void progress_start(struct progress *p, const char *what, bool redraw)
{
    *p = (struct progress){
        .what = what, .redraw = redraw, .samples[0].ns = clock_monotonic_ns(), .n_samples = 1};
}

void progress_begin_at(struct progress *p, uint64_t done_bytes)
{
    p->samples[0].bytes = done_bytes;
}

/* The rate over the last three seconds: what came in a burst before that says nothing of what is
 * left. */
static void sample_rate(struct progress *p, uint64_t now, uint64_t done_bytes)
{
    const struct progress_sample *newest = &p->samples[(p->n_samples - 1) % PROGRESS_SAMPLES];
    if (p->n_samples == 0 || now - newest->ns < SAMPLE_NS || done_bytes < newest->bytes)
        return;
    uint32_t first = p->n_samples < PROGRESS_SAMPLES ? 0 : p->n_samples - PROGRESS_SAMPLES;
    while (first + 1 < p->n_samples && now - p->samples[first % PROGRESS_SAMPLES].ns > WINDOW_NS)
        first++;
    const struct progress_sample *oldest = &p->samples[first % PROGRESS_SAMPLES];
    p->bytes_per_s = (double)(done_bytes - oldest->bytes) / ((double)(now - oldest->ns) / 1e9);
    p->samples[p->n_samples++ % PROGRESS_SAMPLES] = (struct progress_sample){now, done_bytes};
}

int64_t progress_left_ns(const struct progress *p, uint64_t done_bytes, uint64_t total_bytes)
{
    if (done_bytes >= total_bytes)
        return 0;
    double rate = p->bytes_per_s;
    if (p->limit_per_s && rate > (double)p->limit_per_s)
        rate = (double)p->limit_per_s;
    if (p->open_ended || rate < 1)
        return -1;
    double seconds = (double)(total_bytes - done_bytes) / rate;
    return seconds < LEFT_MAX_S ? (int64_t)(seconds * 1e9) : -1;
}

void progress_text(char *out, size_t size, const struct progress *p, uint64_t done_bytes,
                   uint64_t total_bytes, uint64_t faults)
{
    char done[FORMAT_MAX], total[FORMAT_MAX], rate[FORMAT_MAX], left[FORMAT_MAX + 16] = "";
    unsigned percent =
        total_bytes ? (unsigned)(100.0 * (double)done_bytes / (double)total_bytes) : 100;
    int64_t left_ns = progress_left_ns(p, done_bytes, total_bytes);
    if (left_ns > 0)
        snprintf(left, sizeof(left), ", %.0f s left", ceil((double)left_ns / 1e9));
    snprintf(out, size, "%s %s of %s (%u %%), %s/s, %" PRIu64 " fault%s%s%s%s", p->what,
             format_bytes(done, done_bytes), format_bytes(total, total_bytes), percent,
             format_bytes(rate, (uint64_t)p->bytes_per_s), faults, faults == 1 ? "" : "s", left,
             p->note ? "; " : "", p->note ? p->note : "");
}

/* One write(), so that lines of other threads and processes do not mix with it. */
static void print(const char *before, const char *text, const char *after)
{
    char line[320];
    int n = snprintf(line, sizeof(line), "%s%s%s", before, text, after);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1;
    if (write(STDERR_FILENO, line, len) < 0)
        return; /* nowhere left to say it */
}

void progress_answer(const char *text)
{
    if (!requested)
        return;
    requested = 0;
    print("vmsnap: ", text, "\n");
}

bool progress_update(struct progress *p, uint64_t done_bytes, uint64_t total_bytes, uint64_t faults)
{
    uint64_t now = clock_monotonic_ns();
    sample_rate(p, now, done_bytes);
    bool redraw = p->redraw && now - p->last_ns >= REDRAW_NS, asked = requested;
    if (!redraw && !asked)
        return false;
    char text[256];
    progress_text(text, sizeof(text), p, done_bytes, total_bytes, faults);
    if (asked) {
        requested = 0;
        print(p->drawn ? "\r\033[Kvmsnap: " : "vmsnap: ", text, "\n");
        p->drawn = false;
    }
    if (redraw) {
        print("\r\033[K", text, "");
        p->last_ns = now;
        p->drawn = true;
    }
    return asked;
}

void progress_finish(struct progress *p)
{
    if (p->drawn)
        print("\r\033[K", "", "");
    p->drawn = false;
}
