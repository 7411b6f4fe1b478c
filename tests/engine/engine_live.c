/*
 * Memory protected, and perhaps saved, while the process still runs: every page of every image is
 * what it was at the instant, whatever kind of memory it is in, written in sequence or all over,
 * discarded before the instant after it had been saved or not. And the mistakes that would lose a
 * write, or keep what was discarded, do show. No call holds the process's memory for long while it
 * runs: the linker puts our ioctl() in place of the worker's.
 */
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/testhook.h"
#include "common/uffd.h"
#include "tests/engine/stepping_test.h"

#define ROUNDS 2
#define BROKEN_ROUNDS 20

static struct stepping_board *board; /* the worker's calls go there */

int __real_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg);

int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
    bool counts = request == UFFDIO_WRITEPROTECT || request == UFFDIO_UNREGISTER;
    if (board && counts) {                      /* without a board it is the probe of the kernel */
        const struct uffdio_range *range = arg; /* first in struct uffdio_writeprotect, too */
        atomic_uint_fast64_t *longest =
            atomic_load(&board->pause) ? &board->longest_paused : &board->longest_running;
        uint_fast64_t most = atomic_load(longest);
        while (range->len > most && !atomic_compare_exchange_weak(longest, &most, range->len))
            ;
    }
    return __real_ioctl(fd, request, arg);
}

static void discard_scrap(struct stepping_source *s)
{
    stepping_scrap(s->board, STEPPING_SCRAP_DISCARD);
}

static bool passes_make_sense(const json_t *summary, unsigned precopy)
{
    const json_t *passes = json_object_get(summary, "precopy_passes");
    json_int_t bytes = stepping_number(json_array_get(passes, 0), "saved_bytes");
    if (json_array_size(passes) != precopy || stepping_number(summary, "live_passes") < 1 ||
        stepping_number(summary, "live_passes") < (json_int_t)precopy)
        return false;
    return precopy == 0 || (bytes > 0 && stepping_number(json_array_get(passes, 0), "wall_ns") > 0);
}

/* A snapshot; its number of wrong pages, or -1. */
static long snapshot(struct stepping_test *t, unsigned precopy)
{
    struct snapshot_options options = stepping_options(t->image);
    json_t *summary;
    options.live = LIVE_ALWAYS;
    options.precopy = precopy;
    stepping_scrap(t->board, STEPPING_SCRAP_FILL);
    if (stepping_test_snapshot(t, &options, &summary))
        return -1;
    long wrong = stepping_judge(t->image), stored = stepping_count_stored(t->image);
    printf("precopy %u: %ld wrong, %lld live passes, %lld live faults, %lld clusters armed in the "
           "pause, %lld write faults\n",
           precopy, wrong, (long long)stepping_number(summary, "live_passes"),
           (long long)stepping_number(summary, "live_faults"),
           (long long)stepping_number(summary, "armed_in_pause"),
           (long long)stepping_number(summary, "write_faults"));
    if (!passes_make_sense(summary, precopy)) {
        char *text = json_dumps(summary, 0);
        printf("the summary makes no sense: %s\n", text);
        free(text);
        wrong = -1;
    }
    if (stored != stepping_number(summary, "pages_stored")) {
        printf("%ld pages stored, the summary says %lld\n", stored,
               (long long)stepping_number(summary, "pages_stored"));
        wrong = -1;
    }
    json_decref(summary);
    return wrong;
}

static int right_whatever_it_does(struct stepping_test *t)
{
    static const unsigned precopies[] = {0, 1, 3};
    for (size_t i = 0; i < sizeof(precopies) / sizeof(*precopies); i++)
        for (int round = 0; round < ROUNDS; round++) {
            t->source.pausing = round % 2 ? NULL : discard_scrap;
            if (snapshot(t, precopies[i]) != 0)
                return 1;
        }
    return 0;
}

/* In the pause all of a block may be protected at once, so calls are seen; outside of it not. */
static int calls_are_short(struct stepping_test *t)
{
    struct snapshot_options options = stepping_options(t->image);
    json_t *summary;
    options.live = LIVE_NEVER;
    if (stepping_test_snapshot(t, &options, &summary))
        return 1;
    json_decref(summary);
    uint64_t running = atomic_load(&board->longest_running);
    uint64_t paused = atomic_load(&board->longest_paused);
    printf("longest range of a call: %llu bytes, in the pause %llu\n", (unsigned long long)running,
           (unsigned long long)paused);
    return running == 0 || running > UFFD_PIECE_BYTES || paused <= UFFD_PIECE_BYTES;
}

#ifdef VMSNAP_TEST_HOOKS
/* With the mistake, a wrong page comes soon. */
static int shows(struct stepping_test *t, const char *mistake)
{
    long wrong = 0;
    setenv("VMSNAP_BREAK", mistake, 1);
    t->source.pausing = discard_scrap;
    for (int round = 0; round < BROKEN_ROUNDS && wrong == 0; round++)
        wrong = snapshot(t, 2);
    unsetenv("VMSNAP_BREAK");
    printf("%s: %ld pages wrong\n", mistake, wrong);
    return wrong <= 0;
}
#else
static int shows(struct stepping_test *t, const char *mistake)
{
    (void)t, (void)mistake;
    return 0;
}
#endif

static void add_block(struct stepping_test *t, enum stepping_kind kind, bool random)
{
    uint64_t n_pages = random                     ? 4096
                       : kind == STEPPING_HUGETLB ? 1024 + 3
                       : kind == STEPPING_ANON    ? 8192 + 5 /* more than a piece */
                                                  : 4096 + 5;
    stepping_test_add(t, kind, n_pages)->random = random;
}

int main(void)
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    board = t.board;
    add_block(&t, STEPPING_ANON, false);
    add_block(&t, STEPPING_ANON, true);
    add_block(&t, STEPPING_ANON_HUGE, true);
    add_block(&t, STEPPING_MEMFD, false);
    add_block(&t, STEPPING_MEMFD, true);
    add_block(&t, STEPPING_PRIVATE_FILE, true);
    add_block(&t, STEPPING_HUGETLB, false);
    if (!stepping_test_start(&t))
        return 1;
    int failed = right_whatever_it_does(&t) || calls_are_short(&t) ||
                 shows(&t, "dirty-before-unprotect") || shows(&t, "discard-ignored");
    failed |= stepping_test_found_wrong(&t);
    stepping_test_end(&t);
    return failed;
}
