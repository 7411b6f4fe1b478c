/*
 * fuzz_handoff.c - peer_message_parse() on whatever bytes come, and on what it made of them: a
 * message that is accepted is whole and sound, any part of it means "read on", and a refusal says
 * why in words that are safe to print.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "restore/listen/peer_message.h"
#include "tests/fuzz/fuzz.h"

static uint64_t n_accepted;

uint64_t fuzz_accepted(void)
{
    return n_accepted;
}

static void require(int holds)
{
    if (!holds)
        abort();
}

static int is_apart(uint64_t a, uint64_t b, uint64_t a_bytes, uint64_t b_bytes)
{
    return a >= b + b_bytes || b >= a + a_bytes;
}

static void check_region(const struct peer_message *m, uint32_t i)
{
    const struct peer_region *r = &m->regions[i];
    require(r->page_bytes == 4096 || r->page_bytes == 2u << 20);
    require(((r->hva | r->bytes | r->offset) & (r->page_bytes - 1)) == 0);
    require(r->hva != 0 && r->bytes != 0);
    require(r->hva + r->bytes <= INT64_MAX && r->offset + r->bytes <= INT64_MAX);
    for (uint32_t k = 0; k < i; k++) {
        const struct peer_region *o = &m->regions[k];
        require(is_apart(r->hva, o->hva, r->bytes, o->bytes));
        require(is_apart(r->offset, o->offset, r->bytes, o->bytes));
    }
}

static void check_message(const uint8_t *data, size_t size, const struct peer_message *m)
{
    static struct peer_message again;
    struct error e = {0};
    require(m->n_regions > 0 && m->n_regions <= PEER_MESSAGE_MAX_REGIONS);
    require(m->used_bytes > 0 && m->used_bytes <= size);
    for (uint32_t i = 0; i < m->n_regions; i++)
        check_region(m, i);
    require(peer_message_parse(data, m->used_bytes, &again, &e) == 0);
    require(again.n_regions == m->n_regions && again.used_bytes == m->used_bytes);
    require(memcmp(again.regions, m->regions, m->n_regions * sizeof(m->regions[0])) == 0);
    for (size_t len = 0; len < m->used_bytes; len += 1 + m->used_bytes / 16)
        require(peer_message_parse(data, len, &again, &e) == -EAGAIN);
    require(peer_message_parse(data, m->used_bytes - 1, &again, &e) == -EAGAIN);
}

static void check_refusal(int ret, const struct error *e)
{
    require(ret == -EPROTO && e->exit_code == VMSNAP_EXIT_TARGET && e->hint[0]);
    for (const char *c = e->message; *c; c++)
        require(*c >= ' ' && *c <= '~');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct peer_message m;
    struct error e = {0};
    int ret = peer_message_parse(data, size, &m, &e);
    if (ret == 0) {
        n_accepted++;
        check_message(data, size, &m);
    } else if (ret == -EAGAIN) {
        require(size < PEER_MESSAGE_MAX_BYTES && e.exit_code == 0);
    } else {
        check_refusal(ret, &e);
    }
    return 0;
}
