#include "common/streams.h"

struct stream *streams_find(struct streams *t, uint64_t cluster)
{
    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        struct stream *s = &t->table[i];
        if (s->ahead == 0 ||
            cluster + t->behind - s->next >= t->first + t->behind) /* before it: a huge number */
            continue;
        s->ahead = s->ahead < t->most / 2 ? s->ahead * 2 : t->most;
        return s;
    }
    struct stream *s = &t->table[t->replaced++ % STREAMS_MAX];
    s->ahead = t->first;
    return s;
}

bool streams_covers(const struct streams *t, uint64_t cluster)
{
    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        const struct stream *s = &t->table[i];
        if (s->ahead > t->first && cluster < s->next && s->next - cluster <= s->ahead)
            return true;
    }
    return false;
}
