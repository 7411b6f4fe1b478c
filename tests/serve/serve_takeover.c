/*
 * The server is killed again and again, and each time another takes over from the record in the
 * process: every thread that waits is served, no page is wrong, and what was given back stays so.
 *
 * With a rule broken on purpose (VMSNAP_BREAK=event-forgotten, minor-refilled,
 * done-before-content or done-before-install) it has to fail.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "restore/resume.h"
#include "tests/kernel/ktest.h"
#include "tests/serve/serve_kit.h"

/* Slow enough that much is not in yet when one is killed. */
#define FILL_BYTES_PER_S (16u << 20)

struct shape {
    enum kit_work work;
    unsigned n_kills;
    const char *kill_at; /* a named point; NULL: at random moments */
    bool shared_only;    /* one block of shared memory, one thread */
};

/* ---- the servers: children ---- */

static int serve_first(void *opaque)
{
    struct kit *k = opaque;
    k->goes_early = true;
    if (!kit_serve(k, true, true))
        return 1;
    for (;;)
        pause();
}

static void on_report(void *opaque, const char *type, json_t *object)
{
    (void)opaque;
    (void)type;
    json_decref(object);
}

static void on_trouble(void *opaque, const struct error *e)
{
    (void)opaque;
    printf("    %s\n", e->message);
}

static int take_over(void *opaque)
{
    struct kit *k = opaque;
    struct restore_options o = {.n_threads = 2,
                                .bytes_per_s = FILL_BYTES_PER_S,
                                .timeout_ms = 5000,
                                .report = on_report,
                                .trouble = on_trouble};
    struct error e = {0};
    int rc = resume_run(&o, k->pid, NULL, &e);
    if (rc)
        printf("    take over: %s\n", e.message);
    fflush(stdout);
    return e.exit_code;
}

/* ---- the test ---- */

static void fill_board(struct kit_board *board, const struct shape *shape)
{
    static const enum kit_memory kinds[] = {KIT_ANON, KIT_MEMFD, KIT_PRIVATE_FILE, KIT_ANON_HUGE};
    bool discards = shape->work == KIT_DISCARD;
    board->work = shape->work;
    board->n_threads = 3;
    board->n_rounds = 6000;
    if (shape->work == KIT_UNMAP || shape->shared_only) {
        board->n_threads = shape->shared_only ? 1 : 3;
        board->n_blocks = 1;
        board->blocks[0] = (struct kit_block){.kind = KIT_MEMFD, .n_pages = KIT_DISCARD_PAGES};
        return;
    }
    board->n_blocks = discards ? 3 : 4;
    for (unsigned i = 0; i < board->n_blocks; i++)
        board->blocks[i] = (struct kit_block){.kind = kinds[i == 2 && discards ? 3 : i],
                                              .n_pages = discards ? KIT_DISCARD_PAGES : 16384};
}

static bool is_served_no_more(struct kit *k)
{
    return ktest_ended(k->pid) || atomic_load(&k->board->finished) == k->board->n_threads;
}

/* Kills one server after another, at random or where its own named point does it. */
static int kill_servers(struct kit *k, const struct shape *shape, unsigned *killed)
{
    pid_t server = ktest_spawn(serve_first, k);
    KTEST_CHECK(shape->kill_at || KTEST_WAIT(atomic_load(&k->board->pages_read) >= 1),
                "nothing was read");
    for (*killed = 0; *killed < shape->n_kills && !is_served_no_more(k); ++*killed) {
        int status = 0;
        if (shape->kill_at) {
            status = ktest_reap(server, 5000);
        } else {
            usleep((useconds_t)(rand() % 8000));
            ktest_end(server);
        }
        if (status == -1 || (shape->kill_at && !WIFSIGNALED(status)))
            break; /* it never got there (again) */
        kit_go(k); /* the first may have died before it said so */
        server = ktest_spawn(take_over, k);
    }
    unsetenv("VMSNAP_KILL_AT");
    ktest_end(server);
    return KTEST_PASS;
}

