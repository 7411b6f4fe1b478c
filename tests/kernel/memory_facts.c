/*
 * What the engine and the restorer take for granted about userfaultfd, on every kernel that they
 * run on: which first accesses give which events, what an armed page looks like from outside, what
 * holds whom, and what is left when a holder dies.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/inject/inject.h"
#include "common/kernel.h"
#include "common/uffd.h"
#include "ktest.h"
#include "puppet.h"

#define PAGE 4096ul
#define N_PAGES 512ul
#define HUGE_PAGES 512ul
#define TIMEOUT_MS 5000
#define MISSING_WP (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)

static bool even(size_t page)
{
    return page % 2 == 0;
}

static bool all(size_t page)
{
    (void)page;
    return true;
}

static bool none(size_t page)
{
    (void)page;
    return false;
}

/* A puppet and its userfaultfd. */
struct scene {
    struct puppet *p;
    struct region r;
    int fd;
};

static uint64_t address(const struct scene *s, size_t page)
{
    return s->r.hva + page * PAGE;
}

/* 0, or KTEST_SKIP when there is no such memory. */
static int scene_open(struct scene *s, enum puppet_memory memory, size_t n_pages,
                      bool (*filled)(size_t), uint64_t features)
{
    struct error e = {0};
    s->fd = -1;
    s->p = puppet_start(memory, n_pages * PAGE, filled);
    KTEST_SKIP_IF(!s->p, "no %s memory here", puppet_memory_names[memory]);
    KTEST_CHECK(puppet_region(s->p, &s->r, &e) == 0, "%s", e.message);
    KTEST_CHECK(inject_userfaultfd(puppet_target(s->p), &s->fd, NULL, TIMEOUT_MS, &e) == 0, "%s",
                e.message);
    features |= UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    KTEST_CHECK(uffd_enable(s->fd, features) == 0, "can't enable");
    return KTEST_PASS;
}

static int scene_arm(const struct scene *s, uint64_t modes)
{
    int err = uffd_register(s->fd, s->r.hva, s->r.bytes, modes, NULL);
    KTEST_CHECK(err == 0, "register: %s", strerror(-err));
    if (modes & UFFDIO_REGISTER_MODE_WP)
        err = uffd_protect(s->fd, s->r.hva, s->r.bytes);
    KTEST_CHECK(err == 0, "protect: %s", strerror(-err));
    return KTEST_PASS;
}

/* Every step of a case that may itself end it. */
#define STEP(call)                                                                                 \
    do {                                                                                           \
        int step_ = (call);                                                                        \
        if (step_ != KTEST_PASS)                                                                   \
            return step_;                                                                          \
    } while (0)

/* Waits for one message. */
static bool next_message(const struct scene *s, struct uffd_msg *msg)
{
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    return poll(&p, 1, TIMEOUT_MS) == 1 && uffd_read_messages(s->fd, msg, 1) == 1;
}

static bool no_message(const struct scene *s)
{
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    return poll(&p, 1, 20) == 0;
}

/* The next message is a fault of `page` (in a unit of unit_pages), write-protect or missing. */
static int expect_fault(const struct scene *s, size_t page, size_t unit_pages, bool wp)
{
    struct uffd_msg msg = {0};
    KTEST_CHECK(next_message(s, &msg), "page %zu: no event", page);
    KTEST_CHECK(msg.event == UFFD_EVENT_PAGEFAULT, "page %zu: event 0x%x", page, msg.event);
    uint64_t at = msg.arg.pagefault.address;
    KTEST_CHECK((at - s->r.hva) / PAGE / unit_pages == page / unit_pages,
                "page %zu: address 0x%llx", page, (unsigned long long)at);
    bool is_wp = msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
    KTEST_CHECK(is_wp == wp, "page %zu: flags 0x%llx", page,
                (unsigned long long)msg.arg.pagefault.flags);
    KTEST_CHECK(!puppet_is_done(s->p), "page %zu: the access went through", page);
    return KTEST_PASS;
}

/* A write that must give a write-protect event, and goes on when unprotected. */
static int expect_wp_write(const struct scene *s, size_t page, size_t unit_pages)
{
    uint64_t unit = unit_pages * PAGE, at = address(s, page / unit_pages * unit_pages);
    puppet_write_begin(s->p, page, 0xcc);
    STEP(expect_fault(s, page, unit_pages, true));
    KTEST_CHECK(uffd_unprotect(s->fd, at, unit) == 0, "page %zu: unprotect", page);
    KTEST_CHECK(puppet_wait(s->p, NULL), "page %zu: still waits", page);
    KTEST_CHECK(puppet_write(s->p, page, 0xdd) && no_message(s), "page %zu: a second event", page);
    return KTEST_PASS;
}

