/*
 * pagecheck - judges guest memory from outside: an exported raw image, or the memory of a running
 * process. It finds the pages of `stepper`, of the firmware guest and of `selfcheck` by their
 * headers (pattern.h) and says whether the whole is a true point in time.
 *
 *   pagecheck FILE
 *   pagecheck --pid PID START-END        (hexadecimal, as in /proc/PID/maps)
 *
 * Prints one JSON object. Exit status: 0 a true point in time; 1 torn or wrong; 2 usage or I/O;
 * 3 no page of any test guest found.
 *
 * The stepper's rule: values never rise from one page to the next, first and last differ by at most
 * one, and at most one page, the last that has the new value, still has the old tail. A selfcheck
 * page must hold what its header asks for; at most one page per process is just being rewritten.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/guest/pattern.h"

#define CHUNK_PAGES 256u
#define MAX_OWNERS 64u
#define ABSENT UINT64_MAX

struct stepped {
    uint64_t *head, *tail; /* by page number; ABSENT: not found */
    uint64_t total, run;
    uint64_t found, duplicates, foreign, damaged;
};

struct selfchecked {
    uint64_t total, run, found, inconsistent, foreign;
    uint64_t example; /* page number of an inconsistent one */
};

struct checker {
    struct stepped stepped;
    struct selfchecked owners[MAX_OWNERS];
    uint64_t pages_seen;
    uint64_t max_pages; /* no header may claim more */
};

static void fail(const char *what)
{
    fprintf(stderr, "pagecheck: %s: %s\n", what, strerror(errno));
    exit(2);
}

static bool body_is_zero(const uint64_t *words)
{
    for (size_t i = PATTERN_HEADER_WORDS; i < PATTERN_WORDS - 1; i++) {
        if (words[i] != 0)
            return false;
    }
    return true;
}

static void begin_stepped(struct stepped *s, const struct page_header *h)
{
    s->total = h->total;
    s->run = h->run;
    s->head = malloc(h->total * sizeof(*s->head));
    s->tail = malloc(h->total * sizeof(*s->tail));
    if (!s->head || !s->tail)
        fail("memory");
    for (uint64_t i = 0; i < h->total; i++)
        s->head[i] = s->tail[i] = ABSENT;
}

static void take_stepped(struct checker *c, const uint64_t *words, const struct page_header *h)
{
    struct stepped *s = &c->stepped;
    if (s->total == 0 && h->total > 0 && h->total <= c->max_pages)
        begin_stepped(s, h);
    if (h->total != s->total || h->run != s->run || h->page >= s->total) {
        s->foreign++;
        return;
    }
    bool right = h->kind == PAGE_BOOT ? body_is_zero(words)
                                      : pattern_check_body(words, PATTERN_WORDS - 1, h->run,
                                                           h->page, 0) == PATTERN_WORDS;
    s->damaged += !right;
    if (s->head[h->page] != ABSENT)
        s->duplicates++;
    else
        s->found++;
    s->head[h->page] = h->value;
    s->tail[h->page] = words[PATTERN_WORDS - 1];
}

static void take_selfchecked(struct checker *c, const uint64_t *words, const struct page_header *h)
{
    if (h->owner >= MAX_OWNERS)
        return;
    struct selfchecked *s = &c->owners[h->owner];
    if (s->total == 0) {
        s->total = h->total;
        s->run = h->run;
    }
    if (h->total != s->total || h->run != s->run || h->page >= s->total) {
        s->foreign++;
        return;
    }
    s->found++;
    if (pattern_check(words, h) != PATTERN_WORDS) {
        s->inconsistent++;
        s->example = h->page;
    }
}

static void take_pages(struct checker *c, const uint64_t *words, size_t n)
{
    for (size_t i = 0; i < n; i++, words += PATTERN_WORDS) {
        if (words[0] != PATTERN_MAGIC0 || words[1] != PATTERN_MAGIC1)
            continue;
        struct page_header h;
        memcpy(&h, words, sizeof(h));
        if (h.kind == PAGE_SELFCHECK)
            take_selfchecked(c, words, &h);
        else if (h.kind == PAGE_STEPPER || h.kind == PAGE_BOOT)
            take_stepped(c, words, &h);
    }
    c->pages_seen += n;
}

/* Reads [from, to) of fd. A part that can't be read (a hole of a process's memory) is skipped. */
static void read_range(struct checker *c, int fd, uint64_t from, uint64_t to, uint64_t *buffer)
{
    while (from < to) {
        size_t want = CHUNK_PAGES * PATTERN_PAGE_BYTES;
        if (want > to - from)
            want = (size_t)(to - from);
        ssize_t n = pread(fd, buffer, want, (off_t)from);
        if (n < 0 && errno != EIO && errno != EFAULT)
            fail("read");
        if (n < (ssize_t)PATTERN_PAGE_BYTES) {
            from += PATTERN_PAGE_BYTES;
            continue;
        }
        take_pages(c, buffer, (size_t)n / PATTERN_PAGE_BYTES);
        from += (uint64_t)n / PATTERN_PAGE_BYTES * PATTERN_PAGE_BYTES;
    }
}

