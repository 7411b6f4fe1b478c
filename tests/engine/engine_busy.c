/*
 * One of the blocks is under somebody else's userfaultfd: the snapshot is refused, and that one's
 * registration stays. (Before Linux 6.17 UNREGISTER takes away whatever registration it meets, also
 * one of another userfaultfd: a VM that is being restored would then read zeros.)
 */
#include <stdio.h>
#include <unistd.h>

#include "common/inject/inject.h"
#include "common/uffd.h"
#include "tests/engine/stepping_test.h"

/* Whether the block is registered for write protection; -1: can't tell. */
static int is_registered(const struct stepping_source *s, unsigned block)
{
    struct mapping_list maps;
    if (target_mappings(&s->base.target, &maps, NULL))
        return -1;
    const struct mapping *m = mapping_find(&maps, s->regions[block].hva);
    int is = m ? m->uffd_wp : -1;
    mapping_list_free(&maps);
    return is;
}

static int refused(struct stepping_test *t)
{
    struct snapshot_options options = stepping_options(t->image);
    json_t *summary;
    int ret = stepping_test_snapshot(t, &options, &summary);
    int first = is_registered(&t->source, 0), second = is_registered(&t->source, 1);
    printf("registered: the first block %d, the other one's %d\n", first, second);
    json_decref(summary);
    return ret == 0 || t->error.exit_code != VMSNAP_EXIT_BUSY || first != 0 || second != 1 ||
           access(t->image, F_OK) == 0;
}

int main(void)
{
    struct stepping_test t;
    int unable = stepping_test_begin(&t);
    if (unable)
        return unable;
    stepping_test_add(&t, STEPPING_ANON, 1024);
    stepping_test_add(&t, STEPPING_ANON, 1024);
    if (!stepping_test_start(&t))
        return 1;
    int other = -1;
    struct error e = {0};
    const struct region *second = &t.source.regions[1];
    if (inject_userfaultfd(&t.source.base.target, &other, NULL, 10000, &e) ||
        uffd_enable(other, UFFD_FEATURE_PAGEFAULT_FLAG_WP) ||
        uffd_register(other, second->hva, second->bytes, UFFDIO_REGISTER_MODE_WP, NULL)) {
        printf("cannot make the other userfaultfd: %s\n", e.message);
        return 1;
    }
    int failed = refused(&t);
    close(other);
    stepping_test_end(&t);
    return failed;
}
