#include "tests/engine/stepping_test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/kernel.h"

#define SKIPPED 77

int stepping_test_begin(struct stepping_test *t)
{
    memset(t, 0, sizeof(*t));
    if (geteuid() != 0 || kernel_require(&t->error)) {
        printf("skipped: needs root and userfaultfd (%s)\n", t->error.message);
        return SKIPPED;
    }
    /* On disk, where /tmp may be memory. */
    snprintf(t->image, sizeof(t->image), "/var/tmp/vmsnap-engine-%d", (int)getpid());
    unlink(t->image);
    t->board = stepping_board_new();
    return t->board ? 0 : 1;
}

struct stepping_block *stepping_test_add(struct stepping_test *t, enum stepping_kind kind,
                                         uint64_t n_pages)
{
    struct stepping_block *b = &t->board->blocks[t->board->n_blocks++];
    *b = (struct stepping_block){.kind = kind, .n_pages = n_pages};
    return b;
}

bool stepping_test_start(struct stepping_test *t)
{
    return stepping_source_open(&t->source, t->board);
}

int stepping_test_snapshot(struct stepping_test *t, const struct snapshot_options *options,
                           json_t **summary)
{
    *summary = NULL;
    t->error = (struct error){0};
    int ret = snapshot_run_from(&t->source.base, options, summary, &t->error);
    if (ret)
        printf("%d: exit code %d: %s\n", ret, t->error.exit_code, t->error.message);
    return ret;
}

bool stepping_test_goes_on(const struct stepping_test *t)
{
    uint64_t before = atomic_load(&t->board->written);
    usleep(50000);
    if (atomic_load(&t->board->written) != before)
        return true;
    printf("the process stands\n");
    return false;
}

bool stepping_test_found_wrong(const struct stepping_test *t)
{
    unsigned long long wrong = atomic_load(&t->board->wrong);
    if (wrong)
        printf("the process found %llu wrong pages\n", wrong);
    return wrong != 0;
}

void stepping_test_end(struct stepping_test *t)
{
    stepping_source_close(&t->source);
    unlink(t->image);
}

json_int_t stepping_number(const json_t *summary, const char *key)
{
    return json_integer_value(json_object_get(summary, key));
}
