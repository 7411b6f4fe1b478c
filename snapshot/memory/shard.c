#include "snapshot/memory/shard.h"

#include <unistd.h>

#include "common/inject/inject.h"
#include "snapshot/memory/arm.h"
#include "snapshot/memory/cluster_map.h"

int shards_open(struct shard *shards, unsigned n, const struct target *target, int timeout_ms,
                struct error *e)
{
    int ret = 0;
    for (unsigned i = 0; i < n; i++)
        shards[i].uffd = -1;
    for (unsigned i = 0; !ret && i < n; i++)
        ret = inject_userfaultfd(target, &shards[i].uffd, NULL, timeout_ms, e);
    if (ret)
        shards_close(shards, n);
    return ret;
}

int shards_register(struct shard *shards, unsigned n, const struct cluster_map *map,
                    struct error *e)
{
    int ret = 0;
    for (unsigned i = 0; !ret && i < n; i++)
        ret = arm_enable(shards[i].uffd, e);
    for (uint32_t i = 0; !ret && i < map->n_ranges; i++)
        ret = arm_register(map->ranges[i].shard->uffd, map->ranges[i].region, e);
    if (ret)
        shards_close(shards, n);
    return ret;
}

void shards_close(struct shard *shards, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (shards[i].uffd >= 0)
            close(shards[i].uffd);
        shards[i].uffd = -1;
    }
}
