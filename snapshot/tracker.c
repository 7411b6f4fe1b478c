#include "snapshot/tracker.h"

uint32_t tracker_extent(struct tracker *t, uint64_t cluster)
{
    unsigned i = 0;
    while (i < TRACKER_STREAMS && (t->streams[i].clusters == 0 || t->streams[i].next != cluster))
        i++;
    uint32_t clusters = 1;
    if (i < TRACKER_STREAMS) {
        clusters = t->streams[i].clusters * 2;
        if (clusters > TRACKER_MAX_CLUSTERS)
            clusters = TRACKER_MAX_CLUSTERS;
    } else {
        i = t->oldest++ % TRACKER_STREAMS;
    }
    t->streams[i].next = cluster + clusters;
    t->streams[i].clusters = clusters;
    return clusters;
}