static enum page_presence presence_of(const struct scene *s, size_t page)
{
    enum page_presence presence;
    if (target_presence(puppet_target(s->p), address(s, page), 1, &presence) != 0)
        abort();
    return presence;
}

/* MISSING|WP needs no WP_UNPOPULATED: the first write to an absent page is a MISSING event. */
static int anon_missing_wp(const void *arg)
{
    (void)arg;
    struct scene s;
    uint8_t value;
    STEP(scene_open(&s, PUPPET_ANON, N_PAGES, even, 0));
    STEP(scene_arm(&s, MISSING_WP));
    for (size_t i = 0; i < N_PAGES; i++)
        KTEST_CHECK(presence_of(&s, i) == (even(i) ? PAGE_PRESENT : PAGE_ABSENT),
                    "page %zu: presence %d while armed", i, presence_of(&s, i));
    /* absent: written */
    puppet_write_begin(s.p, 1, 0xcc);
    STEP(expect_fault(&s, 1, 1, false));
    KTEST_CHECK(uffd_zeropage(s.fd, address(&s, 1), PAGE, true, NULL) == 0, "zeropage");
    KTEST_CHECK(puppet_wait(s.p, NULL), "still waits");
    KTEST_CHECK(puppet_write(s.p, 1, 0xdd) && no_message(&s), "a second event");
    KTEST_CHECK(presence_of(&s, 1) == PAGE_PRESENT, "not present once written");
    /* absent: read, then written */
    puppet_read_begin(s.p, 3);
    STEP(expect_fault(&s, 3, 1, false));
    KTEST_CHECK(uffd_zeropage(s.fd, address(&s, 3), PAGE, true, NULL) == 0, "zeropage");
    KTEST_CHECK(puppet_wait(s.p, &value) && value == 0, "read 0x%02x", value);
    /* present */
    STEP(expect_wp_write(&s, 0, 1));
    KTEST_CHECK(puppet_read(s.p, 2, &value) && value == puppet_pattern(2) && no_message(&s),
                "a read of a protected page");
    close(s.fd);
    return KTEST_PASS;
}

