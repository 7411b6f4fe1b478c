#include "restore/listen/orphans.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/restore_record.h"
#include "common/target/target.h"

static bool has_ended(int pidfd)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

/* Those that nobody will ask for any more. */
static void forget_ended(struct orphans *o, struct roll *r)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < o->n; i++) {
        if (has_ended(o->items[i].pidfd)) {
            close(o->items[i].pidfd);
            roll_free_kept(r, o->items[i].place);
        } else {
            o->items[kept++] = o->items[i];
        }
    }
    o->n = kept;
}

static bool look_at(const struct roll *r, int place, struct restore_look *look)
{
    struct target t;
    if (target_open(&t, atomic_load(&r->vmms[place]), NULL))
        return false;
    int rc = restore_look(&t, look);
    target_close(&t);
    return rc == 0;
}

void orphans_add(struct orphans *o, struct roll *r, int place)
{
    forget_ended(o, r);
    int pidfd = (int)syscall(SYS_pidfd_open, atomic_load(&r->vmms[place]), 0);
    if (pidfd >= 0 && o->n < ORPHANS_MAX) {
        struct restore_look look = {0};
        look_at(r, place, &look);
        o->items[o->n].place = place;
        o->items[o->n].is_recorded = look.under_way;
        o->items[o->n++].pidfd = pidfd;
        return;
    }
    if (pidfd >= 0)
        close(pidfd);
    roll_free_kept(r, place);
}

void orphans_count(const struct orphans *o, const struct roll *r, unsigned *complete,
                   unsigned *unserved)
{
    *complete = *unserved = 0;
    for (unsigned i = 0; i < o->n; i++) {
        int place = o->items[i].place;
        struct restore_look look;
        if (atomic_load(&r->complete[place]) || !look_at(r, place, &look) ||
            has_ended(o->items[i].pidfd))
            continue;
        bool recorded = o->items[i].is_recorded || look.under_way;
        *complete += recorded && !look.under_way;
        *unserved += recorded ? look.under_way && !look.served : true;
    }
}

void orphans_close(struct orphans *o)
{
    while (o->n > 0)
        close(o->items[--o->n].pidfd);
}