static void read_file(struct checker *c, const char *path, uint64_t *buffer)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0)
        fail(path);
    c->max_pages = (uint64_t)st.st_size / PATTERN_PAGE_BYTES;
    off_t at = 0;
    while (at < st.st_size) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
        if (data < 0 || hole < 0)
            fail("lseek");
        data -= data % (off_t)PATTERN_PAGE_BYTES;
        read_range(c, fd, (uint64_t)data, (uint64_t)hole, buffer);
        at = hole;
    }
    close(fd);
}

static void read_process(struct checker *c, const char *pid, const char *range, uint64_t *buffer)
{
    uint64_t from, to;
    char path[64];
    snprintf(path, sizeof(path), "/proc/%s/mem", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail(path);
    if (sscanf(range, "%" SCNx64 "-%" SCNx64, &from, &to) != 2 || from >= to) {
        errno = EINVAL;
        fail(range);
    }
    c->max_pages = (to - from) / PATTERN_PAGE_BYTES;
    read_range(c, fd, from, to, buffer);
    close(fd);
}

/* NULL when the pages are a true point in time, else what is wrong; *at is the page. */
static const char *judge_stepped(const struct stepped *s, uint64_t *at)
{
    *at = 0;
    if (s->foreign)
        return "pages of another run";
    if (s->damaged)
        return "the unchanging part of a page is damaged";
    if (s->duplicates)
        return "a page stands twice";
    uint64_t half_done = 0;
    for (uint64_t i = 0; i < s->total; i++) {
        *at = i;
        if (s->head[i] == ABSENT)
            return "a page is missing";
        if (i > 0 && s->head[i] > s->head[i - 1])
            return "a later page is ahead";
        if (s->head[i] + 1 < s->head[0])
            return "a page is more than one step behind";
        if (s->tail[i] == s->head[i])
            continue;
        bool last_new = i + 1 == s->total || s->head[i + 1] + 1 == s->head[i];
        if (s->tail[i] + 1 != s->head[i] || !last_new || half_done++)
            return "head and tail of a page differ";
    }
    return NULL;
}

/* Pages that selfcheck keeps as zeros have no header: a sixteenth, so at least 4/5 are found. */
static const char *judge_selfchecked(const struct selfchecked *s)
{
    if (s->foreign)
        return "pages of another run";
    if (s->inconsistent > 1)
        return "more than one page is half written";
    if (s->found > s->total)
        return "a page stands twice";
    if (s->found < s->total / 5 * 4)
        return "pages are missing";
    return NULL;
}

static const char *or_fine(const char *reason)
{
    return reason ? reason : "point in time";
}

static int say(const struct checker *c)
{
    int status = 3;
    printf("{\"pages_seen\": %" PRIu64, c->pages_seen);
    if (c->stepped.total) {
        const struct stepped *s = &c->stepped;
        uint64_t at, boundary = 0;
        const char *reason = judge_stepped(s, &at);
        while (boundary < s->total && s->head[boundary] == s->head[0])
            boundary++;
        printf(", \"stepper\": {\"verdict\": \"%s\", \"at_page\": %" PRIu64 ", \"pages\": %" PRIu64
               ", \"found\": %" PRIu64 ", \"first\": %" PRIu64 ", \"boundary\": %" PRIu64
               ", \"damaged\": %" PRIu64 "}",
               or_fine(reason), at, s->total, s->found, s->head[0], boundary, s->damaged);
        status = reason ? 1 : 0;
    }
    const char *separator = "";
    printf(", \"selfcheck\": [");
    for (uint32_t i = 0; i < MAX_OWNERS; i++) {
        const struct selfchecked *s = &c->owners[i];
        if (s->total == 0)
            continue;
        const char *reason = judge_selfchecked(s);
        printf("%s{\"owner\": %u, \"verdict\": \"%s\", \"pages\": %" PRIu64 ", \"found\": %" PRIu64
               ", \"inconsistent\": %" PRIu64 ", \"example\": %" PRIu64 "}",
               separator, i, or_fine(reason), s->total, s->found, s->inconsistent, s->example);
        status = reason ? 1 : status == 3 ? 0 : status;
        separator = ", ";
    }
    printf("]}\n");
    return status;
}

int main(int argc, char **argv)
{
    static struct checker c;
    static uint64_t buffer[CHUNK_PAGES * PATTERN_WORDS];
    if (argc == 2) {
        read_file(&c, argv[1], buffer);
    } else if (argc == 4 && strcmp(argv[1], "--pid") == 0) {
        read_process(&c, argv[2], argv[3], buffer);
    } else {
        fprintf(stderr, "usage: pagecheck FILE | pagecheck --pid PID START-END\n");
        return 2;
    }
    return say(&c);
}