/* Present, mapped no more (content only in the file), and never there: each first write shows. */
static int shared_wp(const void *arg)
{
    struct scene s;
    enum puppet_memory memory = *(const enum puppet_memory *)arg;
    STEP(scene_open(&s, memory, N_PAGES, even, 0));
    KTEST_CHECK(puppet_madvise(s.p, 8, 8, MADV_DONTNEED), "madvise");
    STEP(scene_arm(&s, UFFDIO_REGISTER_MODE_WP));
    KTEST_CHECK(presence_of(&s, 8) == PAGE_ABSENT && presence_of(&s, 1) == PAGE_ABSENT &&
                    presence_of(&s, 0) == PAGE_PRESENT,
                "presence %d %d %d", presence_of(&s, 8), presence_of(&s, 1), presence_of(&s, 0));
    const size_t pages[] = {0, 2, 8, 10, 9, 1, 3, 511};
    for (unsigned i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
        STEP(expect_wp_write(&s, pages[i], 1));
    uint8_t value;
    KTEST_CHECK(puppet_read(s.p, 12, &value) && value == puppet_pattern(12) && no_message(&s),
                "a read, or lost content: 0x%02x", value);
    close(s.fd);
    return KTEST_PASS;
}

static int private_tmpfs_wp(const void *arg)
{
    (void)arg;
    struct scene s;
    uint8_t value;
    STEP(scene_open(&s, PUPPET_PRIVATE_TMPFS, N_PAGES, even, 0));
    KTEST_CHECK(puppet_write(s.p, 0, 1) && puppet_write(s.p, 1, 1) && puppet_read(s.p, 2, &value) &&
                    puppet_read(s.p, 3, &value),
                "accesses");
    STEP(scene_arm(&s, UFFDIO_REGISTER_MODE_WP));
    /* its copy of a page, of a hole; the file's page mapped, a hole mapped; neither mapped */
    for (size_t i = 0; i < 6; i++)
        STEP(expect_wp_write(&s, i, 1));
    close(s.fd);
    return KTEST_PASS;
}

static int hugetlb_wp(const void *arg)
{
    struct scene s;
    STEP(scene_open(&s, *(const enum puppet_memory *)arg, 2 * HUGE_PAGES, all, 0));
    STEP(scene_arm(&s, UFFDIO_REGISTER_MODE_WP));
    KTEST_CHECK(uffd_unprotect(s.fd, s.r.hva, PAGE) == -EINVAL, "less than a huge page");
    STEP(expect_wp_write(&s, 5, HUGE_PAGES));
    STEP(expect_wp_write(&s, HUGE_PAGES + 7, HUGE_PAGES));
    KTEST_CHECK(uffd_unregister_pieces(s.fd, s.r.hva, s.r.bytes) == 0, "unregister");
    close(s.fd);
    return KTEST_PASS;
}

static int taken(const void *arg)
{
    (void)arg;
    struct scene s;
    struct error e = {0};
    struct mapping_list maps;
    int other;
    STEP(scene_open(&s, PUPPET_ANON, N_PAGES, even, 0));
    STEP(scene_arm(&s, MISSING_WP));
    KTEST_CHECK(inject_userfaultfd(puppet_target(s.p), &other, NULL, TIMEOUT_MS, &e) == 0, "%s",
                e.message);
    KTEST_CHECK(uffd_enable(other, 0) == 0, "enable");
    int err = uffd_register(other, s.r.hva, s.r.bytes, MISSING_WP, NULL);
    KTEST_CHECK(err == -EBUSY, "registered twice: %d", err);
    KTEST_CHECK(target_mappings(puppet_target(s.p), &maps, &e) == 0, "%s", e.message);
    const struct mapping *m = mapping_find(&maps, s.r.hva);
    KTEST_CHECK(m && m->uffd_wp && m->uffd_missing, "smaps does not say so");
    mapping_list_free(&maps);
    close(other);
    close(s.fd);
    return KTEST_PASS;
}

/* A discard waits until its event is read, the content is there until then, and meanwhile range
 * calls say EAGAIN. */
static int event_remove(const void *arg)
{
    (void)arg;
    struct scene s;
    struct uffd_msg msg = {0};
    uint8_t buf[4 * PAGE];
    STEP(scene_open(&s, PUPPET_ANON, N_PAGES, all, UFFD_FEATURE_EVENT_REMOVE));
    STEP(scene_arm(&s, MISSING_WP));
    puppet_madvise_begin(s.p, 4, 4, MADV_DONTNEED);
    struct pollfd p = {.fd = s.fd, .events = POLLIN};
    KTEST_CHECK(poll(&p, 1, TIMEOUT_MS) == 1, "no event");
    usleep(20000);
    KTEST_CHECK(!puppet_is_done(s.p), "the discard did not wait");
    KTEST_CHECK(uffd_unprotect(s.fd, s.r.hva, PAGE) == -EAGAIN, "unprotect while an event waits");
    KTEST_CHECK(uffd_protect(s.fd, s.r.hva, PAGE) == -EAGAIN, "protect while an event waits");
    int err = region_read(&s.r, puppet_target(s.p), 4 * PAGE, 4, buf, NULL, NULL);
    KTEST_CHECK(err == 0 && buf[0] == puppet_pattern(4) && buf[3 * PAGE] == puppet_pattern(7),
                "the content is gone before its event is read");
    KTEST_CHECK(next_message(&s, &msg) && msg.event == UFFD_EVENT_REMOVE, "event 0x%x", msg.event);
    KTEST_CHECK(msg.arg.remove.start == address(&s, 4) && msg.arg.remove.end == address(&s, 8),
                "another range");
    KTEST_CHECK(puppet_wait(s.p, NULL) && puppet_result(s.p) == 0, "the discard failed");
    KTEST_CHECK(presence_of(&s, 4) == PAGE_ABSENT && presence_of(&s, 8) == PAGE_PRESENT,
                "presence afterwards");
    KTEST_CHECK(uffd_unprotect(s.fd, s.r.hva, PAGE) == 0, "unprotect afterwards");
    close(s.fd);
    return KTEST_PASS;
}

struct holder {
    struct scene scene;
    int ready[2];
};

/* Holds the only reference, protects, and waits to be killed. */
static int hold(void *opaque)
{
    struct holder *h = opaque;
    if (scene_arm(&h->scene, MISSING_WP) != KTEST_PASS || write(h->ready[1], "x", 1) != 1)
        return 1;
    pause();
    return 0;
}

/* The snapshotting process dies: whoever waits goes on, nothing stays protected. */
static int holder_dies(const void *arg)
{
    (void)arg;
    struct holder h;
    char byte;
    STEP(scene_open(&h.scene, PUPPET_ANON, N_PAGES, even, 0));
    KTEST_CHECK(pipe(h.ready) == 0, "pipe");
    pid_t pid = ktest_spawn(hold, &h);
    close(h.scene.fd);
    KTEST_CHECK(read(h.ready[0], &byte, 1) == 1, "the holder did not arm");
    puppet_write_begin(h.scene.p, 0, 0xcc);
    usleep(20000);
    KTEST_CHECK(!puppet_is_done(h.scene.p), "the write went through");
    ktest_end(pid);
    KTEST_CHECK(puppet_wait(h.scene.p, NULL), "the write still waits");
    for (size_t i = 0; i < N_PAGES; i++)
        KTEST_CHECK(puppet_write(h.scene.p, i, 0xdd), "page %zu", i);
    return KTEST_PASS;
}

/* Restore: the target keeps the fd; after a takeover, WAKE makes unresolved faults come again. */
static int takeover(const void *arg)
{
    (void)arg;
    struct scene s = {0};
    struct error e = {0};
    int keep;
    char content[PAGE];
    uint8_t value;
    s.p = puppet_start(PUPPET_ANON, N_PAGES * PAGE, none);
    KTEST_CHECK(s.p && puppet_region(s.p, &s.r, &e) == 0, "%s", e.message);
    KTEST_CHECK(inject_userfaultfd(puppet_target(s.p), &s.fd, &keep, TIMEOUT_MS, &e) == 0, "%s",
                e.message);
    KTEST_CHECK(uffd_enable(s.fd, 0) == 0, "enable");
    STEP(scene_arm(&s, UFFDIO_REGISTER_MODE_MISSING));
    puppet_read_begin(s.p, 5);
    STEP(expect_fault(&s, 5, 1, false));
    close(s.fd);
    usleep(20000);
    KTEST_CHECK(!puppet_is_done(s.p), "it read something though nobody serves");
    s.fd = target_get_fd(puppet_target(s.p), keep);
    KTEST_CHECK(s.fd >= 0 && no_message(&s), "the old fault is not sent by itself");
    KTEST_CHECK(uffd_wake(s.fd, s.r.hva, s.r.bytes) == 0, "wake");
    STEP(expect_fault(&s, 5, 1, false));
    memset(content, 0x77, sizeof(content));
    KTEST_CHECK(uffd_copy(s.fd, address(&s, 5), content, PAGE, true, NULL) == 0, "copy");
    KTEST_CHECK(puppet_wait(s.p, &value) && value == 0x77, "read 0x%02x", value);
    close(s.fd);
    return KTEST_PASS;
}

/* A page that is there stops an install, which says how far it came. */
static int install_meets_page(const void *arg)
{
    (void)arg;
    struct scene s;
    static char content[8 * PAGE];
    uint64_t done;
    uint8_t value;
    STEP(scene_open(&s, PUPPET_ANON, N_PAGES, none, 0));
    KTEST_CHECK(puppet_write(s.p, 3, 0xcc) && puppet_write(s.p, 19, 0xcc), "write");
    STEP(scene_arm(&s, UFFDIO_REGISTER_MODE_MISSING));
    memset(content, 0x66, sizeof(content));
    int err = uffd_copy(s.fd, s.r.hva, content, 8 * PAGE, true, &done);
    KTEST_CHECK(err == -EEXIST && done == 3 * PAGE, "copy: %d, %d bytes", err, (int)done);
    err = uffd_copy(s.fd, address(&s, 4), content, 4 * PAGE, true, &done);
    KTEST_CHECK(err == 0 && done == 4 * PAGE, "the rest: %d, %d bytes", err, (int)done);
    err = uffd_zeropage(s.fd, address(&s, 16), 8 * PAGE, true, &done);
    KTEST_CHECK(err == -EEXIST && done == 3 * PAGE, "zeropage: %d, %d bytes", err, (int)done);
    KTEST_CHECK(puppet_read(s.p, 3, &value) && value == 0xcc, "overwritten: 0x%02x", value);
    KTEST_CHECK(puppet_read(s.p, 7, &value) && value == 0x66, "not installed: 0x%02x", value);
    close(s.fd);
    return KTEST_PASS;
}

/* Shared memory: filled through our own mapping, then CONTINUE. */
static int minor_continue(const void *arg)
{
    struct scene s;
    uint8_t value;
    uint64_t done;
    STEP(scene_open(&s, *(const enum puppet_memory *)arg, N_PAGES, none, UFFD_FEATURE_MINOR_SHMEM));
    STEP(scene_arm(&s, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR));
    uint8_t *ours =
        mmap(NULL, s.r.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s.r.fd, (off_t)s.r.fd_offset);
    KTEST_CHECK(ours != MAP_FAILED, "our mapping of its memory");
    puppet_read_begin(s.p, 9);
    STEP(expect_fault(&s, 9, 1, false));
    memset(ours + 8 * PAGE, 0x55, 4 * PAGE);
    KTEST_CHECK(!puppet_is_done(s.p), "it goes on before it may");
    int err = uffd_continue(s.fd, address(&s, 8), 4 * PAGE, true, &done);
    KTEST_CHECK(err == 0 && done == 4 * PAGE, "continue: %d, %d bytes", err, (int)done);
    KTEST_CHECK(puppet_wait(s.p, &value) && value == 0x55, "read 0x%02x", value);
    /* in the file, but not continued: a MINOR event */
    memset(ours + 20 * PAGE, 0x44, PAGE);
    struct uffd_msg msg = {0};
    puppet_read_begin(s.p, 20);
    KTEST_CHECK(next_message(&s, &msg) &&
                    (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0,
                "no minor event");
    KTEST_CHECK(uffd_continue(s.fd, address(&s, 20), PAGE, true, NULL) == 0, "continue");
    KTEST_CHECK(puppet_wait(s.p, &value) && value == 0x44, "read 0x%02x", value);
    munmap(ours, s.r.bytes);
    close(s.fd);
    return KTEST_PASS;
}

/* In pieces, with a waiter: it goes on, and the mapping is one piece again. */
static int unregister(const void *arg)
{
    (void)arg;
    struct scene s;
    struct error e = {0};
    struct mapping_list maps;
    size_t pages = 3 * UFFD_PIECE_BYTES / PAGE + 5;
    STEP(scene_open(&s, PUPPET_ANON, pages, none, 0));
    STEP(scene_arm(&s, MISSING_WP));
    puppet_write_begin(s.p, pages - 1, 0xcc);
    STEP(expect_fault(&s, pages - 1, 1, false));
    KTEST_CHECK(uffd_unregister_pieces(s.fd, s.r.hva, s.r.bytes) == 0, "unregister");
    KTEST_CHECK(puppet_wait(s.p, NULL), "the writer still waits");
    KTEST_CHECK(target_mappings(puppet_target(s.p), &maps, &e) == 0, "%s", e.message);
    const struct mapping *m = mapping_find(&maps, s.r.hva);
    KTEST_CHECK(m, "the mapping is gone");
    KTEST_CHECK(!m->uffd_wp && !m->uffd_missing && m->end >= s.r.hva + s.r.bytes,
                "what is left: 0x%llx to 0x%llx", (unsigned long long)m->start,
                (unsigned long long)m->end);
    mapping_list_free(&maps);
    close(s.fd);
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    static const enum puppet_memory memfd = PUPPET_MEMFD, shared_anon = PUPPET_SHARED_ANON;
    static const enum puppet_memory huge_shared = PUPPET_HUGE_SHARED;
    static const enum puppet_memory huge_private = PUPPET_HUGE_PRIVATE;
    const struct ktest_case cases[] = {
        {"private anonymous: missing and write-protect", anon_missing_wp, NULL},
        {"memfd: write-protect", shared_wp, &memfd},
        {"shared anonymous: write-protect", shared_wp, &shared_anon},
        {"private tmpfs: write-protect", private_tmpfs_wp, NULL},
        {"hugetlb shared: write-protect", hugetlb_wp, &huge_shared},
        {"hugetlb private: write-protect", hugetlb_wp, &huge_private},
        {"taken by another userfaultfd", taken, NULL},
        {"discards wait for their event", event_remove, NULL},
        {"the holder dies", holder_dies, NULL},
        {"takeover", takeover, NULL},
        {"an install meets a page", install_meets_page, NULL},
        {"memfd: minor and continue", minor_continue, &memfd},
        {"shared anonymous: minor and continue", minor_continue, &shared_anon},
        {"unregister in pieces", unregister, NULL},
    };
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
