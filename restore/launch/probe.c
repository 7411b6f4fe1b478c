#include "restore/launch/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fellow.h"

static int connect_result(const struct sockaddr_un *address, socklen_t len)
{
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)address, len) == 0 || errno == EPROTOTYPE)
        return 1;
    return errno == ECONNREFUSED || errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
}

int probe_unix_held(int base_fd, const char *path, bool abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (abstract) {
        if (len > sizeof(address.sun_path) - 1)
            return -ENAMETOOLONG;
        memcpy(address.sun_path + 1, path, len);
        return connect_result(&address,
                              (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len));
    }
    /* Reached through /proc, so that neither our own directory nor the length of a path matters. */
    CLEANUP_FD int fd = openat(base_fd, path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", fd);
    return connect_result(&address, sizeof(address));
}

static int try_bind(const struct addrinfo *ai)
{
    CLEANUP_FD int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (ai->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    return bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 && errno == EADDRINUSE;
}

int probe_tcp_held(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    if (strcmp(port, "0") == 0 || getaddrinfo(host[0] ? host : NULL, port, &hints, &list))
        return 0;
    int held = 0;
    for (const struct addrinfo *ai = list; ai && !held; ai = ai->ai_next)
        held = try_bind(ai);
    freeaddrinfo(list);
    return held;
}

int probe_mapped_by(const struct stat *file)
{
    struct fellow found;
    int rc = fellow_find(&found, &(struct fellow_search){.file = file});
    return rc > 0 ? (int)found.pid : rc;
}
