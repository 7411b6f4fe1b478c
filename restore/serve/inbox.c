#include "restore/serve/inbox.h"

#include "common/clock.h"
#include "common/testhook.h"
#include "common/uffd.h"

static void take_message(struct inbox *in, const struct uffd_msg *m)
{
    switch (m->event) {
    case UFFD_EVENT_PAGEFAULT:
        linger_fault(in->linger);
        waiting_add(in->waiting, &(struct waiting_fault){
                                     .hva = m->arg.pagefault.address,
                                     .since_ns = in->last_empty_ns,
                                     .write = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
                                 });
        break;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP: /* who waits there need not wait for its content any more */
        answer_discard(in->answerer, m->arg.remove.start, m->arg.remove.end);
        waiting_unpark(in->waiting, m->arg.remove.start, m->arg.remove.end - m->arg.remove.start);
        break;
    case UFFD_EVENT_REMAP:
        answer_discard(in->answerer, m->arg.remap.from, m->arg.remap.from + m->arg.remap.len);
        break;
    default:
        break;
    }
}

int inbox_read(struct inbox *in)
{
    unsigned room = waiting_make_room(in->waiting), most = SERVER_MESSAGES;
    uint64_t now = clock_monotonic_ns();
    int n = uffd_read_messages(in->uffd, in->messages, room < most ? room : most);
    if (n <= 0) {
        in->last_empty_ns = now;
        return n;
    }
    TESTHOOK_POINT("serve-read");
    for (int i = 0; i < n; i++)
        take_message(in, &in->messages[i]);
    return n;
}

void inbox_take_over(struct inbox *in, const struct blocks *blocks)
{
    for (unsigned i = 0; i < SERVER_MESSAGES; i++)
        if (in->messages[i].event != UFFD_EVENT_PAGEFAULT && !TESTHOOK_BROKEN("event-forgotten"))
            take_message(in, &in->messages[i]);
    waiting_wake_all(in->uffd, blocks);
}
