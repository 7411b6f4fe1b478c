/*
 * Poisoned pages are recorded as poisoned, their neighbours in the same cluster are saved, and
 * nothing of the poison is touched. In shared memory the file knows nothing of it: a hole there may
 * be poisoned in the process.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/image_reader.h"
#include "common/kernel.h"
#include "tests/engine/stepping_source.h"

static uint64_t poisoned_pages(const char *path)
{
    struct image *img;
    struct error e = {0};
    if (image_open(&img, path, &e))
        return 0;
    uint64_t n, pages = 0;
    const struct image_poison *list = image_poison_list(img, &n);
    for (uint64_t i = 0; i < n; i++)
        pages += (uint64_t)__builtin_popcountll(list[i].pages);
    image_close(img);
    return pages;
}

static int poison_in(enum stepping_kind kind)
{
    struct error e = {0};
    struct stepping_board *board = stepping_board_new();
    board->n_blocks = 1;
    atomic_store(&board->poison, true);
    board->blocks[0] = (struct stepping_block){.kind = kind, .n_pages = 8192};
    struct stepping_source source;
    if (!stepping_source_open(&source, board) || !atomic_load(&board->poison))
        return 1;
    char image[] = "/tmp/vmsnap-engine-XXXXXX";
    int fd = mkstemp(image);
    struct snapshot_options options = stepping_options(image);
    json_t *summary = NULL;
    int failed = snapshot_run_from(&source.base, &options, &summary, &e) != 0;
    if (failed)
        printf("%s\n", e.message);
    uint64_t n = poisoned_pages(image);
    json_int_t told = json_integer_value(json_object_get(summary, "pages_poisoned"));
    printf("%llu poisoned pages in the image, %lld told, 3 in the process\n", (unsigned long long)n,
           (long long)told);
    failed |= n != 3 || told != 3 || stepping_judge(image) != 0;
    json_decref(summary);
    stepping_source_close(&source);
    unlink(image);
    close(fd);
    return failed;
}

int main(void)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e) || !kernel_probe()->poison) {
        printf("skipped: needs root, userfaultfd and UFFDIO_POISON (6.6)\n");
        return 77;
    }
    return poison_in(STEPPING_ANON) || poison_in(STEPPING_MEMFD);
}
