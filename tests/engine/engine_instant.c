/*
 * Snapshots of a process that writes all its memory all the time, in every kind of memory, holes
 * included, with the smallest buffers there are: every page of every image is what it was at the
 * instant, and the process finds its own memory right.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/kernel.h"
#include "common/testhook.h"
#include "tests/engine/stepping_source.h"

#define ROUNDS 6

int main(void)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return 77;
    }
    struct stepping_board *board = stepping_board_new();
    static const enum stepping_kind kinds[] = {STEPPING_ANON, STEPPING_ANON_HUGE, STEPPING_MEMFD,
                                               STEPPING_PRIVATE_FILE, STEPPING_HUGETLB};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        board->blocks[board->n_blocks++] = (struct stepping_block){
            .kind = kinds[i], .n_pages = kinds[i] == STEPPING_HUGETLB ? 1024 + 3 : 4096 + i * 3};
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    printf("%u kinds of memory%s\n", source.base.n_regions,
           source.base.n_regions < board->n_blocks ? " (no huge pages in hugetlbfs here)" : "");
    char image[] = "/tmp/vmsnap-engine-XXXXXX";
    int fd = mkstemp(image), failed = 0;
    for (int round = 0; round < ROUNDS && !failed; round++) {
        struct snapshot_options options = stepping_options(image);
        options.live = round % 2 ? LIVE_ALWAYS : LIVE_AUTO;
        json_t *summary = NULL;
        if (snapshot_run_from(&source.base, &options, &summary, &e)) {
            printf("round %d: %s\n", round, e.message);
            failed = 1;
            break;
        }
        long wrong = stepping_judge(image);
        json_int_t faults = json_integer_value(json_object_get(summary, "write_faults"));
        printf("round %d: %ld wrong pages, %lld faults, throttled %lld us, %lld live passes, %lld "
               "live faults, %lld armed in the pause\n",
               round, wrong, (long long)faults,
               (long long)json_integer_value(json_object_get(summary, "throttled_ns")) / 1000,
               (long long)json_integer_value(json_object_get(summary, "live_passes")),
               (long long)json_integer_value(json_object_get(summary, "live_faults")),
               (long long)json_integer_value(json_object_get(summary, "armed_in_pause")));
        failed = wrong != 0 || faults == 0;
        json_decref(summary);
    }
    uint64_t before = atomic_load(&board->written);
    usleep(20000);
    if (atomic_load(&board->written) == before || atomic_load(&board->wrong)) {
        printf("the process stands, or found %llu wrong pages\n",
               (unsigned long long)atomic_load(&board->wrong));
        failed = 1;
    }
    stepping_source_close(&source);
    unlink(image);
    close(fd);
    return failed;
}
