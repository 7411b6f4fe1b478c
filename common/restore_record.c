#include "common/restore_record.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/format.h"
#include "common/image/format.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define STATES_AT_ONCE 65536u
#define CLUSTERS_MAX (1ull << 30) /* 16 TiB: a VMM can make a record of any size, with holes */
/* The hand-off closes two descriptors by injection: some milliseconds, more on a busy host. */
#define HAND_OFF_WAIT_NS 1000000000ull
#define HAND_OFF_LOOK_US 10000u

static bool is_record_link(int dir, const char *name)
{
    char link[64];
    ssize_t n = readlinkat(dir, name, link, sizeof(link));
    return n == (ssize_t)strlen(RECORD_LINK) && memcmp(link, RECORD_LINK, (size_t)n) == 0;
}

int restore_record_next(const struct target *t, int after)
{
    int dir = openat(t->proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return -errno;
    DIR *d = fdopendir(dir);
    if (!d) {
        close(dir);
        return -ENOMEM;
    }
    int found = -ENOENT;
    for (const struct dirent *entry; (entry = readdir(d));) {
        int number = entry->d_name[0] == '.' ? -1 : atoi(entry->d_name);
        if (number > after && (found < 0 || number < found) && is_record_link(dir, entry->d_name))
            found = number;
    }
    closedir(d);
    return found;
}

bool restore_record_is(int fd)
{
    char name[32], link[64];
    struct stat st;
    struct statfs fs;
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, link, sizeof(link));
    return n == (ssize_t)strlen(RECORD_LINK) && memcmp(link, RECORD_LINK, (size_t)n) == 0 &&
           fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && fstatfs(fd, &fs) == 0 &&
           fs.f_type == TMPFS_MAGIC;
}

/* An opening of our own, which a lock belongs to. The VMM may put any file there at any time, so
 * what is looked at, and then opened, is our duplicate of its descriptor. -errno. */
static int open_record(const struct target *t, int there)
{
    CLEANUP_FD int copy = target_get_fd(t, there);
    if (copy < 0)
        return copy == -EBADF ? -ENOENT : copy;
    int seals = fcntl(copy, F_GET_SEALS);
    if (!restore_record_is(copy) || seals < 0 || (seals & SEALS) != SEALS)
        return -ENOENT;
    char name[32];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", copy);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? fd : -errno;
}

static bool is_sound(const struct record_facts *f, uint64_t file_bytes)
{
    return memcmp(f->magic, RECORD_MAGIC, sizeof(f->magic)) == 0 && f->version == RECORD_VERSION &&
           f->total_bytes == file_bytes && f->states_at <= file_bytes &&
           f->n_clusters == file_bytes - f->states_at && f->n_clusters <= CLUSTERS_MAX;
}

/* The record is sealed: it can't get shorter meanwhile. */
static void count_states(int fd, const struct record_facts *f, struct restore_look *look)
{
    CLEANUP_FREE unsigned char *states = malloc(STATES_AT_ONCE);
    uint64_t end = f->states_at + f->n_clusters;
    for (uint64_t at = f->states_at; states && at < end;) {
        uint64_t want = end - at < STATES_AT_ONCE ? end - at : STATES_AT_ONCE;
        ssize_t n = pread(fd, states, (size_t)want, (off_t)at);
        if (n <= 0)
            return;
        for (ssize_t i = 0; i < n; i++) {
            look->n_done += (states[i] & RECORD_STATE_MASK) == RECORD_STATE_DONE;
            look->n_damaged += (states[i] & RECORD_STATE_MASK) == RECORD_STATE_DAMAGED;
        }
        at += (uint64_t)n;
    }
}

static bool is_served(int fd)
{
    if (flock(fd, LOCK_SH | LOCK_NB))
        return true;
    flock(fd, LOCK_UN);
    return false;
}

