/*
 * One of the blocks is under somebody else's userfaultfd: the snapshot is refused, and that one's
 * registration stays. (Before Linux 6.17 UNREGISTER takes away whatever registration it meets, also
 * one of another userfaultfd: a VM that is being restored would then read zeros.)
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/inject.h"
#include "common/kernel.h"
#include "common/uffd.h"
#include "tests/engine/stepping_source.h"

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

static int refused(struct stepping_source *s)
{
    struct error e = {0};
    char image[] = "/tmp/vmsnap-engine-busy";
    struct snapshot_options options = stepping_options(image);
    json_t *summary = NULL;
    int ret = snapshot_run_from(&s->base, &options, &summary, &e);
    printf("%d: exit code %d: %s\n", ret, e.exit_code, e.message);
    int first = is_registered(s, 0), second = is_registered(s, 1);
    printf("registered: the first block %d, the other one's %d\n", first, second);
    return ret == 0 || e.exit_code != VMSNAP_EXIT_BUSY || first != 0 || second != 1 ||
           access(image, F_OK) == 0;
}

int main(void)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return 77;
    }
    struct stepping_board *board = stepping_board_new();
    for (board->n_blocks = 0; board->n_blocks < 2; board->n_blocks++)
        board->blocks[board->n_blocks] =
            (struct stepping_block){.kind = STEPPING_ANON, .n_pages = 1024};
    struct stepping_source source;
    if (!stepping_source_open(&source, board))
        return 1;
    int other = -1;
    const struct region *second = &source.regions[1];
    if (inject_userfaultfd(&source.base.target, &other, NULL, 10000, &e) ||
        uffd_enable(other, UFFD_FEATURE_PAGEFAULT_FLAG_WP) ||
        uffd_register(other, second->hva, second->bytes, UFFDIO_REGISTER_MODE_WP, NULL)) {
        printf("cannot make the other userfaultfd: %s\n", e.message);
        return 1;
    }
    int failed = refused(&source);
    close(other);
    stepping_source_close(&source);
    return failed;
}
