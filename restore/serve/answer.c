#include "restore/serve/answer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/testhook.h"
#include "common/uffd.h"
#include "restore/serve/damage.h"

/* What is reported once per kind. */
enum { SAID_NO_ROOM, SAID_VANISHED, SAID_STRAY };

int answerer_init(struct answerer *a, int uffd)
{
    uint64_t unit = blocks_max_unit(a->blocks);
    a->unit_first = UINT64_MAX;
    a->codec = codec_new(1);
    a->unit = malloc(unit);
    if (!a->codec || !a->unit)
        return -ENOMEM;
    int rc = installer_init(&a->installer, uffd, a->img, a->state, unit);
    a->installer.whole_units = a->untold;
    return rc;
}

void answerer_free(struct answerer *a)
{
    installer_free(&a->installer);
    codec_free(a->codec);
    free(a->unit);
}

/* ---- what can't be answered ---- */

static void report_stray(struct answerer *a, uint64_t hva)
{
    struct error e = {.guest = GUEST_WAITING};
    a->guest_waits = true;
    error_set(&e, VMSNAP_EXIT_FAILED, 0,
              "the VMM waits for memory at address 0x%" PRIx64
              " that is in no block of the image: it moved its memory",
              hva);
    error_hint(&e, "end the VMM and restore it again; please report it with the VMM's version");
    trouble_add_once(a->troubles, &e, SAID_STRAY);
}

static void report_no_room(struct answerer *a, const struct block *b, int err)
{
    struct error e = {.guest = GUEST_WAITING};
    error_set(&e, VMSNAP_EXIT_FAILED, -err, "no room for a page of memory block '%s'",
              b->region.name);
    error_hint(&e, "raise the VMM's memory limit or free space; it is tried again all the time");
    trouble_add_once(a->troubles, &e, SAID_NO_ROOM);
}

/* ---- one fault ---- */

static enum answer answer_from(struct answerer *a, const struct block *b, int rc)
{
    switch (rc) {
    case 0:
    case -ENOENT: /* unmapped meanwhile: the kernel has woken who waited */
    case -ESRCH:
        return ANSWERED;
    case -EAGAIN:
        return AGAIN_EVENT;
    case -EBUSY:
        return AGAIN_JOB;
    default:
        report_no_room(a, b, rc);
        return AGAIN_ROOM;
    }
}

static void wake_page(struct answerer *a, const struct block *b, uint64_t offset)
{
    uffd_wake(a->installer.uffd, b->region.hva + offset, b->region.page_bytes);
}

static void settle(struct answerer *a, uint64_t cluster, uint64_t n, int rc)
{
    enum cluster_state to = rc == -ENOENT ? CLUSTER_GONE : CLUSTER_DONE;
    for (uint64_t i = 0; i < n; i++)
        page_state_set(a->state, cluster + i, to);
}

