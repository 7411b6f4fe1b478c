/*
 * progress.h - how far a long piece of work is, on stderr: on a terminal a line that is redrawn at
 * most five times a second, and one whole line whenever a signal (SIGUSR1) asks for it.
 *
 * Not in a fault path: it may block on the terminal. One thread per struct progress.
 */
#ifndef VMSNAP_COMMON_PROGRESS_H
#define VMSNAP_COMMON_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* At most one in 150 ms: they reach back three seconds. */
#define PROGRESS_SAMPLES 20u
struct progress_sample {
    uint64_t ns, bytes;
};

struct progress {
    const char *what; /* "saved", "filled" */
    bool redraw;      /* stderr is a terminal and progress is wanted */
    bool drawn;       /* a line stands there that has to be cleared */
    uint64_t last_ns; /* when it was drawn last */
    struct progress_sample samples[PROGRESS_SAMPLES]; /* the oldest is the start, or overwritten */
    uint32_t n_samples;
    double bytes_per_s;   /* over the last seconds */
    uint64_t limit_per_s; /* what is left comes no faster; 0: no limit */
    bool open_ended;      /* nobody can tell how long it takes */
    const char *note;     /* added to the text; NULL: none */
};

/* `what` must outlive it. `redraw`: whether there is a line at all without being asked. */
void progress_start(struct progress *p, const char *what, bool redraw);

/* At the start: what others have done before counts for no rate. */
void progress_begin_at(struct progress *p, uint64_t done_bytes);

/* Call as often as is convenient: it prints only when it is time to, or when it
 * was asked (true). */
bool progress_update(struct progress *p, uint64_t done_bytes, uint64_t total_bytes,
                     uint64_t faults);

/* At the present rate; -1: it can't be told. */
int64_t progress_left_ns(const struct progress *p, uint64_t done_bytes, uint64_t total_bytes);

/* Clears the line. */
void progress_finish(struct progress *p);

/* Asks for one line at the next progress_update(). May be called in a signal handler. */
void progress_request(void);

/* If one was asked for: prints this text instead, where there are no figures yet. */
void progress_answer(const char *text);

/* Makes SIGUSR1 call progress_request() (with SA_RESTART). */
void progress_catch_signal(void);

/* The text of a line: "saved 1.2 GiB of 4.0 GiB (30 %), 812 MiB/s, 2210 faults, 4 s left". */
void progress_text(char *out, size_t size, const struct progress *p, uint64_t done_bytes,
                   uint64_t total_bytes, uint64_t faults);

#endif