static int run_once(const struct shape *shape)
{
    struct kit_board *board = ktest_shared(sizeof(*board));
    fill_board(board, shape);
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, true), "no process or image");
    if (shape->kill_at)
        setenv("VMSNAP_KILL_AT", shape->kill_at, 1);
    unsigned killed;
    int rc = kill_servers(&k, shape, &killed);
    if (rc != KTEST_PASS)
        return rc;
    unsigned finished = board->finished;
    pid_t last = ktest_spawn(take_over, &k);
    for (int i = 0; i < 600 && !kit_wait_finished(&k, 100) && !board->wrong; i++)
        ;
    printf("    %u servers killed, %u of %u threads had finished; %llu pages read, %llu discards; "
           "%llu wrong pages, of which %llu came back\n",
           killed, finished, board->n_threads, (unsigned long long)board->pages_read,
           (unsigned long long)board->discards, (unsigned long long)board->wrong,
           (unsigned long long)board->came_back);
    KTEST_CHECK(board->wrong == 0, "%llu wrong pages", (unsigned long long)board->wrong);
    KTEST_CHECK(board->finished == board->n_threads, "the process hangs");
    KTEST_CHECK(killed >= 3, "hardly any server was killed");
    int status = ktest_reap(last, 10000);
    /* The one before it may have come to the end already. */
    KTEST_CHECK(WIFEXITED(status) &&
                    (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == VMSNAP_EXIT_TARGET),
                "the last one: status %d", status);
    kit_close(&k);
    return KTEST_PASS;
}

/* Whether a broken rule shows depends on when the kernel lets whom run: five times are enough. */
static int run_shape(const void *arg)
{
    int rc = run_once(arg);
    for (int i = 1; i < 5 && rc == KTEST_PASS && getenv("VMSNAP_BREAK"); i++)
        rc = run_once(arg);
    return rc;
}

/* One that serves keeps a second one out; one that has never been served is no business of ours. */
static int run_refusals(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    board->n_threads = 1;
    board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = KIT_ANON, .n_pages = 4096};
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, false), "no process or image");
    pid_t too_early = ktest_spawn(take_over, &k);
    int status = ktest_reap(too_early, 5000);
    KTEST_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == VMSNAP_EXIT_TARGET, "status %d",
                status);
    KTEST_CHECK(kit_serve(&k, false, false), "no server");
    pid_t second = ktest_spawn(take_over, &k);
    status = ktest_reap(second, 5000);
    KTEST_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == VMSNAP_EXIT_BUSY, "status %d", status);
    KTEST_CHECK(kit_run(&k) && board->wrong == 0, "wrong pages");
    kit_close(&k);
    return KTEST_PASS;
}

/* ---- a process that means harm ---- */

#define VICTIM_BYTES 100000
#define VICTIM_FD 99

/* As soon as the record is there, another file stands in its place. */
static void *swap_it(void *opaque)
{
    (void)opaque;
    for (;;)
        for (int fd = 3; fd < 20; fd++) {
            int seals = fcntl(fd, F_GET_SEALS);
            if (seals >= 0 && !(seals & F_SEAL_SEAL))
                dup2(VICTIM_FD, fd);
        }
    return NULL;
}

static int swap_records(void *opaque)
{
    atomic_bool *ready = opaque;
    pthread_t other;
    if (pthread_create(&other, NULL, swap_it, NULL))
        return 1;
    atomic_store(ready, true);
    swap_it(NULL);
    return 0;
}