enum answer answer_settled(struct answerer *a, const struct block *b, uint64_t offset, uint64_t len,
                           int rc)
{
    enum answer answer = answer_from(a, b, rc);
    if (answer == ANSWERED)
        settle(a, block_cluster_at(b, offset),
               (len + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES, rc);
    return answer;
}

/* Content that can't be had is asked for by a fault. */
static enum answer answer_damaged(struct answerer *a, const struct block *b, uint64_t offset)
{
    if (!a->poisons)
        return NEVER;
    enum answer answer = damage_poison(a, b, block_cluster_at(b, offset));
    if (answer == ANSWERED) /* it may be one that is present: EEXIST wakes nobody */
        wake_page(a, b, offset);
    return answer;
}

/* Decodes the unit that starts at `first` into a->unit, unless it is there already. Not 0: somebody
 * has to wait for the storage, or to look twice. */
static int decode_unit(struct answerer *a, uint64_t first, uint64_t n)
{
    if (a->unit_first == first)
        return 0;
    a->unit_first = UINT64_MAX;
    for (uint64_t i = 0; i < n; i++) {
        int rc = intake_read_now(a->intake, first + i, a->codec, a->unit + i * IMAGE_CLUSTER_BYTES);
        if (rc)
            return rc;
    }
    a->unit_first = first;
    return 0;
}

static void note_demand(struct answerer *a, const struct block *b, uint64_t first, uint64_t n,
                        bool write)
{
    learn_note(a->learn, first, write);
    ahead_note(a->ahead, b, first, n);
}

/* One of a crowd that waits. */
static bool is_left_to_others(struct answerer *a, const struct block *b, uint64_t first, uint64_t n,
                              bool write)
{
    enum demand_answer answer = demand_post(a->demand, b, first, (uint32_t)n, true);
    if (answer == DEMAND_POSTED)
        note_demand(a, b, first, n, write);
    return answer != DEMAND_FULL;
}

/* One whose content is not in the page cache. */
static enum answer fetch(struct answerer *a, const struct block *b, uint64_t first, uint64_t n,
                         bool write)
{
    enum demand_answer answer = demand_post(a->demand, b, first, (uint32_t)n, false);
    if (answer == DEMAND_POSTED)
        note_demand(a, b, first, n, write);
    return answer == DEMAND_FULL ? AGAIN_PLACE : ELSEWHERE;
}

/* A pending unit: its content, all of it, then it is done. */
static enum answer answer_pending(struct answerer *a, const struct block *b, uint64_t offset,
                                  bool write)
{
    uint64_t start = offset - offset % b->unit_bytes;
    uint64_t len = block_clip(b, start, b->unit_bytes);
    uint64_t first = block_cluster_at(b, start);
    uint64_t n = (len + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
    uint64_t present = 0;
    int rc;
    if (image_is_zero(a->img, first, n)) {
        rc = install_zeros(&a->installer, b, start, len,
                           write ? INSTALL_ZERO_OWN : INSTALL_ZERO_SHARED, &present);
    } else {
        if (a->own_units == 0 && is_left_to_others(a, b, first, n, write))
            return ELSEWHERE;
        a->own_units -= a->own_units > 0;
        if (decode_unit(a, first, n))
            return fetch(a, b, first, n, write);
        rc = install_around(&a->installer, b, start, a->unit, len, offset, &present);
    }
    enum answer answer = answer_settled(a, b, start, len, rc);
    if (answer != ANSWERED)
        return answer;
    a->counts.pages_on_demand += (len - present) / IMAGE_PAGE_BYTES;
    note_demand(a, b, first, n, write);
    if (present > 0) /* EEXIST wakes nobody */
        wake_page(a, b, offset);
    return ANSWERED;
}

/* Poisoned at the instant. */
static bool is_poisoned(const struct answerer *a, const struct block *b, uint64_t offset)
{
    unsigned bit = 1u << (offset / IMAGE_PAGE_BYTES % IMAGE_CLUSTER_PAGES);
    return image_cluster_poison(a->img, block_cluster_at(b, offset)) & bit;
}

static enum answer answer_discarded(struct answerer *a, const struct block *b, uint64_t offset)
{
    uint64_t present = 0;
    int rc = install_discarded(&a->installer, b, offset, &present);
    enum answer answer = answer_from(a, b, rc);
    if (answer == ANSWERED && present > 0)
        wake_page(a, b, offset);
    return answer;
}

/* Neither content nor a poison marker. */
static bool is_absent(const struct answerer *a, const struct block *b, uint64_t offset)
{
    enum page_presence there;
    return target_presence(a->target, b->region.hva + offset, 1, &there) == 0 &&
           there == PAGE_ABSENT;
}

/* Its message was read late, and nothing may be put there: that would replace the poison. But who
 * gives the page back takes the poison away, and may tell nobody of it. */
static enum answer answer_poisoned(struct answerer *a, const struct block *b, uint64_t offset)
{
    if (a->untold && is_absent(a, b, offset))
        return answer_discarded(a, b, offset);
    wake_page(a, b, offset);
    return ANSWERED;
}

/*
 * A fault in a unit that is done. Mostly its message was read late: the page is there. If not, in
 * shared memory it was unmapped only, and the file still holds it; or a hole was punched (the guest
 * gave the page back; that comes before the event, if there is one): zeros. Nothing else takes
 * pages away without an event, so that in private memory an absent page is a fault of ours or the
 * kernel's: then it waits, and the error says so. But where the VMM's own userfaultfd has no such
 * events (restore/memory/theirs.h) that is how a discard shows.
 */
static enum answer answer_done(struct answerer *a, const struct block *b, uint64_t offset)
{
    if (is_poisoned(a, b, offset))
        return answer_poisoned(a, b, offset);
    if (b->region.kind == REGION_SHARED)
        return answer_discarded(a, b, offset);
    if (is_absent(a, b, offset)) {
        if (a->untold)
            return answer_discarded(a, b, offset);
        struct error e = {.guest = GUEST_WAITING};
        a->guest_waits = true;
        error_set(&e, VMSNAP_EXIT_FAILED, 0,
                  "a page of memory block '%s' at offset 0x%" PRIx64 " has vanished",
                  b->region.name, offset);
        error_hint(&e, "end the VMM and restore it again; please report it with the VMM's version");
        trouble_add_once(a->troubles, &e, SAID_VANISHED);
        return NEVER;
    }
    wake_page(a, b, offset);
    return ANSWERED;
}

/* What was there when the content came was unmapped; since it is asked for, something else has
 * been mapped and registered in its place, which is empty. */
static enum answer answer_gone(struct answerer *a, const struct block *b, uint64_t offset)
{
    enum answer answer = answer_discarded(a, b, offset);
    if (answer == ANSWERED) /* ENOENT, if it is not one mapping or gone again: nobody was woken */
        wake_page(a, b, offset);
    return answer;
}

enum answer answer_fault(struct answerer *a, uint64_t hva, bool write)
{
    const struct block *b = blocks_find(a->blocks, hva);
    if (!b) {
        report_stray(a, hva);
        return NEVER;
    }
    uint64_t offset = hva - b->region.hva;
    offset -= offset % b->region.page_bytes;
    uint64_t cluster = block_cluster_at(b, offset);
    unsigned bit = 1u << (offset / IMAGE_PAGE_BYTES % IMAGE_CLUSTER_PAGES);
    uint64_t unit = block_cluster_at(b, offset - offset % b->unit_bytes);
    if (page_state_get(a->state, unit) == CLUSTER_FILLING) /* discarded pages too: not yet */
        return AGAIN_JOB;
    if (page_state_discarded(a->state, cluster) & bit)
        return answer_discarded(a, b, offset);
    switch (page_state_get(a->state, cluster)) {
    case CLUSTER_PENDING:
    case CLUSTER_WRITING:
        return answer_pending(a, b, offset, write);
    case CLUSTER_DONE:
        return answer_done(a, b, offset);
    case CLUSTER_POISONED:
        return answer_poisoned(a, b, offset);
    case CLUSTER_GONE:
        return answer_gone(a, b, offset);
    case CLUSTER_FILLING:
        return AGAIN_JOB;
    case CLUSTER_DAMAGED:
        if (!a->poisons)
            damage_report_wait(a, b, offset);
        return answer_damaged(a, b, offset);
    }
    return NEVER;
}

/* ---- the workers' jobs ---- */

static void count_job(struct answerer *a, const struct job *job, uint64_t pages)
{
    switch (job->origin) {
    case JOB_PREFETCH:
        a->counts.pages_prefetched += pages;
        break;
    case JOB_AHEAD:
        a->counts.pages_ahead += pages;
        break;
    case JOB_FILL:
        a->counts.pages_filled += pages;
        break;
    case JOB_DEMAND:
        a->counts.pages_on_demand += pages;
        break;
    }
}

/* Installs [from, to) of a job's clusters, which are all pending. */
static enum answer install_part(struct answerer *a, const struct job *job,
                                const unsigned char *data, uint32_t from, uint32_t to)
{
    const struct block *b = job->block;
    uint64_t offset = block_cluster_offset(b, job->cluster + from);
    uint64_t len = block_clip(b, offset, (uint64_t)(to - from) * IMAGE_CLUSTER_BYTES);
    uint64_t present = 0;
    enum install_zero how = job->own ? INSTALL_ZERO_OWN : INSTALL_ZERO_SHARED;
    int rc = job->zero ? install_zeros(&a->installer, b, offset, len, how, &present)
                       : install_data(&a->installer, b, offset,
                                      data + (size_t)from * IMAGE_CLUSTER_BYTES, len, &present);
    enum answer answer = answer_settled(a, b, offset, len, rc);
    if (answer == ANSWERED)
        count_job(a, job, (len - present) / IMAGE_PAGE_BYTES);
    return answer;
}

/* Whether the guest gave every page of the unit back. */
static bool is_given_back(const struct answerer *a, const struct block *b, uint64_t first)
{
    uint64_t offset = block_cluster_offset(b, first), len = block_clip(b, offset, b->unit_bytes);
    for (uint64_t at = 0; at < len; at += b->region.page_bytes) {
        unsigned bit = 1u << ((offset + at) / IMAGE_PAGE_BYTES % IMAGE_CLUSTER_PAGES);
        if (!(page_state_discarded(a->state, block_cluster_at(b, offset + at)) & bit))
            return false;
    }
    return true;
}

static void settle_unit(struct answerer *a, const struct block *b, uint64_t first)
{
    uint64_t len = block_clip(b, block_cluster_offset(b, first), b->unit_bytes);
    settle(a, first, (len + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES, 0);
}

/* A cluster that another thread could not read; a fault may have been there before it. */
static enum answer answer_bad_job(struct answerer *a, const struct job *job)
{
    bool demanded = job->origin == JOB_DEMAND;
    enum cluster_state state = page_state_get(a->state, job->damaged);
    uint64_t unit = block_unit_of(job->block, job->damaged);
    if (job->status == -ECANCELED || page_state_get(a->state, unit) == CLUSTER_FILLING ||
        (state != CLUSTER_PENDING && state != CLUSTER_DAMAGED))
        return ANSWERED;                      /* done meanwhile, or another worker will see */
    if (is_given_back(a, job->block, unit)) { /* what was there is not missed */
        settle_unit(a, job->block, unit);
        return ANSWERED;
    }
    if (job->status != -EBADMSG && !(a->poisons && job->n_errors >= DAMAGE_IO_TRIES)) {
        if (!demanded || (job->status != -EINPROGRESS && job->tries >= DAMAGE_IO_SAID))
            damage_report_unread(a, job->block, job->damaged, job->cause, demanded);
        a->n_unread += !demanded;
        return demanded ? LATER : ANSWERED;
    }
    damage_report(a, job->block, job->damaged, job->status, job->cause, demanded);
    return a->poisons ? damage_poison(a, job->block, job->damaged) : ANSWERED;
}

/* A job whose content is in the file already. */
static enum answer answer_job_in_place(struct answerer *a, const struct job *job)
{
    const struct block *b = job->block;
    uint64_t offset = block_cluster_offset(b, job->cluster), present = 0;
    uint64_t len = block_clip(b, offset, (uint64_t)job->n_clusters * IMAGE_CLUSTER_BYTES);
    int rc = install_filled(&a->installer, b, offset, len, &present);
    enum answer answer = answer_settled(a, b, offset, len, rc);
    if (answer == ANSWERED)
        count_job(a, job, (len - present) / IMAGE_PAGE_BYTES);
    return answer;
}

bool answer_job_punches(const struct answerer *a, const struct job *job)
{
    bool any = false;
    for (uint32_t i = 0; job->in_place && i < job->n_clusters; i++)
        any |= page_state_discarded(a->state, job->cluster + i) != 0;
    return any;
}

enum answer answer_job(struct answerer *a, const struct job *job, const unsigned char *data)
{
    if (job->status)
        return answer_bad_job(a, job);
    if (job->in_place)
        return answer_job_in_place(a, job);
    for (uint32_t from = 0; from < job->n_clusters;) {
        uint32_t to = from;
        while (to < job->n_clusters &&
               page_state_get(a->state, job->cluster + to) == CLUSTER_PENDING)
            to++;
        /* Of a huge page that could not be read at first no part can be put in. */
        if (job->block->unit_bytes > IMAGE_CLUSTER_BYTES && to - from < job->n_clusters)
            return ANSWERED;
        if (to > from) {
            enum answer answer = install_part(a, job, data, from, to);
            if (answer != ANSWERED)
                return answer;
        }
        from = to + 1;
    }
    return ANSWERED;
}

bool answerer_is_incomplete(const struct answerer *a)
{
    return a->n_unread > 0 || (a->counts.clusters_damaged > 0 && !a->poisons);
}

/* Zeros need not be put in: an absent page reads as zeros once the registration is gone. */
static bool holds_something(const struct answerer *a, uint64_t cluster)
{
    return image_index_entry(a->img, cluster) != IMAGE_INDEX_ZERO ||
           image_cluster_poison(a->img, cluster);
}

/* What others did before us, or a worker left out, is in nobody's count. */
static void take_stock(struct answerer *a)
{
    uint64_t damaged = 0;
    for (uint64_t c = 0; c < a->state->n_clusters; c++) {
        enum cluster_state state = page_state_get(a->state, c);
        if (state == CLUSTER_DONE || state == CLUSTER_GONE || state == CLUSTER_POISONED ||
            !holds_something(a, c))
            continue;
        if (state == CLUSTER_DAMAGED && !a->poisons)
            damaged++;
        else
            a->n_unread++;
    }
    if (damaged > a->counts.clusters_damaged)
        a->counts.clusters_damaged = damaged;
}

bool answerer_is_all_in(struct answerer *a)
{
    if (!answerer_is_incomplete(a))
        take_stock(a);
    return !answerer_is_incomplete(a);
}

bool answerer_post_unread(struct answerer *a, uint64_t *cluster)
{
    for (; *cluster < a->state->n_clusters; ++*cluster) {
        uint64_t c = *cluster;
        if (page_state_get(a->state, c) != CLUSTER_PENDING || !holds_something(a, c))
            continue;
        const struct block *b = blocks_find_cluster(a->blocks, c);
        uint64_t unit = block_unit_of(b, c), start = block_cluster_offset(b, unit);
        uint64_t len = block_clip(b, start, b->unit_bytes);
        uint64_t n = (len + IMAGE_CLUSTER_BYTES - 1) / IMAGE_CLUSTER_BYTES;
        if (page_state_get(a->state, unit) != CLUSTER_PENDING) /* of a damaged huge page */
            continue;
        demand_post(a->demand, b, unit, (uint32_t)n, false);
        *cluster = unit + n;
        return true;
    }
    return false;
}

/* ---- events ---- */

/* In shared memory MADV_DONTNEED alone would keep the content; but a VMM that gives a page of it
 * back punches the hole in the file first (QEMU's ram_block_discard_range does), so that it is
 * gone. */
void answer_discard(struct answerer *a, uint64_t start, uint64_t end)
{
    if (TESTHOOK_BROKEN("discard-ignored"))
        return;
    for (uint32_t i = 0; i < a->blocks->count; i++) {
        const struct block *b = &a->blocks->items[i];
        uint64_t low = start > b->region.hva ? start : b->region.hva;
        uint64_t high = end < b->region.hva + b->bytes ? end : b->region.hva + b->bytes;
        if (low >= high)
            continue;
        uint64_t first =
            b->first_cluster * IMAGE_CLUSTER_PAGES + (low - b->region.hva) / IMAGE_PAGE_BYTES;
        uint64_t n = (high - low) / IMAGE_PAGE_BYTES;
        page_state_discard(a->state, first, n);
        a->counts.pages_discarded += n;
    }
}
