#include "tests/serve/serve_kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/image/writer.h"
#include "common/kernel.h"
#include "restore/memory/window.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_process.h"

/* Every fifth cluster and every fourth page are zeros; the rest is random, by position. */
void kit_page(uint32_t block, uint64_t page, void *out)
{
    memset(out, 0, IMAGE_PAGE_BYTES);
    if (page / IMAGE_CLUSTER_PAGES % 5 == 0 || page % 4 == 2)
        return;
    uint64_t x = ((uint64_t)block << 40 | page) * 0x9e3779b97f4a7c15ull + 1;
    uint64_t *words = out;
    for (size_t i = 0; i < IMAGE_PAGE_BYTES / 8; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        words[i] = i % 4 ? x : x | 1; /* never a zero page; and a quarter compresses */
    }
}

/* ---- the image ---- */

static int add_cluster(struct image_writer *w, struct codec *codec, const struct kit_board *board,
                       uint32_t block, uint64_t offset)
{
    _Alignas(8) unsigned char record[sizeof(struct image_record) + IMAGE_FRAME_MAX];
    unsigned char plain[IMAGE_CLUSTER_BYTES];
    uint64_t left = board->blocks[block].n_pages * IMAGE_PAGE_BYTES - offset;
    unsigned n =
        left < IMAGE_CLUSTER_BYTES ? (unsigned)(left / IMAGE_PAGE_BYTES) : IMAGE_CLUSTER_PAGES;
    unsigned stored = 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned char *page = plain + (size_t)i * IMAGE_PAGE_BYTES;
        uint64_t number = offset / IMAGE_PAGE_BYTES + i;
        kit_page(block, number, page);
        if (board->poisoned && block == 0 && number == KIT_POISONED_PAGE)
            memset(page, 0, IMAGE_PAGE_BYTES);
        stored += !codec_is_zero(page, IMAGE_PAGE_BYTES);
    }
    uint64_t cluster = image_writer_cluster(w, block, offset);
    if (stored == 0) {
        image_writer_add_zero(w, cluster);
        return 0;
    }
    int len = codec_encode(codec, plain, (size_t)n * IMAGE_PAGE_BYTES,
                           record + sizeof(struct image_record));
    return len < 0 ? len : image_writer_add(w, cluster, record, (uint32_t)len, stored);
}

static int finish_image(struct image_writer *w, const struct kit_board *board, bool hot,
                        struct error *e)
{
    struct image_hot list[512];
    uint64_t n_hot = 0;
    for (uint64_t c = 1; hot && n_hot < 512 && c < image_writer_n_clusters(w); c += 3)
        list[n_hot++] = (struct image_hot){.cluster = c, .written = 3};
    struct image_poison poison = {.cluster = KIT_POISONED_PAGE / IMAGE_CLUSTER_PAGES,
                                  .pages = 1u << KIT_POISONED_PAGE % IMAGE_CLUSTER_PAGES};
    struct image_finish f = {.hot = list,
                             .n_hot = n_hot,
                             .poison = &poison,
                             .n_poison = board->poisoned,
                             .device_state = "",
                             .description = "{}",
                             .instant_ns = clock_realtime_ns()};
    return image_writer_finish(w, &f, e);
}

static int write_image(struct sink *sink, const struct region *regions,
                       const struct kit_board *board, bool hot, struct error *e)
{
    struct image_writer *w;
    int rc = image_writer_open(&w, sink, regions, board->n_blocks, e);
    if (rc)
        return rc;
    struct codec *codec = codec_new(1);
    for (uint32_t i = 0; i < board->n_blocks && rc == 0; i++)
        for (uint64_t at = 0; at < regions[i].bytes && rc == 0; at += IMAGE_CLUSTER_BYTES)
            rc = add_cluster(w, codec, board, i, at);
    codec_free(codec);
    if (rc == 0)
        rc = finish_image(w, board, hot, e);
    image_writer_close(w);
    return rc ? rc : sink_commit(sink, e);
}

static int make_image(struct kit *k, const struct region *regions, bool hot, struct error *e)
{
    snprintf(k->image_path, sizeof(k->image_path), "/tmp/vmsnap-serve-%d", (int)getpid());
    ktest_scratch(k->image_path);
    struct sink *sink;
    const struct sink_options options = {.overwrite = true, .n_buffers = SINK_MIN_BUFFERS};
    int rc = sink_open_file(&sink, k->image_path, &options, e);
    if (rc)
        return rc;
    rc = write_image(sink, regions, k->board, hot, e);
    int closed = sink_close(sink);
    return rc ? rc : closed ? closed : image_open(&k->img, k->image_path, e);
}

/* ---- the process ---- */

static uint64_t page_bytes(enum kit_memory kind)
{
    return kind == KIT_HUGETLB ? 2u << 20 : IMAGE_PAGE_BYTES;
}

