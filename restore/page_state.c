#include "restore/page_state.h"

#include <assert.h>

#define STATE_MASK 0x03u
#define DISCARD_SHIFT 4

static_assert(IMAGE_CLUSTER_PAGES == 4, "the discard marks of a cluster fill half a byte");

void page_state_map(struct page_state *s, void *bytes, uint64_t n_clusters)
{
    *s = (struct page_state){.bytes = bytes, .n_clusters = n_clusters};
}

void page_state_forgive(struct page_state *s)
{
    for (uint64_t cluster = 0; cluster < s->n_clusters; cluster++)
        if (page_state_get(s, cluster) == CLUSTER_DAMAGED)
            page_state_set(s, cluster, CLUSTER_PENDING);
}

static unsigned load(const struct page_state *s, uint64_t cluster)
{
    assert(cluster < s->n_clusters);
    return atomic_load_explicit(&s->bytes[cluster], memory_order_relaxed);
}

static void store(struct page_state *s, uint64_t cluster, unsigned value)
{
    atomic_store_explicit(&s->bytes[cluster], (uint8_t)value, memory_order_relaxed);
}

enum cluster_state page_state_get(const struct page_state *s, uint64_t cluster)
{
    return (enum cluster_state)(load(s, cluster) & STATE_MASK);
}

void page_state_set(struct page_state *s, uint64_t cluster, enum cluster_state state)
{
    store(s, cluster, (load(s, cluster) & ~STATE_MASK) | (unsigned)state);
}

unsigned page_state_discarded(const struct page_state *s, uint64_t cluster)
{
    return load(s, cluster) >> DISCARD_SHIFT;
}

void page_state_discard(struct page_state *s, uint64_t first, uint64_t n_pages)
{
    while (n_pages > 0) {
        uint64_t cluster = first / IMAGE_CLUSTER_PAGES;
        unsigned page = first % IMAGE_CLUSTER_PAGES;
        unsigned n = IMAGE_CLUSTER_PAGES - page;
        if (n > n_pages)
            n = (unsigned)n_pages;
        unsigned mask = ((1u << n) - 1) << page;
        store(s, cluster, load(s, cluster) | mask << DISCARD_SHIFT);
        first += n;
        n_pages -= n;
    }
}
