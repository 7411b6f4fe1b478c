/*
 * Poisoned pages are recorded as poisoned, their neighbours in the same cluster are saved, and
 * nothing of the poison is touched. In shared memory the file knows nothing of it: a hole there may
 * be poisoned in the process.
 */
#include <stdio.h>

#include "common/image/reader.h"
#include "common/kernel.h"
#include "tests/engine/stepping_test.h"

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
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    if (!kernel_probe()->poison) {
        printf("skipped: needs UFFDIO_POISON (6.6)\n");
        return 77;
    }
    atomic_store(&t.board->poison, true);
    stepping_test_add(&t, kind, 8192);
    if (!stepping_test_start(&t) || !atomic_load(&t.board->poison))
        return 1;
    struct snapshot_options options = stepping_options(t.image);
    json_t *summary;
    int failed = stepping_test_snapshot(&t, &options, &summary) != 0;
    uint64_t n = poisoned_pages(t.image);
    json_int_t told = stepping_number(summary, "pages_poisoned");
    printf("%llu poisoned pages in the image, %lld told, 3 in the process\n", (unsigned long long)n,
           (long long)told);
    failed |= n != 3 || told != 3 || stepping_judge(t.image) != 0;
    json_decref(summary);
    stepping_test_end(&t);
    return failed;
}

int main(void)
{
    int result = poison_in(STEPPING_ANON);
    return result ? result : poison_in(STEPPING_MEMFD);
}