/* What stands where the record was made is neither cut nor mapped. */
static int run_swapped(const void *arg)
{
    (void)arg;
    struct kit_board *board = ktest_shared(sizeof(*board));
    atomic_bool *ready = ktest_shared(sizeof(*ready));
    board->n_threads = 1;
    board->n_blocks = 1;
    board->blocks[0] = (struct kit_block){.kind = KIT_ANON, .n_pages = 4096};
    struct kit k;
    KTEST_CHECK(kit_open(&k, board, false), "no process or image");
    char victim[] = "/tmp/vmsnap-victim-XXXXXX";
    int fd = mkostemp(victim, O_CLOEXEC);
    KTEST_CHECK(fd >= 0 && ftruncate(fd, VICTIM_BYTES) == 0 && dup2(fd, VICTIM_FD) >= 0, "no file");
    unlink(victim);
    unsigned refused = 0;
    for (int i = 0; i < 5; i++) {
        struct error e = {0};
        struct target t;
        struct stat st;
        atomic_store(ready, false);
        pid_t pid = ktest_spawn(swap_records, ready);
        KTEST_CHECK(KTEST_WAIT(atomic_load(ready)) && target_open(&t, pid, &e) == 0, "no process");
        struct record r;
        int rc = record_create(&r, &t, k.img, k.image_path, &k.blocks, 5000, &e);
        if (rc == 0)
            record_close(&r);
        refused += rc != 0;
        ktest_end(pid);
        target_close(&t);
        KTEST_CHECK(fstat(fd, &st) == 0 && st.st_size == VICTIM_BYTES, "the file has %lld bytes",
                    (long long)st.st_size);
        KTEST_CHECK(rc == 0 || e.exit_code == VMSNAP_EXIT_TARGET, "%s", e.message);
    }
    printf("    %u of 5 refused\n", refused);
    close(fd);
    close(VICTIM_FD);
    kit_close(&k);
    return KTEST_PASS;
}

/* A record of somebody's own making: what can be cut is not mapped, and what makes no sense is not
 * believed. */
static int hold_forgery(void *opaque)
{
    atomic_int *step = opaque;
    int fd = memfd_create(RECORD_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, 1 << 20))
        return 1;
    atomic_store(step, 1);
    while (atomic_load(step) < 2)
        usleep(1000);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return 1;
    atomic_store(step, 3);
    for (;;)
        pause();
}

static int run_forged(const void *arg)
{
    (void)arg;
    atomic_int *step = ktest_shared(sizeof(*step));
    pid_t pid = ktest_spawn(hold_forgery, step);
    for (int i = 0; i < 2; i++) {
        struct error e = {0};
        struct target t;
        struct record r;
        KTEST_CHECK(KTEST_WAIT(atomic_load(step) == 1 + 2 * i) && target_open(&t, pid, &e) == 0,
                    "no process");
        int rc = record_open(&r, &t, &e);
        printf("    %s\n", e.message);
        KTEST_CHECK(rc && e.exit_code == VMSNAP_EXIT_TARGET, "forgery %d was taken", i);
        KTEST_CHECK(strstr(e.message, i ? "makes no sense" : "not of vmsnap's making"), "why");
        target_close(&t);
        atomic_store(step, 2);
    }
    ktest_end(pid);
    return KTEST_PASS;
}

static const struct shape
    reads = {.work = KIT_READ, .n_kills = 30},
    discards = {.work = KIT_DISCARD, .n_kills = 30},
    after_read = {.work = KIT_DISCARD, .n_kills = 60, .kill_at = "serve-read:40"},
    before_install = {.work = KIT_READ, .n_kills = 40, .kill_at = "serve-installing:30"},
    after_install = {.work = KIT_READ, .n_kills = 40, .kill_at = "serve-installed:30"},
    discards_after = {.work = KIT_DISCARD, .n_kills = 40, .kill_at = "serve-installed:20"},
    filling = {.work = KIT_READ, .n_kills = 30, .kill_at = "fill-claimed:3", .shared_only = true},
    filled = {.work = KIT_DISCARD, .n_kills = 30, .kill_at = "fill-done:3", .shared_only = true},
    unmaps = {.work = KIT_UNMAP, .n_kills = 30};

int main(int argc, char **argv)
{
    static const struct ktest_case cases[] = {
        {"reads", run_shape, &reads},
        {"discards", run_shape, &discards},
        {"killed-after-read", run_shape, &after_read},
        {"killed-while-filling", run_shape, &filling},
        {"killed-before-mapping", run_shape, &filled},
        {"killed-before-install", run_shape, &before_install},
        {"killed-after-install", run_shape, &after_install},
        {"discards-after-install", run_shape, &discards_after},
        {"unmaps", run_shape, &unmaps},
        {"refusals", run_refusals, NULL},
        {"swapped", run_swapped, NULL},
        {"forged", run_forged, NULL},
    };
    return kit_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