/* Leaves out what this host can't give (no huge pages in hugetlbfs). */
static void drop_missing_blocks(struct kit_board *board)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < board->n_blocks; i++)
        n += atomic_load(&board->blocks[i].hva) != 0;
    if (n == board->n_blocks)
        return;
    printf("    no %s here\n", n == board->n_blocks - 1 ? "huge pages" : "such memory");
    board->n_blocks = n; /* hugetlb is always the last */
}

static int find_regions(struct kit *k, struct region *regions, struct error *e)
{
    struct mapping_list maps;
    int rc = target_mappings(&k->target, &maps, e);
    for (uint32_t i = 0; i < k->board->n_blocks && rc == 0; i++) {
        const struct kit_block *b = &k->board->blocks[i];
        regions[i] = (struct region){.hva = atomic_load(&b->hva),
                                     .bytes = b->n_pages * IMAGE_PAGE_BYTES,
                                     .max_bytes = b->n_pages * IMAGE_PAGE_BYTES,
                                     .page_bytes = page_bytes(b->kind),
                                     .fd = -1};
        snprintf(regions[i].name, sizeof(regions[i].name), "block%u", i);
        rc = region_classify(&regions[i], &k->target, &maps, e);
    }
    mapping_list_free(&maps);
    return rc;
}

static bool complain(const struct error *e)
{
    printf("    %s\n", e->message);
    return false;
}

bool kit_open(struct kit *k, struct kit_board *board, bool hot)
{
    struct error e = {0};
    struct region regions[KIT_BLOCKS_MAX] = {0};
    *k = (struct kit){.board = board};
    k->pid = ktest_spawn(serve_process, board);
    if (!KTEST_WAIT(atomic_load(&board->ready)))
        return false;
    drop_missing_blocks(board);
    if (target_open(&k->target, k->pid, &e) || find_regions(k, regions, &e) ||
        make_image(k, regions, hot, &e) ||
        blocks_match(&k->blocks, k->img, regions, board->n_blocks, &e))
        return complain(&e);
    return true;
}

bool kit_serve(struct kit *k, bool prefetch_hot, bool fill)
{
    struct error e = {0};
    window_open_all(&k->blocks, &k->target);
    if (record_create(&k->record, &k->target, k->img, k->image_path, &k->blocks, 5000, &e))
        return complain(&e);
    record_states(&k->record, image_get_trailer(k->img)->n_clusters, &k->state);
    k->attach = (struct attach){.target = &k->target,
                                .img = k->img,
                                .blocks = &k->blocks,
                                .state = &k->state,
                                .timeout_ms = 5000};
    if (attach_memory(&k->attach, &e))
        return complain(&e);
    record_ready(&k->record, k->attach.target_fd);
    if (k->left_state != CLUSTER_PENDING)
        page_state_set(&k->state, k->left_cluster, k->left_state);
    if (prefetch_hot && !k->prefetch.img && prefetch_plan(&k->prefetch, k->img, NULL, true))
        return false;
    if (k->goes_early)
        kit_go(k);
    struct server_config config = {.uffd = k->attach.uffd,
                                   .target = &k->target,
                                   .img = k->img,
                                   .blocks = &k->blocks,
                                   .state = &k->state,
                                   .n_threads = 2,
                                   .prefetch = &k->prefetch,
                                   .learn = k->learn.img ? &k->learn : NULL,
                                   .fill = fill,
                                   .poison_damage = k->poison_damage,
                                   .crowd = k->crowd,
                                   .bytes_per_s = k->bytes_per_s,
                                   .messages = record_messages(&k->record)};
    if (server_start(&k->server, &config, &e) || server_begin_prefetch(k->server, &e))
        return complain(&e);
    if (!k->fills_late)
        server_begin_fill(k->server);
    return true;
}

void kit_go(struct kit *k)
{
    atomic_store(&k->board->go, true);
}

bool kit_wait_finished(struct kit *k, int timeout_ms)
{
    for (int i = 0; i < timeout_ms * 2; i++) {
        if (atomic_load(&k->board->finished) == k->board->n_threads)
            return true;
        ktest_nap();
    }
    return false;
}

bool kit_run(struct kit *k)
{
    kit_go(k);
    return kit_wait_finished(k, 30000);
}

bool kit_wait_stage(struct kit *k, enum server_stage stage)
{
    return KTEST_WAIT(server_stage(k->server) == stage);
}

void kit_close(struct kit *k)
{
    ktest_end(k->pid);
    server_stop(k->server);
    window_close_all(&k->blocks);
    learn_free(&k->learn);
    prefetch_free(&k->prefetch);
    blocks_free(&k->blocks);
    if (k->record.header)
        record_close(&k->record);
    if (k->img)
        image_close(k->img);
    target_close(&k->target);
    unlink(k->image_path);
}

int kit_main(int argc, char **argv, const struct ktest_case *cases, size_t n)
{
    struct error e = {0};
    if (geteuid() != 0 || kernel_require(&e)) {
        printf("skipped: needs root and userfaultfd (%s)\n", e.message);
        return KTEST_SKIP;
    }
    return ktest_main(argc, argv, cases, n);
}
