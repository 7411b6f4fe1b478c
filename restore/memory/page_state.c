#include "restore/memory/page_state.h"

#include <assert.h>

#define STATE_MASK 0x07u
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

enum cluster_state page_state_get(const struct page_state *s, uint64_t cluster)
{
    return (enum cluster_state)(load(s, cluster) & STATE_MASK);
}

/* Content is complete before its state says so (release), for a successor too. */
static bool swap(struct page_state *s, uint64_t cluster, unsigned *from, unsigned to)
{
    uint8_t expected = (uint8_t)*from;
    bool done = atomic_compare_exchange_weak_explicit(&s->bytes[cluster], &expected, (uint8_t)to,
                                                      memory_order_acq_rel, memory_order_relaxed);
    *from = expected;
    return done;
}

void page_state_set(struct page_state *s, uint64_t cluster, enum cluster_state state)
{
    unsigned now = load(s, cluster);
    while (!swap(s, cluster, &now, (now & ~STATE_MASK) | (unsigned)state))
        ;
}

bool page_state_damage(struct page_state *s, uint64_t cluster)
{
    unsigned now = load(s, cluster);
    while ((now & STATE_MASK) != CLUSTER_FILLING)
        if (swap(s, cluster, &now, (now & ~STATE_MASK) | CLUSTER_DAMAGED))
            return true;
    return false;
}

bool page_state_claim(struct page_state *s, uint64_t cluster)
{
    unsigned now = load(s, cluster);
    while (now == CLUSTER_PENDING)
        if (swap(s, cluster, &now, CLUSTER_FILLING))
            return true;
    return false;
}

bool page_state_claim_for_server(struct page_state *s, uint64_t cluster)
{
    unsigned now = load(s, cluster);
    while ((now & STATE_MASK) == CLUSTER_PENDING)
        if (swap(s, cluster, &now, (now & ~STATE_MASK) | CLUSTER_WRITING))
            return true;
    return (now & STATE_MASK) != CLUSTER_FILLING;
}

bool page_state_unclaim(struct page_state *s, uint64_t cluster, unsigned discarded)
{
    unsigned marks = discarded << DISCARD_SHIFT, now = marks | CLUSTER_FILLING;
    while (now == (marks | CLUSTER_FILLING))
        if (swap(s, cluster, &now, marks | CLUSTER_PENDING))
            return true;
    return false;
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
        assert(cluster < s->n_clusters);
        atomic_fetch_or_explicit(&s->bytes[cluster], (uint8_t)(mask << DISCARD_SHIFT),
                                 memory_order_relaxed);
        first += n;
        n_pages -= n;
    }
}
