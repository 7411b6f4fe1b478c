#include "restore/launch/detach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"

/* The word is one letter and what belongs to it: R and the object as JSON, with a newline at the
 * end, or E and the error. It ends by itself: several processes hold the line. */
#define WORD_MAX 65536

/* ---- the caller ---- */

static bool is_whole(const char *word, size_t len)
{
    return len > 0 && (word[0] == 'E' ? len == 1 + sizeof(struct error) : word[len - 1] == '\n');
}

/* Reads a word, at most `size` bytes: how many, less than a word's if nobody is left to say it. */
static size_t read_word(int fd, char *buf, size_t size)
{
    size_t have = 0;
    while (have < size && !is_whole(buf, have)) {
        ssize_t n = read(fd, buf + have, size - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        have += (size_t)n;
    }
    return have;
}

static int explain_silence(pid_t server, struct error *e)
{
    int status = 0;
    e->guest = GUEST_UNKNOWN;
    if (waitpid(server, &status, 0) == server && WIFSIGNALED(status))
        return error_set(e, VMSNAP_EXIT_FAILED, 0, "the server was ended by signal %d",
                         WTERMSIG(status));
    return error_set(e, VMSNAP_EXIT_FAILED, 0, "the server ended without a word");
}

static int wait_for_word(pid_t server, int fd, json_t **running, struct error *e)
{
    CLEANUP_FD int from_server = fd;
    CLEANUP_FREE char *word = malloc(WORD_MAX);
    if (!word)
        return error_set(e, VMSNAP_EXIT_FAILED, ENOMEM, "no memory");
    size_t len = read_word(from_server, word, WORD_MAX);
    if (len > 1 && word[0] == 'R')
        *running = json_loadb(word + 1, len - 1, 0, NULL);
    if (*running)
        return 0;
    if (len != 1 + sizeof(*e) || word[0] != 'E')
        return explain_silence(server, e);
    memcpy(e, word + 1, sizeof(*e));
    return e->err ? -e->err : -EIO;
}

bool detach_fork(int *fd, json_t **running, int *rc, struct error *e)
{
    int fds[2];
    *running = NULL;
    *fd = -1;
    if (pipe2(fds, O_CLOEXEC)) {
        *rc = error_set(e, VMSNAP_EXIT_FAILED, errno, "can't make a pipe");
        return false;
    }
    pid_t server = fork();
    if (server == 0) {
        close(fds[0]);
        setsid();
        *fd = fds[1];
        return true;
    }
    int err = errno;
    close(fds[1]);
    if (server < 0) {
        close(fds[0]);
        *rc = error_set(e, VMSNAP_EXIT_FAILED, err, "can't start the server's process");
        return false;
    }
    *rc = wait_for_word(server, fds[0], running, e);
    return false;
}

/* ---- the server ---- */

/* In one write: far below what a pipe takes at once. */
static int tell(int fd, char letter, const void *data, size_t len, const char *end)
{
    struct iovec v[3] = {{.iov_base = &letter, .iov_len = 1},
                         {.iov_base = (void *)data, .iov_len = len},
                         {.iov_base = (void *)end, .iov_len = strlen(end)}};
    ssize_t n = writev(fd, v, 3);
    int rc = n == (ssize_t)(1 + len + strlen(end)) ? 0 : -EPIPE;
    close(fd);
    return rc;
}

void detach_leave_terminal(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return;
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    close(null);
}

int detach_tell_running(int fd, const json_t *running)
{
    CLEANUP_FREE char *text = json_dumps(running, JSON_COMPACT);
    int rc = text && strlen(text) < WORD_MAX ? tell(fd, 'R', text, strlen(text), "\n") : -ENOMEM;
    if (rc == 0)
        detach_leave_terminal();
    return rc;
}

void detach_tell_error(int fd, const struct error *e)
{
    tell(fd, 'E', e, sizeof(*e), "");
}
