/* The life of a cluster, and where clusters are. */
#include <criterion/criterion.h>
#include <string.h>

#include "snapshot/memory/cluster_map.h"

static struct region regions[] = {
    {.name = "high", .hva = 0x40000000, .bytes = 0x100000, .page_bytes = 4096},
    {.name = "odd", .hva = 0x10000000, .bytes = 0x5000, .page_bytes = 4096},
    {.name = "huge", .hva = 0x80000000, .bytes = 0x400000, .page_bytes = 0x200000},
};

static struct cluster_map map;
static struct shard shards[3];

static void setup(void)
{
    cr_assert_eq(cluster_map_init(&map, regions, 3, shards, 1), 0);
}

static void teardown(void)
{
    cluster_map_free(&map);
}

TestSuite(cluster_map, .init = setup, .fini = teardown);

Test(cluster_map, numbers_follow_the_order_of_the_regions)
{
    cr_assert_eq(map.ranges[0].first, 0);
    cr_assert_eq(map.ranges[1].first, 64);
    cr_assert_eq(map.ranges[1].n_clusters, 2);
    cr_assert_eq(cluster_bytes(&map.ranges[1], 65), 4096);
    cr_assert_eq(map.ranges[2].first, 66);
    cr_assert_eq(map.ranges[2].unit_clusters, 128);
    cr_assert_eq(map.n_clusters, 66 + 256);
}

Test(cluster_map, finds_by_address_and_nothing_outside)
{
    cr_assert_eq(cluster_map_find(&map, 0x40000000)->first, 0);
    cr_assert_eq(cluster_map_find(&map, 0x400fffff)->first, 0);
    cr_assert_null(cluster_map_find(&map, 0x40100000));
    cr_assert_eq(cluster_map_find(&map, 0x10004fff)->first, 64);
    cr_assert_null(cluster_map_find(&map, 0x10005000));
    cr_assert_null(cluster_map_find(&map, 0));
    cr_assert_eq(cluster_map_find(&map, 0x80200000)->first, 66);
}

Test(cluster_map, only_one_of_fault_and_sweep_saves)
{
    cr_assert(cluster_claim(&map, 3));
    cr_assert_not(cluster_save(&map, 3));
    cr_assert_not(cluster_claim(&map, 3));
    cr_assert_not(cluster_is_saved(&map, 3));
    cluster_claim_done(&map, 3);
    cr_assert(cluster_is_saved(&map, 3));

    cr_assert(cluster_save(&map, 4));
    cr_assert_not(cluster_claim(&map, 4));
    cr_assert(cluster_is_saved(&map, 4));
    cr_assert_eq(atomic_load(&map.n_saved), 2);
}

Test(cluster_map, before_the_instant_a_write_makes_dirty_and_a_discard_leaves)
{
    cluster_dirty(&map, 7);
    cr_assert_eq(cluster_state(&map, 7), CLUSTER_UNTRACKED, "what is not tracked stays so");
    cluster_leave(&map, 5);
    cluster_map_track_all(&map, 4, 10);
    cr_assert_eq(cluster_state(&map, 5), CLUSTER_LEFT, "discarded before it was to be tracked");
    cluster_dirty(&map, 5);
    cr_assert_not(cluster_track(&map, 5));
    cr_assert_not(cluster_save_early(&map, 5));
    cr_assert(cluster_track(&map, 7));
    cr_assert_not(cluster_track(&map, 7));
    cr_assert_not(cluster_track(&map, 3));
    cr_assert(cluster_save_early(&map, 7));
    cr_assert_not(cluster_save_early(&map, 8), "nothing is saved early that is not protected");
    cr_assert_eq(atomic_load(&map.n_saved), 1);
    cluster_dirty(&map, 7);
    cr_assert_eq(cluster_state(&map, 7), CLUSTER_DIRTY);
    cr_assert_eq(atomic_load(&map.n_saved), 0);
    cr_assert(cluster_track(&map, 7) && cluster_save_early(&map, 7));
    cluster_leave(&map, 7);
    cr_assert_eq(cluster_state(&map, 7), CLUSTER_LEFT);
    cr_assert_eq(atomic_load(&map.n_saved), 0);
}

