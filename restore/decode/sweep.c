#include "restore/decode/sweep.h"

/* The clusters that one position covers: at least a unit. */
static uint64_t position_clusters(const struct sweep *s, const struct block *b)
{
    uint64_t unit = b->unit_bytes / IMAGE_CLUSTER_BYTES;
    return unit > s->run ? unit : s->run;
}

static uint64_t block_positions(const struct sweep *s, const struct block *b)
{
    return (b->n_clusters + position_clusters(s, b) - 1) / position_clusters(s, b);
}

void sweep_init(struct sweep *s, const struct blocks *blocks, uint64_t run)
{
    *s = (struct sweep){.blocks = blocks, .run = run};
    for (uint32_t i = 0; i < blocks->count; i++)
        s->n_positions += block_positions(s, &blocks->items[i]);
}

bool sweep_take(struct sweep *s, const struct block **block, uint64_t *first, uint64_t *n)
{
    uint64_t position = atomic_fetch_add(&s->cursor, 1);
    if (position >= s->n_positions)
        return false;
    const struct block *b = s->blocks->items;
    for (; position >= block_positions(s, b); b++)
        position -= block_positions(s, b);
    uint64_t size = position_clusters(s, b), at = position * size;
    *block = b;
    *first = b->first_cluster + at;
    *n = b->n_clusters - at < size ? b->n_clusters - at : size;
    return true;
}
