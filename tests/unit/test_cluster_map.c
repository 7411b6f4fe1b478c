/* The life of a cluster, and where clusters are. */
#include <criterion/criterion.h>

#include "snapshot/cluster_map.h"

static struct region regions[] = {
    {.name = "high", .hva = 0x40000000, .bytes = 0x100000, .page_bytes = 4096},
    {.name = "odd", .hva = 0x10000000, .bytes = 0x5000, .page_bytes = 4096},
    {.name = "huge", .hva = 0x80000000, .bytes = 0x400000, .page_bytes = 0x200000},
};

static struct cluster_map map;

static void setup(void)
{
    cr_assert_eq(cluster_map_init(&map, regions, 3), 0);
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