static int look_at(const struct target *t, int there, struct restore_look *look)
{
    struct record_head head;
    struct stat st;
    *look = (struct restore_look){0};
    CLEANUP_FD int fd = open_record(t, there);
    if (fd < 0)
        return fd == -ENOENT ? 0 : fd;
    if (pread(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head) || fstat(fd, &st) ||
        !is_sound(&head.facts, (uint64_t)st.st_size))
        return 0;
    look->under_way = atomic_load(&head.stage) < RECORD_RELEASED;
    look->served = is_served(fd);
    count_states(fd, &head.facts, look);
    return 0;
}

/* What stands more against using its memory. */
static bool is_worse(const struct restore_look *a, const struct restore_look *b)
{
    if (a->under_way != b->under_way)
        return a->under_way;
    return a->under_way && b->served && (!a->served || a->n_damaged > b->n_damaged);
}

/* One that is ending has no descriptors any more, some time before it has ended. */
static bool has_memory(const struct target *t)
{
    uint64_t kib;
    return target_status_number(t, "VmSize", &kib) == 0;
}

int restore_look(const struct target *t, struct restore_look *look)
{
    int rc = 0, there = -1;
    *look = (struct restore_look){0};
    for (bool first = true; rc == 0 && (there = restore_record_next(t, there)) >= 0;
         first = false) {
        struct restore_look one;
        rc = look_at(t, there, &one);
        if (rc == 0 && (first || is_worse(&one, look)))
            *look = one;
    }
    if (rc == 0 && there != -ENOENT)
        rc = there;
    return rc == 0 && !look->under_way && !has_memory(t) ? -ESRCH : rc;
}

void restore_look_words(const struct restore_look *look, char *text, size_t size)
{
    char done[FORMAT_MAX];
    format_bytes(done, look->n_done * IMAGE_CLUSTER_BYTES);
    if (!look->served)
        snprintf(
            text, size,
            "it was being restored, and the vmsnap that brought its memory in is gone (%s came "
            "in): the guest waits at what is missing",
            done);
    else if (look->n_damaged)
        snprintf(text, size,
                 "a restore is still bringing its memory in (%s so far), but can't read all of it: "
                 "%llu KiB are damaged in its image",
                 done, (unsigned long long)(look->n_damaged * (IMAGE_CLUSTER_BYTES / 1024)));
    else
        snprintf(text, size, "a restore is still bringing its memory in (%s so far)", done);
}

/* What can be done about it. */
static void hint(const struct target *t, const struct restore_look *look, struct error *e)
{
    if (!look->served)
        error_hint(e,
                   "'vmsnap restore --resume %d' brings in the rest; try again after its summary",
                   (int)t->pid);
    else if (look->n_damaged)
        error_hint(e,
                   "'vmsnap restore --resume %d IMAGE' takes over with a sound copy of the image; "
                   "try again when all is in",
                   (int)t->pid);
    else
        error_hint(e,
                   "try again after the restore's summary; one with --no-fill never has it: end "
                   "that vmsnap with SIGKILL (the guest waits), and let 'vmsnap restore "
                   "--resume %d' bring in the rest",
                   (int)t->pid);
}

/* All is in, but its descriptors may still be being closed, which takes a tracer's place. */
static void wait_for_hand_off(const struct target *t)
{
    uint64_t until_ns = clock_monotonic_ns() + HAND_OFF_WAIT_NS;
    while (restore_record_next(t, -1) >= 0 && clock_monotonic_ns() < until_ns)
        usleep(HAND_OFF_LOOK_US);
}

int restore_refuse_under_way(const struct target *t, struct error *e)
{
    struct restore_look look;
    int ret = restore_look(t, &look);
    if (ret)
        return error_set(e, VMSNAP_EXIT_TARGET, -ret, "process %d: cannot read its descriptors",
                         (int)t->pid);
    if (!look.under_way) {
        if (look.served)
            wait_for_hand_off(t);
        return 0;
    }
    char words[256];
    restore_look_words(&look, words, sizeof(words));
    error_set(e, VMSNAP_EXIT_BUSY, 0, "process %d: %s", (int)t->pid, words);
    hint(t, &look, e);
    if (e && !look.served)
        e->guest = GUEST_WAITING;
    return -EBUSY;
}