Test(cluster_map, at_the_instant_whatever_is_loose_counts_as_frozen)
{
    cluster_map_track_all(&map, 20, 22);
    cr_assert(cluster_claim(&map, 20));
    cr_assert(cluster_save(&map, 21));
    cr_assert(cluster_claim(&map, 22));
    cr_assert_not(cluster_is_open(&map, 20));
    cr_assert(cluster_is_open(&map, 23));
}

Test(cluster_map, finds_runs_wherever_they_begin_and_end)
{
    for (uint64_t i = 0; i < map.n_clusters; i++)
        cr_assert(cluster_claim(&map, i));
    for (uint64_t from = 0; from < 40; from++)
        for (uint64_t to = from + 1; to < 60; to++) {
            memset((void *)(map.states + from), CLUSTER_UNTRACKED, to - from);
            cr_assert_eq(cluster_map_next_loose(&map, 0, 64, true), from);
            cr_assert_eq(cluster_map_next_loose(&map, from, 64, false), to);
            cr_assert_eq(cluster_map_next_loose(&map, to, 64, true), 64);
            cr_assert_eq(cluster_map_next_dirty(&map, 0, 64), 64);
            cluster_map_track_all(&map, to - 1, to);
            cr_assert_eq(cluster_map_next_dirty(&map, 0, 64), to - 1);
            memset((void *)(map.states + from), CLUSTER_CLAIMED, to - from);
        }
}

Test(cluster_map, widens_to_whole_huge_pages)
{
    uint64_t from = 66 + 130, to = from + 1;
    cluster_range_whole_units(&map.ranges[2], &from, &to);
    cr_assert_eq(from, 66 + 128);
    cr_assert_eq(to, 66 + 256);
    from = 65, to = 66;
    cluster_range_whole_units(&map.ranges[1], &from, &to);
    cr_assert_eq(from, 65);
    cr_assert_eq(to, 66);
}

/* ---- shards ---- */

Test(cluster_map, a_large_region_has_a_part_in_each_shard_and_a_small_one_in_the_first)
{
    struct region two[] = {
        {.hva = 0x40000000,
         .bytes = 0xa03000,
         .max_bytes = 0x1000000,
         .page_bytes = 4096,
         .fd_offset = 0x1000},
        {.hva = 0x10000000, .bytes = 0x5000, .max_bytes = 0x5000, .page_bytes = 4096},
    };
    struct cluster_map m;
    cr_assert_eq(cluster_map_init(&m, two, 2, shards, 3), 0);
    cr_assert_eq(m.n_ranges, 4);
    uint64_t next = 0;
    for (unsigned i = 0; i < 3; i++) {
        const struct cluster_range *r = &m.ranges[i];
        cr_assert_eq(r->shard, &shards[i]);
        cr_assert_eq(r->first, next);
        cr_assert_eq(r->region->hva, 0x40000000 + 0x400000 * i);
        cr_assert_eq(r->region->fd_offset, 0x1000 + 0x400000 * i);
        cr_assert_eq(r->region->max_bytes, 0x1000000 - 0x400000 * i);
        cr_assert_eq(r->region->bytes, i < 2 ? 0x400000 : 0x203000);
        cr_assert_eq(cluster_map_find(&m, r->region->hva + r->region->bytes - 1), r);
        next += r->n_clusters;
    }
    cr_assert_eq(m.ranges[3].shard, &shards[0]);
    cr_assert_eq(m.ranges[3].first, 2 * 256 + 129, "as if nothing had been cut");
    cluster_map_free(&m);
}

Test(cluster_map, no_huge_page_lies_in_two_shards)
{
    struct region two[] = {
        {.hva = 0x40001000, .bytes = 0x1000000, .max_bytes = 0x1000000, .page_bytes = 4096},
        {.hva = 0x80000000, .bytes = 0x80000000, .max_bytes = 0x80000000, .page_bytes = 0x40000000},
    };
    struct cluster_map m;
    cr_assert_eq(cluster_map_init(&m, two, 2, shards, 3), 0);
    cr_assert_eq(m.n_ranges, 2);
    cr_assert_eq(m.ranges[0].region->bytes, 0x1000000, "aligned otherwise: not cut");
    cr_assert_eq(m.ranges[1].region->bytes, 0x80000000, "hugetlbfs: not cut");
    cluster_map_free(&m);
}
