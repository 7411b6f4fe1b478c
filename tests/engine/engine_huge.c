/*
 * Huge pages of the guest, written all over while a snapshot is taken: they are split meanwhile,
 * and huge again after it, without a page more than before. And without the work that does that the
 * test sees it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/kernel.h"
#include "common/target/collapse.h"
#include "common/testhook.h"
#include "tests/engine/stepping_source.h"

#define PAGES 16384u /* 32 huge pages; the last eighth is never written */
#define ENOUGH (8 * COLLAPSE_BYTES)
#define MANY_WRITES 5000u
#define ROUNDS 2

/* On huge pages while the snapshot ran, as its worker saw it: shared memory. */
static uint64_t *meanwhile;

/* On huge pages, in all mappings that a block lies in. */
static uint64_t huge_bytes(const struct target *t, const struct region *r)
{
    struct mapping_list maps;
    struct error e = {0};
    uint64_t bytes = 0;
    if (target_mappings(t, &maps, &e))
        return 0;
    for (size_t i = 0; i < maps.count; i++)
        if (maps.items[i].start < r->hva + r->bytes && maps.items[i].end > r->hva)
            bytes += maps.items[i].anon_huge_bytes;
    mapping_list_free(&maps);
    return bytes;
}

/* Lets the writer meet protected memory, and counts. */
static void look_meanwhile(struct stepping_source *s)
{
    uint64_t until = atomic_load(&s->board->written) + MANY_WRITES;
    for (int tries = 0; atomic_load(&s->board->written) < until && tries < 1000; tries++)
        usleep(1000);
    *meanwhile = huge_bytes(&s->base.target, &s->regions[0]);
}

static json_int_t number(const json_t *summary, const char *key)
{
    return json_integer_value(json_object_get(summary, key));
}

/* A snapshot. 1: huge pages are as they were; 0: they are not; -1: anything else is wrong. */
static int huge_again(struct stepping_source *s, const char *image)
{
    struct error e = {0};
    struct snapshot_options options = stepping_options(image);
    json_t *summary = NULL;
    uint64_t before = huge_bytes(&s->base.target, &s->regions[0]);
    if (snapshot_run_from(&s->base, &options, &summary, &e)) {
        printf("%s\n", e.message);
        return -1;
    }
    uint64_t after = huge_bytes(&s->base.target, &s->regions[0]);
    json_int_t noted = number(summary, "huge_bytes_before");
    json_int_t told = number(summary, "huge_bytes_after");
    long wrong = stepping_judge(image);
    json_decref(summary);
    printf("huge pages: %llu bytes before, %llu meanwhile, %llu after; told: %lld, %lld; %ld wrong "
           "pages\n",
           (unsigned long long)before, (unsigned long long)*meanwhile, (unsigned long long)after,
           (long long)noted, (long long)told, wrong);
    if (wrong || before < ENOUGH || (uint64_t)noted < before ||
        *meanwhile > before - COLLAPSE_BYTES)
        return -1;
    if ((told == noted) != (after >= (uint64_t)noted))
        return -1; /* it does not tell the truth */
    return told == noted;
}

int main(void)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e) || !collapse_is_possible()) {
        printf("skipped: needs root, userfaultfd and MADV_COLLAPSE (%s)\n", e.message);
        return 77;
    }
    struct stepping_board *board = stepping_board_new();
    board->blocks[board->n_blocks++] =
        (struct stepping_block){.kind = STEPPING_ANON_HUGE, .n_pages = PAGES, .random = true};
    meanwhile =
        mmap(NULL, sizeof(*meanwhile), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (meanwhile == MAP_FAILED)
        return 1;
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    source.resumed = look_meanwhile;
    char image[] = "/tmp/vmsnap-engine-XXXXXX";
    int fd = mkstemp(image), failed = 0;
    if (huge_bytes(&source.base.target, &source.regions[0]) < ENOUGH) {
        printf("skipped: no transparent huge pages to be had here, not even with MADV_HUGEPAGE\n");
        failed = 77;
    }
    for (int round = 0; round < ROUNDS && !failed; round++)
        failed = huge_again(&source, image) != 1;
#ifdef VMSNAP_TEST_HOOKS
    if (!failed) {
        setenv("VMSNAP_BREAK", "huge-left-split", 1);
        failed = huge_again(&source, image) != 0;
        printf("left split: %s\n", failed ? "does not show" : "shows");
    }
#endif
    stepping_source_close(&source);
    unlink(image);
    close(fd);
    return failed;
}
